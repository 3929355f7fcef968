"""Every transformer in `maskgit_core/models/` (found by listing the folder), and the published layouts and logits.

The reference logits were made by running the named implementations once on the weights of `made_weights.py`:
maskgit: hmorimitsu/maskgit-torch 40c45116 (its GELU is erf; for the tanh rows it was set to tanh), prenorm:
xyfJASON/maskgit-pytorch ca5c7c39, halton: valeoai/Halton-MaskGIT f61b0a13; torch 2.14, CPU, float32.
"""

import hashlib
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from made_weights import fill, made_inputs

import maskgit_core.models
from maskgit_core.errors import ConfigError, WeightsError
from maskgit_core.layers.dropout import PLAIN_TOKENS, attention, dropout, per_sample
from maskgit_core.training.checkpoints import load_strictly

NAMES = sorted(p.stem for p in Path(maskgit_core.models.__path__[0]).glob("*.py") if p.stem != "__init__")
SMALL = {"dim": 64, "num_layers": 2, "num_heads": 4}
FACTS = {"codebook_size": 32, "num_tokens": 16, "num_classes": 10}


def built(name: str, **options: Any) -> Any:
    return importlib.import_module(f"maskgit_core.models.{name}").Model(**{**FACTS, **options})


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str) -> None:
    torch.manual_seed(0)
    model = built(name, **SMALL).eval()
    assert (model.codebook_size, model.num_tokens, model.num_classes, model.null_label) == (32, 16, 10, 10)
    tokens, labels = made_inputs(model, (3, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        logits = model(tokens, labels)
        assert logits.shape == (2, 16, 32)
        assert torch.equal(logits, model.logits(model.features(tokens, labels)))
        assert torch.allclose(model(tokens[1:]), logits[1:], atol=1e-5), "no label means the null label"
        wanted = tokens % 3 == 0
        assert 0 < wanted[0].sum() != wanted[1].sum() > 0
        some = model.logits(model.features(tokens, labels, wanted))
        assert torch.allclose(some, logits[wanted], atol=1e-5), "features at wanted positions are those of the whole"
        assert not torch.allclose(model(tokens, labels.flip(0)), logits, atol=1e-3)
    model.train()
    model(tokens, labels).square().mean().backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    assert not idle


@pytest.mark.parametrize("name", NAMES)
def test_without_classes_labels_are_not_asked(name: str) -> None:
    model = built(name, **SMALL, num_classes=None).eval()
    tokens, _ = made_inputs(model, (0, 0))
    with torch.no_grad():
        assert model(tokens).shape == (2, 16, 32)
    assert model.null_label is None


@pytest.mark.parametrize("name", ["maskgit", "prenorm"])
def test_heads_must_divide_the_width(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model.num_heads: 5 heads do not divide dim 64"):
        built(name, dim=64, num_heads=5)


PUBLISHED = {
    "prenorm": ({}, {"codebook_size": 1024, "num_tokens": 256, "num_classes": 1000}, 271, "2a8cc08ec130cb9b"),
    "maskgit": ({}, {"codebook_size": 1024, "num_tokens": 256, "num_classes": 1000}, 297, "f9a2817da3020cda"),
    "halton": ({}, {"codebook_size": 16384, "num_tokens": 256, "num_classes": 1000}, 142, "42fe28894646c1c3"),
    "halton small": (
        {"dim": 512, "num_heads": 6},
        {"codebook_size": 16384, "num_tokens": 256, "num_classes": 1000},
        142,
        "2430ed3f91658f3b",
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, facts, count, digest = PUBLISHED[case]
    for draw in ("normal_", "trunc_normal_", "xavier_uniform_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, draw, lambda tensor, *args, **kwargs: tensor)
    with torch.device("meta"):
        model = built(case.split()[0], **facts, **options)
    lines = sorted(f"{n} [{','.join(map(str, v.shape))}]" for n, v in model.state_dict().items())
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


TIED = {"halton": {"head.weight": "tok_emb.weight"}}
#: name -> options, labels, logits of (row 0, token 0) and (row 1, token 7), first five; deviation of all logits
REFERENCE = {
    "maskgit": (
        {**SMALL, "gelu": "erf"},
        (7, 9),
        [[-0.1017, -0.0305, 0.17569, 0.04664, -0.0384], [0.04656, 0.06892, -0.10758, -0.08923, 0.10194]],
        0.14582,
    ),
    "prenorm": (
        SMALL,
        (7, 10),
        [[-0.04148, 0.0063, 0.19702, 0.03204, -0.11366], [0.08341, 0.14636, 0.18973, 0.11498, -0.27159]],
        0.140551,
    ),
    "prenorm unconditional": (
        {**SMALL, "num_classes": None},
        (0, 0),
        [[-0.03378, 0.00357, 0.19443, 0.02474, -0.12482], [0.08335, 0.15687, 0.1861, 0.11538, -0.28008]],
        0.140505,
    ),
    "halton": (
        {**SMALL, "num_heads": 6, "num_registers": 2},
        (7, 10),
        [[-0.01792, -0.21008, -0.19557, 0.09231, 0.0935], [-0.26278, 0.21141, 0.10606, 0.05895, -0.0864]],
        0.196562,
    ),
}


@pytest.mark.parametrize("case", REFERENCE)
def test_logits_of_the_reference_implementations(case: str) -> None:
    options, labels, rows, deviation = REFERENCE[case]
    name = case.split()[0]
    model = built(name, **options).eval()
    fill(model, tied=TIED.get(name))
    with torch.no_grad():
        logits = model(*made_inputs(model, labels))
    assert torch.allclose(logits[[0, 1], [0, 7], :5], torch.tensor(rows), atol=1e-4)
    assert logits.double().std().item() == pytest.approx(deviation, abs=1e-5)


#: the same at full size: logits of (0, 0), (0, 255), (1, 100), first five; deviation of all logits
FULL_SIZE = {
    "prenorm": (
        {},
        (7, 1000),
        [
            [-0.59933, -0.97518, -0.21401, -0.27092, -0.17093],
            [-0.49846, -1.06844, -0.18485, -0.26014, -0.13846],
            [-0.50166, -0.96915, -0.32261, -0.38186, -0.13401],
        ],
        0.5502805705709802,
    ),
    "maskgit": (
        {"gelu": "erf"},
        (7, 999),
        [
            [0.01266, 0.80862, -0.16695, 0.21754, -0.34683],
            [-0.26938, 0.55115, -0.57108, 0.05241, -0.83342],
            [-0.0022, 0.50988, 0.15985, -0.58938, -0.50893],
        ],
        0.5532312891024417,
    ),
    "maskgit tanh": (
        {"gelu": "tanh"},
        (7, 999),
        [
            [0.01272, 0.8084, -0.16684, 0.21712, -0.34649],
            [-0.26925, 0.55085, -0.57096, 0.05228, -0.83309],
            [-0.00217, 0.50968, 0.15983, -0.59001, -0.50829],
        ],
        0.5532325309045507,
    ),
    "halton small": (
        {"codebook_size": 16384, "dim": 512, "num_heads": 6},
        (7, 1000),
        [
            [-1.31085, -0.6756, 0.4676, 0.5426, 1.4315],
            [-0.29606, -0.49364, 0.18238, 0.21671, -0.94602],
            [-0.03502, 0.02609, -0.23889, 0.0121, -0.55492],
        ],
        0.45184303683938654,
    ),
    "halton base": (
        {"codebook_size": 16384},
        (7, 1000),
        [
            [0.13472, 0.90983, -0.43293, 0.00676, -0.0263],
            [0.53562, 1.12618, 0.0929, -0.38094, -1.05154],
            [-0.21479, -0.26208, 0.28317, 0.76654, 0.23335],
        ],
        0.5547474941233543,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL_SIZE)
def test_logits_of_the_reference_implementations_at_full_size(case: str) -> None:
    options, labels, rows, deviation = FULL_SIZE[case]
    name = case.split()[0]
    model = built(name, **{"codebook_size": 1024, "num_tokens": 256, "num_classes": 1000, **options}).eval()
    fill(model, tied=TIED.get(name))
    with torch.no_grad():
        logits = model(*made_inputs(model, labels))
    assert torch.allclose(logits[[0, 0, 1], [0, 255, 100], :5], torch.tensor(rows), atol=1e-4)
    assert logits.double().std().item() == pytest.approx(deviation, abs=1e-4)


def test_haltons_loss_may_count_the_masks_own_logit_and_sampling_never_does() -> None:
    torch.manual_seed(0)
    model = built("halton", **SMALL, mask_logit=True)
    plain = built("halton", **SMALL)
    plain.load_state_dict(model.state_dict())
    tokens, labels = torch.randint(0, 33, (2, 16)), torch.tensor([1, 2])
    logits = model.train()(tokens, labels)
    assert logits.shape == (2, 16, 33) and plain.train()(tokens, labels).shape == (2, 16, 32)
    assert torch.equal(model.eval()(tokens, labels), plain.eval()(tokens, labels))


def test_weights_of_another_model_are_refused_by_name() -> None:
    model, other = built("prenorm", **SMALL), built("prenorm", **{**SMALL, "num_layers": 3}).state_dict()
    with pytest.raises(WeightsError, match=r"w.safetensors: holds blocks.2\S+ \(and \d+ more\)"):
        load_strictly(model, other, "w.safetensors")
    wide = built("prenorm", **{**SMALL, "dim": 32}).state_dict()
    with pytest.raises(WeightsError, match=r"pos_emb has shape \[1, 16, 32\] but the model wants \[1, 16, 64\]"):
        load_strictly(model, wide, "w.safetensors")
    with pytest.raises(WeightsError, match=r"lacks pos_emb \[1, 16, 64\]"):
        load_strictly(model, {}, "w.safetensors")


def test_cheap_dropout_drops_the_asked_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(200, 301, requires_grad=True)
    for rate in (0.1, 0.5):
        out = dropout(x, rate, True)
        assert abs((out == 0).float().mean().item() - rate) < 0.01
        assert out.max().item() == pytest.approx(1 / (1 - rate))
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(gradient, out.detach())
    assert torch.equal(dropout(x, 0.3, False), x) and torch.equal(dropout(x, 0.0, True), x)


def test_dropout_of_a_sample_is_the_same_in_any_batch() -> None:
    torch.manual_seed(0)
    x, seeds = torch.ones(5, 7, 9), [3, 1, 4, 15, 9]
    with per_sample(seeds):
        whole = [dropout(x, 0.3, True), dropout(x, 0.3, True)]
    for first, end in ((0, 2), (2, 5)):
        with per_sample(seeds[first:end]):
            part = [dropout(x[first:end], 0.3, True), dropout(x[first:end], 0.3, True)]
        assert all(torch.equal(one[first:end], other) for one, other in zip(whole, part, strict=True))
    assert not torch.equal(*whole) and not torch.equal(whole[0][0], whole[0][1])
    with per_sample(list(range(300))):
        assert abs((dropout(torch.ones(300, 301), 0.1, True) == 0).float().mean().item() - 0.1) < 0.01


def test_attention_with_dropout_has_the_mean_of_attention_without() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    plain = attention(q, k, v, 0.1, False)
    many = torch.stack([attention(q, k, v, 0.1, True) for _ in range(3000)])
    assert (many.mean(0) - plain).abs().max() < 0.03 and many.std(0).max() > 0.05


@pytest.mark.parametrize("length", [65, PLAIN_TOKENS + 1])
def test_attention_in_bf16_is_trained_as_plain_products_up_to_a_length(length: int) -> None:
    """PyTorch's own kernel for CPUs takes five times as long backwards; both agree to bf16's precision."""
    made = [torch.randn(2, 4, length, 32, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(3)]
    found = []
    for ours in (True, False):
        q, k, v = (x.clone().requires_grad_(True) for x in made)
        out = attention(q, k, v, 0.0, True) if ours else torch.nn.functional.scaled_dot_product_attention(q, k, v)
        out.float().square().sum().backward()
        assert out.dtype == torch.bfloat16
        found.append([x.float() for x in (out, *(t.grad for t in (q, k, v)))])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=0.02 * other.detach().abs().max().item())
    assert torch.equal(found[0][0], found[1][0]) == (length > PLAIN_TOKENS)
