"""From a published weights file to the tensors of one of our networks: read once, kept as safetensors, loaded strictly.

A file that is not safetensors is read without running code in it (`checkpoint_files`), and what is needed of it is
kept as `<home>/converted/<sha256 of the file>.safetensors`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from maskgit_core.errors import ArtifactError, WeightsError
from maskgit_core.files import publish
from maskgit_core.weights import registry
from maskgit_core.weights.pickles import kind_of, read_safetensors, read_state_dict


def read(
    value: str, *, containers: Sequence[str] = ("state_dict", "model"), drop: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The published tensors of a registry name or a file, with their published names.

    Args:
        value: a name in the registry or a path.
        containers: names under which the state dict may be in the file; the first that is there counts.
        drop: beginnings of the names that are not needed (losses, discriminators).

    Raises:
        WeightsError: the file is missing, damaged, of other bytes than published, or tries to run code.
    """
    path = registry.verified(value)
    if kind_of(path) == "safetensors":
        return _without(read_safetensors(path), drop)
    rule = hashlib.sha256(repr((tuple(containers), tuple(drop))).encode()).hexdigest()[:8]
    kept = registry.home() / "converted" / f"{registry.sha256_of(path)}-{rule}.safetensors"
    if kept.is_file():
        with contextlib.suppress(WeightsError):  # damaged: made again below
            return read_safetensors(kept)
    tensors = _without(read_state_dict(path, containers), drop)
    # own memory: checkpoints hold views of shared or mapped storage
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    if path.stat().st_size * 4 > sum(tensor.nbytes for tensor in tensors.values()):
        _keep(kept, tensors)  # files of a toy repeat a few numbers: the copy would be a hundred times as large
    return tensors


def _without(tensors: Mapping[str, Tensor], drop: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(drop))}


def _keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes the converted file; a home folder that is full or read-only only costs the conversion next time."""
    try:
        publish(path, lambda temporary: save_file(dict(tensors), temporary), durable=False)
    except Exception as error:
        if not isinstance(error, ArtifactError) and "os error" not in str(error).lower():
            raise


class Unfilled(TorchFunctionMode):
    """Networks made inside `with Unfilled():` get no initial values, and draw no random numbers; `fill` gives them.

    (On the device `meta` nothing would be allocated either, but its first use imports for seconds.)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: str,
    *,
    published_name: Callable[[str], str] = lambda name: name,
    unused: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Gives a network published tensors, strictly, as float32 without gradients.

    Args:
        module: the network; its names are ours.
        tensors: by their published names.
        source: what errors begin with.
        published_name: our name -> the published one.
        unused: names and shapes that the published layout holds and the network does not need.

    Raises:
        WeightsError: names the first key that is missing, left over or of another shape.
    """
    wanted: dict[str, tuple[str | None, tuple[int, ...]]] = {
        published_name(name): (name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()
    }
    wanted |= {published: (None, shape) for published, shape in (unused or {}).items()}
    filled = {}
    for published, (name, shape) in wanted.items():
        tensor = tensors.get(published)
        if tensor is None:
            raise WeightsError(f"{source}: lacks {published} {list(shape)}; these weights belong to another model")
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{source}: {published} has shape {list(tensor.shape)} but the model wants {list(shape)}; "
                "these weights belong to another model"
            )
        if not tensor.is_floating_point():
            raise WeightsError(f"{source}: {published} holds {tensor.dtype}, not floats; get the file again")
        if name is not None:
            filled[name] = tensor.float()
    if left := sorted(set(tensors) - set(wanted)):
        raise WeightsError(
            f"{source}: holds {left[0]} (and {len(left) - 1} more) which the model does not have; "
            "these weights belong to another model"
        )
    module.load_state_dict(filled, strict=True, assign=True)
    module.requires_grad_(False)
