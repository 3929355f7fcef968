"""Claims that cannot be read or judged: named at once, never waited for in silence, removed by `maskgit unlock`."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import LAB

from experiments.cli import main
from experiments.running.attempt import Stopped
from experiments.running.job import Job
from experiments.store.claims import Claim, Owner, is_alive
from experiments.store.typed_json import DamagedError

pytestmark = pytest.mark.usefixtures("composed_once")


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "5", '{"host": 5}'])
def test_a_claim_that_cannot_be_read_is_named_with_its_remedy(store: Path, capsys, text):
    arguments = ["experiment=chain", f"paths.store={store}", "launcher=inline", "tracking.ship=false"]
    arguments += ["--config-dir", str(LAB)]
    assert main(["run", *arguments]) == 0
    (step,) = store.glob("numbers/*")
    (step / Owner.FILE).write_text(text)
    with pytest.raises(DamagedError, match="maskgit unlock"):
        Claim(step).take()
    capsys.readouterr()
    assert main(["run", *arguments, "--redo", "numbers"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {step / Owner.FILE}: is damaged")
    assert main(["unlock", str(step)]) == 0 and not (step / Owner.FILE).exists()
    assert main(["run", *arguments, "--redo", "numbers"]) == 0


def test_what_cannot_be_judged_is_unlocked_only_when_silent(tmp_path: Path, capsys):
    me = Owner.me()
    for owner in (replace(me, host="elsewhere"), replace(me, pid=2**22 + 1, pid_namespace="pid:[1]")):
        assert is_alive(owner) is None, "another host, or another container of the same name"
        owner.write(tmp_path)
        assert main(["unlock", str(tmp_path)]) == 2, "it may live"
        os.utime(tmp_path / Owner.FILE, (1, 1))
        assert main(["unlock", str(tmp_path)]) == 0 and not (tmp_path / Owner.FILE).exists()
    me.write(tmp_path)
    os.utime(tmp_path / Owner.FILE, (1, 1))
    assert main(["unlock", str(tmp_path)]) == 2 and main(["unlock", str(tmp_path), "--force"]) == 0
    assert is_alive(replace(me, pid_namespace="", pid_start=me.pid_start + 1)) is False, "claims of earlier releases"


def test_the_holder_shows_that_it_lives(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("experiments.store.claims.HEARTBEAT_S", 0.05)
    claim = Claim(tmp_path)
    assert claim.take() is None
    os.utime(claim.path, (1, 1))
    with claim.kept_alive():
        deadline = time.monotonic() + 10
        while claim.silent_s() > 5 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert claim.silent_s() < 5
    claim.release()


def test_whoever_waits_for_another_host_is_told_the_remedy_at_once(store: Path, capsys, monkeypatch):
    """It was told after five minutes; a node that was lost never comes back."""
    arguments = ["experiment=chain", f"paths.store={store}", "launcher=inline", "tracking.ship=false"]
    arguments += ["--config-dir", str(LAB)]
    assert main(["run", *arguments]) == 0
    (step,) = store.glob("numbers/*")
    replace(Owner.me(), host="gone-node").write(step)
    job = Job(step)
    monkeypatch.setattr(
        "experiments.running.job.time.sleep", lambda seconds: setattr(job.stop, "signal", signal.SIGTERM)
    )
    with pytest.raises(Stopped):
        job._begin({})
    said = capsys.readouterr().out
    assert "on gone-node" in said and f"should it be gone: maskgit unlock {step}" in said
