"""The stage `train`: killed, stopped, continued and spread over processes, it is one and the same training."""

import copy
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TESTS
from PIL import Image
from stage_calls import call
from train_processes import tokens_input

from experiments.config.specs import DatasetSpec, Input, ModelSpec, TokenizerSpec
from experiments.running.attempt import Attempt
from experiments.running.components import describe, load_model
from experiments.stages import train
from experiments.store.documents import Request
from experiments.store.journal import read_points
from experiments.store.kept import kept_folder, kept_steps
from experiments.training.source import Source
from maskgit_core.errors import ArtifactError, ConfigError
from maskgit_core.images.views import Views
from maskgit_core.shards.format import Layout
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from maskgit_core.training.checkpoints import load_tensors, save_tensors
from maskgit_core.training.meters import DivergedError

MODEL = {"name": "prenorm", "dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1}
VALUES: dict[str, Any] = {
    "num_train_steps": 24,
    "batch_size": 6,
    "lr": 3e-3,
    "warmup_steps": 4,
    "ema_decay": 0.9,
    "log_every": 1,
    "checkpoint_every": 5,
    "seed": 3,
}
DRIVER = TESTS / "support" / "train_processes.py"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    rng = np.random.default_rng(0)
    layout = Layout(codebook_size=11, grid=(3, 4), num_variants=2)
    samples = Samples([f"s{i}" for i in range(40)], np.arange(40) % 4, rng.integers(0, 11, (40, 2, 3, 4)))
    write_manifest(folder / "files", layout, [write_shard(folder / "files", 0, layout, samples)], num_classes=4)
    return folder


def launch(folder: Path, cache: Path, number: int = 1, world: int = 1, **extra: Any) -> dict[str, Any]:
    values = {**VALUES, **extra.pop("values", {})}
    model = {**MODEL, **extra.pop("model", {})}
    plan = {"folder": str(folder), "number": number, "world": world, "tokens": str(cache), "model": model}
    return copy.deepcopy({**plan, "values": values, **extra})


def run_all(tmp_path: Path, launches: list[dict[str, Any]]) -> list[list[int]]:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(launches))
    done = subprocess.run([sys.executable, str(DRIVER), str(plan)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    codes: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return codes


def finals(folder: Path, num_steps: int = VALUES["num_train_steps"]) -> dict[str, torch.Tensor]:
    last = sorted((folder / "attempts").iterdir())[-1] / "files"
    found = {}
    for name in ("model", "raw"):
        tensors, facts = load_tensors(last / f"{name}.safetensors")
        assert facts == {"step": num_steps}
        found |= {f"{name}.{key}": value for key, value in tensors.items()}
    return found


def losses(folder: Path, num_steps: int = VALUES["num_train_steps"]) -> list[float]:
    points = {point.step: point.value for point in read_points(folder) if point.metric == "loss"}
    return [points[step] for step in range(1, num_steps + 1)]


def kills(count: int, seed: int, num_steps: int) -> list[list[Any]]:
    """Steps at which successive attempts kill themselves: none lies before the last checkpoint, so that all happen."""
    rng = random.Random(seed)
    saved, found = 0, []
    for _ in range(count):
        step = rng.randrange(saved, min(saved + VALUES["checkpoint_every"] + 3, num_steps))
        found.append([step, rng.choice(["before", "after"])])
        saved = step - step % VALUES["checkpoint_every"]
    return found


def killed_equals_whole(tmp_path: Path, cache: Path, count: int, num_steps: int) -> bool:
    """Whether weights and losses of a training killed `count` times are those of an undisturbed one."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    changed = {"values": {"num_train_steps": num_steps}}
    at = kills(count, 1, num_steps)
    attempts = [launch(torn, cache, number, kill_at=step, **changed) for number, step in enumerate(at, start=1)]
    last = launch(torn, cache, count + 1, **changed)
    codes = run_all(tmp_path, [launch(whole, cache, **changed), *attempts, last])
    print(f"{count} kills at steps {', '.join(f'{place} {step}' for step, place in at)} of {num_steps}")
    assert codes == [[0], *[[-9]] * count, [0]]
    one, other = finals(whole, num_steps), finals(torn, num_steps)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return losses(whole, num_steps) == losses(torn, num_steps)


def test_killed_at_any_step_and_resumed_gives_the_same_bits(tmp_path: Path, cache: Path) -> None:
    assert killed_equals_whole(tmp_path, cache, 4, 24)


@pytest.mark.slow
def test_twenty_kills_give_the_same_bits(tmp_path: Path, cache: Path) -> None:
    assert killed_equals_whole(tmp_path, cache, 20, 60)


def test_processes_that_come_and_go_see_the_same_losses(tmp_path: Path, cache: Path) -> None:
    """With dropout, whose draws belong to the samples, and any micro-batches."""
    one, two, mixed, stopped, small = (tmp_path / name for name in ("one", "two", "mixed", "stopped", "small"))
    codes = run_all(
        tmp_path,
        [
            launch(one, cache),
            launch(two, cache, world=2),
            launch(small, cache, values={"micro_batch_size": 4}),
            launch(mixed, cache, 1, term_at=8),
            launch(mixed, cache, 2, world=2),
            launch(stopped, cache, 1, world=2, term_at=3),
            launch(stopped, cache, 2, world=2),
        ],
    )
    assert codes == [[0], [0, 0], [0], [143], [0, 0], [143, 143], [0, 0]]
    assert np.allclose(losses(one), losses(small), atol=1e-5)
    assert np.allclose(losses(one), losses(two), atol=1e-5)
    assert np.allclose(losses(one), losses(mixed), atol=1e-5)
    assert losses(one)[:8] == losses(mixed)[:8]
    first, other = finals(two), finals(stopped)
    assert all(torch.equal(first[key], other[key]) for key in first)


def trained(folder: Path, cache: Path, **changed: Any) -> Attempt:
    module = "experiments.stages.train"
    Request(fingerprint="f" * 64, stage="train", module=module, version=1, kind="model", config={}).write(folder)
    attempt = Attempt(folder, changed.pop("number", 1))
    spec = ModelSpec("prenorm", {"dim": 16, "num_layers": 2, "num_heads": 2, "dropout": changed.pop("dropout", 0.1)})
    call(train, attempt, tokens=tokens_input(str(cache)), model=spec, **{**VALUES, "num_train_steps": 4, **changed})
    attempt.close()
    return attempt


def test_artifact_loads_and_holds_both_kinds_of_weights(tmp_path: Path, cache: Path) -> None:
    attempt = trained(tmp_path / "step", cache)
    (tmp_path / "step" / "files").symlink_to(attempt.files)
    facts = attempt.notes.facts
    assert (facts["codebook_size"], facts["num_tokens"], facts["num_classes"], facts["grid"]) == (11, 12, 4, [3, 4])
    source = Input("train", "model", tmp_path / "step", "f" * 64, facts, {})
    model, raw = load_model(source), load_model(source, weights="raw")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert not torch.equal(model.pos_emb, raw.pos_emb)
    values = {point.metric: point.value for point in read_points(tmp_path / "step")}
    assert {"loss", "masked_accuracy", "grad_norm", "lr", "tokens_per_s", "data_wait_share"} <= values.keys()
    assert 0 < values["model_flops_utilisation"] < 1


def test_utilisation_is_a_share_of_the_named_peak(tmp_path: Path, cache: Path) -> None:
    trained(tmp_path / "step", cache, peak_tflops=2.0)
    points = [(p.step, p.metric, p.value) for p in read_points(tmp_path / "step")]
    rates = {step: value for step, metric, value in points if metric == "model_tflops_per_s"}
    shares = {step: value for step, metric, value in points if metric == "model_flops_utilisation"}
    assert len(rates) == 4 and all(shares[step] == pytest.approx(rates[step] / 2.0) for step in rates)


def test_operations_of_the_paper_size_model_are_counted() -> None:
    """24 x 768: twelve D^2 weights a block, biases and norms aside; forward and backward."""
    from maskgit_core.models.prenorm import Model
    from maskgit_core.training.utilisation import operations_per_token

    with torch.device("meta"):
        model = Model(codebook_size=1024, num_tokens=256, num_classes=1000)
    expected = 24 * (6 * 12 * 768**2 + 12 * 256 * 768)
    assert operations_per_token(model) == pytest.approx(expected, rel=2e-3)


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path, cache: Path) -> None:
    for name, size in (("whole", None), ("parts", 2)):
        attempt = trained(tmp_path / name, cache, micro_batch_size=size, ema_decay=None, dropout=0.0)
        assert not (attempt.files / "raw.safetensors").exists()
    one = [p.value for p in read_points(tmp_path / "whole") if p.metric == "loss"]
    other = [p.value for p in read_points(tmp_path / "parts") if p.metric == "loss"]
    assert one[0] == pytest.approx(other[0], abs=1e-6) and len(one) == len(other) == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"loss_on": "all", "mask_kind": "bernoulli", "mask_schedule": "arccos", "lr_schedule": "last_tenth"},
        {"loss_on": "weighted", "mask_rounding": "round", "optimizer": "adam", "label_smoothing": 0.0},
        {"mask_ratio_per": "batch", "precision": "bf16", "grad_clip": None, "ema_warmup": "by_ten"},
        {"optimizer": "radam", "lr_schedule": "linear", "warmup_from": "zero", "ema_count_from": 1, "ema_power": 0.75},
    ],
)
def test_every_switch_of_the_recipes_trains(tmp_path: Path, cache: Path, changed: dict[str, Any]) -> None:
    trained(tmp_path / "step", cache, **changed)
    values = [p.value for p in read_points(tmp_path / "step") if p.metric == "loss"]
    assert len(values) == 4 and all(0 < value < 5 for value in values)


def test_fp16_without_a_gpu_is_one_line(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train.precision: fp16 trains on GPUs only and there is none here"):
        trained(tmp_path / "step", cache, precision="fp16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_give_the_same_losses_but_for_rounding(tmp_path: Path, cache: Path, precision: str) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no compiler here")
    for name, compiled in (("plain", False), ("compiled", True)):
        trained(tmp_path / name, cache, compile=compiled, precision=precision, dropout=0.0)
    one, other = (losses_of(tmp_path / name) for name in ("plain", "compiled"))
    assert len(one) == 4 and one == pytest.approx(other, abs=1e-5 if precision == "fp32" else 2e-2)


def losses_of(folder: Path) -> list[float]:
    return [point.value for point in read_points(folder) if point.metric == "loss"]


def test_neither_tokens_nor_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.tokens: neither cached tokens nor images"):
        call(train, Attempt(tmp_path), model=ModelSpec("prenorm", {}), num_train_steps=1)


def artifact(attempt: Attempt) -> Input:
    (attempt.folder / "files").symlink_to(attempt.files)
    return Input("train", "model", attempt.folder, "f" * 64, attempt.notes.facts, {})


def kept_of(attempt: Attempt, step: int) -> Input:
    folder = kept_folder(attempt.folder, step)
    manifest = json.loads((folder / "manifest.json").read_text())
    return Input(f"train@{step}", "model", folder, manifest["fingerprint"], manifest["facts"], {})


def test_a_finished_run_is_extended_or_branched_at_a_kept_step(tmp_path: Path, cache: Path) -> None:
    constant = {"lr_schedule": "constant"}
    whole = trained(tmp_path / "whole", cache, num_train_steps=6, **constant)
    run = trained(tmp_path / "first", cache, keep_every=2, **constant)
    first, kept = artifact(run), kept_of(run, 2)
    assert kept_steps(run.folder) == [2, 4]
    assert {p.name for p in first.files.glob("step-*")} == {"step-000000004.safetensors"}
    for name, source in (("end", first), ("branch", kept)):
        longer = trained(tmp_path / name, cache, num_train_steps=6, continue_from=source, **constant)
        one, _ = load_tensors(whole.files / "model.safetensors")
        other, _ = load_tensors(longer.files / "model.safetensors")
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(load_model(kept_of(run, 4)).pos_emb, load_model(first).pos_emb)
    assert torch.equal(load_model(kept_of(run, 4), weights="raw").pos_emb, load_model(first, weights="raw").pos_emb)
    assert not torch.equal(load_model(kept).pos_emb, load_model(first).pos_emb)
    with pytest.raises(ConfigError, match="4 steps, but it goes on from step 4"):
        trained(tmp_path / "short", cache, continue_from=first)
    (first.files / "step-000000004.safetensors").unlink()
    with pytest.raises(ArtifactError, match="holds no training state to go on from; name a model that was trained"):
        trained(tmp_path / "imported", cache, num_train_steps=6, continue_from=first)


def test_killed_between_saving_and_keeping_a_checkpoint_it_is_kept_at_the_resume(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: Any) -> None:
        raise ArtifactError("killed here")

    with monkeypatch.context() as patched, pytest.raises(ArtifactError, match="killed here"):
        patched.setattr("experiments.training.run.publish_kept", killed)
        trained(tmp_path / "step", cache, keep_every=2)
    assert kept_steps(tmp_path / "step") == []
    trained(tmp_path / "step", cache, keep_every=2, number=2)
    assert kept_steps(tmp_path / "step") == [2, 4]


def test_a_loss_gone_wrong_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DivergedError, match=r"train: the .* is \S+ at step \d+ .* lower train.lr"):
        trained(tmp_path / "step", cache, num_train_steps=60, lr=1e6, grad_clip=None, checkpoint_every=1, dropout=0.0)
    kept = sorted((tmp_path / "step" / "attempts" / "0001" / "checkpoints").iterdir())
    assert kept and all(torch.isfinite(t).all() for t in load_tensors(kept[-1])[0].values())


def test_held_out_samples_are_not_trained_on_and_their_likelihood_is_logged(tmp_path: Path, cache: Path) -> None:
    trained(tmp_path / "step", cache, held_out_share=0.25, checkpoint_every=2)
    values = {(p.metric, p.step): p.value for p in read_points(tmp_path / "step") if p.metric.startswith("held_out")}
    assert {step for _, step in values} == {2, 4} and len(values) == 8
    assert all(1 < value < 4 for value in values.values())
    source = Source(tokens_input(str(cache)), None, None, Views(), "cpu", 0)
    source.hold_out(0.25, is_looked_at=True)
    stream = itertools.islice(iter(source.batches(batch_size=6, seed=0)), 20)
    shown = {number for batch in stream for number in batch.samples_B.tolist()}
    assert source.held_out is not None and len(source.held_out.tokens_NL) == 10
    assert shown == set(range(40)) - set(source.held_out.indices_N.tolist()), "what is held out is never shown"


@pytest.mark.parametrize(
    ("cache_options", "options"),
    [
        ({}, {}),
        (
            {"variants": "random_resized_crop", "crop_size": 16, "num_crops": 3, "crop_scale": (0.3, 1.0)},
            {
                "image_views": "random_resized_crop",
                "image_crop_size": 16,
                "image_num_crops": 3,
                "image_crop_scale": (0.3, 1.0),
            },
        ),
    ],
    ids=["mirrored", "cropped"],
)
def test_images_on_the_fly_give_the_losses_of_their_cache(tmp_path: Path, cache_options: Any, options: Any) -> None:
    """Views, order and tokens are those of a cache made with the same tokenizer."""
    from experiments.stages import cache_tokens

    rng = np.random.default_rng(0)
    for number in range(10):
        (tmp_path / "pictures" / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"c{number % 2}" / f"{number}.png")
    images = DatasetSpec("image_folder", {"root": str(tmp_path / "pictures"), "image_size": 20 if options else 16})
    torch.manual_seed(0)
    spec = TokenizerSpec("vq", {"codebook_size": 8, "code_dim": 4, "width": 8})
    tokenizer = spec.build(in_channels=3)
    torch.nn.init.normal_(tokenizer.codebook)
    (tmp_path / "tokenizer" / "files").mkdir(parents=True)
    (tmp_path / "tokenizer" / "files" / "tokenizer.json").write_text(json.dumps(describe(spec, {"in_channels": 3})))
    save_tensors(tmp_path / "tokenizer" / "files" / "weights.safetensors", tokenizer.state_dict(), {})
    upstream = Input("train_tokenizer", "tokenizer", tmp_path / "tokenizer", "f" * 64, {}, {})
    cached = Attempt(tmp_path / "cache")
    cache_tokens.run(cached, tokenizer=upstream, dataset=images, num_workers=1, **cache_options)
    (tmp_path / "cache" / "files").symlink_to(cached.files)
    trained(tmp_path / "cached", tmp_path / "cache", held_out_share=0.2, checkpoint_every=2)
    attempt = Attempt(tmp_path / "fly")
    model = ModelSpec("prenorm", {"dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1})
    values = {**VALUES, "num_train_steps": 4, "held_out_share": 0.2, "checkpoint_every": 2, **options}
    call(train, attempt, images=images, image_tokenizer=upstream, model=model, samples_every=2, **values)
    attempt.close()
    names = ("loss", "held_out")
    found = [[p.value for p in read_points(tmp_path / n) if p.metric.startswith(names)] for n in ("cached", "fly")]
    assert found[0] == found[1] and len(found[0]) == 4 + 2 * 4, "pictures on the way change nothing"
    grids = [f"samples/step-{step:09d}.png" for step in (2, 4)]
    assert list(attempt.notes.shown) == grids
    pictures = [np.asarray(Image.open(attempt.files / name)) for name in grids]
    assert pictures[0].shape == (2 * 50 + 2, 8 * 50 + 2, 3), "a row a class, eight columns of 16 x 16 enlarged thrice"
    assert not np.array_equal(*pictures), "the same seeds, a model that has learnt"


def test_a_cache_of_unknown_origin_gives_no_pictures(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.samples_every: no tokenizer is known behind .*; set it to 0"):
        trained(tmp_path / "step", cache, samples_every=2)
