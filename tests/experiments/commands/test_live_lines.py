"""What a run shows: live lines in a terminal, plain lines in a pipe, failures at once, and what to type next."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import LAB, ROOT

from tools.screenshots.terminal import Terminal

SLOW = ["experiment=chain", "numbers.count=4", "numbers.pause_s=1.1", "tracking.ship=false", "--config-dir", str(LAB)]


def in_terminal(store: Path, *arguments: str, columns: int = 100, **environment: str) -> str:
    """All that `maskgit ARGUMENTS` writes to a real pseudo-terminal."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    environment = {"TERM": "xterm-256color", "MASKGIT_STORE": str(store), "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen([sys.executable, "-m", "experiments.cli", *arguments], stdin=inner, stdout=inner,
                               stderr=inner, cwd=store.parent, env={**kept, **environment})  # fmt: skip
    os.close(inner)
    seen = b""
    while True:
        try:
            seen += (new := os.read(outer, 65536))
        except OSError:  # the other end is closed
            break
        if not new:
            break
    os.close(outer)
    assert process.wait(60) == 0, seen.decode()
    return seen.decode()


def test_a_running_step_has_one_live_line_that_is_gone_at_the_end(store: Path) -> None:
    seen = in_terminal(store, "run", *SLOW)
    assert re.search(r"numbers.*[123]/4 numbers .*numbers/s  [\d.]+s left", seen) and "\x1b[2K" in seen
    assert "\x1b[?25h" in seen, "the cursor is back"
    after = seen.rpartition("\x1b[?25h")[2]
    assert "numbers: largest = 3" in after and "maskgit ui chain" in after and "/4 numbers" not in after


def test_watching_redraws_one_screen_and_ends_with_the_run(store: Path) -> None:
    command = [sys.executable, "-m", "experiments.cli"]
    kept = {**os.environ, "PYTHONPATH": str(ROOT), "MASKGIT_STORE": str(store)}
    with subprocess.Popen([*command, "run", *SLOW, "numbers.pause_s=2"], cwd=store.parent, env=kept,
                          stdout=subprocess.DEVNULL) as run:  # fmt: skip
        until = time.monotonic() + 120
        while not list(store.glob("pipelines/*.json")):
            assert time.monotonic() < until and run.poll() is None
            time.sleep(0.1)
        places = {"PYTHONPATH": str(ROOT), "MASKGIT_STORE": str(store)}
        watch, other = (
            Terminal([*command, "status", "chain", "--watch"], store.parent, places, size)
            for size in ((60, 5), (100, 20))
        )
        try:
            assert other.wait(lambda text: "steps: 1 running" in text, 120), other.text()
            other.close()
            assert other.process.returncode == 0 and "error" not in other.text(), "Ctrl-C is how watching ends"
            assert watch.wait(lambda text: "numbers" in text and "running" in text and "more" in text, 120)
            lines = watch.text().splitlines()
            assert lines[0].startswith("chain  (") and "more lines" in lines[-1] and len(lines) == 4, lines
            assert watch.wait(lambda text: "2 done" in text, 120), watch.text()
            assert watch.process.wait(60) == 0
        finally:
            watch.close()
        assert run.wait(120) == 0


def test_no_line_is_wider_than_a_narrow_terminal(store: Path) -> None:
    seen = in_terminal(store, "run", *SLOW, columns=40)
    drawn = [part for part in re.split(r"[\r\n]", seen) if "/4 numbers" in part]
    plain = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", part) for part in drawn]
    assert plain and max(map(len, plain)) <= 40


def test_no_color_takes_colours_and_a_dumb_terminal_everything(store: Path) -> None:
    bare = in_terminal(store, "run", *SLOW, NO_COLOR="1")
    assert "/4 numbers" in bare and not re.search(r"\x1b\[[\d;]*3[0-7][\d;]*m", bare)
    dumb = in_terminal(store, "run", *SLOW, "--redo", "numbers", TERM="dumb")
    assert "\x1b" not in dumb and "numbers finished" in dumb


def test_a_pipe_gets_plain_lines(lab, store: Path) -> None:
    text = lab("run", "chain").stdout
    assert "\x1b" not in text and "/5 numbers" not in text and "numbers finished" in text
    assert "first run in" in text and "first run in" not in lab("run", "chain", "numbers.count=6").stdout


def test_a_failed_step_says_why_at_once_and_what_to_type(lab) -> None:
    done = lab("run", "chain", "numbers.fail=crash")
    assert done.returncode == 1
    told = done.stderr
    assert "step numbers failed" in told and "RuntimeError: asked to crash" in told and "log: " in told
    assert told.count("asked to crash") == 2, "raise and message of the traceback, once"
    assert "maskgit logs numbers" in done.stdout and "total blocked" in done.stdout


def test_quiet_and_verbose(lab) -> None:
    quiet = lab("run", "chain", "--quiet").stdout
    assert "total: total = 10" in quiet and "started" not in quiet and "to run" not in quiet
    verbose = lab("run", "chain", "numbers.count=3", "-v").stdout
    assert "numbers | made 2" in verbose and "numbers | 3 numbers in" in verbose


def test_an_empty_log_says_so(lab, maskgit) -> None:
    lab("run", "chain")
    done = maskgit("logs", "total")
    assert done.returncode == 0 and "total: has printed nothing; its log is empty" in done.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("learning_rate=1e-3", "train.lr or train_tokenizer.lr"),
        ("epochs=3", "train.num_train_steps"),
        ("guidance_scale=2", "sampler.guidance_scale"),
        ("train.learning_rate=1", "did you mean lr?"),
        ("sampler.cfg=2", "did you mean guidance_scale?"),
    ],
)
def test_usual_words_lead_to_the_key_there_is(composed_once, typed: str, meant: str) -> None:
    from experiments.planning.pipeline import build
    from maskgit_core.errors import ConfigError

    with pytest.raises(ConfigError, match=re.escape(meant)):
        build(["experiment=quickstart", typed])


def test_an_experiment_may_be_named_alone() -> None:
    from experiments.config.compose import parse
    from maskgit_core.errors import ConfigError

    assert parse(["train.lr=1", "quickstart"]).choice("experiment") == "quickstart"
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        parse(["quickstrat"])
    with pytest.raises(ConfigError, match="one experiment at a time"):
        parse(["quickstart", "experiment=edit"])
