"""The pictures a tokenizer is trained on, and those it is judged by.

B batch, C image channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from maskgit_core.images.pixels import stack
from maskgit_core.order import sample_ids
from maskgit_core.training.codebook import CROP, HELD_OUT, stream
from maskgit_core.training.tokenizer_recipe import Recipe

if TYPE_CHECKING:
    from maskgit_core.datasets import ImageSequence


def held_out_ids(seed: int, num_samples: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Dataset indices (to train on, to judge by); at most a tenth is held out, and at least one sample."""
    shuffled = stream(seed, HELD_OUT).permutation(num_samples)
    count = max(1, min(num_held_out, num_samples // 10))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


class TrainingImages:
    """The batches of a training run from any step on: one permutation of the images an epoch, flipped and cut or not.

    Args:
        dataset: yields samples with uint8 HWC images of one size.
        ids: the indices to train on.
        recipe: gives batch size, seed, number of steps, flips and crops.
        num_workers: threads that read images ahead; 0 reads in the calling thread.
        rank, processes: of this training; each process sees its share of every part of a batch.
    """

    def __init__(
        self,
        dataset: ImageSequence,
        ids: np.ndarray,
        recipe: Recipe,
        num_workers: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.dataset, self.ids, self.recipe, self.num_workers = dataset, ids, recipe, num_workers
        own = np.arange(recipe.batch_size).reshape(recipe.accumulate, processes, -1)[:, rank]
        self.own = own.ravel()  # places in a batch, part after part

    def batch(self, step: int) -> Tensor:
        """This process's images of one step: uint8 (B, C, H, W)."""
        size = self.recipe.batch_size
        places, flips = sample_ids(self.recipe.seed, step * size, size, len(self.ids), 2 if self.recipe.flip else 1)
        places, flips = places[self.own], flips[self.own]
        pixels_BCHW, _ = stack(self.dataset, self.ids[places].tolist())
        if self.recipe.crop_size is not None and self.recipe.crop_size < min(pixels_BCHW.shape[2:]):
            pixels_BCHW = self._cut(pixels_BCHW, self.recipe.crop_size, step)
        return torch.where(torch.from_numpy(flips)[:, None, None, None] == 1, pixels_BCHW.flip(3), pixels_BCHW)

    def _cut(self, pixels_BCHW: Tensor, side: int, step: int) -> Tensor:
        height, width = pixels_BCHW.shape[2:]
        corners = stream(self.recipe.seed, CROP, step).random((self.recipe.batch_size, 2))[self.own]
        tops, lefts = (corners * [height - side + 1, width - side + 1]).astype(int).T.tolist()
        cuts = [x[:, t : t + side, s : s + side] for x, t, s in zip(pixels_BCHW, tops, lefts, strict=True)]
        return torch.stack(cuts)

    def since(self, start: int) -> Iterator[Tensor]:
        """The batches of steps `start`, `start + 1`, ... to the last."""
        steps = range(start, self.recipe.num_train_steps)
        if self.num_workers == 0:
            yield from map(self.batch, steps)
            return
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="images") as pool:
            ahead = [pool.submit(self.batch, step) for step in steps[: 2 * self.num_workers]]
            for step in steps:
                ready = ahead.pop(0).result()
                if step + 2 * self.num_workers < steps.stop:
                    ahead.append(pool.submit(self.batch, step + 2 * self.num_workers))
                yield ready
