"""Parts of the report page: the number on its bar, why floors differ, the DAG, a sweep's cards, samples by class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from test_report_page import see
from tracked_store import TrackedStore, write_scores

from experiments.config.specs import Input
from experiments.reporting import numbers
from experiments.reporting.about import direct, drawing
from experiments.reporting.page import inputs_of, page
from experiments.store.documents import Request
from experiments.store.records import PipelineRecord

DETAILS = {"reference": {"split": "train"}, "order": "first of the set"}


def scored(store: TrackedStore, name: str, kind: str, rows: list[tuple[str, str, float]], **details) -> Path:
    """A finished evaluation with rows (score, of, value) under the protocol `p`."""
    folder = store.step(name, "evaluate", kind, {"n": name})
    written = {
        "scores": [{"name": n, "of": of, "value": v, "num_images": 50, "protocol": "p"} for n, of, v in rows],
        "protocols": {"p": {**DETAILS, **details}},
    }
    (store.attempt(folder) / "files" / "scores.json").write_text(json.dumps(written))
    store.done(folder, headline={"name": rows[0][0], "value": rows[0][2], "protocol": {"name": "p"}})
    (folder / "files").symlink_to("attempts/0001/files")
    return folder


def inputs(store: TrackedStore) -> list[Input]:
    return inputs_of(store.root, PipelineRecord.of(store.root, store.uid))


ROWS = [("fd_x", "samples", 30.0), ("fd_x", "real images", 10.0), ("fd_x", "untrained model", 110.0),
        ("fd_x", "reconstructions", 20.0), ("class_accuracy", "samples", 0.7),
        ("class_accuracy", "real images", 0.9)]  # fmt: skip


def test_the_number_stands_between_floor_and_ceiling(tmp_path):
    store = TrackedStore(tmp_path / "store")
    scored(store, "evaluate", "scores", ROWS)
    placed = numbers.placed(inputs(store)[0])
    assert [(m.value, m.at) for m in placed.marks] == [("10", 0.0), ("20", 10.0), ("30", 20.0), ("110", 100.0)]
    assert "20% of the way" in placed.sentence and "70.0% of the samples" in placed.sentence
    assert "90.0% of real test pictures" in placed.sentence and "Lower is better" in placed.sentence
    text = " ".join(see(page(inputs(store)).text).text)
    assert "ceiling: an untrained model" in text and "the tokenizer's reconstructions" in text


def test_without_a_ceiling_the_number_does_not_stand_at_the_red_end(tmp_path):
    store = TrackedStore(tmp_path / "store")
    scored(store, "evaluate", "scores", [row for row in ROWS if row[1] != "untrained model"])
    placed = numbers.placed(inputs(store)[0])
    assert placed.bar == "open" and placed.marks[-1].value == "30"
    assert [round(m.at) for m in placed.marks] == [0, 33, 67]
    assert "No untrained model was scored" in placed.sentence


def test_the_page_says_why_two_floors_differ_and_explains_a_protocol_once(tmp_path):
    store = TrackedStore(tmp_path / "store")
    scored(
        store, "eval_tokenizer", "tokenizer_scores", [("fd_x", "reconstructions", 20.0), ("fd_x", "real images", 9.0)]
    )
    scored(store, "evaluate", "scores", ROWS, order="evenly spread over the set")
    found = inputs(store)
    (note,) = numbers.floors_differ(found)
    assert "is 9 in eval_tokenizer and 10 in evaluate" in note
    assert "not of the same pictures (first of the set; evenly spread over the set)" in note
    (protocol,) = numbers.protocols(found)
    assert protocol["differs"] == {"evaluate": "order: first of the set, evenly spread over the set"}
    assert page(found).text.count("<summary>p</summary>") == 1


def test_the_dag_shows_each_step_once_and_only_direct_needs(tmp_path):
    store = TrackedStore(tmp_path / "store")
    store.step("train", "train", "model", {})
    first = store.steps[-1]["fingerprint"]
    for scale in (1, 2):
        store.step(f"sample[{scale}]", "sample", "samples", {"s": scale}, [first])
    both = [step["fingerprint"] for step in store.steps]
    store.step("report", "report", "report", {}, both)
    drawn = drawing(PipelineRecord.of(store.root, store.uid).steps)
    assert [box.text for box in drawn.boxes] == ["train", "sample x 2", "report"] and len(drawn.edges) == 2
    assert direct("c", {"a": set(), "b": {"a"}, "c": {"a", "b"}}) == {"b"}


def test_a_sweep_has_a_card_per_setting_with_samples_of_the_same_seeds(tmp_path):
    store = TrackedStore(tmp_path / "store")
    for scale, value in ((1.0, 9.0), (2.0, 4.0), (4.0, 6.0)):
        made = store.step(f"sample[{scale}]", "sample", "samples", {"s": scale}, (), {"sampler.scale": scale})
        own = store.attempt(made) / "files"
        pixels = np.full((6, 8, 8, 1), int(scale), np.uint8)
        np.savez(own / "images.npz", arr_0=pixels, labels=np.array([0, 0, 1, 1, 2, 2]))
        store.done(made)
        (made / "files").symlink_to("attempts/0001/files")
        params = {"sampler.scale": scale}
        folder = store.step(f"evaluate[{scale}]", "evaluate", "scores", params, (), params)
        write_scores(store.attempt(folder) / "files", "p", {"reference": "val"}, fid=value)
        store.done(folder, headline={"name": "fid", "value": value, "protocol": {"name": "p"}})
        (folder / "files").symlink_to("attempts/0001/files")
        request = json.loads((folder / Request.FILE).read_text())
        source = {"fingerprint": store.steps[-2]["fingerprint"], "folder": str(made.relative_to(store.root))}
        (folder / Request.FILE).write_text(json.dumps({**request, "inputs": {"generated": [source]}}))
    found = [i for i in inputs(store) if i.kind == "scores"]
    made_page = page(found)
    assert made_page.text.count('<div class="card">') == 3 and made_page.text.count("samples of the same seeds") == 3
    assert made_page.text.index(">4</b>") < made_page.text.index(">6</b>") < made_page.text.index(">9</b>"), (
        "best first"
    )
    assert {"values.png", "values.svg"} <= set(made_page.beside)
    assert "The best setting" in made_page.text


def test_a_report_of_any_experiment_of_the_store(lab, maskgit, tmp_path):
    assert lab("run", "rates", "launcher=inline").returncode == 0
    done = maskgit("report", "rates", "--out", "page.html")
    assert done.returncode == 0 and done.stdout.strip() == "page.html"
    text = (tmp_path / "page.html").read_text()
    assert "<h1>rates</h1>" in text and text.count('<div class="card">') == 6 and "<script" not in text
    assert maskgit("report", "nothing").returncode == 2
