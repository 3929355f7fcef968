"""The evaluating stages: the same numbers for any number of processes and after any stop, and never a bare number."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from stage_calls import call
from step_documents import with_facts, write_manifest

from experiments.config.specs import DatasetSpec, ExtractorSpec, Input
from experiments.running.attempt import Attempt, Stopped
from experiments.running.signals import StopFlag
from experiments.stages import eval_tokenizer, evaluate, reference_statistics
from maskgit_core.errors import ConfigError, DataError
from maskgit_core.evaluation import blocks
from maskgit_core.evaluation.reference_files import read_statistics, write_statistics
from maskgit_core.files import write_json
from maskgit_core.images.image_sets import npz_array, open_images, sorted_by_class, write_images

DATA = DatasetSpec("fashion_mnist", {"root": "bundled:fashion_mnist_subset"})
NETWORK = ExtractorSpec("tiny_features", {"width": 12}, module="tiny_features")
COUNT = 45  # neither 2 nor 3 processes divide its blocks of 16


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)


def finished(folder: Path, stage: ModuleType, attempt: Attempt, name: str) -> Input:
    """What the job makes of a stage that returned."""
    attempt.close()
    (folder / "files").symlink_to(attempt.files)
    write_manifest(folder, attempt.notes)
    return Input(name, stage.PRODUCES, folder, "0" * 64, attempt.notes.facts, {})


def run(folder: Path, stage: ModuleType, *, ranks: int = 1, **kwargs: Any) -> Input:
    """Runs every rank of a stage, the last first; rank 0 then finds the blocks of the others."""
    for rank in reversed(range(ranks)):
        attempt = Attempt(folder, rank=rank, world_size=ranks)
        call(stage, attempt, **kwargs)
    return finished(folder, stage, attempt, folder.name)


def scores(step: Input) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((step.files / "scores.json").read_text())["scores"]
    return found


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def reference(workshop: Path) -> Input:
    return run(
        workshop / "reference",
        reference_statistics,
        dataset=DATA,
        extractor=NETWORK,
        num_images=80,
        metrics=("frechet", "precision_recall"),
        protocol="small",
    )


@pytest.fixture(scope="module")
def tokenizer(workshop: Path) -> Input:
    from maskgit_core.tokenizers.vq import Tokenizer

    torch.manual_seed(0)
    folder = workshop / "tokenizer"
    (folder / "files").mkdir(parents=True)
    save_file(Tokenizer(in_channels=1).state_dict(), folder / "files" / "weights.safetensors")
    about = {"name": "vq", "module": "", "options": {}, "facts": {"in_channels": 1}}
    write_json(folder / "files" / "tokenizer.json", about)
    write_manifest(folder)
    return Input("tokenizer", "tokenizer", folder, "1" * 64, {}, {})


@pytest.fixture(scope="module")
def sample_file(workshop: Path) -> Path:
    data = DATA.with_options(split="test").build()
    path = workshop / "samples.npz"
    np.savez(path, arr_0=data.images[100 : 100 + COUNT, :, :, None], labels=data.labels[100 : 100 + COUNT].astype(int))
    return path


def evaluated(folder: Path, reference: Input, sample_file: Path, ranks: int = 1, **more: Any) -> Input:
    asked: dict[str, Any] = {"metrics": ("frechet", "precision_recall"), "protocol": "small", **more}
    asked = {"samples": str(sample_file), "extractor": NETWORK, "dataset": DATA, **asked}
    return run(folder, evaluate, ranks=ranks, reference=reference, **asked)


def test_any_number_of_processes_gives_the_same_numbers(
    tmp_path: Path, reference: Input, tokenizer: Input, sample_file: Path
) -> None:
    found, pairs = [], []
    for ranks in (1, 2, 3):
        found.append(scores(evaluated(tmp_path / f"evaluate-{ranks}", reference, sample_file, ranks)))
        pairs.append(
            scores(
                run(
                    tmp_path / f"tokenizer-{ranks}",
                    eval_tokenizer,
                    ranks=ranks,
                    tokenizer=tokenizer,
                    dataset=DATA,
                    reference=reference,
                    extractor=NETWORK,
                    num_images=COUNT,
                    protocol="small",
                )
            )
        )
    assert found[0] == found[1] == found[2], "bit for bit"
    assert pairs[0] == pairs[1] == pairs[2], "bit for bit"
    names = {(row["name"], row["of"]) for row in found[0]}
    assert ("fd_tiny", "samples") in names and ("fd_tiny", "real images") in names
    assert ("precision_tiny", "samples") in names
    assert not any(name in ("fid", "precision", "recall") for name, _ in names), "only Inception's are called so"
    assert {row["num_images"] for row in found[0]} == {COUNT}
    assert {("psnr", "reconstructions"), ("codebook_usage", "reconstructions")} <= {
        (r["name"], r["of"]) for r in pairs[0]
    }


def test_shares_are_tasks_of_their_own_and_the_last_one_only_merges(
    tmp_path: Path, reference: Input, tokenizer: Input, sample_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks in any order that never meet, two networks; whoever merges computes nothing again."""
    other = ExtractorSpec("tiny_features", {"width": 9}, module="tiny_features")
    further = run(tmp_path / "further", reference_statistics, dataset=DATA, extractor=other, num_images=80,
                  protocol="other")  # fmt: skip
    more: dict[str, Any] = {"further_extractors": {"other": other}, "further_references": [further]}
    asked: dict[str, Any] = {"extractor": NETWORK, "dataset": DATA, "reference": reference, "protocol": "small", **more}
    stages: list[tuple[ModuleType, dict[str, Any]]] = [
        (evaluate, {**asked, "samples": str(sample_file)}),
        (eval_tokenizer, {**asked, "tokenizer": tokenizer, "num_images": COUNT}),
    ]
    from maskgit_core.evaluation import features

    for stage, options in stages:
        folder = tmp_path / stage.PRODUCES
        whole = scores(run(tmp_path / f"{stage.PRODUCES}-whole", stage, **options))
        for rank in (2, 0, 1):
            share = Attempt(folder, rank=rank, world_size=3, share=f"task-{rank}")
            call(stage, share, **options)
            share.close()
            assert not (share.files / "scores.json").exists()
        with monkeypatch.context() as patch:
            for module in (features, eval_tokenizer):
                patch.setattr(module, "outputs_of", lambda *args, **kwargs: pytest.fail("computed again"))
            assert scores(run(folder, stage, **options)) == whole
        assert {row["protocol"] for row in whole} == {"small", "other"}


def test_a_stopped_evaluation_goes_on_with_what_is_missing(
    tmp_path: Path, reference: Input, sample_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scores(evaluated(tmp_path / "whole", reference, sample_file))
    asked: dict[str, Any] = {"samples": str(sample_file), "extractor": NETWORK, "dataset": DATA, "protocol": "small"}
    asked |= {"metrics": ("frechet", "precision_recall"), "reference": reference}

    class AfterTwo(StopFlag):
        asked_for = 0

        def is_set(self) -> bool:
            self.asked_for += 1
            return self.asked_for > 2

    with pytest.raises(Stopped):
        call(evaluate, Attempt(tmp_path / "torn", 1, stop=AfterTwo()), **asked)
    done = sorted((tmp_path / "torn" / "parts").rglob("*.safetensors"))
    assert 0 < len(done) < 3
    times = [path.stat().st_mtime_ns for path in done]
    computed: list[int] = []
    from experiments.evaluation import feature_pass

    real_extract = feature_pass.extract

    def counted(*args: Any, **kwargs: Any) -> Any:
        assert [path.stat().st_mtime_ns for path in done if path.is_file()] == times, "finished blocks stay"
        computed.append(1)
        return real_extract(*args, **kwargs)

    monkeypatch.setattr(feature_pass, "extract", counted)
    attempt = Attempt(tmp_path / "torn", 2)
    call(evaluate, attempt, **asked)
    assert scores(finished(tmp_path / "torn", evaluate, attempt, "torn")) == whole and computed
    assert not list((tmp_path / "torn" / "parts").rglob("*.safetensors")), "blocks are removed once the scores stand"


def test_every_number_stands_with_its_protocol(tmp_path: Path, reference: Input, sample_file: Path) -> None:
    step = evaluated(tmp_path / "evaluate", reference, sample_file, num_images=32)
    written = json.loads((step.files / "scores.json").read_text())
    for row in written["scores"]:
        assert row["num_images"] == 32 and row["protocol"] in written["protocols"]
    protocol = written["protocols"]["small"]
    assert protocol["extractor"]["weights_sha256"] == "random projection"
    assert protocol["reference"] == {
        "dataset": "fashion_mnist", "split": "train", "num_images": 80, "order": "first of the split",
        "image_size": 28, "crop": "none", "num_features": 80,
    }  # fmt: skip
    notes = json.loads((next((tmp_path / "evaluate" / "attempts").iterdir()) / "notes.json").read_text())
    assert notes["headline"]["name"] == "fd_tiny"
    assert notes["headline"]["protocol"]["extractor"] == protocol["extractor"]


def test_the_reference_itself_scores_zero_and_the_order_does_not_matter(tmp_path: Path, reference: Input) -> None:
    data = DATA.with_options(split="train").build()
    order = np.random.default_rng(0).permutation(80)
    np.savez(tmp_path / "same.npz", arr_0=data.images[:80][order][..., None])
    found = scores(evaluated(tmp_path / "evaluate", reference, tmp_path / "same.npz", dataset=None))
    values = {row["name"]: row["value"] for row in found}
    assert values["fd_tiny"] == pytest.approx(0, abs=1e-6)
    assert values["precision_tiny"] == values["recall_tiny"] == 1


def test_floor_and_ceiling_give_the_number_its_place(tmp_path: Path, reference: Input, sample_file: Path) -> None:
    noise = tmp_path / "untrained" / "files"
    noise.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28, 1), dtype=np.uint8)
    np.savez(noise / "images.npz", arr_0=pixels)
    write_manifest(noise.parent)
    ceiling = Input("sample_untrained", "samples", noise.parent, "2" * 64, {}, {})
    step = evaluated(tmp_path / "evaluate", reference, sample_file, ceiling=ceiling, classifier_steps=30)
    values = {(row["name"], row["of"]): row["value"] for row in scores(step)}
    floor, ceil = (values["fd_tiny", of] for of in ("real images", "untrained model"))
    assert floor < values["fd_tiny", "samples"] < ceil
    place = (values["fd_tiny", "samples"] - floor) / (ceil - floor)
    assert values["floor_to_ceiling", "samples"] == pytest.approx(place)
    assert values["class_accuracy", "real images"] > 0.4 and values["class_accuracy", "samples"] > 0.4


def test_numbers_of_unlike_networks_are_never_compared(tmp_path: Path, reference: Input, sample_file: Path) -> None:
    other = ExtractorSpec("tiny_features", {"width": 11}, module="tiny_features")
    with pytest.raises(ConfigError, match="extractor: options differ"):
        evaluated(tmp_path / "a", reference, sample_file, extractor=other)
    with pytest.raises(ConfigError, match=r"metrics: .* need logits"):
        evaluated(tmp_path / "b", reference, sample_file, metrics=("inception_score",))
    with pytest.raises(ConfigError, match="either a file or folder"):
        evaluated(tmp_path / "c", reference, sample_file, samples=None)


def test_a_rebuilt_input_never_meets_old_blocks(tmp_path: Path, tokenizer: Input) -> None:
    attempt = Attempt(tmp_path / "step")
    from experiments.evaluation.feature_pass import blocks_of

    before = blocks_of(attempt, "pairs", COUNT, tokenizer).path(0)
    manifest = tokenizer.folder / "manifest.json"
    kept = manifest.read_text()
    with_facts(tokenizer.folder, rebuilt=True)
    assert blocks_of(attempt, "pairs", COUNT, tokenizer).path(0) != before
    manifest.write_text(kept)
    attempt.close()


# -- files that others exchange ----------------------------------------------------------------------------------------
def test_folders_and_npz_of_the_same_images_are_the_same_samples(tmp_path: Path, sample_file: Path) -> None:
    given = open_images(sample_file)
    folder = tmp_path / "png"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(given.read([index])[0, :, :, 0]).save(folder / f"{index:03d}.png")
    pictures = open_images(folder)
    assert len(pictures) == 5 and (pictures.read(range(5))[..., :1] == given.read(range(5))).all()
    np.savez_compressed(tmp_path / "packed.npz", arr_0=given.read(range(5)))
    assert (open_images(tmp_path / "packed.npz").read([4, 0]) == given.read([4, 0])).all()


@pytest.mark.parametrize("form", ["out.npz", "out.tar", "out"])
def test_samples_survive_every_form_of_exchange(tmp_path: Path, sample_file: Path, form: str) -> None:
    given = open_images(sample_file)
    write_images(given, tmp_path / form)
    back = open_images(tmp_path / form)
    assert len(back) == len(given) and (back.read(range(COUNT))[..., :1] == given.read(range(COUNT))).all()
    if form != "out":  # a folder of PNGs has no place for classes
        assert back.labels is not None and given.labels is not None and (back.labels == given.labels).all()


def test_a_file_sorted_by_class_is_noticed() -> None:
    assert sorted_by_class(np.array([0, 0, 1, 1, 2])) and not sorted_by_class(np.array([0, 1, 0, 1]))
    assert not sorted_by_class(None) and not sorted_by_class(np.zeros(4, dtype=int))


def test_stored_npz_arrays_are_mapped_not_read(sample_file: Path) -> None:
    mapped = npz_array(sample_file, "arr_0")
    assert isinstance(mapped, np.memmap)
    with np.load(sample_file) as read:
        assert (mapped == read["arr_0"]).all()


@pytest.mark.parametrize("damage", ["missing", "text", "objects", "shape", "empty"])
def test_foreign_samples_that_make_no_sense_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "samples.npz"
    if damage == "text":
        path.write_text("<html></html>")
    elif damage == "objects":
        np.savez(path, arr_0=np.array([{"a": 1}], dtype=object))
    elif damage == "shape":
        np.savez(path, arr_0=np.zeros((3, 8, 8), np.uint8))
    elif damage == "empty":
        path.mkdir()
    with pytest.raises(DataError) as caught:
        open_images(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_published_statistics_are_read_and_written(tmp_path: Path, reference: Input) -> None:
    from maskgit_core.evaluation.features import load_moments

    moments = load_moments(reference.files / "moments.safetensors")
    write_statistics(tmp_path / "stats.npz", moments, spatial=moments)
    mean_and_more, spatial = read_statistics(tmp_path / "stats.npz", 12)
    assert torch.equal(mean_and_more.covariance, moments.covariance) and spatial is not None
    with pytest.raises(DataError, match="12 values, the extractor gives 2048"):
        read_statistics(tmp_path / "stats.npz", 2048)


def test_a_reference_from_published_statistics_equals_one_from_the_images(
    tmp_path: Path, reference: Input, sample_file: Path
) -> None:
    from maskgit_core.evaluation.features import load_moments

    write_statistics(tmp_path / "stats.npz", load_moments(reference.files / "moments.safetensors"))
    given = run(tmp_path / "given", reference_statistics, extractor=NETWORK, statistics=str(tmp_path / "stats.npz"))
    asked: dict[str, Any] = {"metrics": ("frechet",), "dataset": None}
    a = scores(evaluated(tmp_path / "a", given, sample_file, **asked))
    b = scores(evaluated(tmp_path / "b", reference, sample_file, **asked))
    assert [row["value"] for row in a] == [row["value"] for row in b]
