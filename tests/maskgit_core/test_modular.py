"""The switches of `modular`: each is one override that keeps every law of a model; all off, it is `prenorm`."""

from typing import Any

import pytest
import torch
from made_weights import made_inputs

from maskgit_core import rng
from maskgit_core.models import modular, prenorm
from maskgit_core.samplers.halton import Sampler

FACTS = {"codebook_size": 32, "num_tokens": 16, "num_classes": 10, "dim": 64, "num_layers": 2, "num_heads": 4}
SWITCHES: tuple[dict[str, Any], ...] = (
    {"positions": "rotary"},
    {"mlp": "swiglu"},
    {"qk_norm": True},
    {"num_registers": 2},
    {"class_as": "adaln"},
    {"tied_head": True},
    {
        "positions": "rotary",
        "mlp": "swiglu",
        "qk_norm": True,
        "num_registers": 1,
        "class_as": "adaln",
        "tied_head": True,
    },
)


def made(**options: Any) -> Any:
    torch.manual_seed(0)
    model = modular.Model(**{**FACTS, "dropout": 0.0, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False)


def test_all_off_it_computes_what_prenorm_does() -> None:
    model, other = made(), prenorm.Model(**FACTS).eval()
    renamed = {
        k.replace("norm.", "classifier.0.").replace("head.", "classifier.1."): v for k, v in model.state_dict().items()
    }
    other.load_state_dict(renamed)
    tokens, labels = made_inputs(model, (3, 10))
    assert torch.equal(model(tokens, labels), other(tokens, labels))


@pytest.mark.parametrize("options", SWITCHES, ids=lambda options: "-".join(options))
def test_each_switch_keeps_the_contract(options: dict[str, Any]) -> None:
    model = made(**options)
    tokens, labels = made_inputs(model, (3, 10))
    logits = model(tokens, labels)
    assert logits.shape == (2, 16, 32) and torch.equal(logits, model.logits(model.features(tokens, labels)))
    assert torch.allclose(model(tokens[1:]), logits[1:], atol=1e-5), "no label means the null label"
    wanted = tokens % 3 == 0
    assert torch.allclose(model.logits(model.features(tokens, labels, wanted)), logits[wanted], atol=1e-5)
    assert not torch.allclose(model(tokens, labels.flip(0)), logits, atol=1e-3)
    assert not torch.allclose(made()(tokens, labels), logits, atol=1e-3)
    seeds, classes = rng.sample_seeds(0, torch.arange(9)), torch.arange(9)
    for every in (1, 3):
        sampler = Sampler(num_steps=5, guidance_scale=2.0, full_every=every)
        whole = sampler.sample(model, classes, grid=(4, 4), seeds_B=seeds)
        parts = [
            sampler.sample(model, classes[i : i + 2], grid=(4, 4), seeds_B=seeds[i : i + 2]) for i in range(0, 9, 2)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("options", SWITCHES, ids=lambda options: "-".join(options))
def test_one_layer_reuses_exactly(options: dict[str, Any]) -> None:
    model = made(**options, num_layers=1)
    seeds, classes = rng.sample_seeds(0, torch.arange(9)), torch.arange(9)
    plain, kept = (
        Sampler(num_steps=5, guidance_scale=2.0, full_every=every).sample(model, classes, grid=(4, 4), seeds_B=seeds)
        for every in (1, 4)
    )
    assert torch.equal(plain, kept)


def test_rotary_attention_sees_differences_of_rows_and_columns_alone() -> None:
    angles = modular.rotary_angles(16, 16)
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).unbind()
    turned = [modular.turned(x.expand(1, 1, 16, 16), angles)[0, 0] for x in (q, k)]
    scores = (turned[0] @ turned[1].T).view(4, 4, 4, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])
    assert (scores[0, 0, 1, 2] - scores[0, 0, 2, 1]).abs() > 1e-3
    assert modular.rotary_angles(12, 8).shape == (12, 4)
