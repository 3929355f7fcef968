"""The published tokenizers' networks against their reference implementations: encode and decode, same weights.

The references are not part of this project. Give their checkouts (`--references DIR` or MASKGIT_REFERENCES, with
`taming-transformers`, `LlamaGen`, `1d-tokenizer` below it); aMUSEd needs the package diffusers. What is not there is
passed over and said. Weights are random, in the published layout. Rounds are interleaved; medians count.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.bench._figures import figure

Network = tuple[nn.Module, Callable[[Tensor], Any], Callable[[Tensor], Any]]
LEVELS = [1, 1, 2, 2, 4]


def taming(folder: Path) -> Network:
    """CompVis' VQModel; Lightning and the training script, which it imports, are stood in for."""
    sys.modules.setdefault("pytorch_lightning", types.SimpleNamespace(LightningModule=nn.Module))  # type: ignore[arg-type]
    sys.modules["main"] = types.SimpleNamespace(instantiate_from_config=lambda config: nn.Identity())  # type: ignore[assignment]
    sys.path.insert(0, str(folder / "taming-transformers"))
    options: dict[str, Any] = {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
    }
    options |= {"ch_mult": LEVELS, "num_res_blocks": 2, "attn_resolutions": [16], "dropout": 0.0}
    net = importlib.import_module("taming.models.vqgan").VQModel(options, {}, 1024, 256)
    return net, net.encode, lambda t: net.decode(net.quantize.get_codebook_entry(t.flatten(), (*t.shape, 256)))


def llamagen(folder: Path) -> Network:
    """LlamaGen's VQ-16."""
    sys.path.insert(0, str(folder / "LlamaGen"))
    models = importlib.import_module("tokenizer.tokenizer_image.vq_model").VQ_models
    net = models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)
    return net, net.encode, lambda t: net.decode_code(t.flatten(), (t.shape[0], 8, *t.shape[1:]))


def maskgit_vqgan(folder: Path) -> Network:
    """The port in 1d-tokenizer, a file without dependencies."""
    sys.path.insert(0, str(folder / "1d-tokenizer" / "modeling" / "modules"))
    parts = importlib.import_module("maskgit_vqgan")
    options: dict[str, Any] = {
        "channel_mult": LEVELS,
        "num_resolutions": 5,
        "dropout": 0.0,
        "hidden_channels": 128,
        "num_channels": 3,
    }
    config = types.SimpleNamespace(**options, num_res_blocks=2, resolution=256, z_channels=256)
    net: Any = nn.Module()
    net.encoder, net.decoder = parts.Encoder(config), parts.Decoder(config)
    net.quantize = parts.VectorQuantizer(1024, 256, 0.25)
    decode = lambda t: net.decoder(net.quantize.get_codebook_entry(t)).clamp(0, 1) * 2 - 1  # noqa: E731
    return net, lambda x: net.quantize(net.encoder((x + 1) / 2)), decode


def amused(folder: Path) -> Network:
    """diffusers' VQModel."""
    net = importlib.import_module("diffusers").VQModel(
        act_fn="silu",
        block_out_channels=[128, 256, 256, 512, 768],
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
        latent_channels=64,
        layers_per_block=2,
        lookup_from_codebook=True,
        mid_block_add_attention=False,
        num_vq_embeddings=8192,
    )
    decode = lambda t: net.decode(t, force_not_quantize=True, shape=(*t.shape, 64)).sample  # noqa: E731
    return net, lambda x: net.quantize(net.encode(x).latents), decode


def save(name: str, net: nn.Module, path: Path) -> None:
    """The reference's weights in the container its family is published in."""
    tensors = {key: value for key, value in net.state_dict().items() if not key.startswith("loss.")}
    key = {"taming": "state_dict", "llamagen": "model"}.get(name)
    torch.save({key: tensors} if key else tensors, path)


def seconds_of(rounds: int, sides: tuple[Callable[[], Any], Callable[[], Any]]) -> tuple[list[float], list[float]]:
    """Seconds of each side, round by round; one further round does not count.

    The sides go first in turn. On a CPU these are CPU seconds, which other work on the machine disturbs least.
    """
    spent: tuple[list[float], list[float]] = ([], [])
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for number in range(rounds + 1):
        for place in (0, 1) if number % 2 else (1, 0):
            start = clock()
            sides[place]()
            torch.cuda.synchronize() if torch.cuda.is_available() else None
            if number:
                spent[place].append(clock() - start)
    return spent


@torch.inference_mode()
def measure(name: str, folder: Path, size: int, batch: int, rounds: int) -> None:
    """Prints one figure for encode and one for decode."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference, encode, decode = globals()[name](folder)
    with tempfile.TemporaryDirectory() as place:
        os.environ["MASKGIT_HOME"] = place
        save(name, reference, Path(place) / "weights")
        module = importlib.import_module(f"maskgit_core.tokenizers.{name}")
        ours = module.Tokenizer(weights=str(Path(place) / "weights")).to(device)
    reference.eval().to(device)
    images = torch.rand(batch, 3, size, size, device=device) * 2 - 1
    tokens = ours.encode(images)
    difference = float((ours.decode(tokens) - decode(tokens)).abs().max())
    note = f"{size} px, batch {batch}, {device}, {torch.get_num_threads()} threads; decoded differ by {difference:.1e}"
    for what, sides in (
        ("encode", (lambda: ours.encode(images), lambda: encode(images))),
        ("decode", (lambda: ours.decode(tokens), lambda: decode(tokens))),
    ):
        mine, theirs = seconds_of(rounds, sides)
        figure(f"tokenizer_forward/{name}/{what}", mine, theirs, "s" if device == "cuda" else "CPU s", note)


def main() -> None:
    """Measures every family whose reference is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=["maskgit_vqgan", "taming", "llamagen", "amused"])
    parser.add_argument("--references", type=Path, default=Path(os.environ.get("MASKGIT_REFERENCES", ".references")))
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    for name in args.families:
        try:
            measure(name, args.references, args.size, args.batch, args.rounds)
        except ImportError as error:
            print(f"{name}: its reference is not here ({error}); see --help", file=sys.stderr)


if __name__ == "__main__":
    main()
