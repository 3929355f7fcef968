"""Editing: what is known stays, what is masked is drawn anew, and pictures grow wider than the model's grid."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sample_inputs import make_inputs

from experiments.config.specs import DatasetSpec, Input, SamplerSpec
from experiments.running.attempt import Attempt
from experiments.stages import edit
from maskgit_core.editing import composed, region_mask, unknown_tokens, window_places
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.sample_files import read_piece


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Input, Input]:
    return make_inputs(tmp_path_factory)


class Pictures:
    """A stand-in dataset of random grey pictures of 16 x 20."""

    num_classes, class_names, channels = 3, ["a", "b", "c"], 1

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        from maskgit_core.datasets import Sample

        rng = np.random.default_rng(index)
        return Sample(str(index), rng.integers(0, 255, (16, 20, 1), dtype=np.uint8), index % 3)


@pytest.fixture
def run(tmp_path: Path, inputs: tuple[Input, Input], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(DatasetSpec, "build", lambda self, **facts: Pictures())

    def run_(name: str = "step", **changed: Any) -> Attempt:
        attempt = Attempt(tmp_path / name)
        spec, values = DatasetSpec("pictures", {}), {"num_images": 5, "seed": 1, **changed}
        sampler = SamplerSpec("confidence", {"num_steps": 3})
        edit.run(attempt, model=inputs[0], tokenizer=inputs[1], sampler=sampler, dataset=spec, **values)
        attempt.close()
        return attempt

    return run_


def encoded(inputs: tuple[Input, Input]) -> torch.Tensor:
    from experiments.running.components import load_tokenizer
    from maskgit_core.images.pixels import stack, to_signed

    with torch.no_grad():
        tokens: torch.Tensor = load_tokenizer(inputs[1]).encode(to_signed(stack(Pictures(), range(5))[0]))
    return tokens


@pytest.mark.parametrize("region", ["left", "right", "top", "bottom", "center"])
def test_known_tokens_stay_and_the_region_changes(run: Any, region: str, inputs: tuple[Input, Input]) -> None:
    attempt = run(region=region)
    tokens = torch.from_numpy(read_piece(attempt.files / "tokens.npz")["tokens"]).view(5, 4, 5).long()
    unknown = unknown_tokens(region_mask(region, (16, 20))[None], (4, 5))[0]
    before = encoded(inputs)
    assert torch.equal(tokens[:, ~unknown], before[:, ~unknown])
    assert not torch.equal(tokens[:, unknown], before[:, unknown])
    images = read_piece(attempt.files / "images.npz")
    assert images["arr_0"].shape == (5, 16, 20, 1) and images["labels"].tolist() == [0, 1, 2, 0, 1]
    assert attempt.notes.shown == ("grid.png",)


def test_a_mask_from_a_picture_with_a_class_and_a_seam(run: Any, tmp_path: Path) -> None:
    pixels = np.zeros((32, 40), dtype=np.uint8)
    pixels[:16] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    attempt = run(region="mask", mask=str(tmp_path / "mask.png"), label=2, feather=0)
    images = read_piece(attempt.files / "images.npz")
    assert images["labels"].tolist() == [2] * 5
    original = np.stack([Pictures()[i].image for i in range(5)])
    assert np.array_equal(images["arr_0"][:, 8:], original[:, 8:]), "pasted back where nothing changes"
    assert not np.array_equal(images["arr_0"][:, :8], original[:, :8])
    Image.fromarray(pixels * 0).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="nothing is masked"):
        run("other", region="mask", mask=str(tmp_path / "mask.png"))


def test_outpainting_is_wider_than_the_grid_and_keeps_the_middle(run: Any, inputs: tuple[Input, Input]) -> None:
    attempt = run(region="outpaint", left=3, right=6)
    tokens = torch.from_numpy(read_piece(attempt.files / "tokens.npz")["tokens"]).view(5, 4, 14).long()
    assert torch.equal(tokens[:, :, 3:8], encoded(inputs)) and tokens.min() >= 0 and tokens.max() < 16
    assert read_piece(attempt.files / "images.npz")["arr_0"].shape == (5, 16, 56, 1)
    again = run("again", region="outpaint", left=3, right=6, batch_size=2)
    for name in ("tokens.npz", "images.npz"):
        assert (attempt.files / name).read_bytes() == (again.files / name).read_bytes()


def test_outpainting_pastes_the_given_picture_back_where_a_seam_is_asked_for(run: Any) -> None:
    plain = read_piece(run(region="outpaint", left=1, right=2).files / "images.npz")
    pasted = read_piece(run("pasted", region="outpaint", left=1, right=2, feather=2).files / "images.npz")
    middle = slice(4 + 2, 24 - 2)
    assert np.array_equal(pasted["arr_0"][:, :, middle], pasted["masked"][:, :, middle])
    assert not np.array_equal(plain["arr_0"][:, :, middle], plain["masked"][:, :, middle])
    for new in (slice(0, 4), slice(24, None)):
        assert np.array_equal(pasted["arr_0"][:, :, new], plain["arr_0"][:, :, new])
        assert (pasted["masked"][:, :, new] == 128).all()


@pytest.mark.parametrize(("width", "left", "right"), [(5, 0, 0), (5, 3, 6), (16, 16, 16), (2, 1, 0), (7, 0, 20)])
def test_windows_cover_the_canvas_and_always_see_something(width: int, left: int, right: int) -> None:
    known = [False] * left + [True] * width + [False] * right
    for begin in window_places(width, left, right):
        assert any(known[begin : begin + width]) and not all(known[begin : begin + width])
        known[begin : begin + width] = [True] * width
        assert len(known) == left + width + right
    assert all(known)


def test_masks_grow_and_seams_fade() -> None:
    pixels = torch.zeros(1, 16, 16, dtype=torch.bool)
    pixels[0, 5, 5] = True
    assert unknown_tokens(pixels, (4, 4)).nonzero().tolist() == [[0, 1, 1]]
    assert unknown_tokens(pixels, (4, 4), grow=1).sum() == 9
    black, white = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 255.0)
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, :, 8:] = True
    seam = composed(black, white, mask, feather=2)[0, 0, 8]
    assert (seam[8:] == 255).all() and (seam[:6] == 0).all() and (seam[6:8].diff() > 0).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"region": "mask"}, "edit.mask: region is `mask` but no picture is given"),
        ({"region": "outpaint"}, "edit.left: outpaint with no columns to add"),
        (
            {"region": "top", "right": 2},
            "edit.right: columns to add but region is `top`; set edit.region=outpaint or 0",
        ),
        ({"mask": "m.png"}, "edit.mask: a picture is given but region is `center`; set edit.region=mask"),
        ({"label": 3}, "edit.label: 3 is out of range; the model knows classes 0 to 2"),
    ],
)
def test_bad_requests_are_one_line(run: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**changed)
