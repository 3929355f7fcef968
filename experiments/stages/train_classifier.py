"""Stage `train_classifier`: a network that names pictures, for `evaluate` to ask about samples, made once for all runs.

Publishes `classifier.safetensors` and `classifier.json` (its options), and states its accuracy on real pictures that it
was not trained on. It is trained on one device, in memory: for small pictures. Killed anywhere, it goes on from its
last checkpoint and gives the same weights, bit for bit on the CPU.
"""

from __future__ import annotations

import sys
from typing import Annotated

from experiments.config.specs import DatasetSpec
from experiments.running.attempt import Attempt
from maskgit_core.errors import DataError, WeightsError
from maskgit_core.evaluation.classifier import predict
from maskgit_core.evaluation.residual_classifier import Recipe, Trainer
from maskgit_core.files import write_json
from maskgit_core.hints import Execution, Range
from maskgit_core.images.pixels import stack
from maskgit_core.training.checkpoints import save_tensors

VERSION = 1
PRODUCES = "classifier"


def run(
    attempt: Attempt,
    *,
    dataset: DatasetSpec,
    train_split: str = "train",
    test_split: str = "test",
    num_test_images: Annotated[int | None, Range(1, None)] = None,
    recipe: Recipe,
    log_every: Execution[Annotated[int, Range(1, None)]] = 50,
    checkpoint_every: Execution[Annotated[int, Range(1, None)]] = 250,
) -> None:
    """Trains and writes the classifier.

    Args:
        dataset: pictures with classes; `train_split` is learnt, `test_split` judges.
        num_test_images: that judge, the first of the split; None: all.
        recipe: its fields are keys of this stage.
        log_every, checkpoint_every: steps between journal points, and between checkpoints.
    """
    train = dataset.with_options(split=train_split).build()
    if train.num_classes is None or train.num_classes < 2:
        raise DataError("train_classifier.dataset: has no classes; choose another dataset, or leave this step out")
    trainer = Trainer(*stack(train, range(len(train))), train.num_classes, recipe, attempt.device)
    if not attempt.is_main:
        return
    _advance(attempt, trainer, log_every, checkpoint_every)
    model = trainer.model.eval().requires_grad_(False)
    test = dataset.with_options(split=test_split).build()
    images, labels = stack(test, range(min(num_test_images or len(test), len(test))))
    right = (predict(model, (part.to(attempt.device) for part in images.split(250))).cpu() == labels).double().mean()
    about = {"images": len(labels), "split": test_split, "dataset": dataset.name}
    attempt.headline("class_accuracy", float(right), about)
    weights = {name: x.cpu().contiguous() for name, x in model.state_dict().items()}
    options = {"in_channels": images.shape[1], "num_classes": train.num_classes, "width": recipe.width}
    attempt.publish(attempt.files / "classifier.safetensors", lambda path: save_tensors(path, weights, {}))
    told = {
        "num_train_steps": recipe.num_train_steps,
        "trained_on": f"{len(train)} images of {dataset.name} {train_split}",
    }
    write_json(attempt.files / "classifier.json", {"options": options, "about": told, "class_accuracy": float(right)})
    attempt.fact(num_classes=train.num_classes, class_accuracy=float(right))


def _advance(attempt: Attempt, trainer: Trainer, log_every: int, checkpoint_every: int) -> None:
    """Goes on from the newest checkpoint that can be read, and trains to the end or until a stop is asked for."""
    checkpoint, total = attempt.checkpoints / "trainer.pt", trainer.recipe.num_train_steps
    for path in (checkpoint, *(folder / checkpoint.name for folder in attempt.earlier_checkpoints())):
        if path.is_file():
            try:
                trainer.restore(path)
            except WeightsError as error:
                print(f"warning: {error}; passed over", file=sys.stderr)
                continue
            attempt.resumed_at(trainer.step)
            break
    with attempt.progress(total, unit="step", label="training classifier") as progress:
        progress.start_at(trainer.step)
        while trainer.step < total:
            meters = trainer.train_step()
            progress.update()
            if trainer.step % log_every == 0 or trainer.step == total:
                point = {name: float(value) for name, value in meters.items()}
                attempt.log(point, trainer.step)
                progress.line(**point)
            stops = attempt.should_stop and trainer.step < total
            if trainer.step % checkpoint_every == 0 or stops:
                attempt.publish(checkpoint, trainer.save)
                attempt.forget_earlier_checkpoints()
            if stops:
                attempt.stop()
