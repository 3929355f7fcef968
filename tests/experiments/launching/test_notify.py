"""Messages about failed steps and ended runs: a real command, a real web hook, no secrets, no harm done."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from experiments.config.settings import checked
from experiments.launching.notify import masked, send
from maskgit_core.errors import ConfigError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A web hook's address and what it got."""
    got: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/services/T0/SECRET9", got
    server.shutdown()


def test_a_failed_step_and_the_end_of_a_run_are_told(lab: Run, store: Path, tmp_path: Path, hook) -> None:
    address, got = hook
    told = tmp_path / "told.txt"
    command = f'{{ echo "$MASKGIT_EVENT|$MASKGIT_STEP|$MASKGIT_LINE"; cat; }} >> {told}'
    done = lab("run", "launcher=inline", "experiment=chain", "numbers.fail=crash", f"notify.command='{command}'",
               "notify.webhook=LAB_NOTIFY_URL", env={"LAB_NOTIFY_URL": address})  # fmt: skip
    assert done.returncode == 1, done.stderr
    first, text, last, end = told.read_text().splitlines()
    assert first == "failed|numbers|RuntimeError: asked to crash"
    assert text.startswith("chain: step numbers failed on ") and text.endswith(
        "own error: RuntimeError: asked to crash"
    )
    assert last == "ended||1 failed, 1 blocked" and end.startswith("chain has ended: 1 failed, 1 blocked (")
    assert [message["text"] for message in got] == [text, end]
    assert "SECRET9" not in next(store.glob("pipelines/*.json")).read_text()


def test_what_goes_wrong_with_a_message_is_a_warning(lab: Run, store: Path) -> None:
    done = lab("run", "launcher=inline", "experiment=chain", "notify.command='echo hf_abcdefghijkl >&2; exit 3'",
               "notify.webhook=LAB_NOTIFY_URL", env={"LAB_NOTIFY_URL": "http://127.0.0.1:9/SECRET9"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning: notify.command: exit code 3: ***" in done.stderr
    assert "warning: notify.webhook: LAB_NOTIFY_URL: URLError" in done.stderr and "SECRET9" not in done.stderr


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_API_KEY", "topsecretvalue")
    line = "401 for topsecretvalue at http://ada:pass1@h/x?token=abc123 with hf_0123456789abc and Bearer zzz.yyy"
    for secret in ("topsecretvalue", "pass1", "abc123", "hf_0123456789abc", "zzz.yyy"):
        assert secret not in masked(line)
    assert masked(line).startswith("401 for ***")
    send({"command": f'printf %s "$MASKGIT_LINE" > {tmp_path}/line'}, "text", event="failed", line=line)
    assert (tmp_path / "line").read_text() == masked(line)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"webhook": "https://hooks.example/T0/SECRET"}, "notify.webhook: give the name of an environment variable"),
        ({"comand": "x"}, "notify.comand: unknown key; did you mean command"),
        ({"command": 3}, "notify.command"),
    ],
)
def test_a_wrong_block_is_one_line(block: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        checked({"paths": {"store": "s", "data": "d"}, "notify": block})
    assert "SECRET" not in str(caught.value)
