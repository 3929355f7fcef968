"""Guided sampling of many images a class, against the original's sampler and a plain one written from the paper.

    MASKGIT_ORIGINAL=CHECKOUT python -m tools.bench.sampling

Original: the PyTorch MaskGIT's own sampler and model. Plain: our model, two passes a step, logits of all tokens, one
generator for the batch. Ours: the package's sampler (one pass for both guidance halves, logits where a token is still
masked, the first step once a class). Interleaved in one process, CPU seconds. GPUs are measured by
`python -m tools.gpu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from maskgit_core import rng
from maskgit_core.models.prenorm import Model
from maskgit_core.samplers.confidence import Sampler
from tools.bench._figures import figure, original
from tools.bench.training import FACTS, SIZE, Original, cpu_seconds

STEPS, SCALE, CHOICE, ROUNDS = 8, 3.0, 4.5, 5


@torch.no_grad()
def plain(model: Any, labels_B: torch.Tensor, num_steps: int = STEPS) -> torch.Tensor:
    """MaskGIT's sampler, the plain way."""
    count, num_tokens = len(labels_B), model.num_tokens
    tokens = torch.full((count, num_tokens), model.mask_token_id, device=labels_B.device)
    for step in range(num_steps):
        masked = tokens == model.mask_token_id
        cond = model(tokens, labels_B).float()
        uncond = model(tokens, torch.full_like(labels_B, model.null_label)).float()
        probabilities = (uncond + SCALE * (cond - uncond)).softmax(-1)
        drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view(count, num_tokens)
        sure = probabilities.gather(-1, drawn[..., None])[..., 0].log()
        noise = -torch.log(-torch.log(torch.rand_like(sure).clamp(1e-9, 1 - 1e-7)))
        sure = torch.where(masked, sure + CHOICE * (1 - (step + 1) / num_steps) * noise, torch.inf)
        drawn = torch.where(masked, drawn, tokens)
        left = math.floor(num_tokens * math.cos(math.pi / 2 * (step + 1) / num_steps) + 1e-9)
        again = sure.argsort(dim=1)[:, :left]
        tokens = drawn.scatter(1, again, model.mask_token_id) if step < num_steps - 1 else drawn
    return tokens


def on_cpu() -> None:
    """Alternates the samplers: 16 images of each of two classes."""
    torch.manual_seed(0)
    model = Model(**{**FACTS, "num_tokens": 64}, **SIZE, dropout=0.0).eval()
    labels, seeds = torch.arange(32) % 2, rng.sample_seeds(0, torch.arange(32))
    sampler = Sampler(num_steps=STEPS, guidance_scale=SCALE, choice_temperature=CHOICE)
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: sampler.sample(model, labels, grid=(8, 8), seeds_B=seeds),
        "plain": lambda: plain(model, labels),
    }
    files = [original(f"models/{name}.py") for name in ("stage2/transformer", "ema", "stage2/sampler")]
    if None not in files:
        there = Original(*files[:2], 0.0).model.eval()
        settings: dict[str, Any] = {"sequence_length": 64, "sampling_steps": STEPS, "cfg": SCALE}
        settings |= {"cfg_schedule": "constant", "base_gumbel_temp": CHOICE}
        peer = files[2].MaskGITSampler(model=there, **settings)
        sides["original"] = lambda: peer.sample(len(labels), labels)
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name in sorted(sides, reverse=bool(number % 2)):
            seconds = cpu_seconds(sides[name])
            if number:
                spent[name].append(seconds)
    size = f"{SIZE['num_layers']} x {SIZE['dim']}, 64 tokens, 32 images of 2 classes"
    note = f"{size}, {STEPS} steps, guidance {SCALE}"
    for name in sorted(set(sides) - {"ours"}):
        figure(f"guided_sampling/{name}", spent["ours"], spent[name], "CPU s", note)


def main() -> None:
    """Prints one JSON object a figure."""
    torch.set_num_threads(1)
    on_cpu()


if __name__ == "__main__":
    main()
