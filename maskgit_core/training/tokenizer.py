"""Training of a tokenizer (`tokenizers/vq.py`, `tokenizers/vqgan.py`), one step a call, resumable bit for bit.

With the quantizer `vq`, encoder and decoder first learn as a plain autoencoder; then the codebook is found in its
latents by k-means (Lloyd), and from there on it follows them (`training/codebook.py`) or is trained by gradients. The
losses of VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841) are switches of the recipe.

Every random choice is a function of (seed, step), so a run that was killed goes on as if it had not been. Gradients,
codebook statistics and adaptive weights are averaged over processes, so that their number changes rounding alone.

B batch, C image channels, H W height and width, N latents, K codebook, D code width.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgit_core.errors import WeightsError
from maskgit_core.layers.discriminator import Discriminator
from maskgit_core.layers.quantizers import Reconstruction, bit_entropies
from maskgit_core.training.adversarial import Adversary, adaptive_weight
from maskgit_core.training.codebook import CodebookAverage, k_means
from maskgit_core.training.exchange import Exchange
from maskgit_core.training.muon import Muon
from maskgit_core.training.perceptual import PerceptualLoss
from maskgit_core.training.recipe import Ema
from maskgit_core.training.tokenizer_images import TrainingImages, held_out_ids
from maskgit_core.training.tokenizer_recipe import Recipe, learning_rate_factor

__all__ = ["Recipe", "Trainer", "TrainingImages", "held_out_ids", "held_out_scores", "k_means", "learning_rate_factor"]


class Trainer:
    """Tokenizer, optimizer, codebook statistics and discriminator, advanced one step at a time.

    Args:
        tokenizer: a `vq` or `vqgan` tokenizer, on its device.
        recipe: what is asked.
        compiled: compile encoder, decoder and discriminator.

    Attributes:
        step: training steps done.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe, compiled: bool = False) -> None:
        self.tokenizer, self.recipe, self.step = tokenizer, recipe, 0
        self.exchange = Exchange()
        codebook, kind = tokenizer.codebook, tokenizer.quantizer.kind
        by_gradient = kind == "vq" and recipe.codebook_update == "gradient"
        named = {name: p for name, p in tokenizer.named_parameters() if p is not codebook}
        if by_gradient:
            named["codebook"] = codebook.requires_grad_(True)
        self.parameters: dict[str, Tensor] = named
        self.optimizer = self._optimizer()
        self.average = None if kind != "vq" else CodebookAverage(
            codebook.detach(), recipe.codebook_decay, tokenizer.quantizer.normalised, self.exchange, recipe.seed
        )  # fmt: skip
        self.follows = kind == "vq" and not by_gradient
        device = codebook.device
        self.perceptual = None if recipe.perceptual == "none" else PerceptualLoss(recipe.perceptual).to(device)
        self.adversary = self._adversary(device) if recipe.disc_weight else None
        self.ema = None if recipe.ema_decay is None else Ema(named)
        self._forward = torch.compile(tokenizer) if compiled else tokenizer

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe, named = self.recipe, self.parameters
        betas = (recipe.betas[0], recipe.betas[1])
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(
                list(named.values()), lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay, fused=True
            )
        ends = [[n for n, p in named.items() if n.startswith(side) and p.dim() == 4] for side in ("encoder", "decoder")]
        inner = {name for names in ends for name in names[1:-1]}
        parts = [[p for name, p in named.items() if (name in inner) == muon] for muon in (False, True)]
        groups: list[dict[str, Any]] = [{"params": parts[0]}, {"params": parts[1], "muon": True}]
        return Muon(groups, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)

    def _adversary(self, device: torch.device) -> Adversary:
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed + 1)
            network = Discriminator(self.tokenizer.in_channels, recipe.disc_width, recipe.disc_layers, recipe.disc_norm)
        betas = (recipe.betas[0], recipe.betas[1])
        return Adversary(
            network.to(device), recipe.disc_lr or recipe.lr, betas, recipe.lecam_weight, self.exchange.mean
        )

    @property
    def num_continuous(self) -> int:
        """Steps without a codebook; only `vq` has any."""
        return self.recipe.continuous_steps if self.average is not None else 0

    def train_step(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Advances one step on this process's images in [-1, 1]; returns meters as 0-d tensors (reading may wait)."""
        recipe, step = self.recipe, self.step
        parts = images_BCHW.chunk(recipe.accumulate)
        quantised = step >= self.num_continuous
        if self.average is not None and step == recipe.continuous_steps:
            self._find_codebook(parts[0])
        meters: dict[str, Tensor] = {}
        chosen: list[Reconstruction] = []
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            made, losses = self._learn(part, quantised)
            for name, value in losses.items():
                meters[name] = meters[name] + value / len(parts) if name in meters else value / len(parts)
            chosen.append(made)
        self.exchange.average_gradients(self.parameters.values())
        meters["grad_norm"] = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), recipe.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        self.optimizer.step()
        if self.adversary is not None and step >= recipe.disc_start:
            self.exchange.average_gradients(self.adversary.parameters)
            scale = recipe.learning_rate(step) / recipe.lr
            meters["disc_grad_norm"] = self.adversary.step((recipe.disc_lr or recipe.lr) * scale, recipe.grad_clip)
        if quantised:
            meters |= self._followed(chosen)
        if self.ema is not None and recipe.ema_decay is not None:
            self.ema.update(self.parameters, min(recipe.ema_decay, (1 + step) / (10 + step)))
        self.step += 1
        return meters

    def _learn(self, images_BCHW: Tensor, quantised: bool) -> tuple[Reconstruction, dict[str, Tensor]]:
        """Adds the gradients of one micro-batch; returns what was made (without gradient) and its losses."""
        recipe, share = self.recipe, 1 / self.recipe.accumulate
        wanted_BCHW = self.tokenizer.seen(images_BCHW)
        with self._precision():
            made = self._forward(images_BCHW, quantised=quantised)
        made = made._replace(images_BCHW=made.images_BCHW.float())
        losses = reconstruction_losses(made.images_BCHW, wanted_BCHW)
        loss = recipe.l1_weight * losses["l1"] + recipe.edge_weight * losses["edge"]
        if recipe.l2_weight:
            loss = loss + recipe.l2_weight * losses["l2"]
        if self.perceptual is not None:
            with self._precision():
                losses["perceptual"] = self.perceptual(made.images_BCHW, wanted_BCHW).float()
            loss = loss + recipe.perceptual_weight * losses["perceptual"]
        adversary = self.adversary if self.step >= recipe.disc_start else None
        if adversary is not None:
            loss = self._with_adversary(adversary, loss, made.images_BCHW, losses)
        if quantised:
            loss = loss + self._quantiser_loss(made, losses)
        (loss * share if share < 1 else loss).backward()
        if adversary is not None:
            with self._precision():
                losses |= adversary.learn(wanted_BCHW, made.images_BCHW, share)
        meters = {name: value.detach() for name, value in {"loss": loss, **losses}.items()}
        return Reconstruction(*(value.detach() for value in made)), meters

    def _with_adversary(self, adversary: Adversary, loss: Tensor, made: Tensor, losses: dict[str, Tensor]) -> Tensor:
        with self._precision():
            losses["adversarial"] = adversary.judge(made).float()
        weight: Tensor | float = self.recipe.disc_weight
        if self.recipe.adaptive_weight:
            last = self.tokenizer.last_layer
            losses["adaptive_weight"] = adaptive_weight(loss, losses["adversarial"], last, self.exchange.mean)
            weight = weight * losses["adaptive_weight"]
        return loss + weight * losses["adversarial"]

    def _quantiser_loss(self, made: Reconstruction, losses: dict[str, Tensor]) -> Tensor:
        """Commitment of the latents, what moves codes by gradient, and LFQ's entropies."""
        recipe, kind = self.recipe, self.tokenizer.quantizer.kind
        if kind == "fsq":
            return made.latents_ND.new_zeros(())
        losses["commitment"] = F.mse_loss(made.latents_ND, made.codes_ND.detach())
        loss = recipe.commitment_weight * losses["commitment"]
        if kind == "vq" and not self.follows:
            loss = loss + F.mse_loss(made.codes_ND, made.latents_ND.detach())
        if kind == "lfq":
            sure, spread = bit_entropies(made.latents_ND, recipe.entropy_temperature, self.exchange.mean)
            losses |= {"code_entropy": sure, "codebook_entropy": spread}
            loss = loss + recipe.entropy_weight * (sure - spread)
        return loss

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.tokenizer.codebook.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def _find_codebook(self, images_BCHW: Tensor) -> None:
        assert self.average is not None
        with self._precision():
            latents_ND = self.tokenizer(images_BCHW, quantised=False).latents_ND
        self.average.initialise(latents_ND)
        if self.ema is not None and "codebook" in self.ema.averages:
            self.ema.averages["codebook"].copy_(self.tokenizer.codebook)

    @torch.no_grad()
    def _followed(self, chosen: list[Reconstruction]) -> dict[str, Tensor]:
        """Moves the codebook after the step's latents; meters of the codes in use on this process."""
        recipe, step = self.recipe, self.step
        tokens_N = torch.cat([made.tokens_Bhw.flatten() for made in chosen])
        if self.average is not None and self.follows:
            settling = step >= 0.9 * recipe.num_train_steps  # revival stops in the last tenth
            revives = bool(recipe.revive_every) and (step + 1) % recipe.revive_every == 0 and not settling
            latents_ND = torch.cat([made.latents_ND for made in chosen])
            self.average.follow(tokens_N, latents_ND, step if revives else None, chosen[-1].latents_ND)
        return code_use(torch.bincount(tokens_N, minlength=self.tokenizer.codebook_size))

    @contextlib.contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[Any]:
        """The tokenizer with its moving average (where there is one) as its weights, for as long as this lasts."""
        own = [parameter.detach().clone() for parameter in self.parameters.values()] if self.ema else []
        if self.ema is not None:
            torch._foreach_copy_(list(self.parameters.values()), list(self.ema.averages.values()))
        try:
            yield self.tokenizer
        finally:
            if own:
                torch._foreach_copy_(list(self.parameters.values()), own)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, as plain data and tensors."""
        state = {
            "step": self.step,
            "tokenizer": self.tokenizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **(self.average.state() if self.average is not None else {}),
        }
        if self.adversary is not None:
            state["adversary"] = self.adversary.state()
        if self.ema is not None:
            state["ema"] = self.ema.averages
        return state

    def save(self, path: Path) -> None:
        """Writes the state to one file (readable with `torch.load(weights_only=True)`)."""
        torch.save(self.state(), path)

    def restore(self, path: Path) -> None:
        """Continues from a file that `save` wrote.

        Raises:
            WeightsError: the file is damaged, or was written for another tokenizer.
        """
        try:
            state = torch.load(path, weights_only=True, map_location=self.tokenizer.codebook.device)
            step = int(state["step"])
            self.tokenizer.load_state_dict(state["tokenizer"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.restore(state)
            if self.adversary is not None:
                self.adversary.restore(state["adversary"])
            for name, average in self.ema.averages.items() if self.ema is not None else ():
                average.copy_(state["ema"][name])
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise WeightsError(f"{path}: is no checkpoint of this training ({reason}); delete it") from None
        self.step = step


def reconstruction_losses(made_BCHW: Tensor, wanted_BCHW: Tensor) -> dict[str, Tensor]:
    """Mean absolute (`l1`) and squared (`l2`) error of the pixels, and mean absolute error of their differences to the
    right and lower neighbour (`edge`)."""
    error = made_BCHW - wanted_BCHW
    edge = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return {"l1": error.abs().mean(), "edge": edge, "l2": error.square().mean()}


def code_use(uses_K: Tensor) -> dict[str, Tensor]:
    """Share of the codes that were used, and the perplexity exp(entropy) of their use, of counts (K,); 0-d tensors."""
    shares_K = uses_K.float() / uses_K.sum()
    perplexity = torch.exp(torch.special.entr(shares_K).sum())
    return {"code_usage": (uses_K > 0).float().mean(), "code_perplexity": perplexity}


@torch.no_grad()
def held_out_scores(tokenizer: Any, images_BCHW: Tensor, batch_size: int = 250) -> dict[str, float]:
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
