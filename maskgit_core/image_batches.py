"""Training batches from images that are encoded on the fly: the same samples, views and tokens as a cache would give.

Shapes: B this rank's share of the batch, L tokens, V views, H × W image, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from maskgit_core.batches import Batch, Order
from maskgit_core.encoding import Encoder
from maskgit_core.variants import Views


class ImageBatches:
    """Endless training batches like `maskgit_core.batches.Batches`, for a data set without a cache.

    Args:
        images: a `Dataset`.
        encoder: turns uint8 views into tokens.
        views: the views of each image; one is drawn per epoch, as from a cache that keeps them all.
        batch_size, seed, rank, world_size, start: as for `Batches`.
        num_workers: threads that read pictures.
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
        )

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(max(self.num_workers, 1), thread_name_prefix="read-images") as pool:
            for indices_B, samples_B, variants_B in self.order:
                read = list(pool.map(self._view, samples_B.tolist(), variants_B.tolist()))
                tokens_BHW, _ = self.encoder(np.stack([view for view, _ in read])[:, None])
                labels_B = torch.tensor([label for _, label in read])
                yield Batch(
                    tokens_BHW.cpu()
                    .flatten(1)
                    .long()
                    .clone(),  # a plain tensor: inference tensors cannot be trained on
                    labels_B,
                    *map(torch.from_numpy, (indices_B, samples_B, variants_B)),
                )

    def _view(self, sample: int, variant: int) -> tuple[np.ndarray, int]:
        found = self.images[sample]
        views, _ = self.views.of(found.image, sample)
        return views[variant], -1 if found.label is None else int(found.label)
