"""Sections on the other networks: tokenizers that encode and decode, and feature extraction."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

from maskgit_core.devices import products
from maskgit_core.evaluation.features import features_of
from maskgit_core.images.encoding import Encoder
from maskgit_core.layers.steady import decoded
from maskgit_core.layers.vqgan import VQGAN
from maskgit_core.tokenizers import amused, llamagen, maskgit_vqgan, taming, vq
from tools.gpu.rig import Figure, Rig


def families() -> dict[str, Any]:
    """Each published tokenizer's network with random weights; made when called."""
    return {
        "maskgit_vqgan": _maskgit_vqgan,
        "taming": lambda: VQGAN(taming.SHAPE, 1024, "taming"),
        "llamagen": lambda: VQGAN(llamagen.SHAPES[5], 16384, "llamagen"),
        "amused": lambda: VQGAN(amused.SHAPE, 8192, "amused", half_is_safe=False),
    }


def _maskgit_vqgan() -> nn.Module:
    network = maskgit_vqgan.Tokenizer.__new__(maskgit_vqgan.Tokenizer)  # its constructor reads a file of weights
    nn.Module.__init__(network)
    network.codebook_size = 1024
    network.encoder, network.decoder = maskgit_vqgan.Encoder(), maskgit_vqgan.Decoder()
    network.quantize = maskgit_vqgan.Codebook(1024, maskgit_vqgan.CODE_DIM)
    return network.eval()


def _small() -> nn.Module:
    return vq.Tokenizer(codebook_size=64, code_dim=4, width=8, in_channels=3)


def encode(rig: Rig) -> Iterator[Figure]:
    """(d) Images a second that each family's tokenizer encodes, as `cache_tokens` asks for them."""
    batch, side = rig.pick(64, 1), rig.pick(256, 32)
    made = rig.pick(families(), {"vq": _small})
    views = np.random.default_rng(0).integers(0, 256, (batch, 1, side, side, 3), dtype=np.uint8)
    for name, make in made.items():
        for precision in rig.pick(("fp32", "tf32", "bf16"), ("fp32",)):
            if rig.is_late:
                yield {"name": "encode", "skipped": f"no time for {name} in {precision}"}
                continue
            torch.manual_seed(0)
            encoder = Encoder(make().eval().requires_grad_(False), rig.device, precision)
            seconds = rig.seconds(lambda encoder=encoder: encoder(views)[0].cpu(), rounds=3)  # type: ignore[misc]
            yield {
                "name": "encode", "value": batch / seconds, "unit": "images/s", "family": name,
                "precision": precision, "batch": batch, "side": side,
            }  # fmt: skip


@torch.inference_mode()
def decode(rig: Rig) -> Iterator[Figure]:
    """(f) Images a second that each family's tokenizer decodes, in the groups that sampling uses."""
    count, cells = rig.pick(128, 2), rig.pick(16, 2)
    tokens = torch.randint(0, rig.pick(1024, 64), (count, cells, cells), generator=torch.Generator().manual_seed(0)).to(
        rig.device
    )
    for name, make in rig.pick(families(), {"vq": _small}).items():
        torch.manual_seed(0)
        network = make().eval().requires_grad_(False).to(rig.device)
        for precision in ("fp32", "tf32", "bf16"):
            if rig.is_late:
                yield {"name": "decode", "skipped": f"no time for {name} in {precision}"}
                continue
            with products(precision, rig.device):
                seconds = rig.seconds(lambda network=network: decoded(network, tokens), rounds=3)  # type: ignore[misc]
            yield {
                "name": "decode", "value": count / seconds, "unit": "images/s", "family": name, "precision": precision
            }  # fmt: skip


def features(rig: Rig) -> Iterator[Figure]:
    """(g) Images a second through FID's network, from memory and with PNG files decoded in eight threads."""
    from PIL import Image

    count, side, network = rig.pick(512, 1), rig.pick(256, 64), rig.inception
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    seconds = rig.seconds(lambda: features_of(network, tensor, rig.device), rounds=3, warm_up=1)
    yield {"name": "features", "value": count / seconds, "unit": "images/s", "decoding": False, "precision": "fp32"}
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="png")
        files.append(file.getvalue())

    def read(data: bytes) -> torch.Tensor:
        return torch.from_numpy(np.asarray(Image.open(io.BytesIO(data))).copy()).permute(2, 0, 1)

    def with_decoding() -> None:
        features_of(network, torch.stack(list(pool.map(read, files))), rig.device)

    with ThreadPoolExecutor(8) as pool:
        seconds = rig.seconds(with_decoding, rounds=3, warm_up=1)
    yield {"name": "features", "value": count / seconds, "unit": "images/s", "decoding": True, "precision": "fp32"}
