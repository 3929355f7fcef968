"""Networks, samplers and reveal counts against figures from the references' own code (see `goldens/samplers.json`)."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from weight_recipe import state_dict

from maskgit_core import rng
from maskgit_core.decoding import draw_tokens, limited, log_probabilities
from maskgit_core.masking import masked_counts

FIGURES = json.loads((Path(__file__).parent / "goldens/samplers.json").read_text())
SIZE = {"codebook_size": 24, "num_classes": 5, "dim": 32, "num_layers": 2, "num_heads": 4}


def network(name: str, grid: list[int], seed: int, **size: int) -> Any:
    model = importlib.import_module(f"maskgit_core.models.{name}").Model(
        **{**SIZE, **size}, num_tokens=grid[0] * grid[1], dropout=0.0
    )
    made = state_dict({key: tuple(value.shape) for key, value in model.state_dict().items()}, seed)
    if name == "halton":
        made["head.weight"] = made["tok_emb.weight"]
    model.load_state_dict(made)
    return model.eval()


def inputs(model: Any, seed: int, count: int = 4) -> torch.Tensor:
    """Tokens of which six tenths are masked."""
    seeds_B = rng.sample_seeds(seed, torch.arange(count))
    tokens_BL = (rng.uniforms(seeds_B, 90, model.num_tokens) * model.codebook_size).long()
    return tokens_BL.masked_fill(rng.uniforms(seeds_B, 91, model.num_tokens) < 0.6, model.mask_token_id)


def named(entry: dict[str, Any]) -> str:
    return "-".join(str(entry[key]) for key in ("reference", "model", "sampler", "seed", "grid") if key in entry)


@pytest.mark.parametrize("entry", FIGURES["samplers"], ids=named)
def test_published_samplers_draw_the_same_tokens_under_shared_noise(entry: dict[str, Any]) -> None:
    model = network(entry["model"], entry["grid"], entry["seed"])
    sampler = importlib.import_module(f"maskgit_core.samplers.{entry['sampler']}").Sampler(**entry["options"])
    numbers_B = torch.arange(entry["samples"])
    seeds_B = rng.sample_seeds(entry["seed"], numbers_B)
    tokens_BL = sampler.sample(model, numbers_B % 5, grid=tuple(entry["grid"]), seeds_B=seeds_B)
    assert tokens_BL.tolist() == entry["tokens"]


@pytest.mark.parametrize("entry", FIGURES["official"], ids=lambda entry: f"seed {entry['seed']}")
def test_the_jax_release_gives_the_same_logits_and_tokens(entry: dict[str, Any]) -> None:
    size = {key: entry[key] for key in ("codebook_size", "num_classes", "dim", "num_layers", "num_heads")}
    model = network("maskgit", entry["grid"], entry["seed"], **size)
    labels_B = torch.arange(4) % entry["num_classes"]
    with torch.no_grad():
        logits_BLK = model(inputs(model, entry["seed"]), labels_B)
    assert torch.allclose(logits_BLK[0, ::3, :8], torch.tensor(entry["logits"]), atol=5e-6, rtol=0)
    sampler = importlib.import_module("maskgit_core.samplers.confidence").Sampler(
        num_steps=entry["num_steps"], choice_temperature=4.5, reveal_counts="maskgit_jax"
    )
    seeds_B = rng.sample_seeds(entry["seed"], torch.arange(4))
    assert sampler.sample(model, labels_B, grid=tuple(entry["grid"]), seeds_B=seeds_B).tolist() == entry["tokens"]


@pytest.mark.parametrize("entry", FIGURES["networks"], ids=named)
def test_published_networks_give_the_same_logits(entry: dict[str, Any]) -> None:
    model = network(entry["model"], entry["grid"], entry["seed"])
    with torch.no_grad():
        logits_BLK = model(inputs(model, entry["seed"]), torch.tensor(entry["labels"]))
    assert torch.allclose(logits_BLK[1, ::3, :8], torch.tensor(entry["logits"]), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    "entry", FIGURES["counts"], ids=lambda e: f"{e['rounding']}-{e['schedule']}-{e['num_tokens']}-{e['num_steps']}"
)
def test_reveal_counts_are_the_published_ones(entry: dict[str, Any]) -> None:
    unknown_B = torch.tensor([entry["num_tokens"]])
    counts_TB = masked_counts(unknown_B, entry["num_steps"], entry["schedule"], 1.0, entry["rounding"])
    assert counts_TB[:, 0].tolist() == entry["masked"]


def test_where_float32_and_exact_counts_differ() -> None:
    def after(rounding: Any, num_tokens: int, num_steps: int, schedule: str) -> list[int]:
        counts: list[int] = masked_counts(torch.tensor([num_tokens]), num_steps, schedule, 1.0, rounding)[:, 0].tolist()
        return counts

    assert (after("maskgit_jax", 1024, 12, "cosine")[7], after("masked_down", 1024, 12, "cosine")[7]) == (511, 512)
    halton = zip(after("halton_2025", 576, 32, "arccos"), after("revealed_down", 576, 32, "arccos"), strict=True)
    assert [pair for pair in halton if pair[0] != pair[1]] == [(385, 384)]


@pytest.mark.parametrize("limits", [(5, None), (None, 0.6), (9, 0.8)])
def test_limited_logits_are_the_distribution_that_is_drawn_from(limits: tuple[int | None, float | None]) -> None:
    seeds_M = rng.sample_seeds(0, torch.arange(500))
    logits_MK = 2 * rng.gumbels(seeds_M, 0, 30)
    points_M = rng.uniforms(seeds_M, 1, 1)[:, 0]
    kept_MK = limited(logits_MK, *limits)
    drawn_M = draw_tokens(logits_MK, points_M, top_k=limits[0], top_p=limits[1])
    assert (draw_tokens(kept_MK, points_M) == drawn_M).float().mean() > 0.99
    assert torch.isfinite(kept_MK.gather(1, drawn_M[:, None])).all()
    assert torch.allclose(kept_MK.softmax(-1).sum(-1), torch.ones(500))
    sure_M, all_M = log_probabilities(kept_MK, drawn_M), log_probabilities(logits_MK, drawn_M)
    assert (sure_M >= all_M - 1e-6).all() and (sure_M > all_M + 0.01).any()


def test_confidence_of_all_tokens_or_of_those_left_are_two_settings() -> None:
    model, seeds_B = network("prenorm", [6, 6], 2), rng.sample_seeds(0, torch.arange(8))
    tokens = {}
    for confidence in ("log_prob", "log_prob_all"):
        for top_k in (None, 3):
            sampler = importlib.import_module("maskgit_core.samplers.confidence").Sampler(
                num_steps=6, top_k=top_k, confidence=confidence, choice_temperature=0.5
            )
            tokens[confidence, top_k] = sampler.sample(model, torch.arange(8) % 5, grid=(6, 6), seeds_B=seeds_B)
    assert torch.equal(tokens["log_prob", None], tokens["log_prob_all", None])
    assert not torch.equal(tokens["log_prob", 3], tokens["log_prob_all", 3])
