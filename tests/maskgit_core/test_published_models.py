"""The published transformers and their samplers against the reference implementations.

`goldens/published_models.json` holds what each reference gave, once, outside this project, on the weights that
`weight_recipe` makes from (name, shape, seed): names and shapes as a hash, slices of the logits, their mean and
deviation. `goldens/published_samplers.json` holds final tokens of the reference samplers under the noise of `rng` and
the logits of `shared_logits`. Both name the revision of the reference.
"""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import weight_recipe
import yaml
from made_weights import made_inputs
from shared_logits import SharedLogits

from maskgit_core import rng
from maskgit_core.errors import ConfigError
from maskgit_core.refusals import check_places
from maskgit_core.token_groups import bits_of, ids_of, joined_tokens, sampling_grid, split_tokens, whole_codebook
from maskgit_core.training.checkpoints import load_strictly

HERE = Path(__file__).parent
CONF = HERE.parents[1] / "conf"
MODELS = json.loads((HERE / "goldens" / "published_models.json").read_text())
SAMPLERS = json.loads((HERE / "goldens" / "published_samplers.json").read_text())
CASES = [pytest.param(name, marks=[] if "small" in name else pytest.mark.slow) for name in MODELS]
#: Follow from the configuration and are no weights.
BUFFERS = {"bits_to_indices"}


def built(golden: dict[str, Any]) -> Any:
    module = importlib.import_module(f"maskgit_core.models.{golden['model']}")
    return module.Model(**golden["facts"], **golden["options"]).eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equal_to_the_reference_implementation(name: str) -> None:
    golden = MODELS[name]
    model = built(golden)
    own = model.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in own.items()}
    lines = sorted(f"{key} [{','.join(map(str, shape))}]" for key, shape in shapes.items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == (
        golden["count"],
        golden["layout_sha256"],
    ), "names and shapes are the published ones"
    made = {
        k: own[k] if k in BUFFERS else weight_recipe.tensor(k, shape, golden["seed"]) for k, shape in shapes.items()
    }
    load_strictly(model, getattr(model, "from_published", dict)(made), "made")
    logits = model(*made_inputs(model, golden["labels"]))
    for (row, place), wanted in zip(golden["places"], golden["logits"], strict=True):
        torch.testing.assert_close(logits[row, place, :8], torch.tensor(wanted), rtol=0, atol=1e-4)
    assert logits.double().mean().item() == pytest.approx(golden["mean"], abs=1e-5)
    assert logits.double().std().item() == pytest.approx(golden["deviation"], abs=1e-5)


@pytest.mark.parametrize("case", SAMPLERS["cases"], ids=lambda case: f"{case['sampler']} {case['grid']}")
def test_the_published_settings_give_the_reference_samplers_tokens(case: dict[str, Any]) -> None:
    settings = yaml.safe_load((CONF / "sampler" / f"{case['sampler']}.yaml").read_text())
    settings.pop("made_for")
    sampler = importlib.import_module(f"maskgit_core.samplers.{settings.pop('name')}").Sampler(**settings)
    grid = tuple(case["grid"])
    model = SharedLogits(case["codebook_size"], grid[0] * grid[1] * case["splits"], case["splits"])
    numbers = torch.arange(SAMPLERS["num_samples"])
    seeds = rng.sample_seeds(SAMPLERS["seed"], numbers)
    tokens = sampler.sample(model, numbers, grid=sampling_grid(model, grid), seeds_B=seeds)
    assert tokens[0, :8].tolist() == case["first"]
    assert hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest() == case["sha256"]


def test_bits_and_groups_of_every_token() -> None:
    ids = torch.arange(2**12)
    assert torch.equal(ids_of(bits_of(ids, 12) > 0), ids)
    assert bits_of(torch.tensor([6]), 4).tolist() == [[-1.0, 1.0, 1.0, -1.0]]
    for splits in (1, 2, 3, 4, 6, 12):
        model = SharedLogits(2 ** (12 // splits), 5, splits)
        groups = split_tokens(model, ids[None])
        assert groups.shape == (1, 2**12 * splits) and int(groups.max()) == model.codebook_size - 1
        assert torch.equal(joined_tokens(model, groups), ids[None]) and whole_codebook(model) == 2**12
    two = SharedLogits(128, 5, 2)
    assert split_tokens(two, torch.tensor([[128 * 5 + 3, -1]])).tolist() == [[3, 5, -1, -1]]
    large = SharedLogits(512, 4, 2)
    assert joined_tokens(large, split_tokens(large, torch.tensor([[2**18 - 1]]))).item() == 2**18 - 1


def test_groups_must_share_the_bits_evenly() -> None:
    for size, splits in ((1000, 1), (1024, 3)):
        with pytest.raises(
            ConfigError, match=rf"^model.splits: {splits} groups cannot share the bits of a codebook of"
        ):
            built(
                {"model": "maskbit", "facts": {"codebook_size": size, "num_tokens": 4}, "options": {"splits": splits}}
            )


def test_the_earlier_name_of_the_input_layer_is_read() -> None:
    tiny = {"dim": 16, "num_heads": 2, "num_layers": 1}
    model = built({"model": "maskbit", "facts": {"codebook_size": 64, "num_tokens": 4}, "options": tiny})
    earlier = {name.replace("input_proj", "token_emb"): tensor for name, tensor in model.state_dict().items()}
    load_strictly(model, model.from_published(earlier), "earlier")


@pytest.mark.parametrize("name", ["confidence", "halton", "random_order"])
def test_a_token_of_several_groups_is_drawn_whole(name: str) -> None:
    """No group is left masked, given tokens stay, and any batch size gives the same."""
    sampler = importlib.import_module(f"maskgit_core.samplers.{name}").Sampler(num_steps=5)
    model, numbers = SharedLogits(32, 40, 2), torch.arange(6)
    seeds, known = rng.sample_seeds(1, numbers), torch.full((6, 20), -1)
    known[:, 3] = 1000
    groups = split_tokens(model, known)
    whole = sampler.sample(model, numbers, grid=(4, 5, 2), seeds_B=seeds, known_BL=groups)
    tokens = joined_tokens(model, whole)
    assert tokens.shape == (6, 20) and (tokens[:, 3] == 1000).all() and int(tokens.max()) < 1024
    one = sampler.sample(model, numbers[2:3], grid=(4, 5, 2), seeds_B=seeds[2:3], known_BL=groups[2:3])
    assert torch.equal(one, whole[2:3])


def test_one_dimensional_tokens_have_no_region_to_edit() -> None:
    from maskgit_core.tokenizers import titok

    assert titok.ONE_DIMENSIONAL
    check_places("edit.tokenizer", False)
    with pytest.raises(ConfigError, match=r"^edit.tokenizer: its tokens are one-dimensional"):
        check_places("edit.tokenizer", titok.ONE_DIMENSIONAL)
