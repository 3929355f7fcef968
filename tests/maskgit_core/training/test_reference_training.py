"""Twenty training steps against the references' own loops (see `goldens/training.json`), and every recipe's values.

Same weights, tokens, masks and dropped labels, dropout 0: losses and weights are equal within 2e-6.
"""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from weight_recipe import state_dict

from maskgit_core import rng
from maskgit_core.batches.tokens import Batch
from maskgit_core.training.masked import Masker
from maskgit_core.training.recipe import Recipe
from maskgit_core.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[3]
FIGURES = json.loads((Path(__file__).parent / "goldens/training.json").read_text())["trainings"]
K, CLASSES = 24, 5


def recipe_of(name: str, **changed: Any) -> tuple[Recipe, dict[str, Any]]:
    """A recipe file with some values changed, and what it sets of the model."""
    told = yaml.safe_load((ROOT / f"conf/recipe/{name}.yaml").read_text())
    values = {**told["train"], **changed}
    return Recipe(**{**values, "betas": tuple(values["betas"])}), told.get("model", {})


def batch(recipe: Recipe, num_tokens: int, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    numbers_B = torch.arange(step * recipe.batch_size, (step + 1) * recipe.batch_size)
    seeds_B = rng.sample_seeds(77, numbers_B)
    labels_B = (rng.uniforms(seeds_B, 92, 1)[:, 0] * CLASSES).long()
    return (rng.uniforms(seeds_B, 90, num_tokens) * K).long(), labels_B, numbers_B


def spread(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.detach().flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(4, len(flat))).long()]


@pytest.mark.parametrize("entry", FIGURES, ids=lambda e: f"{e['recipe']}-{e['grid'][0]}")
def test_twenty_steps_equal_the_references_own_loop(entry: dict[str, Any]) -> None:
    recipe, of_model = recipe_of(entry["recipe"], **entry["changed"])
    num_tokens = entry["grid"][0] * entry["grid"][1]
    size = {"dim": 32, "num_layers": 2, "num_heads": 4, "dropout": 0.0, **of_model}
    model = importlib.import_module(f"maskgit_core.models.{entry['model']}").Model(
        codebook_size=K, num_tokens=num_tokens, num_classes=CLASSES, **size
    )
    made = state_dict({key: tuple(value.shape) for key, value in model.state_dict().items()}, entry["seed"])
    if entry["model"] == "halton":
        made["head.weight"] = made["tok_emb.weight"]
    model.load_state_dict(made)
    trainer, masker = Trainer(model, recipe), Masker(recipe, model.mask_token_id, model.null_label)
    losses = []
    for step in range(20):
        tokens_BL, labels_B, numbers_B = batch(recipe, num_tokens, step)
        trainer.train_step(masker.split(Batch(tokens_BL, labels_B, numbers_B, numbers_B, numbers_B), 1))
        losses.append(trainer.meters.read()["loss"])
    assert losses == pytest.approx(entry["losses"], abs=2e-6)
    parameters = dict(model.named_parameters())
    for name, values in entry["weights"].items():
        assert spread(parameters[name]).tolist() == pytest.approx(values, abs=2e-6), name
    for name, values in entry["averages"].items():
        assert trainer.ema is not None
        assert spread(trainer.ema.averages[name]).tolist() == pytest.approx(values, abs=2e-6), name


#: What each repository's own configuration says, by this project's keys; where it says it.
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "maskgit": (
        "google-research/maskgit 1db2359, configs/base_config.py, maskgit_class_cond_config.py",
        {"batch_size": 256, "lr": 1e-4, "lr_schedule": "constant", "warmup_steps": 5000, "betas": [0.9, 0.96],
         "weight_decay": 0.045, "label_smoothing": 0.1, "loss_on": "masked", "mask_schedule": "cosine",
         "min_mask_ratio": 0.5, "ema_decay": 0.999, "optimizer": "adamw"},
    ),
    "maskgit_pytorch": (
        "xyfJASON/maskgit-pytorch ca5c7c3, configs/imagenet256.yaml, utils/scheduler.py, models/ema.py",
        {"batch_size": 256, "label_smoothing": 0.1, "label_drop": 0.1, "grad_clip": 1.0, "ema_decay": 0.9999,
         "ema_warmup": "inverse_power", "ema_count_from": 1, "optimizer": "adamw", "lr": 1e-4, "betas": [0.9, 0.96],
         "weight_decay": 0.045, "lr_schedule": "cosine", "lr_end": 0.0, "warmup_steps": 5000, "warmup_from": "zero",
         "mask_schedule": "cosine", "mask_rounding": "ceil", "mask_kind": "exact", "mask_ratio_per": "batch",
         "loss_on": "masked", "decay_on": "all"},
    ),
    "maskgit_pytorch_ffhq": (
        "xyfJASON/maskgit-pytorch ca5c7c3, configs/ffhq256.yaml",
        {"batch_size": 256, "label_smoothing": 0.1, "label_drop": 0.0, "grad_clip": None, "ema_decay": 0.9999,
         "ema_warmup": "inverse_power", "ema_power": 0.75, "ema_inv_gamma": 1.0, "ema_count_from": 1,
         "optimizer": "adamw", "lr": 1e-4, "betas": [0.9, 0.96], "weight_decay": 0.045, "lr_schedule": "constant",
         "warmup_steps": 5000, "warmup_from": "zero", "mask_schedule": "cosine", "mask_ratio_per": "batch"},
    ),
    "halton_2023": (
        "valeoai/Halton-MaskGIT 674ef1d, main.py, Trainer/vit.py, Trainer/trainer.py, README.md (batch size)",
        {"batch_size": 512, "lr": 1e-4, "warmup_steps": 2500, "warmup_from": "zero", "lr_schedule": "constant",
         "betas": [0.9, 0.96], "weight_decay": 1e-5, "label_smoothing": 0.1, "label_drop": 0.1, "grad_clip": 1.0,
         "mask_schedule": "arccos", "mask_kind": "bernoulli", "loss_on": "all", "ema_decay": None},
    ),
    "halton_2025": (
        "valeoai/Halton-MaskGIT f61b0a1, launch/run_cls_to_img.sh, Trainer/abstract_trainer.py, Trainer/cls_trainer.py",
        {"batch_size": 256, "lr": 1e-4, "warmup_steps": 2500, "warmup_from": "zero", "lr_schedule": "last_tenth",
         "lr_end": 1e-6, "lr_end_as": "floor", "betas": [0.9, 0.999], "weight_decay": 0.03, "label_smoothing": 0.0,
         "label_drop": 0.1, "grad_clip": 1.0, "mask_schedule": "arccos", "mask_kind": "bernoulli", "loss_on": "all",
         "ema_decay": None, "optimizer": "adamw", "decay_on": "all"},
    ),
    "open_muse": (
        "huggingface/open-muse 64e1afe, configs/imagenet.yaml, training/train_maskgit_imagenet.py",
        {"batch_size": 192, "optimizer": "adamw", "lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.01,
         "decay_on": "all", "lr_schedule": "constant", "warmup_steps": 1000, "warmup_from": "zero", "ema_decay": None,
         "min_mask_ratio": 0.0, "label_smoothing": 0.0, "grad_clip": None, "label_drop": 0.0, "loss_on": "masked",
         "mask_schedule": "cosine", "mask_rounding": "round", "mask_ratio_per": "sample"},
    ),
    "titok": (
        "bytedance/1d-tokenizer 942a96f, configs/training/generator/maskgit.yaml, utils/train_utils.py",
        {"batch_size": 2048, "label_smoothing": 0.1, "unmasked_weight": 0.1, "loss_on": "weighted", "label_drop": 0.1,
         "optimizer": "adamw", "lr": 2e-4, "betas": [0.9, 0.96], "weight_decay": 0.03, "decay_on": "matrices",
         "lr_schedule": "cosine", "warmup_steps": 10000, "warmup_from": "zero", "lr_end": 1e-5, "grad_clip": 1.0,
         "ema_decay": 0.999, "ema_warmup": "by_ten_after_first", "mask_schedule": "arccos", "mask_rounding": "round"},
    ),
}  # fmt: skip


def test_every_recipe_has_its_source() -> None:
    names = {path.stem for path in (ROOT / "conf/recipe").glob("*.yaml")}
    assert names <= set(SOURCES), "state the repository, revision and values that a new recipe was compared with"


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_file_has_every_value_of_its_repository(name: str) -> None:
    source, values = SOURCES[name]
    told = yaml.safe_load((ROOT / f"conf/recipe/{name}.yaml").read_text())["train"]
    assert {key: told[key] for key in values} == values, source
    revision = source.split(",")[0].split()[-1]
    assert revision in (ROOT / f"conf/recipe/{name}.yaml").read_text(), "the file names its revision"
    recipe_of(name, num_train_steps=1_000_000)
