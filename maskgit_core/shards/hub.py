"""Pushes a cache to a Hugging Face data-set repository and pulls it from there, verified by its manifest.

The manifest goes last in both directions, so half a cache never looks whole; what is there already with the right
sha256 is not sent or fetched again.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskgit_core.errors import DataError
from maskgit_core.files import publish
from maskgit_core.shards.checks import problems
from maskgit_core.shards.reader import read_manifest
from maskgit_core.shards.writer import MANIFEST

Report = Callable[[int, int], object]


def hub(token: str | None = None) -> Any:
    """The client of the Hugging Face hub (environment HF_TOKEN, HF_ENDPOINT)."""
    from huggingface_hub import HfApi

    return HfApi(token=token)


def push(
    folder: Path,
    repo_id: str,
    client: Any,
    *,
    prefix: str = "",
    private: bool = True,
    report: Report = lambda done, total: None,
) -> int:
    """Sends a whole cache; returns how many shards were sent.

    Args:
        folder: the cache; checked in full before anything is sent.
        repo_id: `owner/name` of a data-set repository; made (private) where there is none.
        client: see `hub`.
        prefix: folder inside the repository.
        private: whether a new repository is private.

    Raises:
        DataError: the cache is damaged (nothing was sent), or the hub refuses; names the file.
    """
    for line in problems(folder):
        raise DataError(line)
    manifest = read_manifest(folder)
    folder = folder / "files" if (folder / "files" / MANIFEST).is_file() else folder
    place = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    names = [shard["name"] for shard in manifest["shards"]]
    sent = 0
    try:
        client.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        there = _remote_digests(client, repo_id, [place + name for name in names])
        for number, shard in enumerate(manifest["shards"]):
            if there.get(place + shard["name"]) != shard["sha256"]:
                _upload(client, repo_id, folder / shard["name"], place + shard["name"])
                sent += 1
            report(number + 1, len(names))
        _upload(client, repo_id, folder / MANIFEST, place + MANIFEST)
    except Exception as error:
        raise _told(repo_id, error) from error
    return sent


def pull(
    repo_id: str,
    folder: Path,
    client: Any,
    *,
    prefix: str = "",
    revision: str | None = None,
    report: Report = lambda done, total: None,
) -> int:
    """Fetches a cache into `folder`; returns how many shards were fetched.

    Args:
        repo_id: `owner/name` of a data-set repository.
        folder: where to; shards that are there with the right sha256 stay.
        client: see `hub`.
        prefix: folder inside the repository.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        DataError: a file is missing, or its bytes are not what the manifest says; names the file.
    """
    place = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pull-") as temporary:
        fetched = 0

        def fetch(name: str) -> Path:
            try:
                return Path(
                    client.hf_hub_download(
                        repo_id, place + name, repo_type="dataset", revision=revision, local_dir=temporary
                    )
                )
            except Exception as error:
                raise _told(f"{repo_id}/{place}{name}", error) from error

        manifest_path = fetch(MANIFEST)
        manifest = read_manifest(manifest_path.parent)
        for number, shard in enumerate(manifest["shards"]):
            target = folder / shard["name"]
            if not (
                target.is_file() and target.stat().st_size == shard["bytes"] and _sha256(target) == shard["sha256"]
            ):
                path = fetch(shard["name"])
                if (found := _sha256(path)) != shard["sha256"]:
                    raise DataError(
                        f"{repo_id}/{place}{shard['name']}: sha256 {found[:12]}... is not the manifest's "
                        f"{shard['sha256'][:12]}...; pull again, or ask its owner to push it again"
                    )
                publish(target, lambda temporary_path, path=path: shutil.move(path, temporary_path))  # type: ignore[misc]
                fetched += 1
            report(number + 1, len(manifest["shards"]))
        publish(folder / MANIFEST, lambda temporary_path: shutil.copyfile(manifest_path, temporary_path))
    return fetched


def _remote_digests(client: Any, repo_id: str, paths: list[str]) -> dict[str, str]:
    """sha256 of the large files that are in the repository already."""
    found = {}
    for first in range(0, len(paths), 100):
        for info in client.get_paths_info(repo_id, paths[first : first + 100], repo_type="dataset"):
            lfs = getattr(info, "lfs", None)
            if lfs is not None:
                found[str(info.path)] = str(lfs.sha256)
    return found


def _upload(client: Any, repo_id: str, path: Path, name: str) -> None:
    client.upload_file(
        path_or_fileobj=path, path_in_repo=name, repo_id=repo_id, repo_type="dataset", commit_message=f"Add {name}"
    )


def _told(what: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    text = " ".join(str(error).split())[:200]
    return DataError(
        f"{what}: the hub refused ({type(error).__name__}: {text}); check the name, HF_TOKEN and the network"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
