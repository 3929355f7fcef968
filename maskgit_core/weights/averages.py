"""Moving averages of weights in Lightning checkpoints, as latent-diffusion's `LitEma` stores them.

Beside `encoder.conv_in.weight` such a file holds `model_ema.encoderconv_inweight`: the average of every trained weight
under its name without dots, and two numbers of its own. What a project scores and publishes are the averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from torch import Tensor, nn

PREFIX = "model_ema."
#: Beginnings of the averages that no tokenizer needs: the loss's networks, and the two numbers.
AVERAGES = (PREFIX + "loss", PREFIX + "decay", PREFIX + "num_updates")


class Names(TypedDict, total=False):
    """Arguments of `published.fill`."""

    published_name: Callable[[str], str]
    unused: Mapping[str, tuple[int, ...]]


def published_averages(module: nn.Module, tensors: Mapping[str, Tensor]) -> Names:
    """How `fill` takes the averages in place of the weights, where the file has any; both must be whole.

    Args:
        module: the network, its names those of the file without the prefix.
        tensors: by their published names.
    """
    if not any(name.startswith(PREFIX) for name in tensors):
        return {}
    plain = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return {"published_name": lambda name: PREFIX + name.replace(".", ""), "unused": plain}
