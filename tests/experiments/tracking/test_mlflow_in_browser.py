"""MLflow's own pages in a real browser: runs stand below their parent and plot a parameter against a score."""

import os
import shutil

import pytest
from conftest import LAB
from mlflow_server import empty_database, free_port

from experiments.tracking import server
from experiments.tracking.pages import runs_page
from tools.screenshots.browser import CHROMIUM, DRIVER, Browser

pytestmark = pytest.mark.chromium
RATES = [0.01, 0.03, 0.1, 0.3, 0.7, 0.9]
#: The row whose name begins as asked; rows are drawn in several parts that share an index.
ROW = """
    const name = e => (e.innerText || '').trim().split('\\n').pop();
    const cell = [...document.querySelectorAll('[role=gridcell]')].find(e => name(e).startsWith(arguments[0]));
    return cell ? cell.closest('[role=row]').getAttribute('row-index') : null;
"""
TITLES = "return ['.xtitle', '.ytitle'].map(s => (document.querySelector(s) || {}).textContent)"
DOTS = """
    const plot = document.querySelector('.js-plotly-plot');
    return plot && plot.data ? plot.data.map(d => d.x.map((x, i) => [Number(x), Number(d.y[i])])).flat() : null;
"""


@pytest.fixture(autouse=True)
def _needs_chromium():
    if not (DRIVER and CHROMIUM):
        if "chromium" in os.environ.get("REQUIRE", ""):
            pytest.fail("REQUIRE names chromium, but chromium or chromedriver is not installed")
        pytest.skip("chromium and chromedriver are not installed")


@pytest.fixture
def address(maskgit, store, tmp_path, tmp_path_factory):
    """The address of MLflow on the store of a sweep over train.lr that `maskgit run` really ran."""
    store.mkdir()
    shutil.copy(empty_database(tmp_path_factory), store / "mlflow.db")
    done = maskgit("run", "experiment=rates", "launcher=inline", "--config-dir", str(LAB))
    assert done.returncode == 0, done.stdout + done.stderr
    port = free_port()
    process = server.start(store, f"sqlite:///{store}/mlflow.db", port=port, log=tmp_path / "server.txt")
    try:
        server.wait_until_up(process, "127.0.0.1", port, 300.0)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(process)


def test_a_sweep_is_nested_below_its_parent_and_one_selection_plots_lr_against_the_score(address, store, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("rates").experiment_id
    scored = client.search_runs([experiment], "tags.stage = 'distance'")
    wanted = sorted([float(r.data.params["train.lr"]), r.data.metrics["fd_toy"]] for r in scored)
    assert [lr for lr, _ in wanted] == RATES
    with Browser(tmp_path) as browser:
        page = runs_page(store, f"sqlite:///{store}/mlflow.db", address, None)
        place = f"{address}/#/experiments/{experiment}/runs"
        assert page == f"{place}?workflowType=machine_learning&viewStateShareKey=maskgit"
        browser.open(page)
        seen = browser.wait_for_text("rates 2", "matching runs", "which learning rate comes nearest")
        assert "train.lr" in seen and "fd_toy" in seen, "the swept value and the score are columns"
        browser.click("[data-component-id='mlflow.assistant.chat_panel.close']")
        browser.click("button[data-component-id*=runnamecellrenderer]")  # opens the parent
        browser.wait_for_text(*(f"{step}[lr={lr:g}]" for lr in RATES for step in ("train", "evaluate")))
        browser.screenshot(tmp_path / "runs.png")
        for lr in RATES:
            row = browser.wait(lambda lr=lr: browser.run(ROW, f"evaluate[lr={lr:g}]"), f"the row of {lr:g}")
            browser.click(f"[role=row][row-index='{row}'] input[type=checkbox].ag-checkbox-input")
        browser.click("button", "Compare")
        browser.wait_for_text("Comparing 6 Runs", "train.lr")
        browser.click("[role=tab]", "Scatter Plot")
        for selector, choice in (("#x-axis-selector", "train.lr"), ("#y-axis-selector", "fd_toy")):
            browser.click(selector)
            browser.click("[role=option]", choice)
        browser.wait(lambda: browser.run(TITLES) == ["train.lr", "fd_toy"], "train.lr against the score")
        plotted = browser.wait(lambda: browser.run(DOTS), "dots")
        assert sorted(plotted) == wanted
        browser.screenshot(tmp_path / "compare.png")
        best = min(scored, key=lambda r: (r.data.metrics["fd_toy"], float(r.data.params["train.lr"])))
        browser.open(f"{address}/#/experiments/{experiment}/runs/{best.info.run_id}/artifacts/samples.png")
        drawn = (
            "return [...document.images].some(i => i.src.includes('samples.png') && i.naturalWidth === 16) || "
            "[...document.images].some(i => i.naturalWidth === 16 && i.naturalHeight === 8)"
        )
        browser.wait(lambda: browser.run(drawn), "the best one's samples")
    assert not browser.left(), "the browser is gone, and everything it started"
