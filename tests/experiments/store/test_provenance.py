"""Provenance of installed code: a repository around it is not its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

PRINT = """
import json
from experiments.store import provenance
from experiments.store.typed_json import plain
print(json.dumps(plain(provenance.code_state())))
"""


FREEZE = """
import sys
from pathlib import Path
from experiments.store.frozen_code import freeze
freeze(Path(sys.argv[1]), root=Path.cwd())
"""


def test_neither_frozen_code_nor_its_difference_holds_a_secret(tmp_path: Path):
    """The difference of a tracked `secrets.yaml` was written into `FROZEN.json` and `code.diff`."""
    site, store, password = tmp_path / "site", tmp_path / "store", "s3cret-pa55"
    for package in ("experiments", "maskgit_core"):
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    names = ["conf/secrets.yaml", "conf/My_Secret.yaml", "experiments/credentials.py", "conf/a/secrets.toml", "key.pem"]
    names += [".netrc", ".env"]
    for name in names:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("before: 1\n")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "-f", "."], [*author, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(site), *arguments], check=True)
    for name in names:
        (site / name).write_text(f"password: {password}\n")
    (site / "experiments" / "other_secret.yaml").write_text(f"password: {password}\n")  # untracked
    (site / "maskgit_core" / "order.py").write_text("changed = True\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    call = [sys.executable, "-c", FREEZE, str(store)]
    done = subprocess.run(call, env=environment, cwd=site, capture_output=True, text=True, check=True)
    (frozen,) = store.glob("code/*")
    assert "changed = True" in json.loads((frozen / "FROZEN.json").read_text())["diff"]
    assert not [path for path in store.rglob("*") if path.is_file() and password in path.read_text(errors="replace")]
    assert all(name in done.stderr for name in names if not name.startswith("conf/a")) and password not in done.stderr


def test_code_inside_another_repository_has_a_source_digest_and_no_commit(tmp_path: Path):
    for package in ("experiments", "maskgit_core"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / "site" / package, ignore=ignore)
    (tmp_path / "own.txt").write_text("of another project")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "own.txt"], [*author, "commit", "-qm", "theirs"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    seen = []
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        call = [sys.executable, "-c", PRINT]
        seen.append(json.loads(subprocess.run(call, env=environment, cwd=tmp_path, capture_output=True).stdout))
        (tmp_path / "site" / "maskgit_core" / "order.py").write_text("changed = True\n")
    assert seen[0]["commit"] is None and len(seen[0]["source_sha256"]) == 64
    assert seen[0]["source_sha256"] != seen[1]["source_sha256"]
