"""Content digests of datasets, samples and weights: their bytes enter a fingerprint, never their paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


class ContentDigests:
    """Digests contents, each once; remembers file hashes by (path, size, mtime) in the store.

    Args:
        store: the store's root; the hash cache is in its `.digests/`.
        fetch: brings published weights that are not on this machine; None: they must be there (or known by digest).
    """

    def __init__(self, store: Path, fetch: Callable[[str], object] | None = None) -> None:
        self._cache, self._fetch = store / ".digests", fetch
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, key: str, value: Any, mark: str) -> str:
        """The digest of a path (or of the first of several that exists), or of named weights.

        Raises:
            DataError, WeightsError: it is not there; the text begins with `key`.
        """
        memo = (repr(value), mark)
        if memo not in self._known:
            self._known[memo] = self._weights(key, value) if mark == "weights" else self._content(key, value)
        return self._known[memo]

    def _content(self, key: str, value: Any) -> str:
        from maskgit_core.content import digest, resolve
        from maskgit_core.errors import DataError

        if value == "???":
            raise DataError(f"{key}: missing; give the file or folder with {key}=PATH")
        try:
            return digest(resolve(value), self._cache)
        except DataError as error:
            raise DataError(f"{key}: {error}") from None

    def _weights(self, key: str, value: str) -> str:
        from maskgit_core.errors import WeightsError
        from maskgit_core.weights.registry import content_digest

        try:
            if self._fetch is not None:
                self._fetch(value)
            return content_digest(value)
        except WeightsError as error:
            raise WeightsError(f"{key}: {error}") from None
