"""`launcher.ssh` and `--on`: commands carried out on another machine, over a real sshd on the loopback."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import LAB, ROOT
from ssh_server import Server

from experiments.commands import parse_arguments, parser_of
from experiments.commands._elsewhere import options_of
from experiments.launching.calls import load_launcher
from launchers.ssh import Site, private_folder
from maskgit_core.errors import ConfigError, LaunchError

pytest_plugins = ["ssh_server"]
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]
CHAIN = ["run", "chain", "launcher=far", "tracking.ship=false", "--config-dir", str(LAB)]
ON = ["--on", "far"]


def wait_until(condition: Callable[[], object], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(folder: Path, *arguments: str, **more: object) -> subprocess.Popen[str]:
    """`maskgit ...` in the background, its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, **more,
    )  # fmt: skip


def refused(done: Done) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("sending the code")]
    assert len(said) == 1 and said[0].startswith("error: "), done.stderr
    return said[0]


def is_over(store: Path) -> bool:
    """True once no process holds a step of the store."""
    return bool(list(store.glob("numbers/*/attempts/*/end.json"))) and not list(store.glob("*/*/claim.json"))


def test_commands_go_there_over_one_connection(
    server: Server, maskgit: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "environment"
    conf = server.launcher(setup=["echo a noisy profile", f"env > {told}"])
    (server.folder / "conf" / "secrets.yaml").write_text("token: hush")
    (tmp_path / "points.yaml").write_text("grid: {numbers.scale: [1.0, 2.0]}")
    monkeypatch.setenv("LAB_TOKEN", "hush")
    planned = maskgit("plan", *CHAIN[1:], *conf, "sweep=points.yaml", "--json")
    assert [step["action"] for step in json.loads(planned.stdout)["steps"]] == ["run"] * 4
    assert "sending the code" in planned.stderr and not list(server.store.glob("numbers"))
    done = maskgit(*CHAIN, *conf, "sweep=points.yaml")
    assert done.returncode == 0 and "sending" not in done.stderr and "total[scale=2]" in done.stdout, done.stderr
    assert "with --on far" in done.stdout and not (store / "numbers").exists(), "nothing is made on this side"
    again = maskgit(*CHAIN, *conf, "sweep=points.yaml")
    assert "nothing to do" in again.stdout

    states = json.loads(maskgit("status", "chain", "--json", *ON, *conf).stdout)[0]
    assert [step["state"] for step in states["steps"]] == ["done"] * 4 and states["experiment"] == "chain"
    assert "made 4" in maskgit("logs", "chain/1", "-n", "3", *ON, *conf).stdout
    assert maskgit("status", "chain", "--html", "dag.html", *ON, *conf).stdout == "dag.html\n"
    assert "<html" in (tmp_path / "dag.html").read_text()
    assert "nothing to do" in maskgit("retry", "chain", *ON, *conf).stdout
    unknown = maskgit("logs", "nope", *ON, *conf)
    assert "there is no step 'nope'" in refused(unknown)
    assert server.logins() == 1
    sent = [path for path in server.store.glob("code/**/*") if path.is_file()]
    assert sent and not any(b"hush" in path.read_bytes() for path in sent if path.stat().st_size < 10_000)
    assert "hush" not in told.read_text() and "LAB_TOKEN" not in told.read_text()
    (record,) = {json.loads(p.read_text())["code"]["digest"] for p in server.store.glob("numbers/*/record.json")}
    assert (server.store / "code" / record / "experiments" / "cli.py").is_file(), "steps ran the code that was sent"


@pytest.mark.slow
def test_a_failed_step_is_exit_code_1(server: Server, maskgit: Run) -> None:
    conf = server.launcher()
    done = maskgit(*CHAIN, *conf, "numbers.fail=crash")
    assert done.returncode == 1 and "asked to crash" in done.stdout + done.stderr
    assert "asked to crash" in maskgit("failures", "chain", *ON, *conf).stdout
    assert "nothing of it is finished" in refused(maskgit("report", "chain", *ON, *conf))


@pytest.mark.slow
def test_ctrl_c_reaches_the_far_side_and_logs_stream(server: Server, tmp_path: Path, maskgit: Run) -> None:
    conf = server.launcher()
    run = start(tmp_path, *CHAIN, *conf, "numbers.count=2000", "numbers.pause_s=0.05", start_new_session=True)
    wait_until(lambda: list(server.store.glob("numbers/*/parts/00001.json")))
    follower = start(tmp_path, "logs", "chain/numbers", "-f", *ON, *conf, start_new_session=True)
    assert "made" in follower.stdout.readline() and "made" in follower.stdout.readline(), "while it runs"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(60) == 130
    run.send_signal(signal.SIGINT)
    assert run.wait(60) != 0 and "the same command" in run.stdout.read()
    wait_until(lambda: is_over(server.store))
    assert maskgit(*CHAIN, *conf, "numbers.count=20").returncode == 0


@pytest.mark.slow
def test_a_lost_connection_does_no_harm(server: Server, tmp_path: Path, maskgit: Run) -> None:
    conf = server.launcher()
    asked = [*CHAIN, *conf, "numbers.count=60", "numbers.pause_s=0.05"]
    run = start(tmp_path, *asked)
    wait_until(lambda: list(server.store.glob("numbers/*/parts/00001.json")))
    server.hang_up()
    assert run.wait(60) == 2 and "was lost, or the command was killed there" in run.stdout.read()
    wait_until(lambda: is_over(server.store))
    made = len(list(server.store.glob("numbers/*/parts/*")))
    done = maskgit(*asked)
    assert done.returncode == 0 and 1 < made < 60, done.stderr
    assert len(list(server.store.glob("numbers/*/attempts/*"))) == 2 and server.logins() == 2


@pytest.mark.slow
def test_a_terminal_is_passed_through(server: Server, tmp_path: Path, maskgit: Run) -> None:
    conf = server.launcher()
    assert maskgit(*CHAIN, *conf).returncode == 0
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.environ |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-m", "experiments.cli", "status", "chain", *ON, *conf])
    said = b""
    with contextlib.suppress(OSError):
        while select.select([terminal], [], [], 60)[0] and (part := os.read(terminal, 4096)):
            said += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert b"\033[32m" in said and b"total 10" in said, said


def test_what_cannot_be_reached_is_one_line(server: Server, maskgit: Run, tmp_path: Path) -> None:
    def asked(**ssh: object) -> str:
        return refused(maskgit("status", "--on", "far", *server.launcher(**ssh)))

    said = asked(options={"IdentityFile": f"{server.folder}/other_id"})
    assert "Permission denied" in said and "ssh-add" in said and "-MNf" in said
    (tmp_path / "none").touch()
    assert "host key is not known here" in asked(options={"UserKnownHostsFile": f"{tmp_path}/none"})
    other = (server.folder / "other_id.pub").read_text().rsplit(" ", 1)[0]
    (tmp_path / "changed").write_text(f"[127.0.0.1]:{server.port} {other}\n")
    assert "is not the one that known_hosts has" in asked(options={"UserKnownHostsFile": f"{tmp_path}/changed"})
    assert "Connection refused" in asked(port=1)
    assert "no Python 3.11 or newer" in asked(python="/nowhere/python")
    assert "the code could not be sent" in asked(store="/proc/nowhere")
    assert "did you mean far?" in refused(maskgit("status", "--on", "fra", *server.launcher()))
    assert "has no `ssh`" in refused(maskgit("status", "--on", "local"))
    assert "search: --on goes with --status" in refused(maskgit("search", "tuned", "--on", "a@b"))
    assert "launcher.ssh.hots: unknown key" in refused(maskgit("run", "quickstart", "launcher.ssh={hots: a@b}"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (7, "write user@login"),
        ("-oProxyCommand=x", "host: found '-oProxyCommand=x'"),
        ("a b", "host: found 'a b'"),
        ({"python": "p"}, "host: found None"),
        ({"host": "h", "port": 0}, "from 1 to 65535"),
        ({"host": "h", "port": True}, "from 1 to 65535"),
        ({"host": "h", "setup": "module load"}, "a list of shell lines"),
        ({"host": "h", "options": ["x"]}, "a mapping"),
        ({"host": "h", "options": {"a b": 1}}, "a mapping"),
        ({"host": "h", "store": 3}, "a path over there"),
    ],
)
def test_a_wrong_site_is_refused(value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=r"launcher\.ssh") as refusal:
        Site.read(value)
    assert said in str(refusal.value)


def test_nothing_of_another_machine_is_run_here() -> None:
    for name in ("local", "slurm"):
        assert load_launcher({"name": name, "ssh": None})
        with pytest.raises(ConfigError, match=r"launcher\.ssh: this command runs here alone"):
            load_launcher({"name": name, "ssh": "me@login"})


def test_the_folder_of_sockets_is_private_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path("/tmp") / f"mgssh{os.getpid()}"
    short.mkdir()
    try:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
        folder = private_folder()
        assert folder.parent == short and folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        with pytest.raises(LaunchError, match="not this user's alone"):
            private_folder()
        folder.rmdir()
    finally:
        short.rmdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 80)))
    assert len(str(private_folder())) < 50


@pytest.mark.parametrize(
    "typed",
    [
        ["run", "--redo=train", "--redo=sample", "--until=evaluate", "--quiet"],
        ["status", "--usage", "--all", "chain"],
        ["logs", "--follow", "--rank=1", "--lines=5", "chain/train"],
        ["cancel", "--force", "a", "b/3"],
        ["failures", "--nodes"],
    ],
)
def test_the_options_are_typed_again(typed: list[str]) -> None:
    parser = parser_of(typed[0])
    args = parse_arguments(typed[0], typed[1:])
    assert sorted(options_of(args, parser)) == sorted(typed[1:])
    assert vars(parse_arguments(typed[0], options_of(args, parser))) == vars(args)
    assert options_of(argparse.Namespace(**(vars(args) | {"on": "far", "store": "x"})), parser) == options_of(
        args, parser
    )
