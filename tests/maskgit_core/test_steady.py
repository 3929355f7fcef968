"""Laws of what a sample depends on: not on the rows beside it, and on CPUs not on the number of threads either."""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgit_core.models
from maskgit_core import rng
from maskgit_core.decoding import Decoder, Guidance
from maskgit_core.layers import steady
from maskgit_core.tokenizers.vq import Tokenizer

MODELS = sorted(p.stem for p in Path(maskgit_core.models.__path__[0]).glob("*.py") if p.stem != "__init__")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["silu", "tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elementwise_functions_see_one_element(form: str, dtype: torch.dtype) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return steady.silu(x) if form == "silu" else steady.gelu(x, form)

    for width in (96, 257):
        x = torch.randn(1001, width, generator=torch.Generator().manual_seed(width)).to(dtype)
        torch.set_num_threads(1)
        whole = function(x)
        assert torch.allclose(whole, (torch.nn.functional.silu(x) if form == "silu" else whole), atol=1e-6)
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            for rows in (1, 2, 37, 333, 1001):
                assert torch.equal(function(x[:rows].clone()), whole[:rows]), (width, threads, rows)


def _logits(model: Any, labels: torch.Tensor, known: torch.Tensor, size: int) -> torch.Tensor:
    """Guided logits of all samples, `size` at a time."""
    seeds, parts = rng.sample_seeds(0, torch.arange(len(labels))), []
    for at in range(0, len(labels), size):
        part = slice(at, at + size)
        state = Decoder(model, labels[part], (8, 8), seeds[part], known[part], Guidance(3.0), 4)
        parts.append(state.logits(state.masked_BL, 1, state.unknown_B // 2))
    return torch.cat(parts)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.1, 1.0])
@torch.no_grad()
def test_logits_of_a_sample_are_the_same_bits_in_any_batch_and_with_any_threads(name: str, share: float) -> None:
    if "STRICT" not in os.environ.get("MKL_CBWR", ""):
        pytest.skip("needs MKL's strict mode, which maskgit_core asks for on Intel CPUs")
    torch.manual_seed(0)
    facts = {"codebook_size": 64, "num_tokens": 64, "num_classes": 10}
    # the products 1024 -> 256 are what MKL splits among threads, if it may
    model = importlib.import_module(f"maskgit_core.models.{name}").Model(**facts, dim=256, num_layers=2, num_heads=4)
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.dim() > 1 else 0.2))
    labels, known = torch.arange(9) % 10, torch.randint(0, 64, (9, 64))
    known[torch.rand(known.shape) < share] = -1
    known[:, 0] = -1
    torch.set_num_threads(1)
    whole = _logits(model, labels, known, 9)
    assert whole.std() > 0.1
    for threads, size in ((1, 1), (2, 1), (4, 2), (3, 9)):
        torch.set_num_threads(threads)
        assert torch.equal(_logits(model, labels, known, size), whole), (threads, size)


@pytest.mark.parametrize("options", [{"in_channels": 1}, {"width": 24, "downsample_factor": 2}])
@torch.no_grad()
def test_a_decoded_image_is_the_same_bits_in_any_batch(options: dict) -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(**options).eval().requires_grad_(False)
    tokens = torch.randint(0, 256, (19, 7, 7))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        whole = steady.decoded(tokenizer, tokens)
        assert torch.allclose(whole, tokenizer.decode(tokens), atol=1e-5) and len(whole) == 19
        for size in (1, 18):
            parts = [steady.decoded(tokenizer, part) for part in tokens.split(size)]
            assert torch.equal(torch.cat(parts), whole), (threads, size)
