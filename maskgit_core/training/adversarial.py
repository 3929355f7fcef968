"""Adversarial training of a tokenizer: hinge losses, the adaptive weight, LeCam, and the discriminator's own optimizer.

Esser et al. 2021 (https://arxiv.org/abs/2012.09841), section 3.1 and their equation 7.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgit_core.layers.discriminator import Discriminator

#: Averages a tensor over processes.
Mean = Callable[[Tensor], Tensor]


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, mean: Mean) -> Tensor:
    """|gradient of the reconstruction loss| / (|gradient of the adversarial loss| + 1e-4) at the decoder's last layer.

    At most 1e4; without gradient. Gradients are averaged over processes first.
    """
    gradients = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    wanted, adverse = (mean(gradient.float()).norm() for gradient in gradients)
    weight: Tensor = (wanted / (adverse + 1e-4)).clamp(0, 1e4).detach()
    return weight


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """The discriminator's hinge loss of its judgements, a scalar (Lim and Ye 2017)."""
    return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2


class Adversary:
    """The discriminator in training.

    Args:
        network: the discriminator.
        lr, betas: of its Adam.
        lecam_weight: of LeCam's regulariser (Tseng et al. 2021, https://arxiv.org/abs/2104.03310), which holds
            judgements near the moving average of those of the other kind; 0: none.
        mean: averages over processes.
    """

    def __init__(
        self, network: Discriminator, lr: float, betas: tuple[float, float], lecam_weight: float, mean: Mean
    ) -> None:
        self.network, self.lecam_weight, self.mean = network.train(), lecam_weight, mean
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=betas)
        self.usual = torch.zeros(2, device=self.parameters[0].device)  # moving averages: judgements of real, of made

    def judge(self, made_BCHW: Tensor) -> Tensor:
        """The generator's loss: minus the mean judgement of its images; the gradient passes to them alone."""
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        loss: Tensor = -self.network(made_BCHW).mean()
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        return loss

    def learn(self, real_BCHW: Tensor, made_BCHW: Tensor, share: float) -> dict[str, Tensor]:
        """Adds the gradient of one micro-batch, `share` of the step's; returns meters (0-d)."""
        real, made = self.network(torch.cat([real_BCHW, made_BCHW.detach()])).float().chunk(2)
        loss = hinge(real, made)
        if self.lecam_weight:
            means = torch.stack([real.detach().mean(), made.detach().mean()])
            self.usual.lerp_(self.mean(means), 0.001)
            apart = F.relu(real - self.usual[1]).square().mean() + F.relu(self.usual[0] - made).square().mean()
            loss = loss + self.lecam_weight * apart
        (loss * share).backward()
        accuracy = ((real > 0).float().mean() + (made < 0).float().mean()) / 2
        return {"disc_loss": loss.detach(), "disc_accuracy": accuracy}

    def step(self, lr: float, clip: float) -> Tensor:
        """Applies the added gradients; returns their norm before clipping to `clip`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm: Tensor = nn.utils.clip_grad_norm_(self.parameters, clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "usual": self.usual}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.usual.copy_(state["usual"])
