"""MLflow's own pages in a real browser: runs stand below their parent and plot a parameter against a score."""

import json
import os
from urllib.parse import quote

import pytest
from browser import CHROMIUM, DRIVER, Browser
from mlflow_server import free_port
from tracked_store import T0, TrackedStore, lines, write_scores

from experiments import tracking_server
from experiments.tracking import ship

pytestmark = [pytest.mark.chromium, pytest.mark.slow]
LRS = (1e-4, 3e-4, 1e-3)


@pytest.fixture(autouse=True)
def _needs_chromium():
    if not (DRIVER and CHROMIUM):
        if "chromium" in os.environ.get("REQUIRE", ""):
            pytest.fail("REQUIRE names chromium, but chromium or chromedriver is not installed")
        pytest.skip("chromium and chromedriver are not installed")


@pytest.fixture
def store(tmp_path):
    """A sweep over train.lr: three trainings, three evaluations, shipped to the embedded store."""
    made = TrackedStore(tmp_path / "store", experiment="sweep")
    for lr in LRS:
        params = {"train.lr": lr}
        model = made.step(f"train[lr={lr:g}]", "train", "model", {"lr": lr}, (), params)
        needs = [made.steps[-1]["fingerprint"]]
        own = made.attempt(model)
        lines(own / "journal.jsonl", [(i, {"loss": lr + 1.0 / (i + 1)}) for i in range(30)], int(T0 * 1000))
        made.done(model)
        scored = made.step(f"evaluate[lr={lr:g}]", "evaluate", "scores", {}, needs, params)
        write_scores(made.attempt(scored) / "files", "p", {}, fid=5 + abs(lr - 3e-4) * 1e3)
        made.done(scored)
    ship(made.root)
    return made


def test_a_sweep_is_nested_below_its_parent_and_one_selection_plots_lr_against_the_score(store, tmp_path):
    from mlflow import MlflowClient

    database = f"sqlite:///{store.root}/mlflow.db"
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("sweep").experiment_id
    evaluations = client.search_runs([experiment], "tags.stage = 'evaluate'")
    port = free_port()
    server = tracking_server.start(store.root, database, port=port, log=tmp_path / "server.txt")
    try:
        tracking_server.wait_until_up(server, "127.0.0.1", port)
        with Browser(tmp_path) as browser:
            browser.open(f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs")
            browser.wait_for_text("sweep 20260101-000000", "matching runs")
            assert "evaluate[lr=0.001]" not in browser.text()
            browser.click("button[data-component-id*=runnamecellrenderer]")  # opens the parent
            browser.wait_for_text(*(f"{step}[lr={lr:g}]" for lr in LRS for step in ("train", "evaluate")))
            chosen = quote(json.dumps([r.info.run_id for r in evaluations]))
            browser.open(f"http://127.0.0.1:{port}/#/compare-runs?runs={chosen}&experiments=[%22{experiment}%22]")
            browser.wait_for_text("Comparing 3 Runs", "Parallel Coordinates Plot", "train.lr", "fid")
            browser.click_text("Scatter Plot", "[role=tab]")
            for selector, choice in (("#x-axis-selector", "train.lr"), ("#y-axis-selector", "fid")):
                browser.click(selector)
                browser.click_text(choice, "[role=option]")
            titles = "return ['.xtitle', '.ytitle'].map(s => (document.querySelector(s) || {}).textContent)"
            browser.wait(lambda: browser.run(titles) == ["train.lr", "fid"], "train.lr against fid")
            dots = "return document.querySelectorAll('path.point').length"
            browser.wait(lambda: browser.run(dots) >= len(LRS), "a dot a run")
    finally:
        tracking_server.stop(server)
