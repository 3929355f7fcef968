"""Sections on sampling: against the original's way, and how precision changes tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from maskgit_core import rng
from maskgit_core.devices import products
from maskgit_core.samplers.confidence import Sampler
from tools.bench.sampling import CHOICE, SCALE, STEPS, plain
from tools.gpu.rig import Figure, Rig

#: How many times as fast as the original's way sampling should be.
GOAL = 3.0


def speed(rig: Rig) -> Iterator[Figure]:
    """(c) 8 steps with guidance in bf16, against two passes a step in fp32 without compilation."""
    model = rig.model().eval().requires_grad_(False).to(rig.device)
    cast = rig.model().eval().to(rig.device)  # autocast keeps cast weights only of parameters with gradients
    side = round(rig.facts["num_tokens"] ** 0.5)
    sampler = Sampler(num_steps=STEPS, guidance_scale=SCALE, choice_temperature=CHOICE)
    for batch in rig.pick((1, 8, 64, 256), (1, 2)):
        if rig.is_late:
            yield {"name": "guided_sampling", "skipped": f"no time for batch {batch}"}
            continue
        numbers = torch.arange(batch)
        labels = (numbers % rig.facts["num_classes"]).to(rig.device)
        seeds = rng.sample_seeds(0, numbers).to(rig.device)

        def ours(labels: torch.Tensor = labels, seeds: torch.Tensor = seeds) -> None:
            with torch.no_grad(), torch.autocast(torch.device(rig.device).type, torch.bfloat16):
                sampler.sample(cast, labels, grid=(side, side), seeds_B=seeds)

        mine = rig.seconds(ours, rounds=3, warm_up=1)
        with products("fp32", rig.device):
            theirs = rig.seconds(lambda labels=labels: plain(model, labels), rounds=3, warm_up=1)  # type: ignore[misc]
        about: Figure = {"batch": batch, "images_per_s": batch / mine, "theirs_images_per_s": batch / theirs}
        if not rig.is_late:
            with products("bf16", rig.device):  # what is left of it where the other way is given our precision
                same = rig.seconds(lambda labels=labels: plain(cast, labels), rounds=3, warm_up=1)  # type: ignore[misc]
            about["times_it_in_bf16"] = same / mine
        if not rig.is_dry:
            about |= {"goal": GOAL, "reached": theirs / mine >= GOAL}
        yield {"name": "guided_sampling", "value": theirs / mine, "unit": "times the original's way", **about}


@torch.no_grad()
def precision(rig: Rig) -> Iterator[Figure]:
    """(h) Share of sampled tokens that differ from fp32, and how far features of FID's network move in tf32."""
    model = rig.model().eval().to(rig.device)
    side, count = round(rig.facts["num_tokens"] ** 0.5), rig.pick(64, 2)
    numbers = torch.arange(count)
    labels, seeds = (numbers % 10).to(rig.device), rng.sample_seeds(0, numbers).to(rig.device)
    sampler = Sampler(num_steps=STEPS, guidance_scale=SCALE, choice_temperature=CHOICE)
    tokens = {}
    for kind in ("fp32", "tf32", "bf16"):
        with products(kind, rig.device):
            tokens[kind] = sampler.sample(model, labels, grid=(side, side), seeds_B=seeds)
    for kind in ("tf32", "bf16"):
        share = float((tokens[kind] != tokens["fp32"]).float().mean())
        yield {"name": "tokens_changed", "value": share, "unit": "share", "precision": kind}
    network, draws = rig.inception, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rig.pick(256, 1), 3, 256, 256), generator=draws, dtype=torch.uint8).to(rig.device)
    features = {}
    for kind in ("fp32", "tf32"):
        with products(kind, rig.device):
            features[kind] = torch.cat([network(part) for part in images.split(64)]).double()
    moved = (features["tf32"] - features["fp32"]).norm() / features["fp32"].norm()
    yield {"name": "features_moved", "value": float(moved), "unit": "relative distance", "precision": "tf32"}
