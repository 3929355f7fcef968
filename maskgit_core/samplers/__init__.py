"""Reveal orders, one file each, and the options and the call that they share.

A sampler is a frozen dataclass below `StepSampler`: its fields, those of its bases included, are its keys in a config.

Shapes: B samples, L tokens, M masked positions, K codebook.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from maskgit_core.decoding import MIN_ROWS, Decoder, Guidance, Score, reveal_by_score
from maskgit_core.guidance import GuidanceSchedule
from maskgit_core.hints import Neutral, Range
from maskgit_core.layers.reuse import ContextReuse
from maskgit_core.masking import Rounding, Schedule, masked_counts
from maskgit_core.refusals import check_critic


@dataclass(frozen=True, kw_only=True)
class StepSampler(ABC):
    """Reveals tokens in steps, with guidance.

    Attributes:
        num_steps: reveal steps T, one evaluation of the model each (two with guidance).
        schedule, schedule_power: how many tokens stay masked after each step.
        guidance_scale, guidance_schedule, guidance_power: see `maskgit_core/guidance.py`; 1.0 is none.
        guidance_start, guidance_end: guidance only at steps with start <= t / T < end.
        top_k, top_p: limits of the token draw.
        full_every: one full evaluation of the model in so many; the others compute few positions and reuse the keys and
            values of all others (ReCAP, `layers/reuse.py`). 1: all are full.
    """

    needs_critic: ClassVar[bool] = False
    num_steps: Annotated[int, Range(1, 4096)] = 12
    schedule: Schedule = "cosine"
    schedule_power: Annotated[float, Range(0.0, low_open=True)] = 1.0
    guidance_scale: Annotated[float, Range(0.0)] = 1.0
    guidance_schedule: GuidanceSchedule = "constant"
    guidance_power: Annotated[float, Range(0.0, low_open=True)] = 2.5
    guidance_start: Annotated[float, Range(0.0, 1.0)] = 0.0
    guidance_end: Annotated[float, Range(0.0, 1.0)] = 1.0
    top_k: Annotated[int | None, Range(1)] = None
    top_p: Annotated[float | None, Range(0.0, 1.0, low_open=True)] = None
    full_every: Annotated[int, Range(1, 64), Neutral(1)] = 1

    @torch.no_grad()
    def sample(
        self,
        model: Any,
        labels_B: torch.Tensor | None,
        *,
        grid: tuple[int, ...],
        seeds_B: torch.Tensor,
        known_BL: torch.Tensor | None = None,
        critic: Any = None,
    ) -> torch.Tensor:
        """Tokens (B, L) in [0, K): a function of model, label, seed and known tokens of each sample alone.

        Args:
            model: a `Model` (docs/architecture.md), in eval mode.
            labels_B: int64 classes, or None for an unconditional model.
            grid: (H, W) with H * W = L, or (H, W, S) where a model draws S groups for a token.
            seeds_B: int64, one per sample.
            known_BL: int64 tokens that are given, -1 where unknown; None where nothing is known.
            critic: a `maskgit_core.layers.critic.Critic` in eval mode, for the samplers that ask for one.
        Raises:
            ConfigError: a class out of range, a grid or known tokens that do not fit, guidance without classes, no
                critic for a sampler that asks for one.
        """
        check_critic(self.needs_critic, critic is not None)
        guidance = Guidance(
            self.guidance_scale, self.guidance_schedule, self.guidance_power, self.guidance_start, self.guidance_end
        )
        reuse = ContextReuse(model, self.full_every, MIN_ROWS) if self.full_every > 1 else None
        state = Decoder(model, labels_B, grid, seeds_B, known_BL, guidance, self.num_steps, reuse, critic)
        self.fill(state)
        return state.tokens_BL

    @abstractmethod
    def fill(self, state: Decoder) -> None:
        """Reveals every masked token of `state` in `num_steps` steps."""

    def counts(self, state: Decoder, rounding: Rounding = "masked_down") -> torch.Tensor:
        """How many tokens stay masked after each step: int64 (T, B)."""
        return masked_counts(state.unknown_B, self.num_steps, self.schedule, self.schedule_power, rounding)


@dataclass(frozen=True, kw_only=True)
class TemperatureSampler(StepSampler):
    """Draws tokens at a temperature that goes linearly over the steps.

    Attributes:
        temperature, temperature_end: of the token draw, from the first value at progress 0 to the second (None: the
            same) at 1.
    """

    temperature: Annotated[float, Range(0.0, low_open=True)] = 1.0
    temperature_end: Annotated[float | None, Range(0.0, low_open=True)] = None

    @property
    def temperatures(self) -> tuple[float, float]:
        """At progress 0 and at 1."""
        return self.temperature, self.temperature if self.temperature_end is None else self.temperature_end


@dataclass(frozen=True, kw_only=True)
class ScoreSampler(TemperatureSampler):
    """Draws all masked tokens at every step and reveals those whose positions score highest.

    Attributes:
        choice_temperature: of Gumbel noise on the scores, times 1 - (t + 1) / T.
    """

    choice_temperature: Annotated[float, Range(0.0)] = 0.0

    @abstractmethod
    def score(self, state: Decoder) -> Score:
        """The score of one call of `sample`."""

    def fill(self, state: Decoder) -> None:
        """Reveals by the score."""
        reveal_by_score(
            state,
            self.score(state),
            self.counts(state),
            temperatures=self.temperatures,
            choice_temperature=self.choice_temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )
