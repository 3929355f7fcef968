"""Published weights read from their files without running any code in them.

A pickle is a program. Here it is read by an unpickler that knows tensors and plain containers; every other class
becomes an empty stand-in that ignores what is done to it, so a Lightning checkpoint with its callbacks can be read, and
a file that names functions of the system is refused.
"""

from __future__ import annotations

import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from maskgit_core.errors import WeightsError, refused_as
from maskgit_core.files import looks_like_html

#: Names a pickle may really use. Nothing here touches files, processes or attributes of other objects.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
}
#: Standard-library classes without effects that training checkpoints do contain; they become stand-ins.
_HARMLESS = ("collections", "argparse", "pathlib", "datetime", "types", "uuid", "decimal", "enum", "typing", "_codecs")
_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_HARMLESS_BUILTINS = ("set", "frozenset", "slice", "complex", "bytearray", "object", "range", "int", "float", "dict")


_DAMAGED = "cannot be read ({reason}); it is damaged or cut off, fetch it again"


class Stub:
    """Stands where a class we do not know was pickled; takes every call and keeps nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Takes the place of a list's."""

    def extend(self, values: Any) -> None:
        """Takes the place of a list's."""

    def add(self, value: Any) -> None:
        """Takes the place of a set's."""


class RefusedError(pickle.UnpicklingError):
    """The pickle names something that no checkpoint needs."""


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves tensors and containers, stubs unknown classes, refuses the standard library and torch's functions."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        member = getattr(torch, name, None) if module == "torch" else None
        if isinstance(member, torch.dtype) or (isinstance(member, type) and name.endswith("Storage")):
            return member
        if _is_dangerous(module, name):
            raise RefusedError(f"{module}.{name}")
        return Stub


def _is_dangerous(module: str, name: str) -> bool:
    """Names of the standard library, and functions of torch and numpy, that no checkpoint needs."""
    package = module.partition(".")[0]
    function = not name.rpartition(".")[2].lstrip("_")[:1].isupper()  # classes are written in capitals
    if package in ("builtins", "__builtin__"):
        return name not in _HARMLESS_BUILTINS
    if package == "__main__":
        return function  # a class is one of the script that trained the model
    if package in ("torch", "numpy"):
        return function and not (name.startswith("_rebuild") or module in _ARRAYS or name in ("dtype", "ndarray"))
    return (package in sys.stdlib_module_names or package in ("nt", "copy_reg")) and package not in _HARMLESS


def _load(file: Any, **kwargs: Any) -> Any:
    return RestrictedUnpickler(file, **kwargs).load()


# What `torch.load` takes for the module `pickle`.
_PICKLE: Any = SimpleNamespace(__name__="pickle", Unpickler=RestrictedUnpickler, load=_load)


def read_state_dict(path: Path, containers: Sequence[str] = ("state_dict", "model")) -> dict[str, Tensor]:
    """The tensors of a published weights file, on the CPU.

    Args:
        path: safetensors, or what `torch.save` writes (zip or the older stream).
        containers: names of the state dict, the first that is there counts; a file that is itself a
            flat dict of tensors is taken as it is.

    Raises:
        WeightsError: the file is missing, cut off, an HTML page, not weights, or tries to run code.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == "safetensors":
        return read_safetensors(path)
    content = _unpickled(path, kind)
    for name in containers:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not a dict of tensors; it is not a weights file")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        there = ", ".join(map(str, list(content)[:6])) or "nothing"
        raise WeightsError(
            f"{path}: holds [{there}] and no tensors under [{', '.join(containers)}]; get the right file"
        )
    return {str(key): value.detach() for key, value in tensors.items()}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    with refused_as(WeightsError, f"{path}: {_DAMAGED}"):
        return load_file(path)


def kind_of(path: Path) -> str:
    """`safetensors`, `zip` or `pickle`, by the first bytes.

    Raises:
        WeightsError: the file is missing, empty, an HTML page or nothing known.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); put the weights file there") from None
    if looks_like_html(head):
        raise WeightsError(
            f"{path}: is an HTML page, not weights; the download was answered by a web page, get it again"
        )
    if len(head) < 16:
        raise WeightsError(f"{path}: has only {size} bytes; it is cut off, fetch it again")
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[:1] == b"\x80" and head[1] <= 5:
        return "pickle"
    if head[8:9] == b"{":
        length = struct.unpack("<Q", head[:8])[0]
        if length + 8 > size:
            raise WeightsError(f"{path}: its header needs {length + 8:,} bytes and it has {size:,}; fetch it again")
        return "safetensors"
    raise WeightsError(
        f"{path}: is neither safetensors nor a PyTorch file (begins {head[:8].hex()}); get the right file"
    )


def _unpickled(path: Path, kind: str) -> Any:
    if kind == "zip":
        _check_archive(path)
    with refused_as(WeightsError, f"{path}: {_DAMAGED}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # weights_only=False is what lets the unpickler above take the place of pickle's; it decides what is made
        options: dict[str, Any] = {"map_location": "cpu", "pickle_module": _PICKLE, "weights_only": False}
        try:
            if kind == "zip" and path.suffix != ".safetensors":
                return torch.load(path, mmap=True, **options)
            with path.open("rb") as file:  # by its content: torch goes by the name of a path
                return torch.load(file, **options)
        except RefusedError as error:
            raise WeightsError(
                f"{path}: tries to call {error} when it is read, which weights never need; nothing was run; "
                "delete it and get the file from its publisher"
            ) from None


def _check_archive(path: Path) -> None:
    """A whole zip with one pickle of data, and no TorchScript program."""
    with refused_as(WeightsError, f"{path}: {_DAMAGED}"), zipfile.ZipFile(path) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise WeightsError(f"{path}: is a TorchScript program, not weights; get the file with the state dict")
    if "data.pkl" not in names:
        raise WeightsError(f"{path}: is a zip without data.pkl, not a PyTorch file; get the right file")
