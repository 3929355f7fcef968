"""A late TERM, a failure's reason as it happens, half-written files of killed processes, more images than there are."""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import LAB

from experiments.cli import main
from experiments.evaluation.measures import counted
from experiments.planning.pipeline import build
from experiments.running.attempt import Attempt
from launchers.inline import _Copied
from maskgit_core.files import sweep_leftovers


def chain(store: Path, *more: str, launcher: str = "inline") -> list[str]:
    return ["run", "experiment=chain", f"launcher={launcher}", "tracking.ship=false", f"paths.store={store}",
            "--config-dir", str(LAB), *more]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_a_steps_last_look_stops_what_follows(store, capsys, monkeypatch, number):
    headline = Attempt.headline

    def late(self, name, value, protocol=None):
        headline(self, name, value, protocol)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Attempt, "headline", late)
    before = signal.getsignal(signal.SIGTERM)
    assert main(chain(store)) == 130
    text = capsys.readouterr().out
    assert "numbers finished" in text and "total started" not in text and "stopped; run the same command" in text
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.undo()
    assert main(chain(store)) == 0 and "numbers started" not in capsys.readouterr().out


def test_a_reason_is_told_when_the_step_fails_not_when_all_has_ended(store, capsys, monkeypatch):
    told = []
    monkeypatch.setattr("experiments.launching.execution.report", lambda *args: told.append(capsys.readouterr()) or 1)
    assert main(chain(store, "numbers.fail=crash")) == 1
    assert "RuntimeError: asked to crash" in told[0].err + told[0].out and "step numbers failed" in told[0].err


def test_half_written_files_of_the_dead_go_and_those_of_the_living_stay(store, capsys):
    assert main(chain(store, "numbers.fail=crash")) == 1
    (step,) = store.glob("numbers/*")
    left = [step / ".request.json.0123abcd.tmp", step / "attempts" / "0001" / ".end.json.0123abcd.tmp",
            store / "pipelines" / ".x.json.0123abcd.tmp", store / ".probe-0123abcd"]  # fmt: skip
    fresh = step / "parts" / ".00000.json.0123abcd.tmp"
    for path in (*left, fresh):
        path.write_text("half")
    for path in left[2:]:
        os.utime(path, (time.time() - 7200,) * 2)
    link = store / "experiments" / "chain" / ".link-0123abcd"
    link.symlink_to("nowhere")
    os.utime(link, (time.time() - 7200,) * 2, follow_symlinks=False)
    assert main(chain(store)) == 0
    assert not [path for path in (*left, link) if os.path.lexists(path)] and not fresh.parent.exists()
    left[2].write_text("half")
    assert main(["gc", "--delete", "--yes", "--store", str(store)]) == 0 and left[2].exists(), "it may be written now"
    assert sweep_leftovers(store, 0.0, deep=True) == 1


def test_more_images_than_there_are_is_said(capsys):
    assert counted("evaluate.num_images", 500, 60) == 60
    assert "evaluate.num_images: 500 asked for, 60 are there; 60 are used" in capsys.readouterr().err
    assert counted("x", None, 60) == 60 and counted("x", 6, 60) == 6 and capsys.readouterr().err == ""
    graph = build(["experiment=quickstart", "sample.num_samples=100", "paths.store=/nonexistent/store"])
    assert any("evaluate.num_images: 500 asked for, sample.num_samples is 100" in line for line in graph.notes)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS])
def test_a_disk_that_fails_below_a_step_is_one_line(store, capsys, monkeypatch, number):
    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("experiments.store.documents.sha256_of", fail)
    assert main(chain(store)) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err and told.err.count("error: ") == 1
    monkeypatch.undo()
    assert main(chain(store)) == 0


def test_a_log_that_cannot_be_written_takes_nothing_from_the_terminal(capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ESTALE, "Stale file handle")

    shown = io.StringIO()
    print("made 1", file=_Copied(shown, Full()), flush=True)
    assert shown.getvalue() == "made 1\n"
