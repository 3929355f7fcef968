"""Stage `sample`: images from a trained model, the same for any batch size and any number of processes.

Sample i has a random stream of its own and the class i mod `num_classes` (or of `classes`), so a number of samples that
the number of classes divides is balanced. The index range is cut into pieces that processes share out and publish one
by one; a killed run goes on with the missing ones. Publishes `images.npz` (`arr_0` uint8 NHWC, `labels`), `tokens.npz`
(`tokens`, `labels`, `seeds`) and `grid.png` (a row per class).

| keyword | meaning |
|---|---|
| num_samples, seed | indices 0 ... num_samples - 1; another seed gives other samples |
| classes | which classes, in turn; null for all |
| model | the model, or a checkpoint that its training keeps: `sample.model=train@50000` |
| weights | `model` (moving average where there is one) or `raw` |
| untrained | fresh random weights instead: the ceiling that a score can be placed under |
| tokens | with `untrained` and no `model`: a cache that tells codebook, grid and classes of the model that is meant |
| critic | a step of the stage `train_critic`, for a sampler that asks for one; others do not look at it |
| precision | of the forward pass: fp32, bf16 or fp16 |
| grid_columns, grid_rows | of the picture |
| png | also writes every image as `png/<index>.png`; with `png_folders=class` as `png/<class>/<index>.png` |
| rounding | of decoded pixels to 8 bits: `half_up`, or `truncate` (MaskBit's and 1d-tokenizer's evaluation) |
| batch_size | samples at once; piece_size: samples a published piece |
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from experiments.config.specs import Input, ModelSpec, SamplerSpec, TokenizerSpec
from experiments.running.attempt import Attempt, iterate
from experiments.running.components import check_pair, load_model, load_tokenizer, manifest_digests
from experiments.store.typed_json import Options
from experiments.training.learner import new_model
from maskgit_core import rng
from maskgit_core.hints import Execution, Kind, Neutral, Range
from maskgit_core.images.pixels import Rounding, picture_grid, to_nhwc, to_uint8, to_unit
from maskgit_core.images.transforms import to_pil
from maskgit_core.layers.critic import Critic
from maskgit_core.layers.steady import decoded
from maskgit_core.refusals import check_classes, check_weights
from maskgit_core.sample_files import piece_name, piece_ranges, read_array, read_piece, write_joined, write_piece
from maskgit_core.token_groups import joined_tokens, sampling_grid
from maskgit_core.trained import build_model, load_critic

VERSION = 1
PRODUCES = "samples"
PIECEWISE = True


def run(
    attempt: Attempt,
    *,
    model: Annotated[Input | ModelSpec, Kind("model")],
    tokenizer: Annotated[Input | TokenizerSpec, Kind("tokenizer")],
    tokens: Annotated[Input | None, Kind("tokens")] = None,
    critic: Annotated[Input | None, Kind("critic")] = None,
    sampler: SamplerSpec,
    num_samples: Annotated[int, Range(1)] = 50000,
    seed: int = 0,
    classes: list[int] | None = None,
    weights: Literal["model", "raw"] = "model",
    untrained: bool = False,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    grid_rows: Annotated[int, Range(1, 100)] = 10,
    grid_columns: Annotated[int, Range(1, 100)] = 10,
    png: bool = False,
    png_folders: Annotated[Literal["none", "class"], Neutral("none")] = "none",
    rounding: Annotated[Rounding, Neutral("half_up")] = "half_up",
    batch_size: Annotated[Execution[int], Range(1)] = 64,
    piece_size: Annotated[Execution[int], Range(1)] = 500,
) -> None:
    """Samples; see the table above."""
    check_weights("sample", isinstance(model, Input), tokens is not None, untrained)
    transformer, facts = _transformer(model, tokens, weights, untrained, seed, attempt.device)
    decoder = load_tokenizer(tokenizer, attempt.device)
    check_pair(transformer, decoder, "sample.tokenizer")
    check_classes("sample.classes", classes, transformer.num_classes)
    grid = (int(facts["grid"][0]), int(facts["grid"][1]))
    origin = f"samples-{manifest_digests(model, tokens, tokenizer, *([critic] if critic else []))}"
    made_with = (transformer, decoder, sampler.build(), grid, classes, seed, precision, attempt.device)
    judge = None if critic is None else load_critic(critic.files, attempt.device)
    maker = Maker(*made_with, origin, rounding, judge)
    pieces = share(attempt, maker, num_samples, batch_size, piece_size)
    if attempt.is_main:
        publish(attempt, pieces, grid_rows, grid_columns)
        if png:
            write_pngs(attempt.files / "png", pieces, by_class=png_folders == "class")
        attempt.fact(num_samples=num_samples, num_classes=transformer.num_classes, grid=list(grid), untrained=untrained)
        attempt.fact(class_names=list(facts.get("class_names", [])))


def _transformer(
    model: Input | ModelSpec, tokens: Input | None, weights: str, untrained: bool, seed: int, device: str
) -> tuple[Any, Options]:
    """The transformer and the facts of the tokens that it draws."""
    if isinstance(model, ModelSpec):
        assert tokens is not None
        facts = {**tokens.facts, "num_tokens": int(np.prod(tokens.facts["grid"]))}
        return new_model(model, facts, seed).to(device).eval().requires_grad_(False), facts
    if untrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(model.files).to(device).eval().requires_grad_(False), model.facts
    return load_model(model, device, weights=weights), model.facts


class Maker:
    """Makes the samples of any indices: a function of the index alone."""

    def __init__(
        self,
        model: Any,
        tokenizer: object,
        sampler: Any,
        grid: tuple[int, int],
        classes: list[int] | None,
        seed: int,
        precision: str,
        device: str,
        origin: str,
        rounding: Rounding = "half_up",
        critic: Critic | None = None,
    ) -> None:
        self.origin, self.rounding, self.critic = origin, rounding, critic
        self.model, self.tokenizer, self.sampler, self.grid = model, tokenizer, sampler, grid
        self.classes = classes if classes is not None else list(range(model.num_classes or 0))
        self.seed, self.precision, self.device = seed, precision, device
        if (
            precision != "fp32"
        ):  # autocast keeps what it casts for all passes of a batch only where gradients might flow
            model.requires_grad_(True)

    @torch.no_grad()
    def make(self, first: int, end: int) -> dict[str, np.ndarray]:
        """tokens int32 (N, L), labels int64 (N,) (-1 without classes), seeds int64 (N,), images uint8 (N, H, W, C)."""
        numbers_N = torch.arange(first, end)
        seeds_N = rng.sample_seeds(self.seed, numbers_N)
        labels_N = torch.full_like(numbers_N, -1)
        if self.classes:
            labels_N = torch.tensor(self.classes)[numbers_N % len(self.classes)]
        device_type = torch.device(self.device).type
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.autocast(device_type, dtype, enabled=self.precision != "fp32"):
            drawn_NL = self.sampler.sample(
                self.model,
                labels_N.to(self.device) if self.classes else None,
                grid=sampling_grid(self.model, self.grid),
                seeds_B=seeds_N.to(self.device),
                critic=self.critic,
            )
        tokens_NL = joined_tokens(self.model, drawn_NL)
        decoded_NCHW = decoded(self.tokenizer, tokens_NL.unflatten(1, self.grid))
        images_NCHW = to_uint8(to_unit(decoded_NCHW), self.rounding)
        return {
            "tokens": tokens_NL.cpu().numpy().astype(np.int32),
            "labels": labels_N.numpy(),
            "seeds": seeds_N.numpy(),
            "images": to_nhwc(images_NCHW),
        }


def share(attempt: Attempt, maker: Any, num_samples: int, batch_size: int, piece_size: int) -> list[Path]:
    """Makes this process's pieces and, in rank 0, waits for those of the others; all pieces in order of their index."""
    folder = attempt.parts / maker.origin
    ranges = piece_ranges(num_samples, piece_size)
    paths = [folder / piece_name(*bounds) for bounds in ranges]
    progress = attempt.progress(num_samples, unit="image", label="sample")
    mine = [place for place in range(len(ranges)) if place % attempt.world_size == attempt.rank]
    for place in iterate(attempt, mine):
        first, end = ranges[place]
        if not paths[place].is_file():
            began, cpu_began = time.perf_counter(), time.process_time()
            batches = [maker.make(at, min(at + batch_size, end)) for at in range(first, end, batch_size)]
            arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            attempt.publish(paths[place], partial(write_piece, arrays=arrays))
            rate = (end - first) / (time.perf_counter() - began)
            cpu_s = (time.process_time() - cpu_began) / (end - first)
            attempt.log({"images_per_s": rate, "cpu_seconds_per_image": cpu_s}, step=end)
        progress.update(end - first)
    progress.close()
    if attempt.is_main:
        for path in iterate(attempt, _waited_for(attempt, paths)):
            read_piece(path)
    return paths


def _waited_for(attempt: Attempt, paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        while not path.is_file() and not attempt.should_stop:
            time.sleep(0.2)
        yield path


def publish(attempt: Attempt, pieces: list[Path], rows: int, columns: int) -> None:
    """Joins the pieces into the outputs and draws the picture."""
    files = attempt.files
    pictures = {"arr_0": "images", "labels": "labels"}
    ids = {name: name for name in ("tokens", "labels", "seeds")}
    attempt.publish(files / "images.npz", lambda path: write_joined(path, pieces, pictures))
    attempt.publish(files / "tokens.npz", lambda path: write_joined(path, pieces, ids))
    draw_grid(files / "grid.png", pieces, rows, columns)
    attempt.show(files / "grid.png")


def draw_grid(path: Path, pieces: list[Path], rows: int, columns: int) -> None:
    """A picture of the first `columns` samples of each of the first `rows` classes; of all samples without classes."""
    from PIL import Image

    labels = sorted(set(read_array(pieces[0], "labels").tolist()))[:rows]
    free = labels[0] < 0
    chosen: list[list[torch.Tensor]] = [[] for _ in range(rows if free else len(labels))]
    for piece in pieces:
        names = read_array(piece, "labels").tolist()
        if not free and not set(names) & set(labels):
            continue
        for image, label in zip(read_array(piece, "images"), names, strict=True):
            open_rows = [row for row in chosen if len(row) < columns]
            row = open_rows[0] if free and open_rows else chosen[labels.index(label)] if label in labels else []
            if len(row) < columns:
                row.append(torch.from_numpy(image).permute(2, 0, 1))
        if all(len(row) == columns for row in chosen):
            break
    chosen = [row for row in chosen if row]
    side = chosen[0][0].shape[1]
    picture = picture_grid(chosen, scale=max(1, 56 // side))
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(path)


def write_pngs(folder: Path, pieces: list[Path], by_class: bool = False) -> None:
    """Every image as a PNG named by its index, in a folder for each class where asked for (`0207/000207.png`)."""
    index = 0
    for piece in pieces:
        for image, label in zip(read_array(piece, "images"), read_array(piece, "labels").tolist(), strict=True):
            place = folder / f"{label:04d}" if by_class and label >= 0 else folder
            place.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(place / f"{index:06d}.png")
            index += 1
