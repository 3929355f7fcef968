"""Keys and values kept between reveal steps: what partial evaluations give, for every model and every sampler."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgit_core.models
import maskgit_core.samplers
from maskgit_core import rng
from maskgit_core.decoding import MIN_ROWS, Decoder, Guidance
from maskgit_core.errors import ConfigError
from maskgit_core.layers.critic import Critic
from maskgit_core.layers.reuse import ContextReuse

MODELS, SAMPLERS = (
    sorted(p.stem for p in Path(package.__path__[0]).glob("*.py") if p.stem != "__init__")
    for package in (maskgit_core.models, maskgit_core.samplers)
)
COUNT = 10
SEEDS, LABELS = rng.sample_seeds(3, torch.arange(COUNT)), torch.arange(COUNT) % 3


def made(name: str, num_layers: int) -> Any:
    torch.manual_seed(0)
    shape = {"dim": 32, "num_layers": num_layers, "num_heads": 4}
    model = importlib.import_module(f"maskgit_core.models.{name}").Model(
        codebook_size=16, num_tokens=20, num_classes=3, **shape
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def drawn(name: str, model: Any, rows: slice = slice(None), **options: Any) -> torch.Tensor:
    sampler = importlib.import_module(f"maskgit_core.samplers.{name}").Sampler(num_steps=7, **options)
    critic = Critic(model, is_frozen=True).eval() if sampler.needs_critic else None
    grid = (4, 5) if getattr(model, "splits", 1) == 1 else (2, 5, 2)
    tokens: torch.Tensor = sampler.sample(model, LABELS[rows], grid=grid, seeds_B=SEEDS[rows], critic=critic)
    return tokens


@pytest.mark.parametrize("name", [name for name in MODELS if name != "titok_uvit"])
def test_partial_evaluations_of_one_layer_are_exact(name: str) -> None:
    """There keys and values depend on their own token alone, so that nothing kept is out of date."""
    model = made(name, 1)
    for sampler in ("halton", "confidence"):
        for scale in (1.0, 2.0):
            plain, kept = (drawn(sampler, model, guidance_scale=scale, full_every=every) for every in (1, 4))
            assert torch.equal(plain, kept)


@pytest.mark.parametrize("name", MODELS)
def test_any_batch_size_gives_the_same_tokens(name: str) -> None:
    model = made(name, 2)
    whole = drawn("halton", model, guidance_scale=2.0, full_every=3)
    parts = [drawn("halton", model, slice(i, i + 3), guidance_scale=2.0, full_every=3) for i in range(0, COUNT, 3)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_its_laws(name: str) -> None:
    model = made("prenorm", 2)
    options: dict[str, Any] = {"guidance_scale": 2.0, "guidance_start": 0.3, "full_every": 3}
    whole = drawn(name, model, **options)
    assert whole.min() >= 0 and whole.max() < 16
    assert torch.equal(torch.cat([drawn(name, model, slice(i, i + 1), **options) for i in range(COUNT)]), whole)
    assert torch.equal(
        drawn(name, made("prenorm", 1), **options), drawn(name, made("prenorm", 1), **{**options, "full_every": 1})
    )


def test_what_is_kept_changes_little_and_only_what_is_asked_is_computed() -> None:
    model, rows = made("prenorm", 2), []
    handle = model.blocks[1].register_forward_hook(lambda module, given, out: rows.append(given[0].shape[1]))
    known = torch.where(torch.arange(20) < 12, 3, -1).repeat(COUNT, 1)
    state = Decoder(model, LABELS, (4, 5), SEEDS, known, Guidance(), 8, ContextReuse(model, 2, MIN_ROWS))
    wanted = torch.zeros_like(state.masked_BL)
    wanted[:, 12] = True
    state.logits(state.masked_BL, 0, state.unknown_B - 1)
    state.reveal(wanted, torch.full_like(known, 5))
    wanted = torch.zeros_like(wanted)
    wanted[:, 13:15] = True
    partial = state.logits(wanted, 1, state.unknown_B - 3)
    full = Decoder(model, LABELS, (4, 5), SEEDS, state.tokens_BL.where(~state.masked_BL, -1), Guidance(), 8)
    exact = full.logits(wanted, 1, full.unknown_B - 2)
    handle.remove()
    assert rows[-2] == 3, "the two positions asked for, and the one revealed since"
    assert rows[0] == rows[-1] == 21
    assert 0 < (partial - exact).abs().mean() < 0.05 * exact.std()


def test_a_model_whose_attention_cannot_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskgit_core.layers.dropout.exchanged", lambda k, v: (k, v))
    with pytest.raises(ConfigError, match=r"sampler.full_every: found 2; .*keys cannot be kept; set it to 1"):
        drawn("halton", made("prenorm", 1), full_every=2)
    assert ContextReuse(made("halton", 1), 2, 1).offset == 0
