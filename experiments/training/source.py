"""The `source` keys of a training: tokens from shards or images encoded on the fly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from experiments.config.specs import DatasetSpec, Input, TokenizerSpec
from experiments.running.components import load_tokenizer, tokenizer_behind
from maskgit_core.batches.held_out import HeldOut, Split
from maskgit_core.batches.images import ImageBatches
from maskgit_core.batches.tokens import Batches
from maskgit_core.errors import ConfigError
from maskgit_core.images.encoding import Encoder, token_grid
from maskgit_core.images.views import Views
from maskgit_core.shards.reader import TokenShards


class Source:
    """Where training batches come from, and the facts that follow: codebook size, grid, classes."""

    def __init__(
        self,
        tokens: Input | None,
        images: DatasetSpec | None,
        tokenizer: Input | TokenizerSpec | None,
        views: Views,
        device: str,
        num_workers: int,
    ) -> None:
        self.num_workers, self._tokens = num_workers, tokens
        self._shards: Any = None
        self._network: Any = None
        self.held_out: HeldOut | None = None
        self._split: Split | None = None
        self._device = device
        if images is None and tokens is not None:
            self._shards = shards = TokenShards(tokens.files)
            grid, codebook_size, num_classes = shards.grid, shards.codebook_size, shards.num_classes
            names = list(tokens.facts.get("class_names", []))
        elif images is not None and tokenizer is not None:
            self._images, self._network = images.build(), load_tokenizer(tokenizer, device)
            network = self._network
            self._encoder, self._views = Encoder(network, device, "fp32"), views
            height, width = views.one(self._images[0].image, 0, 0).shape[:2]
            grid = token_grid(network, (height, width))
            codebook_size, num_classes = network.codebook_size, self._images.num_classes
            names = list(self._images.class_names)
        else:
            raise ConfigError(
                "train.tokens: neither cached tokens nor images to encode; let the step need cache_tokens, or set "
                "train.images to a dataset and let it need a tokenizer"
            )
        self.facts = {
            "codebook_size": codebook_size,
            "num_tokens": grid[0] * grid[1],
            "num_classes": num_classes,
            "grid": list(grid),
            "class_names": names,
        }

    def tokenizer(self) -> object:
        """The tokenizer of these tokens: the one that encodes on the fly, or the one that made the cache."""
        return self._network if self._tokens is None else tokenizer_behind(self._tokens)

    def hold_out(self, share: float, *, is_looked_at: bool) -> None:
        """Keeps a share of the samples from training; the process that logs their likelihood reads them."""
        if self._shards is not None:
            self._split = Split(len(self._shards), self._shards.num_variants, share)
        else:
            self._split = Split(len(self._images), len(self._views.names), share)
        if not is_looked_at:
            return
        indices_N = self._split.held_out()
        if self._shards is not None:
            tokens_NL, labels_N = map(torch.from_numpy, self._shards.gather(indices_N))
        else:
            tokens_NL, labels_N = self._images_in_batches(batch_size=1, seed=0).gather(indices_N)
        self.held_out = HeldOut(tokens_NL, labels_N, indices_N, self._device)

    def batches(self, **place: Any) -> Iterable[object]:
        """Endless batches; `place` is batch_size, seed, rank, world_size and start."""
        if self._shards is None:
            return self._images_in_batches(**place)
        locate = None if self._split is None else self._split.samples_at
        return Batches(self._shards, num_workers=self.num_workers, locate=locate, **place)

    def _images_in_batches(self, **place: Any) -> ImageBatches:
        locate = None if self._split is None else self._split.samples_at
        return ImageBatches(
            self._images, self._encoder, self._views, num_workers=self.num_workers, locate=locate, **place
        )
