"""The convolutions of VGG-16 (Simonyan & Zisserman 2015) under the indices of torchvision's `features`."""

from torch import nn

#: Output channels of the five stages, and convolutions in each.
WIDTHS, REPEATS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)


def vgg16_convolutions(last_pool: bool = False) -> nn.Sequential:
    """Convolutions, ReLUs and max pools up to the last ReLU, or to the pool behind it."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage, (width, repeats) in enumerate(zip(WIDTHS, REPEATS, strict=True)):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(repeats):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if last_pool else []))
