"""Completion as a person meets it: a real bash and a real zsh in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT

from experiments.store.records import PipelineRecord, PipelineStep

SHELLS = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Terminal:
    """A shell in a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self._main, side = pty.openpty()
        self._shell = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=environment, cwd=folder, start_new_session=True
        )
        os.close(side)

    def type(self, text: str) -> None:
        """Types text; `\\t` asks for completion."""
        os.write(self._main, text.encode())

    def wait_for(self, pattern: str, timeout: float = 60.0) -> str:
        """What is shown until `pattern` appears."""
        shown, end = "", time.monotonic() + timeout
        while time.monotonic() < end:
            if select.select([self._main], [], [], 0.2)[0]:
                shown += os.read(self._main, 65536).decode(errors="replace")
                plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\r\x07\x08]", "", shown)
                if re.search(pattern, plain):
                    return plain
        raise AssertionError(f"{pattern} did not appear in:\n{shown}")

    def close(self) -> None:
        """Ends the shell."""
        self._shell.kill()
        self._shell.wait()
        os.close(self._main)


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    """A shell with `maskgit` on its path, after `eval "$(maskgit completion SHELL)"`."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    command = tmp_path / "bin" / "maskgit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m experiments.cli "$@"\n')
    command.chmod(0o755)
    environment = {
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "PS1": "ready> ",
    }
    terminal = Terminal(SHELLS[request.param], environment, tmp_path)
    terminal.wait_for("ready> ")
    terminal.type(f'eval "$(maskgit completion {request.param})"; echo eval-$?\n')
    terminal.wait_for("eval-0")
    yield terminal
    terminal.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("maskgit comple\t", r"maskgit completion"),
        ("maskgit run experiment=quickstart_g\t", r"experiment=quickstart_guidance"),
        ("maskgit run experiment=quickstart sampler.num_s\t", r"sampler\.num_steps="),
        ("maskgit plan experiment=quickstart sampler=rand\t", r"sampler=random_order"),
        ("maskgit weights verify halton/imagenet_256_s\t", r"halton/imagenet_256_small"),
        ("maskgit table schedule_ab\t", r"schedule_ablation_fashion"),
        ("maskgit run --config-d\t", r"--config-dir"),
    ],
    ids=lambda value: value.strip() if value.startswith("maskgit") else "",
)
def test_the_rest_of_a_word_is_typed(terminal: Terminal, typed: str, completed: str) -> None:
    terminal.type(typed)
    assert terminal.wait_for(completed)


def test_steps_of_the_store_complete(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "runs" / "pipelines").mkdir(parents=True)
    step = PipelineStep(name="train", step="train", stage="train", kind="model", fingerprint="0" * 64, folder="train/x")
    record = PipelineRecord(uid="1", experiment="garments", time=0.0, steps=(step,))
    (tmp_path / "runs" / "pipelines" / "1.json").write_text(json.dumps(asdict(record), default=list))
    terminal.type("maskgit logs garments/\t")
    assert terminal.wait_for("garments/train")
