"""Laws of tokenizer training under every switch: resumed it is bit-equal, divided over processes it is the same."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from maskgit_core.errors import ConfigError
from maskgit_core.images.pixels import to_signed
from maskgit_core.layers.discriminator import Discriminator, smallest_image
from maskgit_core.layers.quantizers import Quantizer, bit_entropies
from maskgit_core.tokenizers import vq, vqgan
from maskgit_core.training.adversarial import adaptive_weight
from maskgit_core.training.perceptual import PerceptualLoss
from maskgit_core.training.tokenizer import Trainer, TrainingImages, held_out_scores
from maskgit_core.training.tokenizer_recipe import Recipe, check_recipe

ADVERSARIAL = {"disc_weight": 0.5, "disc_start": 3, "disc_width": 8, "disc_layers": 1}
SETTINGS = {
    "vq": {},
    "normalised": {"normalised": True, "flip": True, "crop_size": 8},
    "gradient": {"codebook_update": "gradient", "l2_weight": 1.0, "lr_schedule": "constant", "ema_decay": 0.9},
    "lfq": {"quantizer": "lfq", "ema_decay": 0.9},
    "fsq": {"quantizer": "fsq", "fsq_levels": [4, 4], **ADVERSARIAL, "lecam_weight": 0.1},
    "adversarial": {**ADVERSARIAL, "perceptual": "efficientnet_lite1", "ema_decay": 0.99},
    "accumulated": {**ADVERSARIAL, "accumulate": 2, "adaptive_weight": False},
    "bf16": {"precision": "bf16", **ADVERSARIAL},
    "vqgan": {"network": "vqgan", **ADVERSARIAL},
    "muon": {"optimizer": "muon", **ADVERSARIAL, "ema_decay": 0.9},
}
OF_TOKENIZER = ("quantizer", "normalised", "fsq_levels")


class Bars:
    """Colour pictures of bars: something a tokenizer can learn."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        image = np.zeros((16, 16, 3), np.uint8)
        image[:, i % 8 : i % 8 + 4, i % 3] = 60 + 4 * i
        return SimpleNamespace(key=str(i), image=image, label=0)


def trainer(setting, seed=0):
    values = dict(SETTINGS[setting])
    options = {name: values.pop(name) for name in OF_TOKENIZER if name in values}
    torch.manual_seed(seed)
    if values.pop("network", "vq") == "vqgan":
        small = {"downsample_factor": 4, "channels": 32, "multipliers": [1, 1, 1], "num_blocks": 1, "z_channels": 8}
        tokenizer = vqgan.Tokenizer(codebook_size=16, code_dim=4, **small)
    else:
        tokenizer = vq.Tokenizer(in_channels=3, codebook_size=16, code_dim=4, width=8, **options)
    fixed = {"num_train_steps": 8, "batch_size": 8, "lr": 2e-3, "warmup_steps": 2, "continuous_share": 0.3}
    return Trainer(tokenizer, Recipe(**(fixed | {"revive_every": 3, "seed": 5} | values)))


def images(recipe, rank=0, processes=1):
    return TrainingImages(Bars(), np.arange(40), recipe, rank=rank, processes=processes)


@pytest.mark.parametrize("setting", SETTINGS)
def test_stopped_anywhere_it_goes_on_bit_for_bit(setting, tmp_path):
    whole = trainer(setting)
    for pixels in images(whole.recipe).since(0):
        meters = whole.train_step(to_signed(pixels))
    assert all(bool(value.isfinite()) for value in meters.values()), meters
    for cut in (2, 5):
        first = trainer(setting)
        for pixels, _ in zip(images(first.recipe).since(0), range(cut), strict=False):
            first.train_step(to_signed(pixels))
        first.save(tmp_path / "state.pt")
        second = trainer(setting, seed=9)
        second.restore(tmp_path / "state.pt")
        for pixels in images(second.recipe).since(cut):
            second.train_step(to_signed(pixels))
        with whole.averaged() as one, second.averaged() as other:
            for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
                assert torch.equal(a, b), f"cut at {cut}: {name}"


DIVIDED = ("normalised", "gradient", "lfq", "fsq", "adversarial", "accumulated", "muon")


def one_step(setting, path, step, rank=0, processes=1):
    """What step `step` shows from the state in `path`: mean meters of all processes, and the codebook it leaves.

    A codebook trained by gradient is left out: Adam divides by gradients that are next to nothing."""
    own = trainer(setting)
    own.restore(path)
    meters = own.train_step(to_signed(images(own.recipe, rank, processes).batch(step)))
    names = sorted(meters.keys() - {"code_usage", "code_perplexity"})  # of each process's own tokens
    means = [float(own.exchange.mean(meters[name])) for name in names]
    return means + (own.tokenizer.codebook.flatten().tolist() if own.follows else [])


def test_a_step_of_two_processes_is_that_of_one(tmp_path):
    alone = {}
    for setting in DIVIDED:
        own = trainer(setting)
        for step, pixels in enumerate(images(own.recipe).since(0)):
            path = tmp_path / f"{setting}-{step}.pt"
            if step in (1, 2, 6):  # before, at and after the codebook is found
                own.save(path)
                alone[path.name] = one_step(setting, path, step)
            own.train_step(to_signed(pixels))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, __file__, str(tmp_path), str(rank)], env=env) for rank in range(2)]
    assert [process.wait(300) for process in started] == [0, 0]
    together = json.loads((tmp_path / "steps.json").read_text())
    for name, values in alone.items():
        np.testing.assert_allclose(together[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("kind", "size", "levels"), [("lfq", 64, ()), ("fsq", 240, (8, 6, 5)), ("fsq", 27, (3, 3, 3))])
def test_fixed_codes_are_distinct_and_their_own_tokens(kind, size, levels):
    quantizer = Quantizer(kind, size, 1, levels=levels)
    codebook = quantizer.codebook()
    assert codebook.shape == (size, quantizer.code_dim) and len(codebook.unique(dim=0)) == size
    assert torch.equal(quantizer.tokens(codebook, codebook), torch.arange(size))
    latents = torch.randn(500, quantizer.code_dim, generator=torch.Generator().manual_seed(0)) * 2
    placed = quantizer.place(latents)
    tokens = quantizer.tokens(placed, codebook)
    steps = torch.tensor([level // 2 for level in levels]) if levels else torch.ones(1)
    assert torch.equal(tokens, torch.cdist(placed * steps, codebook * steps).argmin(1))  # the nearest, in steps
    assert len(tokens.unique()) > size / 3


def test_lfq_entropies_are_those_of_all_codes_listed():
    latents = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    codebook = Quantizer("lfq", 32, 1).codebook().double()
    probabilities = (-torch.cdist(latents, codebook).square() / 0.7).softmax(1)
    sure, spread = bit_entropies(latents, 0.7)
    assert float(sure) == pytest.approx(float(torch.special.entr(probabilities).sum(1).mean()), rel=1e-5)
    assert float(spread) == pytest.approx(float(torch.special.entr(probabilities.mean(0)).sum()), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_lfq_entropies_of_sure_latents_have_a_gradient(temperature):
    latents = torch.tensor([[9.0, -30.0, 0.1, 5.0]] * 8, requires_grad=True)  # codes without probability in float32
    sure, spread = bit_entropies(latents, temperature)
    (sure - spread).backward()
    assert latents.grad is not None and bool(latents.grad.isfinite().all())


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    weights = torch.ones(3, requires_grad=True)
    value = adaptive_weight(6 * weights.sum(), 2 * weights.sum(), weights, lambda x: x)
    assert float(value) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_smallest_image_has_one_patch(layers):
    side = smallest_image(layers)
    network = Discriminator(3, 8, layers, "none")
    assert network(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, side - 1, side - 1))


def test_perceptual_distance_sees_blur_and_is_zero_of_the_same():
    loss = PerceptualLoss("efficientnet_lite1")
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(picture, 3, 1, 1).requires_grad_(True)
    assert float(loss(picture, picture)) == pytest.approx(0.0, abs=1e-6)
    distance = loss(blurred, picture)
    distance.backward()
    assert float(distance) > 0.05 and float(blurred.grad.abs().sum()) > 0
    assert loss(picture[:, :1], picture[:, :1]).shape == ()


def test_an_adversary_makes_pictures_harder_to_tell_and_everything_scores():
    own = trainer("adversarial")
    for pixels in images(own.recipe).since(0):
        meters = own.train_step(to_signed(pixels))
    assert {"disc_accuracy", "disc_loss", "adaptive_weight", "perceptual", "grad_norm", "disc_grad_norm"} <= set(meters)
    assert 0 <= float(meters["disc_accuracy"]) <= 1
    with own.averaged() as tokenizer:
        scores = held_out_scores(tokenizer, torch.zeros(2, 3, 16, 16))
    assert set(scores) == {"psnr", "code_usage", "code_perplexity"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantizer": "lfq", "codebook_size": 100}, r"^tokenizer\.codebook_size: found 100.*set it to 64$"),
        ({"quantizer": "fsq", "codebook_size": 64}, r"^tokenizer\.fsq_levels: found \[\] with codebook_size 64"),
        ({"fsq_levels": [4, 4]}, r"^tokenizer\.fsq_levels: found \[4, 4\] with quantizer=vq"),
        ({"quantizer": "lfq", "normalised": True, "codebook_size": 64}, r"^tokenizer\.normalised: found true"),
    ],
)
def test_quantizer_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        vq.Tokenizer(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 48}, r"^tokenizer\.channels: found 48"),
        ({"multipliers": [1, 2]}, r"^tokenizer\.multipliers: found \[1, 2\] with downsample_factor 16; it takes 5"),
    ],
)
def test_network_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        vqgan.Tokenizer(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 6, "accumulate": 4}, r"^train_tokenizer\.batch_size: found 6"),
        ({"crop_size": 34}, r"^train_tokenizer\.crop_size: found 34"),
        ({"disc_norm": "batch"}, r"^train_tokenizer\.disc_norm: found batch"),
        ({"disc_weight": 1.0, "disc_layers": 6}, r"^train_tokenizer\.disc_layers: found 6.*at least \d+ pixels"),
        ({"l1_weight": 0.0}, r"^train_tokenizer\.l1_weight: found 0"),
    ],
)
def test_recipes_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        check_recipe(Recipe(**values), processes=2, image_size=32, downsample_factor=4)


def test_the_trained_network_has_tamings_names_and_shapes():
    layout = Path(__file__).parents[3] / "maskgit_core" / "weights" / "layouts" / "taming_f16_1024.txt"
    with torch.device("meta"):
        tensors = vqgan.Tokenizer().state_dict()
    published = [re.match(r"(\S+) (\[.*\])", line) for line in layout.read_text().splitlines()]
    shapes = {found[1]: json.loads(found[2]) for found in published if found and not found[1].startswith("loss.")}
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == shapes


def main(folder, rank):
    """One of the two processes of `test_a_step_of_two_processes_is_that_of_one`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for path in sorted(folder.glob("*.pt")):
        setting, _, step = path.stem.partition("-")
        found[path.name] = one_step(setting, path, int(step), rank, 2)
    if rank == 0:
        (folder / "steps.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
