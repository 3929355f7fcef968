"""The published tokenizers against their reference implementations.

`goldens/tokenizers.json` holds what the reference of each family gave, once, outside this project, on the weights that
`weight_recipe` makes: token hashes, slices of latents and of decoded images, and the reference's name and revision. The
full arrays were compared there, too: no bit differed on that machine.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import weight_recipe
from safetensors.torch import save_file

from maskgit_core.errors import ConfigError, DataError, WeightsError
from maskgit_core.images.encoding import token_grid
from maskgit_core.weights import published

HERE = Path(__file__).parent
LAYOUTS = HERE.parents[2] / "maskgit_core" / "weights" / "layouts"
GOLDENS = json.loads((HERE / "goldens" / "tokenizers.json").read_text())
MODULES = {"maskgit": "maskgit_vqgan", "open": "open_magvit2"}
#: Default runs compare one file of each family; the others differ in the codebook or the number of levels.
QUICK = ("maskgit_vqgan", "taming_f16_1024", "llamagen_ds8", "amused", "maskbit_10bit", "maskbit_vqgan_plus_12bit",
         "open_magvit2_128", "ibq_1024")  # fmt: skip
QUICK_LARGE = ("titok_s128",)  # takes images of 256 pixels only


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """Published names and shapes."""
    found = {}
    for line in (LAYOUTS / f"{name}.txt").read_text().splitlines():
        if match := re.match(r"([^#\s]\S*) \[([\d, ]*)\]", line):
            found[match[1]] = tuple(int(n) for n in match[2].split(",") if n.strip())
    return found


def made_weights(name: str, seed: int) -> dict[str, torch.Tensor]:
    """The recipe's weights; where a file holds averages, the weights beside them are zero: none of them is used."""
    shapes = layout(name)
    averages = {key: shape for key, shape in shapes.items() if key.startswith("model_ema.")}
    plain = {key: torch.zeros(()).expand(shapes[key]) for key in (shapes if averages else ())}
    return plain | weight_recipe.state_dict(averages or shapes, seed)


def save_as_published(name: str, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """The container each family is published in."""
    if name == "amused":
        save_file(tensors, path)
    else:
        lightning = dict.fromkeys(("taming", "open", "ibq"), "state_dict")
        key = {**lightning, "llamagen": "model"}.get(name.partition("_")[0])
        torch.save({key: tensors, "epoch": 1} if key else tensors, path)


def tokenizer_class(name: str):
    family = name.partition("_")[0]
    return importlib.import_module(f"maskgit_core.tokenizers.{MODULES.get(family, family)}").Tokenizer


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKGIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(published, "_keep", lambda path, tensors: None)  # tested with the registry; here it only costs


CASES = [
    pytest.param(name, large, marks=[] if name in (QUICK_LARGE if large else QUICK) else pytest.mark.slow)
    for name in sorted(GOLDENS["families"])
    for large in (False, True)
    if any((image["height"] > 128) == large for image in GOLDENS["families"][name]["images"])
]


@pytest.mark.parametrize(("name", "large"), CASES)
@torch.no_grad()
def test_equal_to_the_reference_implementation(name, large, tmp_path):
    golden = GOLDENS["families"][name]
    path = tmp_path / "published"
    save_as_published(name, made_weights(name, golden["seed"]), path)
    tokenizer = tokenizer_class(name)(weights=str(path))
    path.unlink()
    assert tokenizer.codebook_size == golden["codebook_size"]
    images = [image for image in golden["images"] if (image["height"] > 128) == large]
    assert images
    for image in images:
        pixels = weight_recipe.picture(image["height"], image["width"], golden["seed"])
        tokens = tokenizer.encode(pixels)
        assert tokens.shape == (1, *token_grid(tokenizer, (image["height"], image["width"])))
        assert tokens.flatten()[:64].tolist() == image["tokens"]
        assert hashlib.sha256(tokens.contiguous().numpy().astype("<i8").tobytes()).hexdigest() == image["tokens_sha256"]
        latents, decoded = tokenizer.latents(pixels).flatten(), tokenizer.decode(tokens).flatten()
        for found, wanted in ((latents, image["latents"]), (decoded, image["decoded"])):
            part = found[:: max(1, found.numel() // len(wanted))][: len(wanted)]
            torch.testing.assert_close(part, torch.tensor(wanted), rtol=0, atol=GOLDENS["tolerance"][name])


def test_other_layouts_are_refused_by_the_first_key(tmp_path):
    # one number repeated: whole layouts in small files
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in layout("maskgit_vqgan").items()}
    build, key, bad = tokenizer_class("maskgit_vqgan"), "decoder.conv_out.weight", tmp_path / "bad.bin"
    cases = {
        "lacks": {k: v for k, v in tensors.items() if k != key},
        "holds extra.weight (and 0 more)": {**tensors, "extra.weight": torch.ones(1)},
        f"{key} has shape [3, 64, 3, 3]": {**tensors, key: torch.zeros(3, 64, 3, 3)},
    }
    for words, changed in cases.items():
        torch.save(changed, bad)
        with pytest.raises(WeightsError) as caught:
            build(weights=str(bad))
        text = str(caught.value)
        assert text.startswith(f"{bad}: ") and words in text and "\n" not in text
    torch.save(tensors, bad)
    assert build(weights=str(bad)).codebook_size == 1024
    for family in ("taming", "llamagen", "amused", "maskbit", "titok", "open_magvit2", "ibq"):
        with pytest.raises(WeightsError, match="belong to another model"):
            tokenizer_class(family)(weights=str(bad))


@torch.no_grad()
def test_any_grid_grey_images_and_bf16(tmp_path):
    path = tmp_path / "maskgit.bin"
    torch.save(weight_recipe.state_dict(layout("maskgit_vqgan"), 1), path)
    tokenizer = tokenizer_class("maskgit_vqgan")(weights=str(path))
    grey = weight_recipe.picture(32, 48, 2)[:, :1]
    tokens = tokenizer.encode(grey)
    assert torch.equal(tokens, tokenizer.encode(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(tokens, tokenizer.encode(torch.cat([grey, -grey]))[:1]), "a batch changes no image's tokens"
    images = tokenizer.decode(tokens)
    assert images.shape == (1, 3, 32, 48) and images.abs().max() <= 1
    with torch.autocast("cpu", torch.bfloat16):
        low = tokenizer.encode(grey)
    assert low.dtype == torch.int64 and low.shape == tokens.shape
    with pytest.raises(DataError, match=r"^image size: found 40x48; tokenizer maskgit_vqgan takes multiples of 16"):
        tokenizer.encode(torch.zeros(1, 3, 40, 48))
    with pytest.raises(DataError, match=r"^image channels: found 4"):
        tokenizer.encode(torch.zeros(1, 4, 32, 32))


def test_amused_refuses_fp16():
    from maskgit_core.layers.vqgan import VQGAN, Shape
    from maskgit_core.tokenizers.amused import SHAPE

    narrow = Shape(**{**vars(SHAPE), "channels": 32})
    network = VQGAN(narrow, 16, "amused", half_is_safe=False).requires_grad_(False)
    image = torch.zeros(1, 3, 16, 16)
    assert network.encode(image).shape == (1, 1, 1)
    with torch.autocast("cpu", torch.float16), pytest.raises(ConfigError, match=r"^precision: fp16 makes NaNs"):
        network.encode(image)
    with pytest.raises(ConfigError, match="use fp32 or bf16"):
        network.half().decode(torch.zeros(1, 1, 1, dtype=torch.long))


@pytest.mark.parametrize("distance", ["expanded", "addmm", "cdist"])
def test_ways_to_the_nearest_code_agree(distance):
    from maskgit_core.layers.vqgan import nearest

    latents = torch.from_numpy(weight_recipe.raw_uniform("latents", 900 * 8, 0)).view(900, 8)
    codes = torch.from_numpy(weight_recipe.raw_uniform("codes", 64 * 8, 0)).view(64, 8)
    wanted = (latents[:, None].double() - codes.double()).square().sum(2).argmin(1)
    assert torch.equal(nearest(latents, codes, distance), wanted)


def test_moving_averages_take_the_place_of_the_weights():
    from maskgit_core.weights.averages import published_averages

    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    plain = {"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)}
    averages = {"model_ema.0weight": torch.ones(3, 2), "model_ema.0bias": torch.ones(3)}
    for tensors, wanted in ((plain | averages, 1.0), (plain, 0.0)):
        published.fill(module, tensors, "file", **published_averages(module, tensors))
        assert all(bool((value == wanted).all()) for value in module.state_dict().values())
    for absent in ("model_ema.0bias", "0.weight"):
        tensors = {name: value for name, value in (plain | averages).items() if name != absent}
        with pytest.raises(WeightsError, match=f"^file: lacks {absent} "):
            published.fill(module, tensors, "file", **published_averages(module, tensors))


def test_the_code_of_the_largest_product_and_of_equal_ones_the_first(monkeypatch):
    from maskgit_core.tokenizers import ibq

    latents = torch.from_numpy(weight_recipe.raw_uniform("latents", 50 * 8, 0)).view(50, 8)
    codes = torch.from_numpy(weight_recipe.raw_uniform("codes", 64 * 8, 0)).view(64, 8)
    wanted = (latents.double() @ codes.double().T).argmax(1)
    assert torch.equal(ibq.likeliest(latents, codes), wanted)
    monkeypatch.setattr(ibq, "SCORES_AT_ONCE", 200)
    assert torch.equal(ibq.likeliest(latents, torch.cat([codes, codes])), wanted)


def test_a_picture_of_one_token_has_no_deviation():
    from maskgit_core.tokenizers.open_magvit2 import Tokenizer

    network = SimpleNamespace(downsample_factor=16)
    with pytest.raises(DataError, match=r"^image size: found 16x16, one token; .* set dataset.image_size to 32"):
        Tokenizer.decode(network, torch.zeros(1, 1, 1, dtype=torch.long))


def test_recipe_gives_the_same_numbers_everywhere():
    values = weight_recipe.raw_uniform("encoder.conv_in.weight", 5, 0)
    assert values.tolist() == GOLDENS["recipe"]
