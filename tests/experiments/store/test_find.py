"""What a typed name means: one rule for logs, cancel, retry, reproduce, adopt and kept checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from experiments.store.find import matches, pick, select
from experiments.store.records import PipelineRecord, PipelineStep
from maskgit_core.errors import ConfigError

A, B, C, D = (digit * 64 for digit in ("abcdef1", "abcdef2", "cccccc3", "b00b1e5"))


def step(name: str, fingerprint: str, kind: str = "model") -> PipelineStep:
    fingerprint = fingerprint[:64]
    return PipelineStep(
        name=name, step=name.partition("[")[0], stage=name.partition("[")[0], kind=kind, fingerprint=fingerprint,
        folder=f"{name.partition('[')[0]}/x-{fingerprint[:8]}",
    )  # fmt: skip


def record(store: Path, uid: str, experiment: str, *steps: PipelineStep) -> None:
    PipelineRecord(uid=uid, experiment=experiment, time=0.0, steps=steps).save(store)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two executions of `one` (its training changed between them) and one of `two`, which shares the tokenizer."""
    record(tmp_path, "20260101-000000-aaaaaaaa", "one", step("tokenizer", C), step("train", A))
    record(tmp_path, "20260102-000000-bbbbbbbb", "one", step("tokenizer", C), step("train", B), step("sample[x=1]", D))
    record(tmp_path, "20260103-000000-cccccccc", "two", step("tokenizer", C), step("train", A))
    return tmp_path


def names(text: str, store: Path) -> list[tuple[str | None, str]]:
    return [(found.experiment, found.fingerprint[:7]) for found in select(text, store).steps]


def test_exact_names_mean_the_newest_execution_that_has_them(store: Path) -> None:
    assert names("one/train", store) == [("one", "abcdef2")]
    assert names("20260101-000000-aaaaaaaa/train", store) == [("one", "abcdef1")], "an older run by its uid"
    assert names("sample", store) == names("sample[x=1]", store) == [("one", "b00b1e5")]
    assert names("one/2", store) == [("one", "abcdef2")], "a row of status"
    assert names("tokenizer", store) == [("two", "cccccc3")], "the same step in two experiments is no ambiguity"
    whole = select("one", store)
    assert whole.is_whole and len(whole.uids) == 2
    assert [s.fingerprint[:7] for s in whole.steps] == ["abcdef1", "cccccc3", "abcdef2", "b00b1e5"]


def test_a_fingerprint_counts_from_six_digits_on_and_only_if_it_is_the_only_one(store: Path) -> None:
    assert names("abcdef1", store) == [("two", "abcdef1")]
    assert names(B[:64], store) == [("one", "abcdef2")]
    with pytest.raises(
        ConfigError, match=r"abcdef: several different steps match.*two/train .abcdef1.*one/train .abcdef2"
    ):
        select("abcdef", store)
    for text in ("b00b1", "c", "b"):
        with pytest.raises(ConfigError, match="step"):
            select(text, store)


def test_different_steps_of_one_name_are_listed(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"train: several different steps match.*two/train.*one/train"):
        select("train", store)
    with pytest.raises(ConfigError, match="name one step of it, as one/STEP"):
        _ = select("one", store).one


@pytest.mark.parametrize("text", ["", " ", "/", "one/", "/train", "one//train"])
def test_an_empty_name_means_nothing(store: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="a name is missing"):
        select(text, store)


def test_a_row_outside_the_table_is_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match="one has steps 1 to 3"):
        select("one/9", store)


def test_every_execution_is_looked_at_for_kept_checkpoints(store: Path) -> None:
    assert {s.fingerprint[:7] for s in matches("one/train", store)} == {"abcdef1", "abcdef2"}
    assert matches("nothing", store) == []


def test_the_rule_for_steps_that_are_only_planned() -> None:
    plan = [("train", A), ("train[x=1]", B), ("abcdef", C)]
    found = [
        [name for name, _ in pick(text, plan, lambda s: (s[0],), lambda s: s[1])]
        for text in ("train", "abcdef", "abcdef1", "abcde", "b")
    ]
    assert found == [["train"], ["abcdef"], ["train"], [], []], "names first, then six digits"


def test_cancel_and_logs_refuse_what_is_no_full_name_and_touch_nothing(
    lab: Callable[..., CompletedProcess[str]], maskgit: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    store = tmp_path / "lab"
    done = lab("run", "experiment=chain", "launcher=inline", "tracking.ship=false", f"paths.store={store}")
    assert done.returncode == 0, done.stderr
    before = sorted((str(p), p.lstat().st_mtime_ns) for p in store.rglob("*"))
    digits = json.loads(next(store.glob("numbers/*/request.json")).read_text())["fingerprint"]
    cases = {
        "cancel": ("", "b", digits[:1], digits[:5]),
        "logs": ("chain/", "b", digits[:5]),
        "retry": ("",),
        "reproduce": ("/",),
    }
    for verb, text in ((verb, text) for verb, texts in cases.items() for text in texts):
        refused = maskgit(verb, text, "--store", str(store))
        assert refused.returncode == 2 and refused.stderr.startswith("error: "), (verb, text, refused)
    assert sorted((str(p), p.lstat().st_mtime_ns) for p in store.rglob("*")) == before
    assert maskgit("logs", digits[:6], "--store", str(store)).returncode == 0


def test_a_kept_checkpoint_has_the_params_of_its_training() -> None:
    """MLflow refuses a param named `train@500.lr`."""
    from experiments.store.documents import Request
    from experiments.store.records import PipelineStep, step_params

    entry = PipelineStep(name="train@500", step="train@500", stage="train", kind="model", fingerprint="f", folder="x")
    request = Request(fingerprint="f", stage="train", module="m", version=1, kind="model", config={"lr": 0.1})
    assert step_params(entry, request) == {"train.lr": "0.1"}
