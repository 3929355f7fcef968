"""Provenance of a number: code, packages, machine. Gathered without importing torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from experiments.store.documents import Code
from maskgit_core.files import sha256_of

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("maskgit_core", "experiments", "launchers", "conf")
#: Names of files that may hold passwords or keys; neither they nor their differences are copied into a store.
SECRETS = ("secrets.*", "*secret*.y*ml", "*credential*", "*.pem", "*.key", ".netrc", ".env", ".env.*",
           "id_rsa*", "id_ed25519*", ".pgpass", ".my.cnf")  # fmt: skip
PACKAGES = ("maskgit-experiments",
            "torch", "torchvision", "numpy", "hydra-core", "submitit", "mlflow", "accelerate", "einops", "webdataset",
            "torchmetrics", "huggingface_hub", "safetensors", "pillow")  # fmt: skip


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            # a checkout of somebody else's is refused by git otherwise, and the record would lack its commit
            ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@cache
def code_state() -> Code:
    """Commit and working difference of the project's checkout; of a frozen copy, those it was made from."""
    if (frozen := Code.read(ROOT)) is not None:
        return frozen
    if _git("ls-files", "--error-unmatch", str(Path(__file__).relative_to(ROOT))) is None:
        return Code(source_sha256=source_digest())  # installed: a repository around it tracks other files
    commit = _git("rev-parse", "HEAD")
    without = [f":(exclude,icase,glob)**/{pattern}" for pattern in SECRETS]
    difference = _git("diff", "HEAD", "--", "*.py", "*.yaml", "*.toml", *without) or ""
    return Code(
        commit=commit.strip() if commit else None,
        dirty=bool(difference.strip()),
        diff=difference[:1_000_000],
        diff_sha256=hashlib.sha256(difference.encode()).hexdigest() if difference.strip() else None,
    )


def source_digest() -> str:
    """sha256 (hex) of all Python and YAML files of the packages as they are installed, by relative path."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for path in sorted(p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".yaml")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def packages() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def machine() -> dict[str, object]:
    """Host, processor and GPUs (asked of torch only where a stage has already loaded it)."""
    facts: dict[str, object] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "job": os.environ.get("SLURM_JOB_ID"),
        "node": os.environ.get("SLURMD_NODENAME"),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
