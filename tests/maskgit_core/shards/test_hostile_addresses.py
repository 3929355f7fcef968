"""Addresses of remote shards: nothing is executed, hanging and lying servers end in one line."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskgit_core.errors import DataError
from maskgit_core.shards import fetching, remote
from maskgit_core.shards.remote import RemoteShards


@pytest.mark.parametrize(
    "url",
    ["pipe:touch {mark} #", "PIPE:touch {mark} #", "pipe://touch {mark}", "Pipe:x", "ftp://host/x", "data:,x", "ls:x",
     "gs://x'; touch {mark}; '", "s3://x$(touch {mark})", "hf://a`touch {mark}`", "http://h/\n{mark}", "HTTP://h/x"],
)  # fmt: skip
def test_what_is_no_plain_address_is_refused_and_nothing_runs(tmp_path: Path, url: str) -> None:
    mark = tmp_path / "executed"
    with pytest.raises(DataError):
        RemoteShards(url.format(mark=mark), tmp_path / "cache")
    assert not mark.exists()


class Handler(http.server.BaseHTTPRequestHandler):
    """Misbehaves as the path asks."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"file://{__file__}")
            self.end_headers()
        elif kind == "hang":
            time.sleep(5)
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b" ")
                time.sleep(0.1)
        elif kind == "large":
            self.send_response(200)
            self.end_headers()
            for _ in range(8):
                self.wfile.write(b" " * 1024)
        elif kind == "deep":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[" * 200_000)
        else:
            self.send_error(500)

    def log_message(self, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize("kind", ["redirect", "hang", "drip", "large", "deep", "error"])
def test_misbehaving_servers_end_in_one_line(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(remote, "MAX_MANIFEST_BYTES", 4096 if kind == "large" else 1 << 20)
    monkeypatch.setattr(remote, "FIRST_STALL_S", 0.5)
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        RemoteShards(f"{server}/{kind}", tmp_path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(server)
    assert time.monotonic() - began < 4


def test_what_is_wrong_with_a_secure_connection_is_one_line(server: str, tmp_path: Path) -> None:
    """A server without TLS, and one whose certificate nobody vouches for."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", *options, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        unsigned = f"https://127.0.0.1:{running.server_port}"
        for address in (server.replace("http:", "https:"), unsigned):
            with pytest.raises(DataError, match="SSL") as caught:
                RemoteShards(f"{address}/x", tmp_path)
            assert "\n" not in str(caught.value) and str(caught.value).startswith(address)
        running.shutdown()


def test_a_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    import webdataset  # noqa: F401

    module = sys.modules["webdataset.gopen"]
    monkeypatch.setattr(module, "gopen", lambda url: module.Pipe("sleep 30", shell=True, mode="rb"))
    began = time.monotonic()
    with pytest.raises(DataError, match="no byte came"), fetching.Fetched("gs://bucket/x", stall_s=0.5) as stream:
        stream.read(10)
    assert time.monotonic() - began < 10
