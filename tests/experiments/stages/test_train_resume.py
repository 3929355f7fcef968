"""A training that is stopped at bad moments, whose checkpoints get damaged, or that goes wrong: nothing is lost."""

import itertools
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TESTS
from stage_calls import call
from train_processes import tokens_input

from experiments.config.specs import ModelSpec
from experiments.running.attempt import Attempt, Stopped
from experiments.running.signals import StopFlag
from experiments.stages import train
from experiments.store.documents import Request
from experiments.store.journal import read_points
from experiments.store.kept import kept_steps
from experiments.training.run import TrainingRun
from maskgit_core.errors import WeightsError
from maskgit_core.shards.format import Layout
from maskgit_core.shards.writer import Samples, write_manifest, write_shard
from maskgit_core.training.checkpoints import list_checkpoints, load_checkpoint, load_tensors, save_tensors
from maskgit_core.training.meters import DivergedError
from maskgit_core.training.trainer import Trainer

DRIVER = TESTS / "support" / "train_processes.py"
MODEL = {"name": "prenorm", "dim": 16, "num_layers": 1, "num_heads": 2}
VALUES: dict[str, Any] = {
    "num_train_steps": 12, "batch_size": 4, "lr": 3e-3, "warmup_steps": 2, "ema_decay": 0.9, "log_every": 1,
    "checkpoint_every": 3, "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    layout = Layout(codebook_size=11, grid=(2, 3), num_variants=2)
    ids = np.random.default_rng(0).integers(0, 11, (20, 2, 2, 3))
    samples = Samples([f"s{i}" for i in range(20)], np.arange(20) % 4, ids)
    write_manifest(folder / "files", layout, [write_shard(folder / "files", 0, layout, samples)], num_classes=4)
    return folder


def trained(folder: Path, cache: Path, *, number: int = 1, stop_at: int | None = None, **changed: Any) -> Attempt:
    """One attempt; asked to stop during step `stop_at`, it ends saved after that step."""
    stop = StopFlag()
    original = Trainer.train_step

    def watched(self: Trainer, pieces: Any) -> None:
        if self.step + 1 == stop_at:
            stop.signal = signal.SIGTERM
        original(self, pieces)

    module = "experiments.stages.train"
    Request(fingerprint="f" * 64, stage="train", module=module, version=1, kind="model", config={}).write(folder)
    attempt = Attempt(folder, number, stop=stop)
    model = ModelSpec("prenorm", {"dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.1})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "train_step", watched)
        try:
            call(train, attempt, tokens=tokens_input(str(cache)), model=model, **{**VALUES, **changed})
        except Stopped:
            assert stop_at is not None
        finally:
            attempt.close()
    return attempt


def points(folder: Path, *names: str) -> dict[tuple[str, int], float]:
    return {(p.metric, p.step): p.value for p in read_points(folder) if p.metric.startswith(names)}


def same_weights(one: Attempt, other: Attempt) -> bool:
    found = [load_tensors(attempt.files / "raw.safetensors")[0] for attempt in (one, other)]
    return found[0].keys() == found[1].keys() and all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Attempt:
    return trained(tmp_path_factory.mktemp("whole"), cache)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit of the last value": lambda path: flip(path, -2),
    "a bit in the middle": lambda path: flip(path, path.stat().st_size // 2),
    "a bit of the header": lambda path: flip(path, 300),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, cache: Path, whole: Attempt, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(tmp_path, cache, stop_at=8)
    saved = list_checkpoints([first.checkpoints])
    assert [path.name for path in saved] == ["step-000000008.safetensors", "step-000000006.safetensors"]
    damage(saved[0])
    again = trained(tmp_path, cache, number=2)
    assert same_weights(whole, again) and points(tmp_path, "loss") == points(whole.folder, "loss")
    told = [line for line in capsys.readouterr().out.splitlines() if "step-000000008" in line]
    assert len(told) == 1 and told[0].endswith("going on from step-000000006.safetensors")
    assert not saved[0].exists(), "it does not come up again"


def test_with_all_checkpoints_damaged_it_says_so_and_begins_again(
    tmp_path: Path, cache: Path, whole: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(tmp_path, cache, stop_at=8)
    for path in list_checkpoints([first.checkpoints]):
        path.write_bytes(b"")
    assert same_weights(whole, trained(tmp_path, cache, number=2))
    assert capsys.readouterr().out.count("going on from the beginning") == 2


def test_a_flipped_bit_of_any_byte_is_found(tmp_path: Path) -> None:
    """But for what changes nothing: the spaces that pad the header, and the name of the sum itself."""
    path, tensors = tmp_path / "x.safetensors", {"a": torch.arange(6.0), "b": torch.tensor(7, dtype=torch.int32)}
    save_tensors(path, tensors, {"step": 5})
    data = path.read_bytes()
    for _ in range(5):
        save_tensors(path, tensors, {"step": 5})
        assert path.read_bytes() == data, "the same state is the same file"
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found, facts, _ = load_checkpoint(path)
        except WeightsError:
            continue
        assert facts["step"] == 5 and found.keys() == tensors.keys(), place
        assert all(torch.equal(found[key], value) for key, value in tensors.items()), place


def test_the_last_checkpoints_are_kept_whichever_attempt_made_them(tmp_path: Path, cache: Path) -> None:
    first = trained(tmp_path, cache, stop_at=7)
    (first.checkpoints / ".step-000000009.safetensors.1a2b.tmp").write_bytes(b"killed while writing")
    second = trained(tmp_path, cache, number=2, stop_at=8)
    found = list_checkpoints([second.checkpoints, first.checkpoints])
    assert [path.parent.parent.name + "/" + path.name[9:14] for path in found] == ["0002/00008", "0001/00007"]
    assert len(list(first.checkpoints.iterdir())) == 1, "what a killed attempt left is cleared away"


def test_between_two_log_lines_a_stop_changes_no_figure(tmp_path: Path, cache: Path) -> None:
    changed = {"log_every": 5, "checkpoint_every": 4}
    one = trained(tmp_path / "one", cache, **changed)
    for number, stop_at in enumerate((2, 7, 8, 11, None), start=1):
        other = trained(tmp_path / "other", cache, number=number, stop_at=stop_at, **changed)
    names = ("loss", "masked_accuracy", "grad_norm", "lr", "ema")
    found = points(one.folder, *names)
    assert same_weights(one, other) and found == points(other.folder, *names)
    assert {step for _, step in found} == {5, 10, 12}
    plain = points(trained(tmp_path / "plain", cache).folder, "loss")
    for last, steps in {5: range(1, 6), 10: range(6, 11), 12: range(11, 13)}.items():
        assert found["loss", last] == pytest.approx(np.mean([plain["loss", step] for step in steps]), rel=1e-5)


def test_killed_while_it_looks_at_held_out_samples_they_are_looked_at_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {"held_out_share": 0.2, "checkpoint_every": 3}
    whole = trained(tmp_path / "whole", cache, **changed)
    original, calls = TrainingRun._look, itertools.count()

    def killed(self: TrainingRun, step: int, at_end: bool) -> None:
        if step == 6 and next(calls) == 0:
            self.writer.wait()
            raise KeyboardInterrupt
        original(self, step, at_end)

    monkeypatch.setattr(TrainingRun, "_look", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "torn", cache, **changed)
    again = trained(tmp_path / "torn", cache, number=2, **changed)
    assert same_weights(whole, again)
    found = points(again.folder, "held_out", "loss")
    assert found == points(whole.folder, "held_out", "loss") and len(found) == 12 + 4 * 4


def test_what_says_how_a_training_runs_may_change_between_attempts(tmp_path: Path, cache: Path, whole: Attempt) -> None:
    """Not in this list: what cuts the batch, as dropout is drawn piece by piece."""
    trained(tmp_path, cache, stop_at=2, checkpoint_every=1, keep_last=1)
    trained(tmp_path, cache, number=2, stop_at=5, checkpoint_every=100, log_every=7, peak_tflops=1.0)
    last = trained(tmp_path, cache, number=3, checkpoint_every=2, log_every=4, keep_last=5)
    assert same_weights(whole, last)


def test_a_state_gone_wrong_is_never_saved_and_the_last_good_one_can_be_gone_on_from(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is no number at a step whose loss still is one; the log would look at it only much later."""
    original = Trainer.train_step

    def poisoned(self: Trainer, pieces: Any) -> None:
        if self.step == 5:
            next(iter(self.parameters.values())).register_hook(lambda grad: grad * torch.nan)
        original(self, pieces)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    expected = rf"^train: the norm of the gradient is nan at step 6 .*: train.continue_from={tmp_path.name}@4$"
    with pytest.raises(DivergedError, match=expected):
        trained(tmp_path, cache, log_every=100, checkpoint_every=2, keep_last=1)
    assert kept_steps(tmp_path) == [4], "the next checkpoint would be that of step 6"
    state, facts = load_tensors(next((tmp_path / "kept" / "000000004" / "files").glob("step-*")))
    assert facts["step"] == 4 and all(torch.isfinite(value).all() for value in state.values())


def test_weights_with_which_it_went_wrong_are_not_called_good(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.training.run.check_health", lambda loss, norm, step, k: stop_at_six(step))
    expected = r"@4, or @3 should it go wrong from there too$"
    with pytest.raises(DivergedError, match=expected):
        trained(tmp_path, cache, checkpoint_every=1, keep_last=3)
    assert kept_steps(tmp_path) == [3, 4]


def stop_at_six(step: int) -> None:
    if step == 6:
        raise DivergedError("train: gone wrong")


def run_all(tmp_path: Path, launches: list[dict[str, Any]]) -> list[list[int]]:
    """Runs launches in real processes, one after the other; their exit codes."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(launches))
    done = subprocess.run([sys.executable, str(DRIVER), str(plan)], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    codes: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return codes


def figures(folder: Path) -> dict[tuple[str, int], float]:
    """All but what depends on the machine."""
    names = ("tokens_per_s", "data_wait", "model_")
    return {(p.metric, p.step): p.value for p in read_points(folder) if not p.metric.startswith(names)}


def files_of(folder: Path) -> dict[str, bytes]:
    last = sorted((folder / "attempts").iterdir())[-1] / "files"
    return {path.name: path.read_bytes() for path in last.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_signals_at_any_moment_cost_no_bit_of_any_file(tmp_path: Path, cache: Path, seed: int) -> None:
    """Not at steps but at times: while building, loading, stepping, looking, saving, publishing, keeping."""
    values = {**VALUES, "num_train_steps": 60, "log_every": 7, "checkpoint_every": 1, "keep_every": 15}
    common = {"world": 1, "tokens": str(cache), "model": MODEL, "values": {**values, "held_out_share": 0.2}}
    draws, seconds = random.Random(seed), 0.35
    signals = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2]
    torn = [
        {**common, "folder": str(tmp_path / "torn"), "number": number,
         "signal_after": [draws.uniform(0, seconds), draws.choice(signals)]}
        for number in range(1, 31)
    ]  # fmt: skip
    last = {**common, "folder": str(tmp_path / "torn"), "number": 31}
    codes = run_all(tmp_path, [{**common, "folder": str(tmp_path / "whole"), "number": 1}, *torn, last])
    print(codes)
    assert codes[0] == codes[-1] == [0] and {code for (code,) in codes} <= {0, -9, -12, -15, 75, 143}
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "torn")
    assert figures(tmp_path / "whole") == figures(tmp_path / "torn")
    assert kept_steps(tmp_path / "whole") == kept_steps(tmp_path / "torn") == [15, 30, 45, 60]
    assert not list((tmp_path / "torn").rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"loss_on": "all", "mask_kind": "bernoulli", "label_drop": 0.5, "mask_schedule": "arccos"},
        {"loss_on": "weighted", "mask_ratio_per": "batch", "label_smoothing": 0.0, "ema_warmup": "by_ten"},
        {"micro_batch_size": 5, "mask_kind": "bernoulli", "decay_on": "matrices", "lr_schedule": "last_tenth"},
        {"held_out_share": 0.2, "ema_decay": None, "log_every": 4},
        {"batch_size": 6, "mask_kind": "bernoulli", "mask_schedule": "log", "ema_warmup": "none", "optimizer": "adam"},
        {
            "optimizer": "nadam",
            "warmup_from": "zero",
            "ema_count_from": 1,
            "lr_schedule": "last_tenth",
            "lr_end_as": "floor",
        },
    ],
    ids=lambda values: " ".join(map(str, values.values())),
)
def test_every_recipe_has_the_same_figures_on_processes_that_come_and_go(
    tmp_path: Path, cache: Path, values: dict[str, Any]
) -> None:
    """Two, told to stop; one, killed; three to the end: against one alone."""
    values = {**VALUES, "num_train_steps": 40, "batch_size": 12, **values}
    common = {"tokens": str(cache), "model": {**MODEL, "dropout": 0.0}, "values": values}
    mixed = {**common, "folder": str(tmp_path / "mixed")}
    launches = [
        {**common, "folder": str(tmp_path / "one"), "number": 1, "world": 1},
        {**mixed, "number": 1, "world": 2, "term_at": 2},
        {**mixed, "number": 2, "world": 1, "kill_at": [27, "after"]},
        {**mixed, "number": 3, "world": 3},
    ]
    assert run_all(tmp_path, launches) == [[0], [143, 143], [-9], [0, 0, 0]]
    one, other = figures(tmp_path / "one"), figures(tmp_path / "mixed")
    assert one.keys() == other.keys()
    assert max(abs(one[key] - other[key]) for key in one) < 1e-5
