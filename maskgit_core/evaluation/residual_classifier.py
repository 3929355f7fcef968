"""A residual classifier of small colour pictures, trained from scratch, to ask whether samples show their class.

Like the small residual networks that are trained on CIFAR-10 in minutes (He et al. 2016, https://arxiv.org/abs/1512.03385;
Page 2018, https://myrtle.ai/learn/how-to-train-your-resnet/): half the side after the first convolution and after each
further group, SGD with Nesterov momentum and a learning rate that rises and falls, mirrored and shifted pictures.

B batch, N pictures, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

import contextlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.errors import WeightsError
from maskgit_core.hints import Range
from maskgit_core.order import sample_ids

SIDE = 32
MOMENTUM, WEIGHT_DECAY, LABEL_SMOOTHING = 0.9, 5e-4, 0.1


class Classifier(nn.Module):
    """A convolution of stride 2 and three groups of two convolutions with a shortcut around the second.

    Args:
        in_channels: 1 or 3.
        num_classes: K.
        width: channels of the first group; twice and four times as many in the others.
    """

    def __init__(self, *, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 4, 2, 1, bias=False), _norm(width), nn.ReLU())
        befores = [width, *widths[:-1]]
        self.groups = nn.ModuleList(
            nn.ModuleList([_conv(b, a), _conv(a, a)]) for b, a in zip(befores, widths, strict=True)
        )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images of any size to logits (B, K); in evaluation mode the mean of the image's and its mirror's."""
        x_BCHW = images_BCHW.float() / 127.5 - 1
        if x_BCHW.shape[-2:] != (SIDE, SIDE):
            x_BCHW = F.interpolate(x_BCHW, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        if self.training:
            return self._logits(x_BCHW)
        return (self._logits(x_BCHW) + self._logits(x_BCHW.flip(3))) / 2

    def _logits(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        for number, group in enumerate(self.groups):
            assert isinstance(group, nn.ModuleList)
            first, second = group
            x_BCHW = first(F.max_pool2d(x_BCHW, 2) if number else x_BCHW)
            x_BCHW = x_BCHW + second(x_BCHW)
        logits_BK: Tensor = self.head(x_BCHW.amax((2, 3)).float())
        return logits_BK


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, momentum=0.2)


def _conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), _norm(after), nn.ReLU())


@dataclass(frozen=True)
class Recipe:
    """All that decides the result; the fields are config keys of the stage `train_classifier`.

    Args:
        num_train_steps: optimizer steps.
        batch_size: pictures a step.
        lr: highest learning rate, reached after a fifth of the steps; it then falls to 0 linearly.
        width: of the network.
        flip: mirror half of the pictures.
        shift: pixels by which pictures move at most, in each direction.
        precision: of the forward passes while training (autocast).
        seed: of weights, order, mirrors and shifts.
    """

    num_train_steps: Annotated[int, Range(1, 10_000_000)] = 1000
    batch_size: Annotated[int, Range(2, 65536)] = 250
    lr: Annotated[float, Range(0, 10, low_open=True)] = 0.2
    width: Annotated[int, Range(8, 1024)] = 64
    flip: bool = True
    shift: Annotated[int, Range(0, 64)] = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0

    def learning_rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        peak = max(1, self.num_train_steps // 5)
        return self.lr * min((step + 1) / peak, (self.num_train_steps - step) / max(1, self.num_train_steps - peak))


class Trainer:
    """A classifier in training, resumable bit for bit: all draws are functions of (seed, step).

    Args:
        images_NCHW: uint8, all pictures to train on.
        labels_N: int64 in [0, K).
        num_classes: K.
        recipe: what is asked.
        device: to train on.

    Attributes:
        step: training steps done.
    """

    def __init__(self, images_NCHW: Tensor, labels_N: Tensor, num_classes: int, recipe: Recipe, device: str) -> None:
        self.images_NCHW, self.labels_N, self.recipe, self.device, self.step = images_NCHW, labels_N, recipe, device, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            made = Classifier(in_channels=images_NCHW.shape[1], num_classes=num_classes, width=recipe.width)
        self.model = made.to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=recipe.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The pictures (uint8, mirrored and shifted) and labels of a step."""
        recipe = self.recipe
        places, flips = sample_ids(recipe.seed, step * recipe.batch_size, recipe.batch_size, len(self.labels_N), 2)
        images_BCHW, labels_B = self.images_NCHW[places], self.labels_N[places]
        if recipe.flip:
            images_BCHW = torch.where(
                torch.from_numpy(flips)[:, None, None, None] == 1, images_BCHW.flip(3), images_BCHW
            )
        if recipe.shift:
            images_BCHW = shifted(images_BCHW, recipe.shift, np.random.default_rng((recipe.seed, step)))
        return images_BCHW, labels_B

    def train_step(self) -> dict[str, Tensor]:
        """Advances one step; returns loss and accuracy as 0-d tensors."""
        images_BCHW, labels_B = (x.to(self.device) for x in self.batch(self.step))
        with self._precision():
            logits_BK = self.model.train()(images_BCHW)
        loss = F.cross_entropy(logits_BK.float(), labels_B, label_smoothing=LABEL_SMOOTHING)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.detach(), "accuracy": (logits_BK.argmax(1) == labels_B).float().mean()}

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.recipe.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16)

    def save(self, path: Path) -> None:
        """Writes the state to one file (readable with `torch.load(weights_only=True)`)."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, path)

    def restore(self, path: Path) -> None:
        """Goes on from a file that `save` wrote.

        Raises:
            WeightsError: the file is damaged, or of another classifier.
        """
        try:
            state = torch.load(path, weights_only=True, map_location=self.device)
            step = int(state["step"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise WeightsError(f"{path}: is no checkpoint of this training ({reason}); delete it") from None
        self.step = step


def shifted(images_BCHW: Tensor, most: int, random: np.random.Generator) -> Tensor:
    """Each picture moved by up to `most` pixels in each direction; what comes in repeats the edge's mirror image."""
    height, width = images_BCHW.shape[2:]
    most = min(most, height - 1, width - 1)
    padded = F.pad(images_BCHW.float(), [most] * 4, mode="reflect").to(images_BCHW.dtype)
    tops, lefts = (random.integers(0, 2 * most + 1, len(images_BCHW)).tolist() for _ in range(2))
    cuts = [x[:, t : t + height, s : s + width] for x, t, s in zip(padded, tops, lefts, strict=True)]
    return torch.stack(cuts)
