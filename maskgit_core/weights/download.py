"""Brings published weights onto this machine: from the Hugging Face hub, over HTTPS, or from a file the user has.

A file appears under its name only once it is whole and its bytes are the published ones; a download that was cut off
goes on where it stopped. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from maskgit_core.errors import ArtifactError, WeightsError
from maskgit_core.files import looks_like_html, publish
from maskgit_core.weights import registry
from maskgit_core.weights.registry import Entry

CHUNK = 1 << 20
TRIES, PAUSE_S, TIMEOUT_S = 3, 1.0, 30.0

Say = Callable[[str], object]
#: Called with (bytes there, bytes in all or None) after every chunk.
Show = Callable[[int, int | None], object]


def fetch(name: str, say: Say = print, show: Show = lambda done, total: None) -> Path:
    """The checked file of a registry name, downloaded if it is not there yet.

    Args:
        say: is told title, licence, source and target before a download begins.
        show: is told the progress.

    Raises:
        WeightsError: no network, no such file there, other bytes than published; says what to put where.
    """
    entry = registry.by_name(name)
    if any(place.is_file() for place in registry.places(entry)):
        return registry.verified(name)
    if entry.package:
        return registry.locate(name)  # says how to install it
    say(f"{entry.name}: {entry.title}")
    say(f"  licence: {entry.licence}")
    say(f"  from {entry.source}")
    say(f"  to   {entry.target}")
    with _alone(entry, say):
        if not entry.target.is_file():  # else it arrived while this process waited
            _accept(entry, _from_hub(entry) if entry.hub else _over_http(entry, show))
    return registry.verified(name)


def import_file(name: str, path: Path) -> Path:
    """Copies a file the user has to where the registry expects it, after checking its bytes.

    Raises:
        WeightsError: it is missing, a web page, or not the published file.
    """
    entry = registry.by_name(name)
    path = Path(path).expanduser()
    check_file(entry, path)
    try:
        publish(entry.target, lambda temporary: shutil.copyfile(path, temporary))
    except ArtifactError as error:
        raise WeightsError(f"{error}; or set MASKGIT_HOME to another folder") from None
    if not entry.sha256:
        registry.record_sha256(entry, registry.sha256_of(entry.target))
    return entry.target


def _accept(entry: Entry, arrived: Path) -> None:
    """Checks what arrived and gives it its name; what is wrong is deleted."""
    try:
        check_file(entry, arrived)
    except WeightsError:
        arrived.unlink(missing_ok=True)
        raise
    os.replace(arrived, entry.target)
    if not entry.sha256:
        registry.record_sha256(entry, registry.sha256_of(entry.target))


def check_file(entry: Entry, path: Path) -> None:
    """Compares a file's size and sha256 with what is known of the published one.

    Raises:
        WeightsError: it is missing, a web page, or not the published file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); give the downloaded file") from None
    if looks_like_html(head):
        raise WeightsError(
            f"{path}: is an HTML page, not weights; open {entry.source} in a browser, download the file and run "
            f"`maskgit weights import {entry.name} PATH`"
        )
    if entry.size is not None and size != entry.size:
        raise WeightsError(
            f"{path}: has {size:,} bytes, the published file of {entry.name} {entry.size:,}; fetch it again"
        )
    registry.check_digest(entry, registry.sha256_of(path), path)


@contextlib.contextmanager
def _alone(entry: Entry, say: Say) -> Iterator[None]:
    """Holds the lock of an entry's download; the kernel releases it when its process ends, however it ends."""
    lock = FileLock(registry.home() / ".locks" / f"{entry.name}.lock")
    try:
        for folder in (Path(lock.lock_file).parent, entry.target.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            say(f"{entry.name}: another process is fetching it; waiting")
            lock.acquire()
    except OSError as error:
        raise WeightsError(f"{lock.lock_file}: cannot be written ({error.strerror}); set MASKGIT_HOME") from None
    try:
        yield
    finally:
        lock.release()


def _from_hub(entry: Entry) -> Path:
    """Through huggingface_hub, which resumes and shows its own progress."""
    from huggingface_hub import hf_hub_download

    folder = entry.target.parent / ".hub"
    endpoint = os.environ.get("HF_ENDPOINT")  # a mirror of the hub, as huggingface_hub itself calls it
    try:
        _check_reachable(endpoint or "https://huggingface.co")
        downloaded = hf_hub_download(
            entry.hub, entry.file, revision=entry.revision, local_dir=folder, endpoint=endpoint or None
        )
        arrived = entry.target.with_name(f"{entry.target.name}.part")
        os.replace(downloaded, arrived)
    except Exception as error:  # its exceptions come from several packages; each means the file did not arrive
        raise _did_not_arrive(entry, error) from None
    shutil.rmtree(folder, ignore_errors=True)
    return arrived


def _check_reachable(address: str) -> None:
    """Fails at once where there is no network: huggingface_hub would try for half a minute, and say so each time."""
    place = urllib.parse.urlsplit(address)
    if not urllib.request.getproxies():
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=TIMEOUT_S).close()


def _did_not_arrive(entry: Entry, error: object) -> WeightsError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return WeightsError(
        f"{entry.name}: could not be downloaded ({reason}); without a network, put {entry.source} at {entry.target}, "
        f"or run `maskgit weights import {entry.name} PATH` with a copy"
    )


def _over_http(entry: Entry, show: Show) -> Path:
    part = entry.target.with_name(f"{entry.target.name}.part")
    error: Exception = OSError("no address")
    for address in (entry.url, *entry.mirrors):
        for attempt in range(TRIES):
            try:
                download(address, part, show)
                return part
            except urllib.error.HTTPError as problem:
                error = problem
                if problem.code < 500:
                    break  # trying again will not help; the next mirror may
            except (OSError, ValueError) as problem:
                error = problem
            if attempt < TRIES - 1:
                time.sleep(PAUSE_S)
    raise _did_not_arrive(entry, error)


def download(address: str, part: Path, show: Show = lambda done, total: None) -> None:
    """Downloads into `part`, going on where an earlier call stopped if the server still has the same file.

    Raises:
        OSError: (also HTTPError) the server cannot be reached, refuses, or closes early; `part` keeps what arrived.
        ValueError: the answer is a web page.
    """
    mark = part.with_name(f"{part.name}.json")
    done = part.stat().st_size if part.is_file() else 0
    tag = _tag(mark, address) if done else None
    headers = {"User-Agent": "maskgit-experiments"}
    if tag:
        headers |= {"Range": f"bytes={done}-", "If-Range": tag}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and tag:  # nothing is left to send, or the file changed: begin again
            part.unlink(missing_ok=True)
            return download(address, part, show)
        raise
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("the answer is a web page, not a file")
        if answer.status != 206:
            done = 0
        mark.write_text(json.dumps({"address": address, "tag": answer.headers.get("ETag")}))
        rest = answer.headers.get("Content-Length")
        total = done + int(rest) if rest else None
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                show(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection closed after {done:,} of {total:,} bytes")
    mark.unlink(missing_ok=True)


def _tag(mark: Path, address: str) -> str | None:
    try:
        noted = json.loads(mark.read_text())
        tag = noted["tag"] if noted["address"] == address else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tag if isinstance(tag, str) and not tag.startswith("W/") else None


def missing(names: Sequence[str]) -> list[str]:
    """Those registry names of `names` whose files are not on this machine (paths are passed over)."""
    entries = [registry.registry()[n] for n in names if n in registry.registry()]
    return [e.name for e in entries if not any(place.is_file() for place in registry.places(e))]


def fetch_missing(values: Iterable[object], say: Say = print, show: Show = lambda done, total: None) -> list[Path]:
    """Fetches those of `values` (registry names; paths and None are passed over) that are not on this machine."""
    return [fetch(name, say, show) for name in missing([v for v in values if isinstance(v, str)])]
