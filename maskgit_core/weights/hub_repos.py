"""Trained tokenizers and transformers as Hugging Face repositories: safetensors and descriptions, never a pickle.

`hf:owner/name` (or `hf:owner/name@revision`) names one wherever a folder of files is expected.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from maskgit_core.errors import ConfigError, WeightsError
from maskgit_core.files import read_json, sha256_of

PREFIX = "hf:"
#: Name -> sha256 of every other file of the repository, made by `send`.
SUMS = "sha256.json"
PATTERNS = ("*.json", "*.safetensors", "README.md")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def split_name(source: str) -> tuple[str, str | None]:
    """Repository and revision of `hf:owner/name[@revision]` (the prefix may be missing).

    Raises:
        ConfigError: it is not of that form.
    """
    repo_id, _, revision = source.removeprefix(PREFIX).partition("@")
    if not NAME.fullmatch(repo_id):
        raise ConfigError(f"{source}: is no repository; write owner/name, or owner/name@revision")
    return repo_id, revision or None


def fetched(source: str) -> Path:
    """The folder of a repository's files on this machine (Hugging Face's cache), fetched if need be and checked.

    Raises:
        ConfigError: no name of a repository. WeightsError: it cannot be had, or a file is not as it was sent.
    """
    from huggingface_hub import snapshot_download

    repo_id, revision = split_name(source)
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(PATTERNS)))
    except Exception as error:
        raise WeightsError(_refusal(repo_id, error)) from error
    sums = read_json(folder / SUMS)
    for name, wanted in (sums if isinstance(sums, dict) else {}).items():
        if not (folder / name).is_file() or sha256_of(folder / name) != wanted:
            raise WeightsError(
                f"{PREFIX}{repo_id}: {name} is not the file that was sent; delete {folder} and pull again"
            )
    return folder


def send(folder: Path, repo_id: str, client: Any, *, private: bool = True) -> str:
    """Sends a folder of files as one commit to a model repository, made where there is none; returns its address.

    Args:
        folder: descriptions, safetensors and README.md; nothing else is sent.
        client: `huggingface_hub.HfApi` (environment HF_TOKEN, HF_ENDPOINT).

    Raises:
        ConfigError: no name of a repository. WeightsError: the hub refuses.
    """
    split_name(repo_id)
    try:
        client.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        client.upload_folder(repo_id=repo_id, repo_type="model", folder_path=folder, allow_patterns=list(PATTERNS),
                             commit_message="Trained with maskgit-experiments")  # fmt: skip
    except Exception as error:
        raise WeightsError(_refusal(repo_id, error)) from error
    return f"{client.endpoint}/{repo_id}"


def _refusal(what: str, error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{what}: the hub refused ({type(error).__name__}: {text}); check the name, HF_TOKEN and the network"
