"""MLflow's pages of a store in a real browser: the runs of a sweep, six of them compared, a registered model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.screenshots.browser import Browser, free_port

ROOT = Path(__file__).resolve().parents[2]
#: The row whose name begins as asked; rows are drawn in several parts that share an index.
ROW = """
    const name = e => (e.innerText || '').trim().split('\\n').pop();
    const cell = [...document.querySelectorAll('[role=gridcell]')].find(e => name(e).startsWith(arguments[0]));
    return cell ? cell.closest('[role=row]').getAttribute('row-index') : null;
"""
CLOSE, OPEN = (
    "[data-component-id='mlflow.assistant.chat_panel.close']",
    "button[data-component-id*=runnamecellrenderer]",
)


def shoot_all(store: Path, sweep: str, x: str, y: str, model: str, into: Path, folder: Path) -> None:
    """Writes mlflow_runs.png, mlflow_compare.png and mlflow_model.png.

    Args:
        sweep: an experiment that swept `x` and was scored by `y`; `model`: a registered model.
        folder: for the browser's profile and the server's log.
    """
    port = free_port()
    with open(folder / "ui.txt", "wb") as log:
        command = [sys.executable, "-m", "experiments.cli", "ui", sweep, "--no-browser", "--port", str(port)]
        ui = subprocess.Popen([*command, "--store", str(store)], cwd=ROOT, stdout=log, stderr=log)
    try:
        page = _address(ui, folder / "ui.txt")
        names, experiment = scored_runs(store, sweep, y)
        with Browser(folder, size=(1500, 900), limit_s=900.0) as browser:
            browser.open(page)
            browser.wait_for_text("matching runs")
            browser.click(CLOSE)
            browser.click(OPEN)
            browser.wait_for_text(names[0])
            time.sleep(2)
            browser.screenshot(into / "mlflow_runs.png")
            _compare(browser, names, x, y)
            time.sleep(3)
            browser.screenshot(into / "mlflow_compare.png")
            base = page.split("/#")[0]
            browser.open(f"{base}/#/models/{model}/versions/1?workflowType=machine_learning")
            browser.wait_for_text(model, "fingerprint")
            time.sleep(2)
            browser.screenshot(into / "mlflow_model.png")
            print(f"screenshots: MLflow's pages of experiment {experiment}")
    finally:
        ui.send_signal(signal.SIGINT)
        ui.wait(60)


def _address(ui: subprocess.Popen[bytes], log: Path, limit_s: float = 300.0) -> str:
    """The page that `maskgit ui` prints once it serves."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until and ui.poll() is None:
        if found := re.search(r"http://\S+/#/experiments/\S+", log.read_text()):
            return found[0].replace("localhost", "127.0.0.1")
        time.sleep(0.5)
    raise RuntimeError(f"maskgit ui did not serve: {log.read_text()[-500:]}")


def scored_runs(store: Path, experiment: str, score: str) -> tuple[list[str], str]:
    """Names of the newest runs of an experiment that have a score, at most six, and the experiment's id."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    found: Any = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], "tags.stage = 'evaluate'", order_by=["attributes.start_time DESC"])
    names = dict.fromkeys(run.info.run_name for run in runs if score in run.data.metrics)
    return sorted(names)[:6], found.experiment_id


def _compare(browser: Browser, names: list[str], x: str, y: str) -> None:
    for name in names:
        row = browser.wait(lambda name=name: browser.run(ROW, name), f"the row of {name}")
        browser.click(f"[role=row][row-index='{row}'] input[type=checkbox].ag-checkbox-input")
    browser.click("button", "Compare")
    browser.wait_for_text(f"Comparing {len(names)} Runs")
    browser.click("[role=tab]", "Scatter Plot")
    for selector, choice in (("#x-axis-selector", x), ("#y-axis-selector", y)):
        browser.click(selector)
        browser.click("[role=option]", choice)
