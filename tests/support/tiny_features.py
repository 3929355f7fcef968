"""A feature network for tests: a fixed random projection of coarse pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Extractor(nn.Module):
    """Features (B, width) of uint8 images."""

    distance_name = "fd_tiny"
    weights_sha256 = "random projection"

    def __init__(self, *, width: int = 12) -> None:
        super().__init__()
        self.feature_dim = width
        draws = torch.randn(49, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("projection", draws / 7)

    @property
    def preprocessing(self) -> dict[str, object]:
        """What happens to pixels first."""
        return {"resize": "mean to 7 x 7"}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to float32 features."""
        coarse = functional.adaptive_avg_pool2d(images_BCHW.float().mean(dim=1) / 255, 7)
        features: Tensor = coarse.flatten(1) @ self.projection
        return features
