"""How learning rates move over the steps of a run. Imports no torch: a rate is a function of the step alone.

Which parameter learns, at which rate, and by which rule.

The running mean of a network's weights over training, which often predicts better than the last weights.
"""

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from geograft.config import TrainConfig
from geograft.networks.network import Network


@dataclass(frozen=True)
class Schedule:
    """Learning rates by step of the optimizer, counted from 0 over the whole run.

    Without state: a run that goes on in its middle finds its rate from its step.
    """

    config: TrainConfig
    epoch_steps: int
    """Steps of the optimizer in one epoch."""

    def learning_rate(self, full: float, step: int) -> float:
        """Return the learning rate at `step` of what has the rate `full` once warm-up is over."""
        if self.config.schedule == "exponential":
            full = _exponential_decay(full, self.config.lr_decay, step // self.epoch_steps)
        if self.config.schedule == "cosine":
            full *= 0.5 * (1 + math.cos(math.pi * self._progress(step)))
        return full * self._warmup_factor(step)

    @property
    def _warm_steps(self) -> float:
        return self.config.warmup_epochs * self.epoch_steps

    def _warmup_factor(self, step: int) -> float:
        """Return the share of the full rate: it rises by the same amount with each step, and the first has some."""
        return min(1.0, (step + 1) / self._warm_steps) if self._warm_steps else 1.0

    def _progress(self, step: int) -> float:
        """Return the share of the steps after warm-up that lie behind `step`: 0 to 1."""
        rest = self.config.epochs * self.epoch_steps - self._warm_steps
        return min(1.0, max(0.0, step - self._warm_steps) / rest) if rest > 0 else 0.0


def _exponential_decay(full: float, factor: float, times: int) -> float:
    # One product after another, as torch's ExponentialLR has it: a power differs in the last bit.
    for _ in range(times):
        full *= factor
    return full


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: every trainable parameter of `network` in exactly one, frozen ones in none.

    A group has a name, its parameters, their full rate `initial_lr`, and their `weight_decay`. Stage i of n pretrained
    encoder stages learns at encoder_lr * layer_decay ** (n - 1 - i). Everything else learns at decoder_lr, and so does
    an encoder that starts from random values; the last group is of these, where there are any.
    """
    rates = _stage_rates(network, config)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    encoder = _grouped("encoder", [p for p in trainable if p in rates], rates, config)
    return encoder + _grouped("decoder", [p for p in trainable if p not in rates], rates, config)


def build_optimizer(network: Network, config: TrainConfig) -> Optimizer:
    """Return Adam or AdamW over `parameter_groups`, with torch's own defaults for everything but rates and decay."""
    groups = parameter_groups(network, config)
    return AdamW(groups) if config.optimizer == "adamw" else Adam(groups)


def set_learning_rates(optimizer: Optimizer, schedule: Schedule, step: int) -> None:
    """Give every group of `optimizer` its learning rate of one step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate(group["initial_lr"], step)


def freeze_encoder(network: Network, frozen: int) -> None:
    """Let the first `frozen` stages of the encoder stand still, weights and batch-norm statistics, and no others."""
    network.frozen = frozen
    for index, stage in enumerate(network.stages):
        stage.requires_grad_(requires_grad=index >= frozen)


def _stage_rates(network: Network, config: TrainConfig) -> dict[Parameter, float]:
    if not network.pretrained_encoder:
        return {}
    last = len(network.stages) - 1
    return {
        parameter: config.encoder_lr * config.layer_decay ** (last - index)
        for index, stage in enumerate(network.stages)
        for parameter in stage.parameters()
    }


def _grouped(
    name: str, parameters: Iterable[Parameter], rates: dict[Parameter, float], config: TrainConfig
) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[Parameter]] = {}
    for parameter in parameters:
        # Biases and norms are vectors; to pull them to zero would pull what they centre and scale.
        decay = config.weight_decay if config.optimizer == "adamw" and parameter.ndim > 1 else 0.0
        groups.setdefault((rates.get(parameter, config.decoder_lr), decay), []).append(parameter)
    return [
        {"name": name, "params": params, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), params in groups.items()
    ]


EMA_WARMUP = 10
"""Step n has a decay of at most (1 + n) / (EARLY + n): the first weights are forgotten, whatever the decay."""


class ModelEMA:
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
    def update(self, network: Network) -> None:
        """Move the mean towards the weights that `network` has now."""
        share = 1 - min(self.decay, (1 + self.steps) / (EMA_WARMUP + self.steps))
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
