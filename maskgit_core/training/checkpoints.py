"""Training checkpoints: one safetensors file each, whole or not there; and trained models on disk.

A checkpoint holds `model.*`, `ema.*` and `optimizer.<number>.<name>` tensors and, in its header, plain facts (step,
gradient scale, sums of the meters) and a sha256 of it all, so that a flipped bit is never trained on. Random states and
the data position need no place in it: they are functions of the seed and the step.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from maskgit_core.errors import WeightsError, refused_as

#: tensors, facts and path of a checkpoint
Loaded = tuple[dict[str, torch.Tensor], dict[str, Any], Path]

_NAME = re.compile(r"step-(\d{9})\.safetensors")


def checkpoint_name(step: int) -> str:
    """The file name of the checkpoint after `step` optimizer steps."""
    return f"step-{step:09d}.safetensors"


def checkpoint_step(path: Path) -> int | None:
    """The step a checkpoint's name states; None for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def list_checkpoints(folders: Iterable[Path]) -> list[Path]:
    """All checkpoints in the folders, the highest step first; among equal steps the earlier folder first."""
    checkpoints = [
        (step, -place, path)
        for place, folder in enumerate(folders)
        if folder.is_dir()
        for path in folder.iterdir()
        if (step := checkpoint_step(path)) is not None
    ]
    return [path for _, _, path in sorted(checkpoints, key=lambda entry: entry[:2], reverse=True)]


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Writes tensors and plain facts as safetensors, with their sha256; the caller makes it atomic."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    # in one entry: safetensors writes several in any order, and the same state is to give the same bytes
    signed = {**facts, "sha256": _digest(plain, facts)}
    save_file(plain, path, metadata={"facts": json.dumps(signed, sort_keys=True)})


def _digest(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> str:
    """sha256 over names, types, shapes, values and facts."""
    hashed = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu()
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a safetensors file written by `save_tensors`.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    if not Path(path).exists():
        raise WeightsError(f"{path}: no such file; give the path of a safetensors file that exists")
    told = f"{path}: cannot be read as safetensors ({{reason}}); it is damaged, fetch or make it again"
    with refused_as(WeightsError, told):
        with safe_open(path, framework="pt", device=device) as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written = facts.pop("sha256", None)
        if written is not None and written != _digest(tensors, facts):
            raise ValueError("its contents are not what was written, by their sha256")
        return tensors, facts


def load_checkpoint(path: Path) -> Loaded:
    """Tensors and facts of a training state, and where they came from.

    Raises:
        WeightsError: the file is missing or damaged, or no training state.
    """
    tensors, facts = load_tensors(path)
    if "step" not in facts:
        raise WeightsError(f"{path}: does not say of which step it is; it is damaged, or no training state")
    return tensors, facts, path


def load_newest(folders: Iterable[Path]) -> tuple[Loaded | None, list[str]]:
    """The newest readable checkpoint, or None, and complaints about newer ones that are damaged."""
    complaints: list[str] = []
    for path in list_checkpoints(folders):
        try:
            return load_checkpoint(path), complaints
        except WeightsError as error:
            complaints.append(str(error))
    return None, complaints


def load_strictly(
    module: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: str,
    divide: Callable[[Mapping[str, torch.Tensor], Mapping[str, Any]], dict[str, torch.Tensor]] | None = None,
) -> None:
    """Copies tensors into a module whose names and shapes they must match exactly.

    Args:
        divide: (tensors, the module's own) -> this process's parts of them, where several processes share a module.

    Raises:
        WeightsError: names the first key that is missing, unknown or of another shape, and both shapes.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise WeightsError(f"{source}: lacks {name} {list(tensor.shape)}; these weights belong to another model")
        if tensors[name].shape != tensor.shape:
            raise WeightsError(
                f"{source}: {name} has shape {list(tensors[name].shape)} but the model wants {list(tensor.shape)}; "
                "give the options the weights were made with"
            )
    if unknown := sorted(set(tensors) - set(wanted)):
        raise WeightsError(
            f"{source}: holds {unknown[0]} (and {len(unknown) - 1} more) which the model does not have; "
            "these weights belong to another model"
        )
    module.load_state_dict(divide(tensors, wanted) if divide else dict(tensors))


def select(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")}


class BackgroundWriter:
    """Runs one write at a time in a thread; an error in it is raised at the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], object]) -> None:
        """Starts `write()` after the earlier one has ended."""
        self.wait()

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint-writer")
        self._thread.start()

    def wait(self) -> None:
        """Returns once nothing is being written; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
