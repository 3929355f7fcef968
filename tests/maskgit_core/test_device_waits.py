"""How often a reveal step waits for the device: counts and flags that the host knows are not read back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskgit_core import rng
from maskgit_core.models.prenorm import Model
from maskgit_core.samplers.confidence import Sampler

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique")


class Waits(TorchDispatchMode):
    """Counts the calls whose result, or its shape, must come back from a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(func) for name in WAITING)
        if "aten.index." in str(func):
            self.count += any(index is not None and index.dtype == torch.bool for index in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("options", "most"), [({}, 3), ({"guidance_schedule": "linear-r"}, 5)])
def test_a_reveal_step_waits_for_the_device_no_oftener_than_its_shapes_need(options, most):
    torch.manual_seed(0)
    model = Model(codebook_size=16, num_tokens=64, num_classes=4, dim=32, num_layers=1, num_heads=2).eval()
    seeds, counts = rng.sample_seeds(0, torch.arange(6)), {}
    for num_steps in (4, 12):
        sampler = Sampler(num_steps=num_steps, guidance_scale=3.0, **options)
        with Waits() as waits:
            sampler.sample(model, torch.arange(6) % 4, grid=(8, 8), seeds_B=seeds)
        counts[num_steps] = waits.count
    assert (counts[12] - counts[4]) / 8 <= most
