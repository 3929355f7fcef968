"""Draws decoded samples of a token cache, to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.binding import arguments, load_inputs, read_request
from experiments.components import load_tokenizer
from experiments.schema import Input
from maskgit_core.errors import ConfigError
from maskgit_core.shards import TokenShards


def write_decoded(shards: TokenShards, count: int, tokenizer_folder: Path | None, path: Path) -> None:
    """Decodes the first `count` samples and writes them as one PNG: a column a sample, a row a variant.

    Args:
        tokenizer_folder: folder of the `train_tokenizer` step that made the tokenizer; None: found through the cache's
            own step folder.

    Raises:
        ConfigError: the tokenizer cannot be found.
    """
    import numpy as np
    import torch
    from PIL import Image

    tokenizer = load_tokenizer(_tokenizer(shards, tokenizer_folder))
    indices = np.arange(min(count, len(shards)))
    rows = []
    for variant in range(shards.num_variants):
        tokens = torch.from_numpy(shards.gather(indices, variant)[0]).view(-1, *shards.grid)
        with torch.inference_mode():
            images = torch.cat([tokenizer.decode(part) for part in tokens.split(16)])
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        rows.append(np.concatenate(list(pixels), axis=1))
    picture = np.concatenate(rows, axis=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(path)


def _tokenizer(shards: TokenShards, folder: Path | None) -> Any:
    if folder is not None:
        return Input(name="tokenizer", kind="tokenizer", folder=folder, fingerprint="", facts={}, config={})
    for step in (shards.folder.parent, shards.folder.parent.parent.parent):  # files -> attempts/0001/files, or resolved
        if (step / "request.json").is_file():
            request, launch = read_request(step)
            return arguments(request, launch, load_inputs(step.absolute().parent.parent, request, launch))["tokenizer"]
    raise ConfigError(
        f"--tokenizer: {shards.folder} does not lie in a step's folder, so its tokenizer is not known; "
        "give the folder of the train_tokenizer step that made it"
    )
