"""The throw-away SLURM from Python.

python -m tools.dev_cluster start|stop       a cluster in /tmp/maskgit-slurm
python -m tools.dev_cluster demo             the quickstart on it, then stops it
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


def script(name: str) -> int:
    """Runs start.sh or stop.sh; returns its exit code."""
    return subprocess.run([str(HERE / name)], check=False).returncode


def demo() -> int:
    """Starts a cluster, submits the quickstart, follows it to its end, stops the cluster."""
    if code := script("start.sh"):
        return code
    root = os.environ.get("SLURM_TEST_ROOT", "/tmp/maskgit-slurm")
    os.environ["SLURM_CONF"] = f"{root}/slurm.conf"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    try:
        maskgit = [sys.executable, "-m", "experiments.cli"]
        code = subprocess.run(
            [*maskgit, "run", "experiment=quickstart", "launcher=dev_cluster"], check=False
        ).returncode
        if code:
            return code
        while subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout.strip():
            print(flush=True)
            subprocess.run([*maskgit, "status", "quickstart"], check=False)
            time.sleep(15)
        subprocess.run([*maskgit, "status", "quickstart"], check=False)
        failed = subprocess.run(
            [*maskgit, "failures", "quickstart"], capture_output=True, text=True, check=False
        ).stdout
        print(failed, end="")
        return 0 if failed.strip() == "no failures" else 1
    finally:
        script("stop.sh")


def main(argv: Sequence[str]) -> int:
    """Dispatches; returns an exit code."""
    verbs = {"start": lambda: script("start.sh"), "stop": lambda: script("stop.sh"), "demo": demo}
    if len(argv) != 1 or argv[0] not in verbs:
        print(__doc__, file=sys.stderr)
        return 2
    return verbs[argv[0]]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
