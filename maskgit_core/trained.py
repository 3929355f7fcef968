"""Trained tokenizers and transformers from their folders, and samples from them in one call.

A folder has `tokenizer.json` or `model.json` (`{"name", "module", "options", "facts"}`) and weights as safetensors.
Everything here is also a name of `maskgit_core` itself: `import maskgit_core as mg; mg.load_tokenizer(...)`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maskgit_core import rng
from maskgit_core.errors import ArtifactError, ConfigError, WeightsError
from maskgit_core.files import read_json
from maskgit_core.images.pixels import picture_grid, to_uint8, to_unit
from maskgit_core.layers.critic import Critic
from maskgit_core.layers.steady import decoded
from maskgit_core.models import present_module
from maskgit_core.refusals import check_codebooks
from maskgit_core.token_groups import joined_tokens, sampling_grid, whole_codebook
from maskgit_core.training.checkpoints import list_checkpoints, load_strictly, load_tensors, select
from maskgit_core.weights import hub_repos, registry

if TYPE_CHECKING:
    from PIL import Image

TOKENIZER_FILE, TOKENIZER_WEIGHTS = "tokenizer.json", "weights.safetensors"
MODEL_FILE, WEIGHTS_FILE, RAW_FILE = "model.json", "model.safetensors", "raw.safetensors"
CRITIC_FILE = "critic.json"


def load_tokenizer(source: str | Path, device: str = "cpu") -> Any:
    """A tokenizer in eval mode, without gradients.

    Args:
        source: a folder with `tokenizer.json`; `store:EXPERIMENT/STEP`, a finished step of the store
            (`$MASKGIT_STORE`, else `runs`); `hf:OWNER/NAME`, a Hugging Face repository that `maskgit push` made; or a
            published one by its name (`maskgit weights list`).
        device: where it is put.

    Returns:
        An object with `encode(images in [-1, 1], B C H W) -> ids B H W`, `decode(ids) -> images`, `codebook_size`, and
        `downsample_factor`.

    Raises:
        ArtifactError, WeightsError: nothing of that name, or its files are missing or do not fit together.
    """
    folder = _folder(source)
    if folder is None:
        entry = registry.by_name(str(source))
        kind, _, name = entry.component.partition("/")
        if kind != "tokenizers":
            raise WeightsError(f"{source}: is no tokenizer but {entry.component or 'a feature network'}")
        cls = importlib.import_module(f"maskgit_core.tokenizers.{name.replace('/', '.')}").Tokenizer
        tokenizer = cls(weights=str(source))
    else:
        tokenizer = _built(folder / TOKENIZER_FILE, "Tokenizer")
        load_strictly(tokenizer, _tensors(folder / TOKENIZER_WEIGHTS), str(folder / TOKENIZER_WEIGHTS))
    return tokenizer.to(device).eval().requires_grad_(False)


def load_model(source: str | Path, device: str = "cpu", *, weights: str = "model") -> Any:
    """A trained transformer in eval mode, without gradients; `.grid` is its (height, width) in tokens.

    Args:
        source: a folder with `model.json`, `store:EXPERIMENT/STEP` or `hf:OWNER/NAME` as in `load_tokenizer`.
        device: where it is put.
        weights: `model` (the moving average where there is one) or `raw` (the weights themselves).

    Raises:
        ArtifactError: there is no such model, or it has no weights. WeightsError: they do not fit the model.
    """
    folder = _folder(source)
    if folder is None:
        raise ArtifactError(
            f"{source}: is no folder with {MODEL_FILE}, store:EXPERIMENT/STEP or hf:OWNER/NAME; published transformers "
            "are brought into the store by a step of the stage import_model"
        )
    model = build_model(folder)
    path = folder / {"model": WEIGHTS_FILE, "raw": RAW_FILE}[weights]
    if not path.is_file():
        path = folder / WEIGHTS_FILE  # raw weights, trained without a moving average
    checkpoints = [] if path.is_file() else list_checkpoints([folder])
    if checkpoints:
        path = checkpoints[0]
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in folder.glob("*.safetensors"))) or "none"
        raise ArtifactError(f"{path}: the model's weights are missing; it has [{there}]; run the step again")
    tensors, _ = load_tensors(path)
    if checkpoints:
        averages = select(tensors, "ema") if weights == "model" else {}
        tensors = _averaged(select(tensors, "model"), averages, model)
    load_strictly(model, tensors, str(path))
    return model.to(device).eval().requires_grad_(False)


def load_critic(source: str | Path, device: str = "cpu") -> Critic:
    """A trained critic in eval mode, without gradients.

    Args:
        source: a folder with `critic.json`, `store:EXPERIMENT/STEP` or `hf:OWNER/NAME` as in `load_tokenizer`.

    Raises:
        ArtifactError: there is no such critic. WeightsError: its weights do not fit.
    """
    folder = _folder(source)
    if folder is None:
        raise ArtifactError(
            f"{source}: is no folder with {CRITIC_FILE}; name a finished step of the stage train_critic"
        )
    critic = Critic(_built(folder / CRITIC_FILE, "Model", ("codebook_size", "num_tokens", "num_classes")))
    load_strictly(critic, _tensors(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return critic.to(device).eval().requires_grad_(False)


def build_model(folder: Path) -> Any:
    """The transformer of a folder with fresh random weights, on the CPU."""
    model = _built(folder / MODEL_FILE, "Model", ("codebook_size", "num_tokens", "num_classes"))
    grid = description(folder / MODEL_FILE)["facts"].get("grid")
    model.grid = tuple(grid) if grid else None
    return model


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    labels: Sequence[int] | None = None,
    *,
    num_samples: int | None = None,
    sampler: Any = None,
    critic: Any = None,
    seed: int = 0,
    batch_size: int = 64,
) -> torch.Tensor:
    """Images (N, C, H, W), uint8, drawn from a transformer and decoded by its tokenizer.

    Args:
        model, tokenizer: from `load_model` and `load_tokenizer`, on one device.
        labels: one class id per image; None for an unconditional model.
        num_samples: N, where there are no labels.
        sampler: an object with `sample(...)`, e.g. `samplers.halton.Sampler(num_steps=32)`; None: `confidence`.
        critic: from `load_critic`, for a sampler that asks for one.
        seed: sample i depends on (seed, i) alone, whatever the batch size.

    Raises:
        ConfigError: codebooks differ, or the number of samples is unknown.
    """
    check_codebooks("sample", tokenizer.codebook_size, whole_codebook(model))
    if labels is None and num_samples is None:
        raise ConfigError("sample: neither labels nor num_samples; give one class id per image, or a number of images")
    if sampler is None:
        from maskgit_core.samplers.confidence import Sampler

        sampler = Sampler()
    device = next(model.parameters()).device
    total = len(labels) if labels is not None else num_samples or 0
    side = round(model.num_tokens**0.5)
    grid = getattr(model, "grid", None) or (side, side)
    images = []
    for first in range(0, total, batch_size):
        numbers_B = torch.arange(first, min(first + batch_size, total))
        labels_B = None if labels is None else torch.tensor(labels)[numbers_B].to(device)
        seeds_B = rng.sample_seeds(seed, numbers_B).to(device)
        drawn_BL = sampler.sample(model, labels_B, grid=sampling_grid(model, grid), seeds_B=seeds_B, critic=critic)
        tokens_BN = joined_tokens(model, drawn_BL)
        images.append(to_uint8(to_unit(decoded(tokenizer, tokens_BN.unflatten(1, grid)))).cpu())
    return torch.cat(images)


def show(images_BCHW: torch.Tensor, columns: int | None = None, scale: int | None = None) -> Image.Image:
    """One picture of many: uint8 images, or floats in [-1, 1], (B, C, H, W), row by row; a notebook displays it.

    Args:
        columns: images per row; by default about as many as rows.
        scale: times each pixel is repeated; by default small images are enlarged to 56 pixels.
    """
    from PIL import Image

    images = images_BCHW if images_BCHW.dtype == torch.uint8 else to_uint8(to_unit(images_BCHW))
    columns = columns or max(1, round(len(images) ** 0.5))
    rows = [list(images[i : i + columns]) for i in range(0, len(images), columns)]
    picture = picture_grid(rows, scale=scale or max(1, 56 // images.shape[-1]))
    return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)


def _folder(source: str | Path) -> Path | None:
    """The folder of files that a source names; None where it names no folder."""
    text = str(source)
    if text.startswith(hub_repos.PREFIX):
        return hub_repos.fetched(text)
    if not text.startswith("store:"):
        path = Path(source).expanduser()
        return path if path.is_dir() else None
    store = Path(os.environ.get("MASKGIT_STORE") or "runs").expanduser()
    folder = store / "experiments" / text.removeprefix("store:") / "files"
    if not folder.is_dir():
        experiments = store / "experiments"
        there = sorted(p.relative_to(experiments).as_posix() for p in experiments.glob("*/*")) or ["nothing"]
        raise ArtifactError(
            f"{text}: there is no finished step of that name in {store.absolute()}; it has [{', '.join(there[:20])}]"
        )
    return folder


def description(path: Path) -> Mapping[str, Any]:
    """The content of `model.json`, `tokenizer.json` or `critic.json`: name, module, options and facts.

    Raises:
        ArtifactError: it is missing or something else.
    """
    described = read_json(path)
    if not isinstance(described, dict) or "name" not in described or "options" not in described:
        raise ArtifactError(f"{path}: is missing or not a description of a component; run the step that makes it again")
    return {"module": "", "facts": {}, **described}


def _built(path: Path, class_name: str, names: Sequence[str] | None = None) -> Any:
    """The component that a file describes, built from its options and facts (or those named)."""
    described = description(path)
    folder = {"Tokenizer": "tokenizers", "Model": "models"}[class_name]
    module = described["module"] or f"maskgit_core.{folder}.{described['name'].replace('/', '.')}"
    facts = described["facts"]
    facts = facts if names is None else {name: facts[name] for name in names}
    return getattr(importlib.import_module(present_module(module)), class_name)(**described["options"], **facts)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path}: the weights are missing; run the step that makes them again")
    return load_tensors(path)[0]


def _averaged(raw: dict[str, Any], averages: dict[str, Any], model: Any) -> dict[str, Any]:
    """A checkpoint's weights with the moving average where there is one, under all names of tied parameters."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    names = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name: averages.get(names.get(name, name), tensor) for name, tensor in raw.items()}
