"""Stage `edit`: inpainting, class-conditional editing and outpainting of pictures with a trained model.

The tokens of a masked region are drawn anew given the rest (MaskGIT, section 4.3). Publishes `images.npz` like
`sample`, so that `evaluate` can score it, `tokens.npz`, and `grid.png` with what was given above what was made of it.

| keyword | meaning |
|---|---|
| dataset, num_images | the pictures: the first of the dataset |
| region | what changes: a half, the central quarter, `mask` (a picture, white where it changes), or `outpaint` |
| mask | path of that picture; resized to the images with hard edges |
| left, right | for `outpaint`: token columns to add on each side |
| label | class to edit towards; null keeps each picture's own |
| grow | tokens around the region that change too |
| feather | the given pixels are pasted back, with a seam of so many pixels; null pastes nothing back |
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch

from experiments.config.specs import DatasetSpec, Input, SamplerSpec, TokenizerSpec
from experiments.evaluation.measures import counted
from experiments.running.attempt import Attempt
from experiments.running.components import check_pair, load_model, load_tokenizer, manifest_digests
from experiments.stages.sample import share
from maskgit_core import rng
from maskgit_core.editing import composed, edited_tokens, outpainted_tokens, region_mask, unknown_tokens
from maskgit_core.errors import DataError
from maskgit_core.hints import Content, Execution, Kind, Range
from maskgit_core.images.pictures import open_picture
from maskgit_core.images.pixels import picture_grid, stack, to_nhwc, to_signed, to_uint8, to_unit
from maskgit_core.layers.steady import decoded
from maskgit_core.refusals import check_classes, check_places, check_region
from maskgit_core.sample_files import read_piece, write_joined

VERSION = 1
PRODUCES = "samples"
PIECEWISE = True


def run(
    attempt: Attempt,
    *,
    model: Annotated[Input, Kind("model")],
    tokenizer: Annotated[Input | TokenizerSpec, Kind("tokenizer")],
    sampler: SamplerSpec,
    dataset: DatasetSpec,
    num_images: Annotated[int, Range(1)] = 16,
    region: Literal["left", "right", "top", "bottom", "center", "mask", "outpaint"] = "center",
    mask: Content[str | None] = None,
    left: Annotated[int, Range(0)] = 0,
    right: Annotated[int, Range(0)] = 0,
    label: Annotated[int | None, Range(0)] = None,
    grow: Annotated[int, Range(0)] = 0,
    feather: Annotated[int | None, Range(0)] = None,
    seed: int = 0,
    batch_size: Annotated[Execution[int], Range(1)] = 16,
    piece_size: Annotated[Execution[int], Range(1)] = 64,
) -> None:
    """Edits; see the table above."""
    check_region(region, mask is not None, left, right)
    images = dataset.build()
    count = counted("edit.num_images", num_images, len(images))
    size = images[0].image.shape[:2]
    pixels = None if region == "outpaint" else _mask(region, mask, (int(size[0]), int(size[1])))
    transformer, network = load_model(model, attempt.device), load_tokenizer(tokenizer, attempt.device)
    check_pair(transformer, network, "edit.tokenizer")
    check_places("edit.tokenizer", getattr(network, "grid", None) is not None)
    check_classes("edit.label", None if label is None else [label], transformer.num_classes)
    maker = Editor(transformer, network, sampler.build(), images, seed, label, attempt.device)
    maker.pixels, maker.columns, maker.grow, maker.feather = pixels, (left, right), grow, feather
    maker.origin = f"edits-{manifest_digests(model, tokenizer)}"
    pieces = share(attempt, maker, count, batch_size, piece_size)
    if attempt.is_main:
        publish(attempt, pieces)
        attempt.fact(num_samples=count, num_classes=transformer.num_classes, region=region)


def _mask(region: str, path: str | None, size: tuple[int, int]) -> torch.Tensor:
    if region != "mask" or path is None:
        return region_mask(region, size)
    from PIL import Image

    try:
        with open_picture(path) as picture:
            grey = picture.convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}); give a PNG, white where it changes") from None
    pixels = torch.from_numpy(np.array(grey) > 127)
    if not bool(pixels.any()):
        raise DataError(f"{path}: nothing is masked; paint white what is to change")
    return pixels


class Editor:
    """Edits the pictures of any indices: a function of the index alone."""

    origin: str
    pixels: torch.Tensor | None
    columns: tuple[int, int]
    grow: int
    feather: int | None

    def __init__(
        self, model: Any, tokenizer: Any, sampler: object, images: Any, seed: int, label: int | None, device: str
    ) -> None:
        self.model, self.tokenizer, self.sampler, self.images = model, tokenizer, sampler, images
        self.seed, self.label, self.device = seed, label, device

    @torch.no_grad()
    def make(self, first: int, end: int) -> dict[str, np.ndarray]:
        """images, originals and masked uint8 (N, H, W, C), tokens int32 (N, L), labels and seeds int64 (N,)."""
        before_NCHW, labels_N = stack(self.images, range(first, end))
        if self.label is not None:
            labels_N = torch.full_like(labels_N, self.label)
        seeds_N = rng.sample_seeds(self.seed, torch.arange(first, end))
        signed_NCHW = to_signed(before_NCHW).to(self.device)
        if signed_NCHW.shape[1] == 1 and getattr(self.tokenizer, "in_channels", 3) == 3:
            signed_NCHW = signed_NCHW.expand(-1, 3, -1, -1)
        tokens_Nhw = self.tokenizer.encode(signed_NCHW)
        asked = (None if self.model.num_classes is None else labels_N.to(self.device), seeds_N.to(self.device))
        if self.pixels is None:
            tokens_Nhw = outpainted_tokens(self.model, self.sampler, tokens_Nhw, *self.columns, *asked)
        else:
            grid = (tokens_Nhw.shape[1], tokens_Nhw.shape[2])
            unknown_Nhw = unknown_tokens(self.pixels[None], grid, self.grow).expand_as(tokens_Nhw).to(self.device)
            tokens_Nhw = edited_tokens(self.model, self.sampler, tokens_Nhw, unknown_Nhw, *asked)
        after_NCHW = to_uint8(to_unit(decoded(self.tokenizer, tokens_Nhw))).cpu()
        given_NCHW, pixels_NHW = self._given(before_NCHW, after_NCHW)
        if self.feather is not None:
            mixed = composed(given_NCHW, after_NCHW, pixels_NHW, self.feather)
            after_NCHW = mixed.round().clamp(0, 255).to(torch.uint8)
        masked_NCHW = torch.where(pixels_NHW[:, None], 128, given_NCHW).to(torch.uint8)
        return {
            "tokens": tokens_Nhw.flatten(1).cpu().numpy().astype(np.int32),
            "labels": labels_N.numpy(),
            "seeds": seeds_N.numpy(),
            "images": to_nhwc(after_NCHW),
            "masked": to_nhwc(masked_NCHW),
        }

    def _given(self, before_NCHW: torch.Tensor, after_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The given pictures in the shape of the edited ones, and where they change: bool (N, H, W)."""
        count, _, height, width = after_NCHW.shape
        if self.pixels is not None:
            return before_NCHW.expand_as(after_NCHW), self.pixels.expand(count, -1, -1)
        begin = self.columns[0] * self.tokenizer.downsample_factor
        inside = slice(begin, begin + before_NCHW.shape[-1])
        canvas, pixels = torch.zeros_like(after_NCHW), torch.ones(height, width, dtype=torch.bool)
        canvas[..., inside], pixels[:, inside] = before_NCHW, False
        return canvas, pixels.expand(count, -1, -1)


def publish(attempt: Attempt, pieces: list[Path]) -> None:
    """Joins the pieces into the outputs and draws given and edited pictures, side by side in rows."""
    from PIL import Image

    pictures = {"arr_0": "images", "labels": "labels", "masked": "masked"}
    ids = {name: name for name in ("tokens", "labels", "seeds")}
    attempt.publish(attempt.files / "images.npz", lambda path: write_joined(path, pieces, pictures))
    attempt.publish(attempt.files / "tokens.npz", lambda path: write_joined(path, pieces, ids))
    arrays = read_piece(pieces[0])
    rows = [[torch.from_numpy(i).permute(2, 0, 1) for i in arrays[name][:16]] for name in ("masked", "images")]
    picture = picture_grid(rows, scale=max(1, 56 // rows[0][0].shape[1]))
    path = attempt.files / "grid.png"
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(path)
    attempt.show(path)
