"""`maskgit reproduce`: the printed command makes exactly the step it was printed for."""

import json
from dataclasses import replace

import pytest

from experiments.store.origin import narrowed
from experiments.store.records import PipelineItem, PipelineRecord, PipelineStep
from experiments.store.typed_json import parse


def origin(lab, name, *more):
    done = lab("reproduce", name, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_sweeps_item_is_reproduced_byte_for_byte_in_a_fresh_store(lab, tmp_path):
    ran = lab("run", "experiment=chain", "numbers.scale=1.0,2.0", "launcher=inline")
    assert ran.returncode == 0, ran.stderr
    (found,) = origin(lab, "total[scale=2]")
    assert "numbers.scale=2.0" in found["command"] and "1.0" not in found["command"]
    assert found["config"] and found["fingerprint"] and found["code"]["commit"]
    again = lab("reproduce", found["run"], "--run", "--into", str(tmp_path / "again"), "--anyway")
    assert again.returncode == 0, again.stderr
    assert "reproduced; every output is the same, byte for byte" in again.stdout
    damaged = next((tmp_path / "again" / "total").glob("*/manifest.json"))
    manifest = json.loads(damaged.read_text())
    for output in manifest["outputs"].values():
        output["sha256"] = "0" * 64
    from experiments.store.origin import Origin, compare_outputs
    from maskgit_core.errors import ArtifactError

    damaged.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="digest does not belong to its outputs"):
        compare_outputs(parse(Origin, found), tmp_path / "again")


def test_a_step_that_has_not_finished_and_an_unknown_one_are_one_line(lab):
    assert lab("run", "experiment=chain", "launcher=inline").returncode == 0
    for arguments in (["nosuch"], [], ["--table", "nosuch"], ["--table", "quickstart", "--row", "x"]):
        done = lab("reproduce", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_sweep_from_a_file_is_narrowed_to_the_item():
    def step(fingerprint):
        names = {"name": "train", "step": "train", "stage": "train", "kind": "model"}
        return PipelineStep(**names, fingerprint=fingerprint, folder="f")

    points = [PipelineItem(params={"train.lr": n, "a.b": "x"}, steps={"train": f"f{n}"}) for n in (1, 2)]
    record = PipelineRecord(
        uid="u", experiment="e", time=0.0, steps=(), items=tuple(points),
        overrides=("experiment=e", "sweep=grid", "train.lr=1,2"),
    )  # fmt: skip
    assert narrowed(record, step("f2")) == ["experiment=e", "sweep=null", "train.lr=2", "a.b=x"]
    alone = replace(record, overrides=("experiment=e", "k=1"), items=(PipelineItem(params={}, steps={"train": "f1"}),))
    assert narrowed(alone, step("f1")) == ["experiment=e", "k=1"]
