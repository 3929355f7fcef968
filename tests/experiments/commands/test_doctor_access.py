"""`doctor` says who would be locked out of a shared store; whoever has no name is a number."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest

from experiments.commands import doctor
from experiments.store.claims import Owner, user_name
from experiments.store.upkeep.access import access
from maskgit_core.errors import MaskgitError


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A store that its group may write in, with a step made by somebody who knew nothing of it."""
    root = tmp_path / "store"
    (root / "train" / "a-12345678").mkdir(parents=True)
    (root / "train" / "a-12345678" / "request.json").write_text("{}")
    for folder in (root, root / "train", root / "train" / "a-12345678"):
        folder.chmod(0o2775)
    (root / "train" / "a-12345678" / "request.json").chmod(0o664)
    return root


def test_an_open_store_is_said_to_be_open(shared: Path) -> None:
    group = grp.getgrgid(os.getgid()).gr_name
    assert f"shared with group {group}" in access(shared) and "all 4 files and folders are open" in access(shared)


@pytest.mark.parametrize(
    ("path", "mode", "told"),
    [
        ("train/a-12345678/request.json", 0o644, "1 without group read and write"),
        ("train/a-12345678", 0o755, "without group read and write"),
        ("train/a-12345678", 0o775, "1 without set-group-ID, so what is made there gets its maker's group"),
    ],
)
def test_what_locks_the_group_out_is_named_with_the_command_that_mends_it(shared, path, mode, told):
    (shared / path).chmod(mode)
    with pytest.raises(MaskgitError) as caught:
        access(shared)
    text = str(caught.value)
    assert told in text and str(shared / path) in text and "chmod -R g+rwX" in text and "\n" not in text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_others_and_other_groups_are_named(shared):
    os.chown(shared / "train" / "a-12345678", 65534, 65534)
    (shared / "train" / "a-12345678").chmod(0o2775)
    with pytest.raises(MaskgitError, match="1 of another group"):
        access(shared)
    shared.chmod(0o755)
    with pytest.raises(MaskgitError, match=r"holds work of nobody too, but only root may write here"):
        access(shared)


def test_a_private_store_is_no_failure_and_says_how_to_share_it(tmp_path):
    (tmp_path / "store").mkdir(mode=0o755)
    assert "chmod 2775" in access(tmp_path / "store") and "chmod 2775" in access(tmp_path / "nowhere")


def test_the_command_shows_it(shared, monkeypatch, capsys):
    from experiments.cli import main

    monkeypatch.setattr(doctor, "_gpu", lambda: "none")
    monkeypatch.setenv("MASKGIT_STORE", str(shared))
    main(["doctor"])
    assert "ok    access: shared with group" in capsys.readouterr().out


def test_a_user_without_a_name(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert user_name() == Owner.me().user == f"uid {os.getuid()}" and user_name(4242) == "uid 4242"
