"""Renews the pictures of the documentation from finished runs: `make screenshots`.

By a headless Chromium, into docs/: the report at desktop and phone width and on a dark page (report.png,
report_phone.png, report_dark.png), the report of a sweep (report_sweep.png), MLflow's list of runs, its comparison and
a registered model (mlflow_runs.png, mlflow_compare.png, mlflow_model.png), and a terminal in which `maskgit run` works
(terminal.png).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome")
#: File -> width, height in px, and whether the page is asked to be dark.
SHOTS = {"report": (1000, 1500, False), "report_phone": (390, 1500, False), "report_dark": (1000, 1500, True)}
KINDS = ("report", "mlflow", "terminal")
TERMINAL = (124, 40)  # columns, rows


def shoot(page: Path, target: Path, width: int, height: int, dark: bool = False) -> None:
    """A picture of the top of a page; raises `CalledProcessError` where the browser fails."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"screenshots: no browser; install one of {', '.join(NAMES)}")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme,
         f"--window-size={width},{height}", f"--screenshot={target.resolve()}", page.resolve().as_uri()],
        check=True, timeout=120, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def report(experiment: str, store: Path, folder: Path) -> Path:
    """The report of an experiment's newest run in a store."""
    page = folder / f"{experiment}.html"
    command = [sys.executable, "-m", "experiments.cli", "report", experiment, "--store", str(store), "--out", str(page)]
    subprocess.run(command, check=True, cwd=ROOT)
    return page


def reports(args: argparse.Namespace, store: Path, folder: Path) -> None:
    """Reports of a run and of a sweep."""
    page = report(args.experiment, store, folder)
    for name, (width, height, dark) in SHOTS.items():
        shoot(page, args.into / f"{name}.png", width, height, dark)
    shoot(report(args.sweep, store, folder), args.into / "report_sweep.png", 1000, 1600)


def terminal(store: Path, into: Path, folder: Path) -> None:
    """A sweep of the quickstart on a copy of the store, pictured while two trainings run, then interrupted."""
    from tools.screenshots.terminal import Terminal

    shutil.copytree(store, folder / "runs", symlinks=True, ignore=shutil.ignore_patterns("mlflow*", "tensorboard"))
    asked = "quickstart train.lr=2e-3,3e-3"
    command = [sys.executable, "-m", "experiments.cli", "run", *asked.split(), "--store", "runs"]
    shown = Terminal(command, folder, {"PYTHONPATH": str(ROOT)}, TERMINAL)
    try:
        if not shown.wait(lambda text: len(re.findall(r"^train\[.*/700 .* loss ", text, re.MULTILINE)) > 1, 600):
            sys.exit(f"screenshots: no two live lines appeared:\n{shown.text()}")
        text = shown.page().replace("<pre>", f"<pre><b>$ maskgit run {asked}</b>\n", 1)
    finally:
        shown.close()
    (folder / "terminal.html").write_text(text)
    shoot(folder / "terminal.html", into / "terminal.png", 1090, 40 + 20 * (text.count("\n") - 2))


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs"), help="the store (default: runs)")
    parser.add_argument("--experiment", default="quickstart")
    parser.add_argument("--sweep", default="quickstart_guidance", help="an experiment that swept something")
    parser.add_argument("--x", default="sampler.guidance_scale", help="a value that it swept")
    parser.add_argument("--y", default="fd_efficientnet_lite0", help="its score")
    parser.add_argument("--model", default="quickstart.train", help="a registered model")
    parser.add_argument("--only", choices=KINDS, action="append", help="these alone")
    parser.add_argument("--into", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    store, wanted = args.store.absolute(), args.only or KINDS
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if "report" in wanted:
            reports(args, store, folder)
        if "mlflow" in wanted:
            from tools.screenshots.mlflow_pages import shoot_all

            shoot_all(store, args.sweep, args.x, args.y, args.model, args.into.resolve(), folder)
        if "terminal" in wanted:
            terminal(store, args.into, folder)


if __name__ == "__main__":
    main()
