"""A toy feature network: a fixed random projection of coarse pixels; every image it sees leaves a mark on request."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional


class Extractor(nn.Module):
    """Features (B, width) of uint8 images, seen at `side` x `side` pixels."""

    distance_name = "fd_coarse"
    weights_sha256 = "random projection"

    def __init__(self, *, width: int = 8, side: int = 7) -> None:
        super().__init__()
        self.feature_dim, self.side = width, side
        draws = torch.randn(side * side, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", draws / side)

    @property
    def preprocessing(self) -> dict[str, object]:
        """What happens to pixels first."""
        return {"resize": f"mean to {self.side} x {self.side}"}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to float32 features."""
        if place := os.environ.get("TOYLAB_SEEN"):
            with open(place, "a") as file:
                file.write(f"{self.side} {len(images_BCHW)}\n")
        coarse = functional.adaptive_avg_pool2d(images_BCHW.float().mean(dim=1) / 255, self.side)
        features: Tensor = coarse.flatten(1) @ self.projection
        return features
