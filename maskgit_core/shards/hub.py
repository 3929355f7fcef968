"""Pushes a cache to a Hugging Face dataset repository and pulls it from there, verified by its manifest.

The manifest goes last in both directions, so half a cache never looks whole; shards that are already there with the
right sha256 are not sent or fetched again.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgit_core.errors import DataError
from maskgit_core.files import sha256_of
from maskgit_core.shards.checks import problems
from maskgit_core.shards.reader import read_manifest
from maskgit_core.shards.writer import MANIFEST


def hub(token: str | None = None) -> Any:
    """The client of the Hugging Face hub (environment HF_TOKEN, HF_ENDPOINT)."""
    from huggingface_hub import HfApi

    return HfApi(token=token)


def push(folder: Path, repo_id: str, client: Any, *, prefix: str = "", private: bool = True) -> int:
    """Sends a whole cache; returns how many shards were sent.

    Args:
        folder: the cache; checked in full before anything is sent.
        repo_id: `owner/name` of a dataset repository; made (private) where there is none.
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
    place = prefix.strip("/")
    try:
        client.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        there = _remote_digests(client, repo_id, [f"{place}/{s['name']}".lstrip("/") for s in manifest["shards"]])
        unsent = [s["name"] for s in manifest["shards"] if there.get(s["name"]) != s["sha256"]]
        for names in (unsent, [MANIFEST]):
            if names:
                client.upload_folder(
                    repo_id=repo_id, repo_type="dataset", folder_path=folder, path_in_repo=place or None,
                    allow_patterns=names, commit_message=f"Add {len(names)} files, {names[0]} first",
                )  # fmt: skip
    except Exception as error:
        raise _refusal(repo_id, error) from error
    return len(unsent)


def pull(repo_id: str, folder: Path, client: Any, *, prefix: str = "", revision: str | None = None) -> int:
    """Fetches a cache into `folder`; returns how many shards were fetched. A broken transfer goes on where it stopped.

    Args:
        repo_id: `owner/name` of a dataset repository.
        folder: where to; shards that are there with the right sha256 stay.
        client: see `hub`.
        prefix: folder inside the repository.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        DataError: a file is missing, or its sha256 is not that of the manifest; names the file.
    """
    partial, place = folder / ".pull", prefix.strip("/")
    arrived = partial / place

    def fetch(names: Sequence[str]) -> None:
        paths = [f"{place}/{name}".lstrip("/") for name in names]
        try:
            client.snapshot_download(
                repo_id, repo_type="dataset", revision=revision, local_dir=partial,
                allow_patterns=[glob.escape(path) for path in paths],
            )  # fmt: skip
        except Exception as error:
            raise _refusal(f"{repo_id}/{paths[0]}", error) from error
        for name, path in zip(names, paths, strict=True):
            if not (arrived / name).is_file():
                raise DataError(f"{repo_id}/{path}: is not there; check the name, the prefix and the revision")

    fetch([MANIFEST])
    wanted = [shard for shard in read_manifest(arrived)["shards"] if not _is(folder / shard["name"], shard)]
    if wanted:
        fetch([shard["name"] for shard in wanted])
    for shard in wanted:
        if not _is(arrived / shard["name"], shard):
            digest = sha256_of(arrived / shard["name"])
            shutil.rmtree(partial)  # what the library remembers of the wrong file too
            raise DataError(
                f"{repo_id}/{place}/{shard['name']}: ".replace("//", "/")
                + f"sha256 {digest[:12]}... is not the manifest's {shard['sha256'][:12]}...; pull again, or ask its "
                "owner to push it again"
            )
        os.replace(arrived / shard["name"], folder / shard["name"])
    os.replace(arrived / MANIFEST, folder / MANIFEST)
    shutil.rmtree(partial)
    return len(wanted)


def _is(path: Path, shard: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == shard["bytes"] and sha256_of(path) == shard["sha256"]


def _remote_digests(client: Any, repo_id: str, paths: list[str]) -> dict[str, str]:
    """sha256 of the large files that are in the repository already, by their names without folders."""
    digests = {}
    for first in range(0, len(paths), 100):
        for info in client.get_paths_info(repo_id, paths[first : first + 100], repo_type="dataset"):
            lfs = getattr(info, "lfs", None)
            if lfs is not None:
                digests[Path(info.path).name] = str(lfs.sha256)
    return digests


def _refusal(what: str, error: Exception) -> DataError:
    text = " ".join(str(error).split())[:200]
    return DataError(
        f"{what}: the hub refused ({type(error).__name__}: {text}); check the name, HF_TOKEN and the network"
    )
