"""A small convolutional classifier trained on real images, to ask whether samples show the class they were asked for.

For datasets of small images (the tests and the quickstart); its accuracy on real held-out images is always given
beside its accuracy on samples. B batch, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskgit_core.errors import DataError

SIDE = 28


class Classifier(nn.Module):
    """Three convolutions and a linear layer over images of 28 x 28 (others are resized).

    Args:
        in_channels: 1 or 3.
        num_classes: K.
        width: channels of the first convolution.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_stage(in_channels, width, 5, 2),
            *_stage(width, 2 * width, 3, 2),
            *_stage(2 * width, 2 * width, 3, 1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(2 * width * (SIDE // 4) ** 2, num_classes),
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images of any size to logits (B, K)."""
        x_BCHW = images_BCHW.float() / 127.5 - 1
        if x_BCHW.shape[-2:] != (SIDE, SIDE):
            x_BCHW = functional.interpolate(x_BCHW, size=(SIDE, SIDE), mode="bilinear", antialias=True)
        logits: Tensor = self.body(x_BCHW)
        return logits


def _stage(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def train_classifier(
    images_NCHW: Tensor, labels_N: Tensor, num_classes: int, *, num_steps: int, batch_size: int = 128, seed: int = 0
) -> Classifier:
    """Trains with Adam and a one-cycle learning rate, on the CPU; the same arguments give the same classifier.

    Args:
        images_NCHW: uint8.
        labels_N: int64 in [0, K).
        num_steps: optimizer steps.

    Raises:
        DataError: images without classes.
    """
    if int(labels_N.min()) < 0 or num_classes < 2:
        raise DataError("classifier: the dataset has no classes; set evaluate.classifier_steps=0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(images_NCHW.shape[1], num_classes)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=num_steps)
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(num_steps):
            if len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(images_NCHW), generator=generator)])
            picked, order = order[:batch_size], order[batch_size:]
            loss = functional.cross_entropy(model(images_NCHW[picked]), labels_N[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """The most likely class of each image of each batch: int64 (N,)."""
    return torch.cat([model(images).argmax(dim=1) for images in batches])
