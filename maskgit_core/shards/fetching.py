"""Files elsewhere as streams: a short list of schemes, time limits, and one line for every failure.

http(s) is read with the standard library; s3, gs and hf with the programs that `webdataset` calls, which go through a
shell, so that addresses may hold nothing that a shell would read as more than a name.
"""

from __future__ import annotations

import contextlib
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maskgit_core.errors import DataError

SCHEMES = ("http", "https", "s3", "gs", "hf", "file")
#: Without a byte for so long, a server counts as hanging.
STALL_S = 60.0
#: Fewer bytes than this in that time are none.
FEW_BYTES = 1024
_SAFE = re.compile(r"[A-Za-z0-9._~:/@%+=,?&-]*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


def check_address(url: str) -> str:
    """The scheme of an address, empty for a path.

    Raises:
        DataError: another scheme than `SCHEMES`, or characters that no address needs.
    """
    match = _SCHEME.match(url)
    scheme = match[1] if match else ""
    if scheme and (scheme not in SCHEMES or not url.startswith(f"{scheme}://")):
        raise DataError(f"{url[:80]}: {scheme}: is not a way to fetch shards; one of {list(SCHEMES)} or a path")
    if scheme not in ("", "file") and not _SAFE.fullmatch(url):
        raise DataError(f"{url[:80]}: holds characters that are not allowed in an address; write them as %XX")
    return scheme


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The request to the new address; raises `URLError` where it is not followed."""
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise urllib.error.URLError(f"the server redirects to {newurl[:80]}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Fetched:
    """A file elsewhere, opened as a context; every failure is a `DataError` of one line."""

    def __init__(self, url: str, stall_s: float = STALL_S) -> None:
        self.url, self._stall_s = url, stall_s
        self._scheme = check_address(url)
        self._file: Any = None  # a stream, or the pipe of a program
        self._hung = False
        self._since, self._came = 0.0, 0  # a stretch of reading, and the bytes that came in it

    def __enter__(self) -> Fetched:
        try:
            self._file = self._opened()
        except _FAILURES as error:
            raise self._told(error) from error
        return self

    def _opened(self) -> Any:
        if self._scheme in ("", "file"):
            return open(Path(self.url.removeprefix("file://")), "rb")
        if self._scheme in ("http", "https"):
            return urllib.request.build_opener(_SafeRedirects).open(self.url, timeout=self._stall_s)
        from webdataset.gopen import gopen

        return gopen(self.url)

    def read(self, size: int) -> bytes:
        """Bytes, up to `size`, in one go where the file has them."""
        pieces, self._since, self._came = [], time.monotonic(), 0
        try:
            while size > 0 and (piece := self._read_some(min(size, 1 << 20))):
                pieces.append(piece)
                size -= len(piece)
        except _FAILURES as error:
            told = TimeoutError(f"no byte came for {self._stall_s:.0f} s") if self._hung else error
            raise self._told(told) from error
        return b"".join(pieces)

    def _read_some(self, size: int) -> bytes:
        process = getattr(self._file, "proc", None)
        if process is None:
            data: bytes = self._file.read1(size)
            self._count(len(data))
            return data
        watchdog = threading.Timer(self._stall_s, self._end, [process])
        watchdog.start()
        try:
            data = self._file.read(size)
        finally:
            watchdog.cancel()
        if self._hung:
            raise TimeoutError(f"no byte came for {self._stall_s:.0f} s")
        return data

    def _count(self, size: int) -> None:
        """Takes a server that sends a byte now and then for one that hangs."""
        self._came += size
        if time.monotonic() - self._since > self._stall_s:
            if 0 < self._came < FEW_BYTES:
                raise TimeoutError(f"only {self._came} bytes came in {self._stall_s:.0f} s")
            self._since, self._came = time.monotonic(), 0

    def _end(self, process: Any) -> None:
        """Ends the shell and what it started, whose end of the pipe would stay open."""
        import psutil

        self._hung = True
        with contextlib.suppress(psutil.Error, OSError):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        with contextlib.suppress(OSError):
            process.kill()

    def __exit__(self, kind: type | None, *rest: object) -> None:
        try:
            self._file.close()
        except _FAILURES as error:
            if kind is None:
                raise self._told(error) from error

    def _told(self, error: Exception) -> DataError:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        return DataError(f"{self.url}: cannot be fetched ({text}); check the address and the network")


_FAILURES = (OSError, ValueError, HTTPException, ssl.SSLError, EOFError)
