"""Laws of every tokenizer: a file in `maskgit_core/tokenizers/` is tested by existing.

One that reads published weights is built from `maskgit_core/weights/layouts/<name>*.txt` (published names and shapes)
with small constant values; one that does not is built from its defaults.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from maskgit_core.errors import DataError, WeightsError
from maskgit_core.images.encoding import token_grid
from maskgit_core.weights import published

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NAMES = sorted(p.stem for p in (ROOT / "maskgit_core" / "tokenizers").glob("*.py") if p.stem != "__init__")


def layouts(name: str) -> list[Path]:
    """The published layouts of a family: `taming` has `taming_f16_1024.txt`, ..."""
    found = (ROOT / "maskgit_core" / "weights" / "layouts").glob(f"{name}*.txt")
    return sorted(found, key=lambda path: path.stat().st_size)


def build(name: str, folder: Path):
    cls = importlib.import_module(f"maskgit_core.tokenizers.{name}").Tokenizer
    if "weights" not in inspect.signature(cls.__init__).parameters:
        torch.manual_seed(0)
        return cls()
    assert layouts(name), f"add the published names and shapes of {name} as maskgit_core/weights/layouts/{name}.txt"
    tensors = {}
    for line in layouts(name)[0].read_text().splitlines():
        if match := re.match(r"([^#\s]\S*) \[([\d, ]*)\]", line):
            shape = [int(n) for n in match[2].split(",") if n.strip()]
            tensors[match[1]] = torch.tensor(1e-3).expand(shape)
    path = folder / "weights"
    for container in ({"state_dict": tensors, "model": tensors}, tensors):
        torch.save(container, path)
        try:
            return cls(weights=str(path))
        except WeightsError:
            continue
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return cls(weights=str(path))


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKGIT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(published, "_keep", lambda path, tensors: None)
        yield build(request.param, tmp_path_factory.mktemp(request.param)).eval().requires_grad_(False)


def sizes(tokenizer) -> tuple[tuple[int, int], tuple[int, int]]:
    """A small image size and its grid of tokens; one-dimensional tokenizers have one of each."""
    if getattr(tokenizer, "grid", None):
        return (tokenizer.image_size, tokenizer.image_size), tokenizer.grid
    return (tokenizer.downsample_factor, 2 * tokenizer.downsample_factor), (1, 2)


def test_ids_lie_in_range_and_images_come_back_in_shape(tokenizer):
    size, grid = sizes(tokenizer)
    assert token_grid(tokenizer, size) == grid
    images = torch.rand(2, tokenizer.in_channels, *size) * 2 - 1
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, *grid) and tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0 and int(tokens.max()) < tokenizer.codebook_size
    every = torch.tensor([0, tokenizer.codebook_size - 1]).repeat(grid[0] * grid[1])[: grid[0] * grid[1]].view(1, *grid)
    assert tokenizer.decode(tokens).shape == images.shape
    assert tokenizer.decode(every).shape == images[:1].shape and tokenizer.decode(every).dtype == torch.float32


def test_tokens_do_not_depend_on_the_batch_or_on_each_other(tokenizer):
    height, width = sizes(tokenizer)[0]
    images = torch.rand(3, tokenizer.in_channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    together, before = tokenizer.encode(images), images.clone()
    assert torch.equal(together, torch.cat([tokenizer.encode(image[None]) for image in images]))
    assert torch.equal(images, before), "encode changes its input"
    tokens = together.clone()
    tokenizer.decode(together)
    assert torch.equal(together, tokens), "decode changes its input"


def test_sizes_that_do_not_divide_are_refused_in_one_line(tokenizer):
    with pytest.raises(DataError) as caught:
        tokenizer.encode(torch.zeros(1, tokenizer.in_channels, sizes(tokenizer)[0][0] + 1, 64))
    assert "\n" not in str(caught.value) and "image size" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_names_it(name):
    configs = [yaml.safe_load(p.read_text()) for p in (ROOT / "conf" / "tokenizer").glob("*.yaml")]
    assert name in {config["name"] for config in configs}
