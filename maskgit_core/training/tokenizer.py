"""Training of the small VQ tokenizer (`tokenizers/vq.py`), one step a call, resumable bit for bit.

The encoder and decoder first learn as a plain autoencoder; then the codebook is found in its latents by k-means
(Lloyd), and from there on it follows them as an exponential moving average (van den Oord et al. 2017, appendix A.1).
Codes that have gone out of use are moved onto latents of the current batch (Dhariwal et al. 2020, Jukebox, 3.2).

Every random choice is a function of (seed, step), so a run that was killed goes on as if it had not been.

B batch, C image channels, H W height and width, N latents, K codebook, D code width.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_core.errors import WeightsError
from maskgit_core.hints import Range
from maskgit_core.images.pixels import stack
from maskgit_core.order import sample_ids
from maskgit_core.tokenizers.vq import Reconstruction, Tokenizer

if TYPE_CHECKING:
    from maskgit_core.datasets import ImageSequence

Positive = Annotated[int, Range(1, 10_000_000)]
Weight = Annotated[float, Range(0, 1000)]
Share = Annotated[float, Range(0, 1)]

# Separates the random streams of one seed; the numbers themselves mean nothing.
_HELD_OUT, _KMEANS, _REVIVAL = range(3)


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a tokenizer's training; the fields are config keys of the `train_tokenizer` stage.

    Args:
        num_train_steps: optimizer steps; the learning rate falls to 0 at the last.
        batch_size: images a step.
        lr: highest learning rate (AdamW), reached after `warmup_steps`.
        continuous_share: share of the steps in which there is no codebook yet; it is found by k-means afterwards.
        commitment_weight: of the squared distance between latents and their codes.
        edge_weight: of the absolute error of neighbouring pixels' differences; higher is crisper.
        codebook_decay: of the moving average by which codes follow their latents.
        revive_every: steps between moving unused codes onto latents in use; 0: never.
        flip: mirror half of the images left to right.
        seed: of initial weights, order, flips, k-means and revival.
    """

    num_train_steps: Positive = 20_000
    batch_size: Positive = 64
    lr: Annotated[float, Range(0, 1, low_open=True)] = 1e-3
    warmup_steps: Annotated[int, Range(0, 1_000_000)] = 100
    continuous_share: Share = 0.15
    commitment_weight: Weight = 0.25
    edge_weight: Weight = 0.5
    codebook_decay: Share = 0.98
    revive_every: Annotated[int, Range(0, 1_000_000)] = 20
    flip: bool = False
    seed: int = 0

    @property
    def continuous_steps(self) -> int:
        """The first steps, in which there is no codebook; at least one step has one."""
        return min(round(self.continuous_share * self.num_train_steps), self.num_train_steps - 1)


def stream(seed: int, purpose: int, index: int = 0) -> np.random.Generator:
    """A random stream of its own for each (seed, purpose, index)."""
    return np.random.default_rng([seed, purpose, index])


def held_out_ids(seed: int, num_samples: int, num_held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Data-set indices (to train on, to judge by); at most a tenth is held out, and at least one sample."""
    shuffled = stream(seed, _HELD_OUT).permutation(num_samples)
    count = max(1, min(num_held_out, num_samples // 10))
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


class TrainingImages:
    """The batches of a training run from any step on: one permutation of the images an epoch, flipped or not.

    Args:
        dataset: yields samples with uint8 HWC images of one size.
        ids: the indices to train on.
        recipe: gives batch size, seed, number of steps.
        num_workers: threads that read images ahead; 0 reads in the calling thread.
    """

    def __init__(self, dataset: ImageSequence, ids: np.ndarray, recipe: Recipe, num_workers: int = 0) -> None:
        self.dataset, self.ids, self.recipe, self.num_workers = dataset, ids, recipe, num_workers

    def batch(self, step: int) -> Tensor:
        """The images of one step: uint8 (B, C, H, W)."""
        size = self.recipe.batch_size
        places, flips = sample_ids(self.recipe.seed, step * size, size, len(self.ids), 2 if self.recipe.flip else 1)
        pixels_BCHW, _ = stack(self.dataset, self.ids[places].tolist())
        return torch.where(torch.from_numpy(flips)[:, None, None, None] == 1, pixels_BCHW.flip(3), pixels_BCHW)

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


class Trainer:
    """Tokenizer, optimizer and codebook statistics, advanced one step at a time.

    Attributes:
        step: training steps done.
    """

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self.tokenizer, self.recipe, self.step = tokenizer, recipe, 0
        self.optimizer = torch.optim.AdamW(
            tokenizer.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
        )
        codebook = tokenizer.codebook
        self.counts_K = torch.zeros(codebook.shape[0], device=codebook.device)  # moving average of uses a batch
        self.sums_KD = torch.zeros_like(codebook)  # moving average of the sum of latents a batch

    def train_step(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Advances one step on a batch in [-1, 1]; returns losses as 0-d tensors (reading them may wait)."""
        recipe, tokenizer = self.recipe, self.tokenizer
        if self.step == recipe.continuous_steps:
            self._found_codebook(images_BCHW)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.lr * learning_rate_factor(self.step, recipe.warmup_steps, recipe.num_train_steps)
        quantised = self.step >= recipe.continuous_steps
        made = tokenizer(images_BCHW, quantised=quantised)
        losses = reconstruction_losses(made.images_BCHW, images_BCHW)
        loss = losses["l1"] + recipe.edge_weight * losses["edge"]
        if quantised:
            losses["commitment"] = F.mse_loss(made.latents_ND, made.codes_ND)
            loss = loss + recipe.commitment_weight * losses["commitment"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        self.optimizer.step()
        if quantised:
            self._follow(made)
        self.step += 1
        return {"loss": loss.detach(), **{k: v.detach() for k, v in losses.items()}}

    @torch.no_grad()
    def _found_codebook(self, images_BCHW: Tensor) -> None:
        """k-means on the latents of this batch and sets the moving averages to match."""
        latents_ND = self.tokenizer(images_BCHW, quantised=False).latents_ND
        rng = stream(self.recipe.seed, _KMEANS)
        codebook_KD, counts_K = k_means(latents_ND, len(self.counts_K), rng)
        self.tokenizer.codebook.copy_(codebook_KD)
        self.counts_K.copy_(counts_K)
        self.sums_KD.copy_(codebook_KD * counts_K[:, None])

    @torch.no_grad()
    def _follow(self, made: Reconstruction) -> None:
        """Moves every code towards the mean of the latents it was chosen for; revives the unused."""
        decay = self.recipe.codebook_decay
        latents_ND, tokens_N = made.latents_ND.detach(), made.tokens_Bhw.flatten()
        self.counts_K.lerp_(torch.bincount(tokens_N, minlength=len(self.counts_K)).float(), 1 - decay)
        self.sums_KD.lerp_(torch.zeros_like(self.sums_KD).index_add_(0, tokens_N, latents_ND), 1 - decay)
        settling = self.step >= 0.9 * self.recipe.num_train_steps  # revival stops in the last tenth
        if self.recipe.revive_every and (self.step + 1) % self.recipe.revive_every == 0 and not settling:
            self._revive(latents_ND)
        self.tokenizer.codebook.copy_(self.sums_KD / self.counts_K.clamp_min(1e-5)[:, None])

    def _revive(self, latents_ND: Tensor) -> None:
        """Moves codes used less than a tenth as often as the average onto random latents of this batch."""
        fair = len(latents_ND) / len(self.counts_K)
        dead_J = (self.counts_K < 0.1 * fair).nonzero().flatten()
        picks = stream(self.recipe.seed, _REVIVAL, self.step).integers(len(latents_ND), size=len(dead_J))
        chosen_JD = latents_ND[torch.as_tensor(picks, device=latents_ND.device)]
        self.counts_K[dead_J] = 0.5 * fair
        self.sums_KD[dead_J] = chosen_JD * 0.5 * fair

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, as plain data and tensors."""
        return {
            "step": self.step,
            "tokenizer": self.tokenizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": self.counts_K,
            "sums": self.sums_KD,
        }

    def save(self, path: Path) -> None:
        """Writes the state to one file (readable with `torch.load(weights_only=True)`)."""
        torch.save(self.state(), path)

    def restore(self, path: Path) -> None:
        """Continues from a file that `save` wrote.

        Raises:
            WeightsError: the file is damaged, or was written for another tokenizer.
        """
        try:
            state = torch.load(path, weights_only=True, map_location=self.counts_K.device)
            step, counts_K, sums_KD = int(state["step"]), state["counts"], state["sums"]
            self.tokenizer.load_state_dict(state["tokenizer"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise WeightsError(f"{path}: is no checkpoint of this training ({reason}); delete it") from None
        self.counts_K.copy_(counts_K)
        self.sums_KD.copy_(sums_KD)
        self.step = step


def reconstruction_losses(made_BCHW: Tensor, wanted_BCHW: Tensor) -> dict[str, Tensor]:
    """Mean absolute error of the pixels (`l1`) and of their differences to the right and lower neighbour (`edge`)."""
    error = made_BCHW - wanted_BCHW
    edge = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return {"l1": error.abs().mean(), "edge": edge}


def learning_rate_factor(step: int, warmup_steps: int, num_train_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0 at `num_train_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_train_steps - warmup_steps)))


def k_means(
    latents_ND: Tensor, num_codes: int, rng: np.random.Generator, iterations: int = 10
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random latents; returns centres (K, D) and the number of latents of each (K,).

    Where there are fewer latents than codes, latents are taken more than once.
    """
    picks = rng.choice(len(latents_ND), size=num_codes, replace=len(latents_ND) < num_codes)
    centres_KD = latents_ND[torch.as_tensor(picks, device=latents_ND.device)].clone()
    counts_K = torch.ones(num_codes, device=latents_ND.device)
    for _ in range(iterations):
        nearest_N = torch.addmm(centres_KD.square().sum(1), latents_ND, centres_KD.T, alpha=-2).argmin(1)
        counts_K = torch.bincount(nearest_N, minlength=num_codes).float()
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, nearest_N, latents_ND)
        centres_KD = torch.where(counts_K[:, None] > 0, sums_KD / counts_K.clamp_min(1)[:, None], centres_KD)
    return centres_KD, counts_K


@torch.no_grad()
def held_out_scores(tokenizer: Tokenizer, images_BCHW: Tensor, batch_size: int = 250) -> dict[str, float]:
    """PSNR in dB (mean over images, range 2, clamped), share of codes used and code perplexity on held-out images."""
    psnrs, uses_K = [], torch.zeros(tokenizer.codebook_size, device=images_BCHW.device)
    for images in images_BCHW.split(batch_size):
        tokens = tokenizer.encode(images)
        error_B = (tokenizer.decode(tokens).clamp(-1, 1) - images).square().mean((1, 2, 3))
        psnrs.append(10 * torch.log10(4 / error_B.clamp_min(1e-10)))
        uses_K += torch.bincount(tokens.flatten(), minlength=tokenizer.codebook_size)
    shares_K = uses_K / uses_K.sum()
    perplexity = torch.exp(-(shares_K * shares_K.clamp_min(1e-12).log()).sum())
    usage = (uses_K > 0).float().mean()
    return {"psnr": float(torch.cat(psnrs).mean()), "code_usage": float(usage), "code_perplexity": float(perplexity)}
