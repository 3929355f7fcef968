"""The Inception network of FID: Szegedy et al. 2016 (arXiv:1512.00567) as TensorFlow published it on 2015-12-05.

The layout (module names, 1008 logits, average pools that leave the padding out, a max pool in the last block) is of
`weights-inception-2015-12-05-6726825d.pth`, the conversion that torch-fidelity and pytorch-fid use; a file in this
layout loads strictly. One pass gives the pooled features (FID, KID, precision, recall), the first seven channels of
TensorFlow's `mixed_6/conv` (sFID, Nash et al. 2021, arXiv:2103.03841) and the logits without bias (Inception score).

B batch, C channels, H, W height and width, D = 2048 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskgit_core.errors import WeightsError
from maskgit_core.extractors import load_strictly, read_tensors, sha256_of
from maskgit_core.hints import Neutral, Revised, Weights
from maskgit_core.layers.network_input import Resize, resize_for_network
from maskgit_core.weights.published import Unfilled
from maskgit_core.weights.registry import verified

#: First digits of the published file's sha256 (they are in its name).
PUBLISHED_SHA256 = "6726825d"
SIDE = 299
NUM_LOGITS = 1008
SPATIAL_CHANNELS = 7

# A convolution: name -> (input channels, output channels, kernel (h, w), stride). Padding keeps the size at stride 1.
Convs = dict[str, tuple[int, int, tuple[int, int], int]]
# A branch is a chain of names; a tuple at its end is a fork whose outputs are concatenated.
Branch = Sequence[str | tuple[str, ...]]


class _Conv(nn.Module):
    """Convolution, batch norm (eps 0.001), ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, same: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x_BCHW)))


class _Mixed(nn.Module):
    """Branches side by side, then a pooled branch: `average` or `max` before `branch_pool`, `stride` without one."""

    def __init__(self, convs: Convs, branches: Sequence[Branch], pool: Literal["average", "max", "stride"]) -> None:
        super().__init__()
        for name, (inputs, outputs, kernel, stride) in convs.items():
            self.add_module(name, _Conv(inputs, outputs, kernel, stride))
        self.branches, self.pool = branches, pool

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([self._follow(branch, x_BCHW) for branch in self.branches] + [self._pooled(x_BCHW)], dim=1)

    def _follow(self, branch: Branch, x_BCHW: Tensor) -> Tensor:
        for name in branch:
            if isinstance(name, tuple):
                return torch.cat([self.get_submodule(fork)(x_BCHW) for fork in name], dim=1)
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW

    def _pooled(self, x_BCHW: Tensor) -> Tensor:
        if self.pool == "stride":
            return functional.max_pool2d(x_BCHW, 3, stride=2)
        if self.pool == "max":
            pooled = functional.max_pool2d(x_BCHW, 3, stride=1, padding=1)
        else:
            pooled = functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
        projected: Tensor = self.get_submodule("branch_pool")(pooled)
        return projected


_DOUBLE = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]


def _block_35(inputs: int, pooled: int) -> _Mixed:
    convs: Convs = {
        "branch1x1": (inputs, 64, (1, 1), 1),
        "branch5x5_1": (inputs, 48, (1, 1), 1),
        "branch5x5_2": (48, 64, (5, 5), 1),
        "branch3x3dbl_1": (inputs, 64, (1, 1), 1),
        "branch3x3dbl_2": (64, 96, (3, 3), 1),
        "branch3x3dbl_3": (96, 96, (3, 3), 1),
        "branch_pool": (inputs, pooled, (1, 1), 1),
    }
    return _Mixed(convs, [["branch1x1"], ["branch5x5_1", "branch5x5_2"], _DOUBLE], "average")


def _reduce_35(inputs: int) -> _Mixed:
    convs: Convs = {
        "branch3x3": (inputs, 384, (3, 3), 2),
        "branch3x3dbl_1": (inputs, 64, (1, 1), 1),
        "branch3x3dbl_2": (64, 96, (3, 3), 1),
        "branch3x3dbl_3": (96, 96, (3, 3), 2),
    }
    return _Mixed(convs, [["branch3x3"], _DOUBLE], "stride")


def _block_17(width: int) -> _Mixed:
    convs: Convs = {
        "branch1x1": (768, 192, (1, 1), 1),
        "branch7x7_1": (768, width, (1, 1), 1),
        "branch7x7_2": (width, width, (1, 7), 1),
        "branch7x7_3": (width, 192, (7, 1), 1),
        "branch7x7dbl_1": (768, width, (1, 1), 1),
        "branch7x7dbl_2": (width, width, (7, 1), 1),
        "branch7x7dbl_3": (width, width, (1, 7), 1),
        "branch7x7dbl_4": (width, width, (7, 1), 1),
        "branch7x7dbl_5": (width, 192, (1, 7), 1),
        "branch_pool": (768, 192, (1, 1), 1),
    }
    chains = [[f"branch7x7_{i}" for i in (1, 2, 3)], [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)]]
    return _Mixed(convs, [["branch1x1"], *chains], "average")


def _reduce_17() -> _Mixed:
    convs: Convs = {
        "branch3x3_1": (768, 192, (1, 1), 1),
        "branch3x3_2": (192, 320, (3, 3), 2),
        "branch7x7x3_1": (768, 192, (1, 1), 1),
        "branch7x7x3_2": (192, 192, (1, 7), 1),
        "branch7x7x3_3": (192, 192, (7, 1), 1),
        "branch7x7x3_4": (192, 192, (3, 3), 2),
    }
    return _Mixed(convs, [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]], "stride")


def _block_8(inputs: int, pool: Literal["average", "max"]) -> _Mixed:
    convs: Convs = {
        "branch1x1": (inputs, 320, (1, 1), 1),
        "branch3x3_1": (inputs, 384, (1, 1), 1),
        "branch3x3_2a": (384, 384, (1, 3), 1),
        "branch3x3_2b": (384, 384, (3, 1), 1),
        "branch3x3dbl_1": (inputs, 448, (1, 1), 1),
        "branch3x3dbl_2": (448, 384, (3, 3), 1),
        "branch3x3dbl_3a": (384, 384, (1, 3), 1),
        "branch3x3dbl_3b": (384, 384, (3, 1), 1),
        "branch_pool": (inputs, 192, (1, 1), 1),
    }
    forks: list[Branch] = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
    ]
    return _Mixed(convs, forks, pool)


class Network(nn.Module):
    """The network from normalised 299 x 299 pixels; the attribute names are the keys of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3), same=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3), same=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_35(192, 32), _block_35(256, 64), _block_35(288, 64)
        self.Mixed_6a = _reduce_35(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_block_17(w) for w in (128, 160, 160, 192))
        self.Mixed_7a = _reduce_17()
        self.Mixed_7b, self.Mixed_7c = _block_8(1280, "average"), _block_8(2048, "max")
        self.fc = nn.Linear(2048, NUM_LOGITS)

    def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
        x_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=2)
        x_BCHW = functional.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x_BCHW)), 3, stride=2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):
            x_BCHW = self.get_submodule(name)(x_BCHW)
        # TensorFlow's mixed_6 is this file's Mixed_6d; its op `mixed_6/conv` is the 1 x 1 branch after the ReLU.
        spatial_BCHW = self.Mixed_6d.get_submodule("branch1x1")(x_BCHW)[:, :SPATIAL_CHANNELS]
        for name in ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c"):
            x_BCHW = self.get_submodule(name)(x_BCHW)
        features_BD = x_BCHW.mean(dim=(2, 3))
        return {
            "features": features_BD,
            "spatial": spatial_BCHW.permute(0, 2, 3, 1).flatten(1),  # rows, columns, channels: TensorFlow's order
            "logits": functional.linear(features_BD, self.fc.weight),
        }


class Extractor(nn.Module):
    """Inception features for FID and its kin.

    Args:
        weights: a name in the weights registry, or a file in the published layout.
        resize: how pixels reach 299 x 299: `tf1` (TensorFlow 1's bilinear: ADM, torch-fidelity), `torch` (bilinear with
            half-pixel centres: pytorch-fid), `clean` (PIL's bicubic with antialias on floats: clean-fid), `clean_uint8`
            (that without fractions: Halton-MaskGIT).
        random_seed: random weights in this layout instead of `weights` (set that to null, so that the file is not asked
            for), for trials without it; the distance is then called `fd_random_inception`.
        precision: of resize and network; the features are float32 (MaskBit and 1d-tokenizer compute in float64).

    Raises:
        WeightsError: the file is missing, damaged or of another network.
    """

    feature_dim = 2048
    outputs = ("features", "spatial", "logits")

    def __init__(
        self,
        *,
        weights: Weights[str | None] = "fid/inception-2015-12-05",
        resize: Annotated[Resize, Revised(2, unless=("tf1", "torch", "clean_uint8"))] = "tf1",
        random_seed: int | None = None,
        precision: Annotated[Literal["float32", "float64"], Neutral("float32")] = "float32",
    ) -> None:
        super().__init__()
        self.resize: Resize = resize
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        with Unfilled():
            self.network = Network()
        if weights is None and random_seed is None:
            raise WeightsError("extractor.weights: missing; name weights, or set random_seed for a trial without them")
        if random_seed is not None:
            self.network.load_state_dict(random_state(random_seed))
            self.weights_sha256, self.distance_name = f"random, seed {random_seed}", "fd_random_inception"
        else:
            path = verified(str(weights))
            self.weights_sha256 = sha256_of(path)
            published = self.weights_sha256.startswith(PUBLISHED_SHA256)
            self.distance_name = "fid" if published else "fd_unpublished_inception"
            load(self.network, path)
        self.eval().requires_grad_(False).to(self.dtype)

    @property
    def preprocessing(self) -> dict[str, object]:
        """The preprocessing of pixels before the network."""
        about: dict[str, object] = {"resize": self.resize, "input_size": SIDE, "rounding": "none"}
        about["scale"] = "x / 127.5 - 1" if self.resize == "torch" else "(x - 128) / 128"
        if self.resize in ("clean", "clean_uint8"):
            about |= {"clip": [0, 255], "rounding": "none" if self.resize == "clean" else "truncate"}
        return about | ({"precision": "float64"} if self.dtype == torch.float64 else {})

    def all_outputs(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 images to `features` (B, 2048), `spatial` (B, 2023) and `logits` (B, 1008, without bias), float32."""
        if images_BCHW.shape[1] == 1:
            images_BCHW = images_BCHW.expand(-1, 3, -1, -1)
        x_BCHW = resize_for_network(images_BCHW, SIDE, self.resize, self.dtype)
        # pytorch-fid scales [0, 1] to [-1, 1]; TensorFlow's graph centres at 128.
        x_BCHW = x_BCHW / 255 * 2 - 1 if self.resize == "torch" else (x_BCHW - 128) / 128
        outputs: dict[str, Tensor] = self.network(x_BCHW)
        return {name: value.float() for name, value in outputs.items()}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images of any size to float32 features (B, 2048)."""
        return self.all_outputs(images_BCHW)["features"]


def load(network: nn.Module, path: Path) -> None:
    """Loads FID's Inception strictly; counts of batches, which old files lack, are not weights.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape; names the first.
    """
    counts = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    load_strictly(network, {**counts, **read_tensors(path)}, path, "FID's Inception in the 2015-12-05 layout")


def random_state(seed: int) -> dict[str, Tensor]:
    """Random weights in the exact layout, scaled so that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    with Unfilled():
        state = Network().state_dict()
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            state[name] = torch.rand(tensor.shape, generator=generator) * 0.5 + 0.75
        elif name.endswith(("bn.bias", "running_mean", "fc.bias")):
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.1
        elif name == "fc.weight":
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.05
    return state
