"""Stage `import_model`: published transformer weights become a model that `sample`, `edit` and `evaluate` can use.

The checkpoint must fit the configured model exactly: names and shapes are compared one by one. What a checkpoint does
not say, the config does: the token grid, the number of classes and the codebook's size.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from experiments.config.specs import ModelSpec
from experiments.running.attempt import Attempt
from experiments.running.components import describe
from experiments.training.learner import new_model
from maskgit_core.files import write_json
from maskgit_core.hints import Range, Weights
from maskgit_core.trained import MODEL_FILE, WEIGHTS_FILE
from maskgit_core.training.checkpoints import load_strictly, save_tensors
from maskgit_core.weights.published import read

VERSION = 1
PRODUCES = "model"
#: What DistributedDataParallel (and averaged models) and torch.compile put before names.
WRAPPERS = ("module.", "_orig_mod.")
CONTAINERS = ("state_dict", "model_state_dict", "model")


def run(
    attempt: Attempt,
    *,
    model: ModelSpec,
    weights: Weights[str],
    codebook_size: Annotated[int, Range(2)] = 1024,
    grid_height: Annotated[int, Range(1)] = 16,
    grid_width: Annotated[int, Range(1)] = 16,
    num_classes: Annotated[int | None, Range(1)] = 1000,
) -> None:
    """Loads strictly and publishes.

    Args:
        weights: a name in the registry (`maskgit weights list`) or a file; the `module.` and `_orig_mod.` that
            parallel and compiled training put before names are dropped.
        codebook_size, grid_height, grid_width: of the tokenizer the model was trained with.
        num_classes: None for an unconditional model.
    """
    facts = {
        "codebook_size": codebook_size,
        "num_tokens": grid_height * grid_width,
        "num_classes": num_classes,
        "grid": [grid_height, grid_width],
    }
    transformer = new_model(model, facts, seed=0)
    tensors = {_plain(name): tensor for name, tensor in read(weights, containers=CONTAINERS).items()}
    tensors = getattr(transformer, "from_published", dict)(tensors)
    load_strictly(transformer, tensors, weights)
    state = {name: tensor.float().clone() for name, tensor in transformer.state_dict().items()}
    attempt.publish(attempt.files / WEIGHTS_FILE, partial(save_tensors, tensors=state, facts={}))
    write_json(attempt.files / MODEL_FILE, describe(model, facts))
    attempt.fact(**facts, class_names=[])


def _plain(name: str) -> str:
    """The name without what wrappers put before it, in either order."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name
