"""Trained VQGANs in the containers of published ones, so that other repositories can load them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskgit_core.errors import ConfigError
from maskgit_core.tokenizers import llamagen, vqgan


def check_exportable(tokenizer: Any) -> None:
    """Refuses what neither taming-transformers nor LlamaGen has a network for.

    Raises:
        ConfigError: names what to change.
    """
    if not isinstance(tokenizer, vqgan.Tokenizer) or tokenizer.quantizer.kind != "vq":
        raise ConfigError(
            "train_tokenizer.export: found true, but only the tokenizer vqgan with quantizer=vq has a published "
            "layout; set it to false, or tokenizer=vqgan"
        )


def container(tokenizer: vqgan.Tokenizer) -> tuple[str, dict[str, Any]]:
    """File name and content of a trained VQGAN for `torch.save`.

    `taming.ckpt` (taming-transformers' `VQModel`: `{"state_dict": ...}`), or with normalised codes `llamagen.pt`
    (LlamaGen's `VQModel`: `{"model": ...}`). Its arguments are beside it under `config`.
    """
    check_exportable(tokenizer)
    shape, tensors = tokenizer.shape, {name: x.detach().cpu().clone() for name, x in tokenizer.state_dict().items()}
    levels = len(shape.multipliers)
    if tokenizer.quantizer.normalised:
        names: dict[str, Tensor] = {llamagen.published_name(name, levels): x for name, x in tensors.items()}
        names["quantize.codebook_used"] = torch.zeros(65536)
        config = {"encoder_ch_mult": list(shape.multipliers), "decoder_ch_mult": list(shape.multipliers),
                  "codebook_size": tokenizer.codebook_size, "codebook_embed_dim": shape.code_dim,
                  "z_channels": shape.z_channels, "codebook_l2_norm": True}  # fmt: skip
        return "llamagen.pt", {"model": names, "config": config}
    network = {"double_z": False, "z_channels": shape.z_channels, "resolution": 2 ** (levels - 1), "in_channels": 3,
               "out_ch": 3, "ch": shape.channels, "ch_mult": list(shape.multipliers),
               "num_res_blocks": shape.num_blocks, "attn_resolutions": [1] if shape.attention else [],
               "dropout": 0.0}  # fmt: skip
    config = {"embed_dim": shape.code_dim, "n_embed": tokenizer.codebook_size, "ddconfig": network}
    return "taming.ckpt", {"state_dict": tensors, "config": config}
