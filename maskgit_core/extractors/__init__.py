"""Feature networks: one file each, class `Extractor`.

Contract: `forward(images_BCHW uint8) -> features_BD float32`, `feature_dim`, `weights_sha256`, and `preprocessing`,
plain data that says how pixels reach the network; a protocol is only complete with both.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from maskgit_core.errors import WeightsError


def sha256_of(path: Path) -> str:
    """The sha256 of a weights file in hex.

    Raises:
        WeightsError: the file is missing or cannot be read.
    """
    hashed = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(1 << 20):
                hashed.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); put the weights file there") from error
    return hashed.hexdigest()
