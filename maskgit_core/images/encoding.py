"""A tokenizer as a function from pixels to tokens, at a chosen precision.

Shapes: B batch, V variants, H × W image, h × w token grid, C channels.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from maskgit_core.devices import products
from maskgit_core.errors import DataError


def token_grid(tokenizer: Any, size: tuple[int, int]) -> tuple[int, int]:
    """The grid (h, w) of an image's tokens: its size over the pixels a token, or (1, L) where tokens have no place."""
    fixed: tuple[int, int] | None = getattr(tokenizer, "grid", None)
    if fixed is not None:
        return fixed
    return size[0] // tokenizer.downsample_factor, size[1] // tokenizer.downsample_factor


class Encoder:
    """A tokenizer as a function from pixels to tokens, at a chosen precision.

    Args:
        tokenizer: with `encode(images in [-1, 1]) -> tokens`; `latents(images) -> (B, C, h, w)` where latents are kept.
        device: where it runs.
        precision: see `Settings`.
    """

    def __init__(self, tokenizer: Any, device: str, precision: str) -> None:
        self.tokenizer = tokenizer.to(device=device, memory_format=torch.channels_last).eval()
        self.device, self.precision = torch.device(device), precision
        self.channels = int(getattr(tokenizer, "in_channels", 3))

    @torch.inference_mode()
    def __call__(self, views: np.ndarray, latents: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, V, h, w) and latents (B, V, C, h, w) of uint8 views (B, V, H, W, C); still on the device."""
        count, variants = views.shape[:2]
        pixels = torch.from_numpy(views.reshape(count * variants, *views.shape[2:]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        images = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)  # channels_last as it comes
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        with products(self.precision, self.device.type):
            tokens = self.tokenizer.encode(images)
            kept = self._latents(images) if latents else None
        return tokens.unflatten(0, (count, variants)), None if kept is None else kept.unflatten(0, (count, variants))

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        if not hasattr(self.tokenizer, "latents"):
            family = type(self.tokenizer).__module__.rsplit(".", 1)[-1]
            raise DataError(f"latents: the tokenizer {family} gives no latents; set latents to false")
        latents: torch.Tensor = self.tokenizer.latents(images)
        return latents.half()


def state_digest(module: torch.nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all tensors of a module, in the order of their names."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
        hashed.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
