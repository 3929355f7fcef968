"""Feature networks: one file each, class `Extractor`.

Contract: `forward(images_BCHW uint8) -> features_BD float32`, `feature_dim`, `weights_sha256`, and `preprocessing`,
plain data about the preprocessing of pixels; a protocol is only complete with both. `distance_name` is what a
Fréchet distance over these features is called (`fid` for FID's own network alone). An extractor with more to give than
pooled features names them in `outputs` and has `all_outputs(images_BCHW) -> dict[str, Tensor]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskgit_core import files
from maskgit_core.errors import WeightsError, refused_as

if TYPE_CHECKING:
    from torch import Tensor, nn


def sha256_of(path: Path) -> str:
    """The sha256 of a weights file in hex.

    Raises:
        WeightsError: the file is missing or cannot be read.
    """
    try:
        return files.sha256_of(Path(path))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); put the weights file there") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `.pth` that holds nothing but tensors; no code in it is run.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else.
    """
    import torch
    from safetensors.torch import load_file

    remedy = "fetch it again or give the file in the published layout"
    if not Path(path).exists():
        raise WeightsError(f"{path}: there is no such file; put the weights there")
    with refused_as(WeightsError, f"{path}: cannot be read as weights ({{reason}}); {remedy}"):
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise WeightsError(f"{path}: holds something else than named tensors; {remedy}")
    return dict(tensors)


def load_strictly(
    network: nn.Module, tensors: dict[str, Tensor], path: Path, layout: str, *, assign: bool = False
) -> None:
    """Gives a network the tensors of a file that must be in its layout.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape; names the first.
    """
    wanted = network.state_dict()
    for name in [*wanted, *tensors]:
        if name not in tensors or name not in wanted:
            state = "is missing" if name not in tensors else "is not known"
            raise WeightsError(f"{path}: {name} {state}; the file is not {layout}")
        if tensors[name].shape != wanted[name].shape:
            shape, needed = tuple(tensors[name].shape), tuple(wanted[name].shape)
            raise WeightsError(
                f"{path}: {name} has another shape, {shape} instead of {needed}; the file is not {layout}"
            )
    network.load_state_dict(tensors, assign=assign)
