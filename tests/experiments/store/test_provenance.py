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
