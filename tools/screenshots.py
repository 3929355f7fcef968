"""Renews the pictures of the documentation from finished runs: `make screenshots`.

The report at desktop and phone width and on a dark page, and the report of a sweep, by a headless Chromium:
docs/report.png, docs/report_phone.png, docs/report_dark.png, docs/report_sweep.png.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome")
#: File -> width, height in px, and whether the page is asked to be dark.
SHOTS = {"report": (1000, 1500, False), "report_phone": (390, 1500, False), "report_dark": (1000, 1500, True)}


def shoot(page: Path, target: Path, width: int, height: int, dark: bool) -> None:
    """A picture of the top of a page; raises `CalledProcessError` where the browser fails."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"screenshots: no browser; install one of {', '.join(NAMES)}")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *scheme,
         f"--window-size={width},{height}", f"--screenshot={target}", page.resolve().as_uri()],
        check=True, timeout=120, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def report(experiment: str, store: Path, folder: Path) -> Path:
    """The report of an experiment's newest run in a store."""
    page = folder / f"{experiment}.html"
    command = [sys.executable, "-m", "experiments.cli", "report", experiment, "--store", str(store), "--out", str(page)]
    subprocess.run(command, check=True, cwd=ROOT)
    return page


def main() -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("runs"), help="the store (default: runs)")
    parser.add_argument("--experiment", default="quickstart")
    parser.add_argument("--sweep", default="quickstart_guidance", help="an experiment that swept something")
    parser.add_argument("--into", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = report(args.experiment, args.store.absolute(), Path(folder))
        for name, (width, height, dark) in SHOTS.items():
            shoot(page, args.into / f"{name}.png", width, height, dark)
        page = report(args.sweep, args.store.absolute(), Path(folder))
        shoot(page, args.into / "report_sweep.png", 1000, 1600, False)


if __name__ == "__main__":
    main()
