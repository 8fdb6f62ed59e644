"""The running mean of a network's weights over training, which often predicts better than the last weights."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from geograft.learn.networks.network import Network

EARLY = 10
"""Step n has a decay of at most (1 + n) / (EARLY + n): the first weights are forgotten, whatever the decay."""


class Average:
    """A second network, whose weights and batch-norm statistics are exponential means of another's.

    The decay of step n is min(decay, (1 + n) / (EARLY + n)), so that the weights from before training are soon
    forgotten. Source: B. T. Polyak and A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992),
    in the exponential form of TensorFlow's ExponentialMovingAverage with num_updates.

    Attributes:
        network: the mean, in evaluation mode, on the other network's device.
        steps: how many weights it has seen.
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = deepcopy(network).requires_grad_(requires_grad=False).eval()
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def take(self, network: Network) -> None:
        """Move the mean towards the weights that `network` has now."""
        share = 1 - min(self.decay, (1 + self.steps) / (EARLY + self.steps))
        means, weights = _values(self.network), _values(network)
        torch._foreach_lerp_(  # as torch.optim.swa_utils does; one kernel for all tensors
            [mean for mean in means if mean.is_floating_point()],
            [weight for weight in weights if weight.is_floating_point()],
            share,
        )
        for mean, weight in zip(means, weights, strict=True):
            if not mean.is_floating_point():
                mean.copy_(weight)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what the mean goes on from."""
        return {"steps": self.steps, "network": self.network.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set what `state_dict` returned."""
        self.steps = state_dict["steps"]
        self.network.load_state_dict(state_dict["network"])


def _values(network: Network) -> list[Tensor]:
    return list(network.state_dict().values())
