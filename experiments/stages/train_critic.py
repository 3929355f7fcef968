"""Stage `train_critic`: a critic of what a trained transformer fills in, for `sampler=token_critic`.

Token-Critic (Lezama et al. 2022, https://arxiv.org/abs/2209.04439): cached tokens are masked as in training, the
trained transformer fills the masks in, and the critic learns at which positions it did. Publishes `model.safetensors`
(the moving average where there is one), `raw.safetensors` and `critic.json`. Resumes as `train` does: exactly.
"""

from __future__ import annotations

from typing import Annotated, Literal

from experiments.config.specs import Input
from experiments.running.attempt import Attempt
from experiments.training.cadence import Cadence
from experiments.training.learner import Trunk, critic_learner
from experiments.training.run import TrainingRun
from experiments.training.source import Source
from maskgit_core.hints import Execution, Kind, Range
from maskgit_core.images.views import Views
from maskgit_core.training.recipe import CriticRecipe

VERSION = 1
PRODUCES = "critic"


def run(
    attempt: Attempt,
    *,
    model: Annotated[Input, Kind("model")],
    tokens: Annotated[Input, Kind("tokens")],
    trunk: Trunk = "from_generator",
    weights: Literal["model", "raw"] = "model",
    recipe: CriticRecipe,
    continue_from: Annotated[Input | None, Kind("critic")] = None,
    cadence: Cadence,
    num_workers: Annotated[Execution[int], Range(0, 256)] = 0,
) -> None:
    """Trains a critic.

    Args:
        model: the transformer that fills in the masks; it stays as it is.
        tokens: the cache to train on.
        trunk: the critic's transformer: its own, beginning with the model's weights (`from_generator`) or with fresh
            ones (`fresh`), or the model itself, of which only a second head is trained (`generator`).
        weights: the model's moving average where there is one (`model`), or its `raw` weights.
        recipe, cadence: their fields are keys of this stage.
        continue_from: a finished critic to go on from, or a kept checkpoint.
        num_workers: threads that read ahead.
    """
    source = Source(tokens, None, None, Views("original", None, 10, (0.8, 1.0)), attempt.device, num_workers)
    learner = critic_learner(model, weights, trunk, recipe, attempt.device)
    start = None if continue_from is None else continue_from.files
    TrainingRun(attempt, recipe, learner, source, cadence, start).execute()
