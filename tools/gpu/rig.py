"""The card under test, its clock, and the models that sections measure."""

from __future__ import annotations

import gc
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch

from maskgit_core.extractors.inception_fid import Extractor
from maskgit_core.models.prenorm import Model

ROOT = Path(__file__).resolve().parents[2]
#: Seconds a section may take.
SECTION_S = 90.0

Figure = dict[str, Any]
Section = Callable[["Rig"], Iterator[Figure]]


@dataclass
class Rig:
    """Where sections run.

    Args:
        device: "cuda:0" or "cpu".
        is_dry: small models and few rounds; shows that a section works, measures nothing.
    """

    device: str
    is_dry: bool
    _until: float = field(default=float("inf"))

    def begin(self, limit_s: float = SECTION_S) -> None:
        """Starts a section's clock."""
        self._until = time.monotonic() + limit_s

    @property
    def is_late(self) -> bool:
        """Whether the section should measure nothing more: what is left of its time is kept for the last round."""
        return time.monotonic() > self._until - 15.0

    def pick(self, full: Any, dry: Any) -> Any:
        """`full` on a card, `dry` in a dry run."""
        return dry if self.is_dry else full

    def wait(self) -> None:
        """Waits for all that the device was asked to do."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], rounds: int = 5, warm_up: int = 2) -> float:
        """Median seconds of `work`, the device waited for."""
        spent = []
        for number in range(self.pick(warm_up + rounds, 2)):
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            if number >= self.pick(warm_up, 1):
                spent.append(time.perf_counter() - began)
        return median(spent)

    def free(self) -> None:
        """Gives unused memory back to the card, so that a section does not see what the one before left."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @property
    def peak_gb(self) -> float | None:
        """Most memory that tensors took since the last `free`, in GiB; None on a CPU."""
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated() / 2**30

    @cached_property
    def inception(self) -> Extractor:
        """FID's network with random weights, on the device; made once."""
        return Extractor(weights=None, random_seed=0).to(self.device)

    @property
    def facts(self) -> dict[str, int]:
        """Derived facts of an ImageNet model."""
        return self.pick(
            {"codebook_size": 1024, "num_tokens": 256, "num_classes": 1000},
            {"codebook_size": 64, "num_tokens": 16, "num_classes": 10},
        )

    def model(self, *, dropout: float = 0.0, **changed: int) -> Model:
        """The 24 x 768 model with fixed random weights, on the CPU."""
        torch.manual_seed(0)
        size = self.pick({}, {"dim": 32, "num_layers": 2, "num_heads": 2})
        return Model(**{**self.facts, **changed}, **size, dropout=dropout)

    def about(self) -> Figure:
        """The machine, for the first line of the output."""
        on_gpu = self.device != "cpu"
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
        return {
            "section": "machine",
            "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {platform.machine()}",
            "num_gpus": torch.cuda.device_count() if on_gpu else 0,
            "memory_gb": round(torch.cuda.get_device_properties(self.device).total_memory / 2**30, 1)
            if on_gpu
            else None,
            "driver": _driver() if on_gpu else None,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "commit": commit.stdout.strip()[:12] or None,
            "python": platform.python_version(),
            "dry": self.is_dry,
        }


def _driver() -> str | None:
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return (asked.stdout.split() or [None])[0]
