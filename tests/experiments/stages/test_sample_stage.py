"""The stage `sample`: the same images for any batch size, number of processes and restart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample_inputs import make_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.config.specs import Input, ModelSpec, SamplerSpec
from experiments.running.attempt import Attempt, Stopped
from experiments.running.components import load_model, load_tokenizer
from experiments.running.signals import StopFlag
from experiments.stages import sample
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.sample_files import piece_name, read_piece, write_joined, write_piece


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Input, Input]:
    return make_inputs(tmp_path_factory)


def run(
    folder: Path, inputs: tuple[Input | ModelSpec, Input], number: int = 1, stop: Any = None, **changed: Any
) -> Attempt:
    ranks = {name: changed.pop(name) for name in ("rank", "world_size") if name in changed}
    attempt = Attempt(folder, number, stop=stop, **ranks)
    options = {"num_steps": 4, "guidance_scale": 2.0, **changed.pop("sampler", {})}
    values = {"num_samples": 64, "seed": 5, "piece_size": 16, **changed}
    sample.run(attempt, model=inputs[0], tokenizer=inputs[1], sampler=SamplerSpec("confidence", options), **values)
    attempt.close()
    return attempt


def outputs(attempt: Attempt) -> dict[str, bytes]:
    return {name: (attempt.files / name).read_bytes() for name in ("images.npz", "tokens.npz", "grid.png")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Input, Input]) -> Attempt:
    return run(tmp_path_factory.mktemp("whole"), inputs)


def test_outputs_are_what_the_next_stage_reads(whole: Attempt) -> None:
    images, tokens = read_piece(whole.files / "images.npz"), read_piece(whole.files / "tokens.npz")
    assert images["arr_0"].shape == (64, 16, 20, 1) and images["arr_0"].dtype == np.uint8
    assert tokens["tokens"].shape == (64, 20) and tokens["tokens"].max() < 16 and tokens["tokens"].min() >= 0
    assert images["labels"].tolist() == tokens["labels"].tolist() == [i % 3 for i in range(64)]
    assert len(set(tokens["seeds"].tolist())) == 64
    assert whole.notes.shown == ("grid.png",) and whole.notes.facts["num_samples"] == 64
    assert len(np.unique(images["arr_0"].reshape(64, -1), axis=0)) > 60


@pytest.mark.parametrize(
    "changed",
    [{"batch_size": 1}, {"batch_size": 7}, {"piece_size": 64, "batch_size": 64}, {"piece_size": 50, "batch_size": 64}],
)
def test_any_batch_size_gives_the_same_files(
    tmp_path: Path, inputs: tuple[Input, Input], whole: Attempt, changed: dict[str, Any]
) -> None:
    assert outputs(run(tmp_path, inputs, **changed)) == outputs(whole)


def test_three_processes_give_the_same_files(tmp_path: Path, inputs: tuple[Input, Input], whole: Attempt) -> None:
    for rank in (2, 1, 0):  # rank 0 comes last here, because it waits for the others
        attempt = run(tmp_path, inputs, rank=rank, world_size=3)
    assert outputs(attempt) == outputs(whole)


class StopAfter(StopFlag):
    """Asks to stop once looked at `looks` times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


def test_stopped_and_continued_gives_the_same_files(
    tmp_path: Path, inputs: tuple[Input, Input], whole: Attempt
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, inputs, stop=StopAfter(2))
    pieces = list(tmp_path.glob("parts/*/*.npz"))
    assert len(pieces) == 2
    before = {piece: piece.stat().st_mtime_ns for piece in pieces}
    assert outputs(run(tmp_path, inputs, number=2)) == outputs(whole)
    assert all(piece.stat().st_mtime_ns == time for piece, time in before.items()), "finished pieces stay"


def test_classes_seeds_and_untrained_weights(tmp_path: Path, inputs: tuple[Input, Input], whole: Attempt) -> None:
    some = run(tmp_path / "some", inputs, num_samples=8, classes=[2, 0], png=True)
    assert read_piece(some.files / "images.npz")["labels"].tolist() == [2, 0] * 4
    assert len(list((some.files / "png").iterdir())) == 8
    other = run(tmp_path / "other", inputs, num_samples=8, seed=6)
    fresh = run(tmp_path / "fresh", inputs, num_samples=8, untrained=True)
    first = read_piece(whole.files / "tokens.npz")["tokens"][:8]
    for attempt in (other, fresh):
        assert not np.array_equal(read_piece(attempt.files / "tokens.npz")["tokens"], first)


def test_a_ceiling_needs_a_cache_alone(tmp_path: Path, inputs: tuple[Input, Input]) -> None:
    model, tokenizer = inputs
    facts = {name: model.facts[name] for name in ("codebook_size", "num_classes", "grid")}
    tokens = Input("cache_tokens", "tokens", tmp_path, "e" * 64, {**facts, "class_names": ["a", "b", "c"]}, {})
    spec = ModelSpec("prenorm", {"dim": 32, "num_layers": 2, "num_heads": 4})
    asked = {"num_samples": 8, "untrained": True}
    made = run(tmp_path / "fresh", (spec, tokenizer), tokens=tokens, **asked)
    assert made.notes.facts["class_names"] == ["a", "b", "c"] and made.notes.facts["untrained"]
    beside = run(tmp_path / "beside", inputs, **asked)  # the same weights, as a trained model's file describes them
    first, second = (read_piece(attempt.files / "tokens.npz")["tokens"] for attempt in (made, beside))
    assert np.array_equal(first, second)
    assert outputs(run(tmp_path / "both", inputs, tokens=tokens, **asked)) == outputs(beside)
    for more in ({}, {"tokens": tokens, "untrained": False}):
        with pytest.raises(ConfigError, match=r"^pipeline.steps.sample.needs: "):
            run(tmp_path / "refused", (spec, tokenizer), **{**asked, **more})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": [3]}, "sample.classes: 3 is out of range; the model knows classes 0 to 2"),
        ({"sampler": {"num_steps": 21}}, "sampler.num_steps: 21 steps for 20 tokens"),
    ],
)
def test_bad_requests_are_one_line(
    tmp_path: Path, inputs: tuple[Input, Input], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, inputs, **changed)
    assert not list(tmp_path.glob("parts/*/*"))


@pytest.mark.parametrize("size", [8, 32])
def test_a_tokenizer_of_another_codebook_is_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Input, Input], size: int
) -> None:
    other = make_inputs(tmp_path_factory, codebook_size=size)[1]
    with pytest.raises(ConfigError, match=f"^sample.tokenizer: its codebook has {size} entries but .* draws from 16"):
        run(tmp_path, (inputs[0], other))
    assert not list(tmp_path.glob("parts/*/*"))


def test_guidance_with_an_unconditional_model_is_refused(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, inputs: tuple[Input, Input]
) -> None:
    free = make_inputs(tmp_path_factory, num_classes=None)[0]
    with pytest.raises(ConfigError, match=r"^sampler.guidance_scale: 2.0 with an unconditional model"):
        run(tmp_path, (free, inputs[1]))
    with pytest.raises(ConfigError, match=r"^sample.classes: the model is unconditional"):
        run(tmp_path, (free, inputs[1]), classes=[0], sampler={"guidance_scale": 1.0})
    attempt = run(tmp_path, (free, inputs[1]), num_samples=4, sampler={"guidance_scale": 1.0})
    assert read_piece(attempt.files / "images.npz")["labels"].tolist() == [-1] * 4


def test_a_damaged_piece_is_named(tmp_path: Path) -> None:
    path = tmp_path / "samples-00000000-00000016.npz"
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match="cannot be read as samples"):
        read_piece(path)


def test_joining_reads_no_array_that_it_does_not_write(tmp_path: Path) -> None:
    """Images are most of a piece; where only labels are joined, not a byte of them is looked at."""
    pieces = []
    for first in (0, 2):
        pieces.append(tmp_path / piece_name(first, first + 2))
        write_piece(pieces[-1], {"images": np.full((2, 4, 4, 1), 7, np.uint8), "labels": np.arange(first, first + 2)})
        data = bytearray(pieces[-1].read_bytes())
        at = data.index(bytes([7] * 32))
        data[at] = 8  # the checksum of `images` no longer fits
        pieces[-1].write_bytes(data)
    write_joined(tmp_path / "joined.npz", pieces, {"labels": "labels"})
    assert read_piece(tmp_path / "joined.npz")["labels"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="cannot be read as samples"):
        write_joined(tmp_path / "images.npz", pieces, {"arr_0": "images"})


class Casts(TorchDispatchMode):
    """Counts the matrices that are cast to bfloat16."""

    def __init__(self, shapes: set[torch.Size]) -> None:
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if "_to_copy" in str(function) and kwargs.get("dtype") == torch.bfloat16:
            self.count += args[0].shape in self.shapes
        return function(*args, **kwargs)


def test_bf16_casts_each_weight_once_a_batch_and_changes_no_token(inputs: tuple[Input, Input]) -> None:
    counts, tokens = {}, {}
    for is_kept in (False, True):
        model, decoder = load_model(inputs[0]), load_tokenizer(inputs[1])
        sampler = SamplerSpec("confidence", {"num_steps": 6}).build()
        maker = sample.Maker(model, decoder, sampler, (4, 5), None, 0, "bf16", "cpu", "")
        assert all(parameter.requires_grad for parameter in model.parameters())
        model.requires_grad_(is_kept)
        with Casts({p.shape for p in model.parameters() if p.ndim == 2}) as casts:
            tokens[is_kept] = maker.make(0, 6)["tokens"]
        counts[is_kept] = casts.count
    assert np.array_equal(tokens[False], tokens[True])
    assert counts[False] >= 3 * counts[True] > 0, counts
