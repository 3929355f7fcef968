"""Commands that are carried out on another machine (`launcher.ssh`, `--on`): this code is sent there and runs there.

One OpenSSH connection (`launchers.ssh`) serves all commands. The code goes into `<store>/code/<digest>` of the other
machine, as any frozen copy, unless it is there; plugins, the folders of `--config-dir` and a sweep's file go into a
copy of their own. Nothing of this environment is sent but the width of the terminal and the wish for no colours.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.commands import BY_LAUNCHER
from experiments.commands._request import config_dirs
from experiments.launching.far_end import REQUEST, REQUEST_VARIABLE
from experiments.store.documents import Code
from experiments.store.frozen_code import Frozen, frozen, frozen_request
from experiments.store.typed_json import Options
from launchers.ssh import Connection, Site
from maskgit_core.errors import ConfigError, LaunchError, suggestion
from maskgit_core.files import write_bytes

#: What the far shell answers where there is no Python that can run the code; above it, by place, which copy is absent.
_NO_PYTHON, _ABSENT = 79, 80
_NOT_SENT = ("on", "config_dir", "store", "asked_store", "overrides", "help")
_SENT_VARIABLES = ("NO_COLOR", "MASKGIT_DEBUG")


@dataclass(frozen=True)
class Destination:
    """A machine, how `--on` names it, and the plugins that a request needs there."""

    site: Site
    name: str
    plugins: tuple[str, ...] = ()


def destination(name: str, args: argparse.Namespace) -> Destination | None:
    """The machine that a command is to be carried out on; None: this one.

    Raises:
        ConfigError: `--on` or `launcher.ssh` names none.
    """
    on, overrides = getattr(args, "on", None), list(getattr(args, "overrides", None) or [])
    if on is not None and name == "search" and not (args.status or args.cancel):
        raise ConfigError("search: --on goes with --status and --cancel; a search itself goes where launcher=NAME says")
    if on is not None:
        found: Destination | None = Destination(_named(on, config_dirs(args)), on)
    elif name in BY_LAUNCHER and overrides and not (getattr(args, "status", False) or getattr(args, "cancel", False)):
        found = _asked(overrides, config_dirs(args))
    else:
        return None
    store = getattr(args, "store", None) or _typed_store(overrides)
    return replace(found, site=replace(found.site, store=str(store))) if found and store else found


def _named(on: str, folders: Sequence[Path]) -> Site:
    from experiments.config.compose import group_names, read_choice

    names = group_names("launcher", folders)
    if on in names:
        block = read_choice("launcher", on, folders)
        ssh = block.get("launcher", block).get("ssh")
        if ssh is None:
            raise ConfigError(f"--on {on}: launcher/{on}.yaml has no `ssh`; add ssh: user@login to it")
        return Site.read(ssh)
    if "@" not in on:
        raise ConfigError(
            f"--on {on}: {suggestion(on, names)}write user@login, or the name of a launcher's file with `ssh`"
        )
    return Site.read(on, "--on")


def _asked(overrides: Sequence[str], folders: Sequence[Path]) -> Destination | None:
    """The machine that `launcher.ssh` of a request names; composed only where it may name one."""
    from experiments.config import compose as configs

    files = [p for place in (configs.CONF, *folders) for p in (place / "launcher").glob("**/*.yaml")]
    typed = any("launcher.ssh" in text or "launcher={" in text for text in overrides)
    if not typed and not any(re.search(r"^\s*ssh\s*:", path.read_text(errors="replace"), re.M) for path in files):
        return None
    asked = configs.parse(overrides, folders)
    if asked.choice("experiment") is None:
        return None
    config: Options = configs.compose(list(dict(asked.choices).items()), folders)
    for key, value in asked.values:
        if key.split(".")[0] == "launcher":
            config = configs.with_value(config, key, value)
    block, plugins = config.get("launcher"), config.get("plugins")
    ssh = block.get("ssh") if isinstance(block, Mapping) else None
    if ssh is None:
        return None
    site, chosen = Site.read(ssh), asked.choice("launcher")
    name = chosen if chosen and not typed else site.host
    return Destination(site, name, tuple(str(p) for p in plugins) if isinstance(plugins, list) else ())


def _typed_store(overrides: Sequence[str]) -> str | None:
    from experiments.config.compose import parse

    typed = [text for text in overrides if text.lstrip("+").startswith("paths.store=")]
    stores = [value for _, value in parse(typed).values] if typed else []
    return str(stores[-1]) if stores else None


def carry_out(place: Destination, name: str, args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Carries a command out there; returns its exit code.

    Raises:
        LaunchError: no connection, no Python, or the connection was lost.
        ConfigError: the command cannot be carried out elsewhere as it was typed.
    """
    page = _page(name, args)
    request, words = _request(name, args, place.plugins)
    far = _Far(place.site, request, [name, *options_of(args, parser), *words])
    if page is not None:
        with tempfile.TemporaryFile() as told:
            ended = far.run(output=told.fileno())
            told.seek(0)
            if ended == 0:
                write_bytes(page.expanduser().absolute(), told.read())
                print(page)
        return ended
    ended = far.run()
    if name == "run" and ended == 0 and args.voice != "quiet":
        print(f"that was on {place.site.host}; status, logs, cancel, retry, failures, report: with --on {place.name}")
    return ended


def options_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """The options and names of a parsed command line, but those that say where it is carried out."""
    options, names = list[str](), list[str]()
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in _NOT_SENT or value is None or value == action.default:
            continue
        values = [str(one) for one in (value if isinstance(value, list) else [value])]
        if not action.option_strings:
            names += values
        elif action.nargs == 0:
            options += [action.option_strings[-1]] if value == action.const else []
        else:
            options += [f"{action.option_strings[-1]}={one}" for one in values]
    return [*options, *names]


def _page(name: str, args: argparse.Namespace) -> Path | None:
    """The file that the command is to write here; there it writes to its standard output."""
    page: Path | None = None
    if name == "report":
        page, args.out = args.out or Path(f"{args.experiment.replace('/', '_')}.html"), Path("-")
    elif name == "status" and args.html is not None:
        if args.watch:
            raise ConfigError("--html with --on: is written once; leave --watch out")
        page, args.html = args.html, Path("-")
    return page


def _request(name: str, args: argparse.Namespace, plugins: Sequence[str]) -> tuple[Frozen | None, list[str]]:
    """Plugins and files that the request needs, if any, and the request in the words of the other machine."""
    overrides, words = list(getattr(args, "overrides", None) or []), list[str]()
    more: dict[str, Path] = {}
    if name in BY_LAUNCHER and getattr(args, "on", None) is None:
        for number, folder in enumerate(config_dirs(args)):
            more |= {
                f"config_dir_{number}/{p.relative_to(folder).as_posix()}": p for p in sorted(folder.rglob("*.yaml"))
            }
            words += ["--config-dir", f"{REQUEST}/config_dir_{number}"]
        for number, text in enumerate(overrides):
            found = re.fullmatch(r"\+?sweep=(['\"]?)(.+)\1", text)
            if found and (path := Path(found[2]).expanduser()).is_file():
                more[f"sweep_{number}.yaml"] = path
                overrides[number] = f"sweep='{REQUEST}/sweep_{number}.yaml'"
        overrides.append("launcher.ssh=null")
    return frozen_request(plugins, more) if plugins or more else None, [*words, *overrides]


class _Far:
    """One command on the other machine."""

    def __init__(self, site: Site, request: Frozen | None, command: Sequence[str]) -> None:
        self._site, self._command = site, list(command)
        self._copies = [frozen(), *([request] if request else [])]
        self._connection = Connection(site)

    def run(self, output: int | None = None) -> int:
        """Carries it out, after the code has been sent where it is not there; returns its exit code."""
        self._connection.open()
        terminal = output is None and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
        sys.stdout.flush()
        line = self._line(self._call(terminal))
        ended = self._connection.run(line, terminal=terminal, output=output)
        for number, copy in enumerate(self._copies):
            if ended == _ABSENT + number:
                size = sum(path.stat().st_size for path in copy.files.values()) / 1e6
                what = "a request's files" if number else "the code"
                print(f"sending {what} to {self._site.host} ({size:.1f} MB)", file=sys.stderr, flush=True)
                self._connection.send(self._line(_unpack(copy.digest)), _archive(copy))
                ended = self._connection.run(line, terminal=terminal, output=output)
        if ended == _NO_PYTHON:
            raise LaunchError(
                f"launcher.ssh.python: {self._site.python} is no Python 3.11 or newer on {self._site.host}; name the "
                "interpreter of an environment there that has this project's packages"
            )
        return ended

    def _line(self, lines: Sequence[str]) -> str:
        """A shell line for ssh, for whatever shell the user has there: a login shell, whose own words go nowhere."""
        store = _place(self._site.store) if self._site.store else '"${MASKGIT_STORE:-runs}"'
        script = [
            *self._site.setup,
            f"store={store}",
            'case $store in /*) ;; *) store="$HOME/$store" ;; esac',
            "exec 1>&3 3>&-",
            *lines,
        ]
        outer = 'exec 3>&1 1>/dev/null; exec bash -l -c "$0"'
        return shlex.join(["sh", "-c", outer, "; ".join(script)])

    def _call(self, terminal: bool) -> list[str]:
        python, width = _place(self._site.python), shutil.get_terminal_size()
        sent = {name: os.environ[name] for name in _SENT_VARIABLES if os.environ.get(name)}
        if not terminal:
            sent |= {"COLUMNS": str(width.columns), "LINES": str(width.lines)}
        words = shlex.join([*(["--terminal"] if terminal else []), *self._command])
        copies = [f"$store/code/{copy.digest}" for copy in self._copies]
        return [
            *(f'[ -e "{copy}/{Code.FILE}" ] || exit {_ABSENT + number}' for number, copy in enumerate(copies)),
            f"{python} -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || exit {_NO_PYTHON}",
            f'export MASKGIT_STORE="$store" {REQUEST_VARIABLE}="{copies[-1]}"',
            f'export PYTHONPATH="{":".join(copies)}${{PYTHONPATH:+:$PYTHONPATH}}"',
            *(f"export {name}={shlex.quote(value)}" for name, value in sent.items()),
            f"{python} -P -m experiments.launching.far_end {words}",
        ]


def _unpack(digest: str) -> list[str]:
    """Shell lines that make a copy from an archive; whole or not at all, whoever else makes it too."""
    return [
        f'copy="$store/code/{digest}"; new="$store/code/.{digest}.$$.tmp"',
        'mkdir -p "$new" || exit 1',
        '{ tar -xzf - -C "$new" && mv -T "$new" "$copy"; }; failed=$?; rm -rf "$new"',
        f'[ -e "$copy/{Code.FILE}" ] || exit $((failed ? failed : 1))',
    ]


def _place(path: str) -> str:
    """A path of the other machine for its shell."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _archive(code: Frozen) -> Iterator[bytes]:
    """A compressed tar of the copy, in parts; what makes it complete comes last."""
    buffer = io.BytesIO()

    def written() -> bytes:
        part = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return part

    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=buffer, mode="w|gz") as archive:
        code.state.write(Path(folder), durable=False)
        for name, path in [*code.files.items(), (Code.FILE, Path(folder) / Code.FILE)]:
            archive.add(path, arcname=name, filter=_anonymous)
            yield written()
        archive.close()
        yield written()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
