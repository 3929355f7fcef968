"""`maskgit table --cost`: what each row took, with all that it was made from."""

import json

import pytest
import yaml
from tracked_store import T0, TrackedStore, write_scores

from experiments.results.costs import with_costs
from experiments.results.table_formats import FORMATS
from experiments.results.tables import fill, read_table

TABLE = {
    "title": "A table",
    "protocols": {"mine": "how I measure"},
    "columns": {"fid": {"metric": "fid", "protocol": "mine"}},
    "rows": [
        {"name": f"scale {scale}", "run": {"experiment": "toy", "where": {"sampler.scale": scale}}}
        for scale in (1, 2, 3)
    ],
}


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "lab" / "table").mkdir(parents=True)
    (tmp_path / "lab" / "table" / "mine.yaml").write_text(yaml.safe_dump(TABLE))
    return tmp_path / "lab"


def made(tmp_path, gpus: int) -> TrackedStore:
    """A training of an hour that two evaluations of half an hour each share; a failed attempt of a quarter before."""
    store = TrackedStore(tmp_path / "store")
    asked = {"resources": {"ranks": 2, "gpus_per_task": gpus}}

    def attempt(folder, number, hours, state="done"):
        own = store.attempt(folder, number, at=T0)
        (own / "start.json").write_text(
            json.dumps({"time": T0, "pipeline": store.uid, "attempt": number, **asked}),
        )
        (own / "end.json").write_text(json.dumps({"state": state, "time": T0 + 3600 * hours}))
        return own

    train = store.step("train", "train", "model", {"seed": 0})
    attempt(train, 1, 0.25, "failed")
    attempt(train, 2, 1.0)
    store.done(train, 2, at=T0 + 3600)
    for scale in (1, 2):
        config = {"sampler": {"name": "s", "scale": scale}}
        params, needs = {"sampler.scale": scale}, [store.steps[0]["fingerprint"]]
        folder = store.step(f"evaluate[{scale}]", "evaluate", "scores", config, needs, params)
        write_scores(attempt(folder, 1, 0.5) / "files", "mine", {"reference": "val"}, 5, fid=6.0)
        store.done(folder, at=T0 + 1800, headline={"name": "fid", "value": 6.0, "protocol": {"name": "mine"}})
    return store


@pytest.mark.parametrize(("gpus", "unit", "factor"), [(1, "GPU-hours", 2), (0, "hours (no GPU)", 1)])
def test_a_row_says_what_it_took(tmp_path, lab, gpus: int, unit: str, factor: int) -> None:
    store = made(tmp_path, gpus)
    filled = with_costs(fill(read_table("mine", [lab]), store.root))
    assert filled.table.columns[-1].title == unit
    assert [row["hours"].text for row in filled.cells] == [f"{1.75 * factor:.2f}"] * 2 + ["—"]
    assert f"{2.25 * factor:.2f} for all rows, each step counted once" in filled.table.note
    for name, write in FORMATS.items():
        assert f"{1.75 * factor:.2f}" in write(filled), name


def test_the_command_takes_it(tmp_path, lab, maskgit) -> None:
    store = made(tmp_path, 1)
    done = maskgit("table", "mine", "--cost", "--store", str(store.root), "--config-dir", str(lab))
    assert done.returncode == 0 and "| hours (no GPU) |" in done.stdout, done.stderr
