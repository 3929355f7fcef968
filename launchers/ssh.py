"""One OpenSSH connection to a login node, which all commands share until nobody has used it for a while."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maskgit_core.errors import ConfigError, LaunchError, unknown_key

_KEYS = ("host", "python", "store", "port", "setup", "options")
_PERSIST = "10m"
_PATIENCE_S = 60.0
#: ssh's own exit code for a connection that cannot be made, or that broke.
LOST = 255
_DEFAULTS = {
    "BatchMode": "yes",  # ask for no password: who starts a command may be a script
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "LogLevel": "ERROR",  # no banners
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
}


@dataclass(frozen=True)
class Site:
    """A machine that commands are carried out on: `launcher.ssh`.

    Args:
        host: "user@login", or a Host of ~/.ssh/config.
        python: the interpreter there, of an environment with this project's packages; "~/" is the home folder.
        store: the store there; null: MASKGIT_STORE of the login shell or of `setup`, else ~/runs.
        port: null: ssh's own choice.
        setup: shell lines there before anything else, e.g. "module load python" or "export MASKGIT_DATA=/shared/data".
        options: of ssh, as `ssh -o` takes them, e.g. {"IdentityFile": "~/.ssh/cluster"}.
    """

    host: str
    python: str = "python"
    store: str | None = None
    port: int | None = None
    setup: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, value: object, where: str = "launcher.ssh") -> Site:
        """From "user@login" or a mapping of [host, python, store, port, setup, options].

        Raises:
            ConfigError: an unknown key, no host, or a value that ssh would take for something else.
        """
        block = {"host": value} if isinstance(value, str) else value
        if not isinstance(block, Mapping):
            raise ConfigError(f"{where}: found {value!r}; write user@login, or a mapping of [{', '.join(_KEYS)}]")
        for key in block:
            if key not in _KEYS:
                raise unknown_key(f"{where}.{key}", str(key), _KEYS)
        host, port, setup, options = (block.get(key) for key in ("host", "port", "setup", "options"))
        if not isinstance(host, str) or not re.fullmatch(r"[A-Za-z0-9_][\w.@:%+-]*", host):
            raise ConfigError(f"{where}.host: found {host!r}; write user@login, or a Host of ~/.ssh/config")
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536):
            raise ConfigError(f"{where}.port: found {port!r}; it must be a whole number from 1 to 65535")
        if not isinstance(setup or [], list) or not all(isinstance(line, str) for line in setup or []):
            raise ConfigError(f"{where}.setup: found {setup!r}; it must be a list of shell lines")
        if not isinstance(options or {}, Mapping) or not all(re.fullmatch(r"\w+", str(key)) for key in options or {}):
            raise ConfigError(f"{where}.options: found {options!r}; it must be a mapping, as {{IdentityFile: PATH}}")
        for key in ("python", "store"):
            if block.get(key) is not None and (not isinstance(block[key], str) or not block[key].strip()):
                raise ConfigError(f"{where}.{key}: found {block[key]!r}; it must be a path over there")
        return cls(host, block.get("python") or "python", block.get("store"), port, tuple(setup or ()),
                   {str(key): str(value) for key, value in dict(options or {}).items()})  # fmt: skip


class Connection:
    """The shared connection to a site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        chosen = {key.lower() for key in site.options}
        settings = {**site.options, **{k: v for k, v in _DEFAULTS.items() if k.lower() not in chosen}}
        self._options = [part for key, value in sorted(settings.items()) for part in ("-o", f"{key}={value}")]
        self._options += ["-p", str(site.port)] if site.port else []
        name = hashlib.sha256(repr((site.host, self._options)).encode()).hexdigest()[:16]
        self._path = private_folder() / name
        self._ssh = ["ssh", *self._options, "-S", str(self._path)]

    def open(self) -> None:
        """Makes the connection unless it is there.

        Raises:
            LaunchError: it cannot be made; one line with ssh's reason and the remedy.
        """
        with self._alone(), tempfile.TemporaryFile("w+", errors="replace") as told:
            if self._control("check"):
                return
            persist = [] if "ControlPersist" in self.site.options else ["-o", f"ControlPersist={_PERSIST}"]
            command = [*self._ssh, "-o", "ControlMaster=yes", *persist, "-fN", self.site.host]
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told, timeout=_PATIENCE_S,
                    start_new_session=True,
                )  # fmt: skip
            except FileNotFoundError:
                raise LaunchError("launcher.ssh: ssh is not installed here; install OpenSSH's client") from None
            except subprocess.TimeoutExpired:
                raise LaunchError(
                    f"launcher.ssh: {self.site.host} did not answer within {_PATIENCE_S:.0f} s; try again later"
                ) from None
            if done.returncode:
                told.seek(0)
                raise LaunchError(f"launcher.ssh: {self.site.host}: {self._reason(told.read())}")

    def close(self) -> None:
        """Ends the shared connection; whatever uses it at this moment is cut off."""
        self._control("exit")

    def run(self, command: str, *, terminal: bool = False, output: int | None = None) -> int:
        """Carries out a shell line there with this process's output; returns its exit code.

        Args:
            terminal: it gets a terminal of its own there: colours, width and keys as here. Without one its standard
                input stays open until Ctrl-C here, or until the connection is lost.
            output: descriptor that its standard output goes to; None: where this process's goes.

        Raises:
            LaunchError: the connection was lost.
        """
        if terminal:
            code = subprocess.run([*self._ssh, "-o", "ControlMaster=no", "-tt", self.site.host, command]).returncode
        else:
            with tempfile.NamedTemporaryFile() as own_words:  # of ssh itself; ours is one line
                process = subprocess.Popen(
                    [*self._ssh, "-o", "ControlMaster=no", "-E", own_words.name, "-T", self.site.host, command],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                )
                code = _wait(process)
        if code == LOST:
            raise LaunchError(
                f"the connection to {self.site.host} was lost, or the command was killed there; what had been "
                "submitted goes on, and the same command again does what is missing"
            )
        return code

    def send(self, command: str, parts: Iterator[bytes]) -> None:
        """Feeds bytes to a shell line there.

        Raises:
            LaunchError: it failed; its last line.
        """
        process = subprocess.Popen(
            [*self._ssh, "-o", "ControlMaster=no", "-T", self.site.host, command],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                process.stdin.write(part)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None
        _, said = process.communicate()
        if process.returncode:
            last = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
            reason = last[-1].strip() if last else f"exit code {process.returncode}"
            raise LaunchError(f"launcher.ssh: {self.site.host}: the code could not be sent: {reason}")

    def _control(self, request: str) -> bool:
        command = [*self._ssh, "-O", request, self.site.host]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            return subprocess.run(command, capture_output=True, timeout=10).returncode == 0
        return False

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with open(f"{self._path}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released with the file; the background process does not inherit it
            yield

    def _reason(self, said: str) -> str:
        """ssh's complaint in one line, with the remedy."""
        host, lines = self.site.host, [line.strip() for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else "ssh gave no reason"
        if "HOST IDENTIFICATION HAS CHANGED" in said:
            return "its host key is not the one that known_hosts has; ask the site before you remove the old one"
        if "Host key verification failed" in said:
            return f"its host key is not known here; connect once by hand and compare it: ssh {host}"
        if "Permission denied" in said:
            own = [f"-o{key}={value}" for key, value in self.site.options.items()]
            port = ["-p", str(self.site.port)] if self.site.port else []
            by_hand = shlex.join(["ssh", *own, *port, "-S", str(self._path), "-MNf", "-oControlPersist=8h", host])
            return (
                f"{last.rpartition(': ')[2] or last}; no password is asked for here: load your key (ssh-add), install "
                f"it (ssh-copy-id {host}), or log in once by hand, which later commands use: {by_hand}"
            )
        return f"{last}; check launcher.ssh.host and the network"


def refuse_here(ssh: object) -> None:
    """Raises `ConfigError` where a launcher of another machine is about to run something on this one."""
    if ssh is not None:
        raise ConfigError(
            "launcher.ssh: this command runs here alone; maskgit run, plan, doctor and search go there where the "
            "launcher's file or the command line says so, the others with --on (launcher.ssh=null: run it here)"
        )


def private_folder() -> Path:
    """The folder of control sockets: of this user alone, and short, as a socket's path may have 100 characters.

    Raises:
        LaunchError: somebody else made it, or others may enter it.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    base = base if base.is_dir() and len(str(base)) < 50 else Path("/tmp")
    folder = base / f"maskgit-ssh-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise LaunchError(f"{folder}: is not this user's alone (mode {stat.S_IMODE(found.st_mode):o}); remove it")
    return folder


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code; Ctrl-C ends the other side's standard input, which it takes for Ctrl-C, and again kills."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        assert process.stdin is not None
        process.stdin.close()
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.kill()
            raise
