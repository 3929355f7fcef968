"""Training batches from images that are encoded on the fly: the same samples, views and tokens as a cache would give.

Shapes: B this rank's share of the batch, L tokens, V views, H × W image, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from maskgit_core.batches.tokens import Batch, Locate, Order
from maskgit_core.images.encoding import Encoder
from maskgit_core.images.views import Views


class ImageBatches:
    """Endless training batches like `maskgit_core.batches.Batches`, for a dataset without a cache.

    Args:
        images: a `Dataset`.
        encoder: turns uint8 views into tokens.
        views: the views of each image; one is drawn per epoch, as from a cache that keeps them all.
        batch_size, seed, rank, world_size, start: as for `Batches`.
        num_workers: threads that read pictures.
        locate: (seed, positions) -> (samples, variants), where some samples are held out.
    """

    def __init__(
        self,
        images: Any,
        encoder: Encoder,
        views: Views,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        num_workers: int = 2,
        locate: Locate | None = None,
    ) -> None:
        self.images, self.encoder, self.views, self.num_workers = images, encoder, views, num_workers
        self.order = Order(
            len(images),
            len(views.names),
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            start=start,
            locate=locate,
        )

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(max(self.num_workers, 1), thread_name_prefix="read-images") as pool:
            for indices_B, samples_B, variants_B in self.order:
                tokens_BL, labels_B = self._read(pool, samples_B, variants_B)
                yield Batch(tokens_BL, labels_B, *map(torch.from_numpy, (indices_B, samples_B, variants_B)))

    def gather(self, samples: np.ndarray, batch_size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (N, L) int64 of the first view of any samples, and their labels (N,), -1 where there are none."""
        parts = [samples[at : at + batch_size] for at in range(0, len(samples), batch_size)]
        with ThreadPoolExecutor(max(self.num_workers, 1), thread_name_prefix="read-images") as pool:
            read = [self._read(pool, part, np.zeros_like(part)) for part in parts]
        return torch.cat([tokens for tokens, _ in read]), torch.cat([labels for _, labels in read])

    def _read(
        self, pool: ThreadPoolExecutor, samples_B: np.ndarray, variants_B: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        read = list(pool.map(self._view, samples_B.tolist(), variants_B.tolist()))
        tokens_BHW, _ = self.encoder(np.stack([view for view, _ in read])[:, None])
        # cloned to a plain tensor: inference tensors cannot be trained on
        return tokens_BHW.cpu().flatten(1).long().clone(), torch.tensor([label for _, label in read])

    def _view(self, sample: int, variant: int) -> tuple[np.ndarray, int]:
        stored = self.images[sample]
        view = self.views.one(stored.image, sample, variant)
        return view, -1 if stored.label is None else int(stored.label)
