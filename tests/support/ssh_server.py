"""An sshd of this user's own on the loopback, with its own keys, for the tests of `launcher.ssh`."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launchers.ssh import Connection, Site


class Server:
    """sshd, and the launchers that lead to it.

    Args:
        folder: keys, configuration and log.
        store: the store on the far side.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        folder.mkdir()
        for name in ("host_key", "id", "other_id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        key = " ".join((folder / "host_key.pub").read_text().split()[:2])
        (folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}\n")
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.process = subprocess.Popen(
            [shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin") or "sshd", "-D", "-f", f"{folder}/sshd_config",
             "-E", f"{folder}/log"]
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while "listening" not in self.log():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def logins(self) -> int:
        """Connections that were made so far."""
        return self.log().count("Accepted publickey")

    def ssh(self, **more: object) -> dict[str, object]:
        """A `launcher.ssh` that leads here."""
        options = {"IdentityFile": f"{self.folder}/id", "UserKnownHostsFile": f"{self.folder}/known",
                   "IdentitiesOnly": "yes", "IdentityAgent": "none", **dict(more.pop("options", {}))}  # fmt: skip
        return {"host": f"{getpass.getuser()}@127.0.0.1", "port": self.port, "python": sys.executable,
                "store": str(self.store), "options": options, **more}  # fmt: skip

    def launcher(self, name: str = "far", *, kind: str = "local", keys: dict[str, object] | None = None,
                 **more: object) -> list[str]:  # fmt: skip
        """Writes a launcher's file; returns the options that find it."""
        path = self.folder / "conf" / "launcher" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({"name": kind, **(keys or {}), "ssh": self.ssh(**more)}))
        return ["--config-dir", str(self.folder / "conf")]

    def hang_up(self) -> None:
        """Breaks the shared connection."""
        Connection(Site.read(self.ssh())).close()

    def stop(self) -> None:
        """Ends sshd and every connection to it."""
        self.hang_up()
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """The running sshd; its store is `far` in the test's folder."""
    if not shutil.which("ssh") or not shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin"):
        pytest.skip("OpenSSH's server and client are not installed")
    made = Server(tmp_path / "ssh", tmp_path / "far")
    yield made
    made.stop()
