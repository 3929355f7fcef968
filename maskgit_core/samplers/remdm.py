"""Remasking discrete diffusion, ReMDM (Wang et al. 2025, https://arxiv.org/abs/2503.00307), on any masked model.

With a_t = 1 - g(t) the share of revealed tokens, a step from a_t to a_s > a_t masks each revealed token again with
probability sigma_t, and reveals each masked one with probability (a_s - (1 - sigma_t) a_t) / (1 - a_t), drawing its
token from the model, which takes the share of revealed tokens to a_s (section 3). sigma_t is at most
sigma_max = min(1, (1 - a_s) / a_t); section 4 chooses it:

    cap      min(sigma_max, eta)
    rescale  eta sigma_max
    conf     eta sigma_max softmax(-p) over the revealed tokens, p the probability each was drawn with; as in the
             published code (eta = 1 there) masked tokens are revealed as if sigma_t were 0
    loop     reveal to a_on, hold a there with sigma = eta for the steps `loop_start` to `loop_end`, then the rest

Law in place of "revealed once": given tokens never change, nothing is masked again at the last step, and the expected
number of masks follows a_t (in `conf` there are a few more).

Shapes: B samples, L tokens, M drawn positions, K codebook.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from maskgit_core import rng
from maskgit_core.decoding import Decoder, draw_tokens, limited, log_probabilities
from maskgit_core.hints import Range
from maskgit_core.masking import mask_ratio
from maskgit_core.samplers import TemperatureSampler

#: Positions can be masked again.
REMASKS = True


@dataclass(frozen=True, kw_only=True)
class Sampler(TemperatureSampler):
    """Reveals and masks again, each position by its own chance.

    Attributes:
        schedule, schedule_power: the mask ratio g over the steps.
        strategy, eta: sigma_t; see above.
        loop_start, loop_end: for `loop`, as shares of the steps.
        loop_revealed: for `loop`, the share of tokens, a_on, that stay revealed while it holds.
    """

    num_steps: Annotated[int, Range(1, 4096)] = 32
    strategy: Literal["cap", "rescale", "conf", "loop"] = "cap"
    eta: Annotated[float, Range(0.0, 1.0)] = 0.05
    loop_start: Annotated[float, Range(0.0, 1.0)] = 0.45
    loop_end: Annotated[float, Range(0.0, 1.0)] = 0.95
    loop_revealed: Annotated[float, Range(0.0, 1.0, low_open=True, high_open=True)] = 0.9

    def fill(self, state: Decoder) -> None:
        """Reveals and masks again, step by step."""
        unknown_BL, length, seeds_B = state.masked_BL, state.tokens_BL.shape[1], state.seeds_B
        drawn_with_BL = torch.zeros_like(unknown_BL, dtype=torch.float32)
        shares = self.revealed_shares(length)
        for step in range(self.num_steps):
            chance, sigma = self.chances(step, shares)
            again_BL = self._again(unknown_BL & ~state.masked_BL, drawn_with_BL, sigma, seeds_B, step)
            newly_BL = state.masked_BL & (rng.uniforms(seeds_B, rng.ORDER, length, step) < chance)
            left_B = (state.unknown_B * (1.0 - shares[step + 1])).round()
            logits_MK = state.logits(newly_BL, step, left_B)
            start, end = self.temperatures
            temperature = start + (end - start) * (step + 1) / self.num_steps
            uniforms_M = rng.uniforms(seeds_B, rng.TOKEN, length, step)[newly_BL]
            drawn_M = draw_tokens(logits_MK, uniforms_M, temperature=temperature, top_k=self.top_k, top_p=self.top_p)
            sure_M = log_probabilities(limited(logits_MK, self.top_k, None), drawn_M).exp()
            drawn_with_BL = drawn_with_BL.masked_scatter(newly_BL, sure_M)
            state.reveal(newly_BL, torch.zeros_like(state.tokens_BL).masked_scatter(newly_BL, drawn_M))
            state.masked_BL = state.masked_BL | again_BL
            state.tokens_BL = state.tokens_BL.masked_fill(again_BL, state.model.mask_token_id)

    @property
    def loop(self) -> tuple[float, float, float]:
        """Start and end of the loop as shares of the steps, and the share of tokens revealed in it."""
        return self.loop_start, max(self.loop_start, self.loop_end), self.loop_revealed

    def revealed_shares(self, num_tokens: int) -> list[float]:
        """a_t before the first step and after each: T + 1 values from 0 to 1."""
        progress = torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps
        if self.strategy == "loop":
            start, end, held = self.loop
            before = 1.0 - self._ratio(progress / max(start, 1e-9), num_tokens)
            after = 1.0 - self._ratio((progress - end) / max(1.0 - end, 1e-9), num_tokens)
            shares = torch.where(progress < start, before * held, held + (1.0 - held) * after)
        else:
            shares = 1.0 - self._ratio(progress, num_tokens)
        shares[0], shares[-1] = 0.0, 1.0
        return [float(share) for share in shares]

    def _ratio(self, progress: torch.Tensor, num_tokens: int) -> torch.Tensor:
        return mask_ratio(progress.clamp(0.0, 1.0), self.schedule, num_tokens, self.schedule_power)

    def chances(self, step: int, shares: list[float]) -> tuple[float, float]:
        """The probability that a masked token is revealed at a step, and sigma_t, that a revealed one is masked."""
        now, then = shares[step], shares[step + 1]
        if step == self.num_steps - 1:
            return 1.0, 0.0
        most = min(1.0, (1.0 - then) / now) if now > 0 else 1.0
        if self.strategy == "loop":
            start, end, _ = self.loop
            sigma = min(most, self.eta) if start <= step / self.num_steps < end else 0.0
        else:
            sigma = min(most, self.eta) if self.strategy == "cap" else self.eta * most
        returned = 0.0 if self.strategy == "conf" else sigma
        return min(1.0, max(0.0, (then - (1.0 - returned) * now) / (1.0 - now))), sigma

    def _again(
        self, revealed_BL: torch.Tensor, drawn_with_BL: torch.Tensor, sigma: float, seeds_B: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Which revealed positions are masked again: bool (B, L)."""
        chances_BL = torch.full_like(drawn_with_BL, sigma)
        if self.strategy == "conf":
            weights_BL = (-drawn_with_BL).masked_fill(~revealed_BL, -torch.inf).softmax(1).nan_to_num(0.0)
            chances_BL = sigma * weights_BL
        draws_BL = rng.uniforms(seeds_B, rng.CHOICE, revealed_BL.shape[1], step)
        return revealed_BL & (draws_BL < chances_BL)
