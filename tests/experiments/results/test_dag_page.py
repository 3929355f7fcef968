"""The page of a DAG: states, links, escaping; thousands of steps in about a second."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from tracked_store import TrackedStore, lines

from experiments.monitoring.status import rows_of
from experiments.results.dag_page import page
from experiments.store.records import latest_records
from maskgit_core.files import write_json


class Store(TrackedStore):
    """A store whose record is written once, however many steps it has."""

    def write(self, **extra: object) -> None:
        if extra:
            super().write()


def filled(root: Path, items: int) -> Store:
    """Chains of train -> evaluate: finished, failed and waiting ones."""
    store = Store(root)
    for i in range(items):
        train = store.step(f"train[seed={i}]", "train", "model", {"seed": i}, params={"train.seed": i})
        made = store.steps[-1]["fingerprint"]
        store.step(f"evaluate[seed={i}]", "evaluate", "scores", {"seed": i}, [made], {"train.seed": i})
        if i % 3 == 2:
            continue
        own = store.attempt(train)
        if i % 3 == 1:
            end = {"state": "failed", "time": 1.0, "reason": "<script>alert(1)</script> & more"}
            write_json(own / "end.json", end, durable=False)
            continue
        lines(own / "journal.jsonl", [(s, {"loss": 1.0 / (s + 1)}) for s in range(20)])
        (own / "files" / "grid.png").write_bytes(b"\x89PNG picture")
        store.done(train, headline={"name": "loss", "value": 0.05}, shown=["grid.png"])
    store.write(now=True)
    return store


def test_a_page_shows_states_reasons_curves_pictures_and_links(tmp_path: Path) -> None:
    store = filled(tmp_path, 6)
    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    memory = tmp_path / "tracking" / hashlib.sha256(address.encode()).hexdigest()[:12] / "7-1790000000000"
    for uid, run in ((store.uid, "parent1"), (f"{store.uid}/train[seed=0]", "nested1")):
        write_json(memory / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.json", {"run_id": run})
    (record,) = latest_records(tmp_path)
    text = page(record, rows_of(record, tmp_path), tmp_path, refresh_s=5)
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert '<span class="state failed">2 failed</span>' in text and "2 blocked" in text
    assert 'http-equiv="refresh" content="5"' in text
    assert "http://127.0.0.1:5000/#/experiments/7/runs/parent1" in text and "/runs/nested1" in text
    assert text.count("<polyline") == 2 and text.count("data:image/png;base64,") == 2
    assert len(re.findall(r'<path d="M', text)) == 2  # the arrow train -> evaluate, and its tip
    assert "train × 6" in text
    assert not re.search(r'(src|href)="(?!data:|http://127.0.0.1:5000)', text), "it loads nothing"


def test_five_thousand_steps(tmp_path: Path) -> None:
    filled(tmp_path, 2500)
    best = min(timed(tmp_path) for _ in range(3))
    print(f"5,000 steps: {best:.2f} s")
    assert best < 1.6  # CPU time on a busy machine; under a second on a quiet one
    (record,) = latest_records(tmp_path)
    assert page(record, rows_of(record, tmp_path), tmp_path).count("<tr><td>") == 5000


def timed(store: Path) -> float:
    began = time.process_time()
    (record,) = latest_records(store)
    page(record, rows_of(record, store), store)
    return time.process_time() - began


def test_the_command_writes_the_page_and_names_experiments(tmp_path: Path) -> None:
    filled(tmp_path, 2)

    def status(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "experiments.cli", "status", "--store", str(tmp_path), *arguments],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120,
        )  # fmt: skip

    done = status("toy", "--html", str(tmp_path / "out" / "dag.html"))
    assert done.returncode == 0, done.stderr
    assert "<h1>toy</h1>" in (tmp_path / "out" / "dag.html").read_text()
    record = json.loads((tmp_path / "pipelines" / "20260101-000000-aaaaaaaa.json").read_text())
    write_json(tmp_path / "pipelines" / "20260102-000000-bbbbbbbb.json",
               {**record, "uid": "20260102-000000-bbbbbbbb", "experiment": "other"})  # fmt: skip
    refused = status("--html", str(tmp_path / "two.html"))
    assert refused.returncode == 2 and "name one of [other, toy]" in refused.stderr


@pytest.mark.skipif(not __import__("shutil").which("chromium"), reason="needs Chromium")
def test_it_is_drawn_in_a_browser(tmp_path: Path) -> None:
    from tools.screenshots.browser import DRIVER, Browser

    if DRIVER is None:
        pytest.skip("needs chromedriver")
    filled(tmp_path, 30)
    (record,) = latest_records(tmp_path)
    (tmp_path / "dag.html").write_text(page(record, rows_of(record, tmp_path), tmp_path))
    with Browser(tmp_path) as browser:
        browser.open(f"file://{tmp_path}/dag.html")
        found = browser.run("return document.querySelectorAll('.dag rect.box').length")
    assert found == 2
