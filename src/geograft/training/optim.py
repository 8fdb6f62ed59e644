"""Optimization: parameter groups, learning-rate schedule, frozen stages, and averages of the weights."""

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from geograft.config import TrainConfig
from geograft.networks.network import Network


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the optimizer step, counted from 0 over the whole run.

    Stateless, so that a resumed run needs the step alone.
    """

    config: TrainConfig
    epoch_steps: int
    """Optimizer steps per epoch."""

    def learning_rate(self, base_lr: float, step: int) -> float:
        """Return the learning rate at `step` of a parameter group whose rate after warm-up is `base_lr`."""
        if self.config.schedule == "exponential":
            base_lr = _exponential_decay(base_lr, self.config.lr_decay, step // self.epoch_steps)
        if self.config.schedule == "cosine":
            base_lr *= 0.5 * (1 + math.cos(math.pi * self._progress(step)))
        return base_lr * self._warmup_factor(step)

    @property
    def _warmup_steps(self) -> float:
        return self.config.warmup_epochs * self.epoch_steps

    def _warmup_factor(self, step: int) -> float:
        """Return the factor of linear warm-up, which is above 0 at the first step."""
        return min(1.0, (step + 1) / self._warmup_steps) if self._warmup_steps else 1.0

    def _progress(self, step: int) -> float:
        """Return the fraction, 0 to 1, of the steps after warm-up that come before `step`."""
        rest = self.config.epochs * self.epoch_steps - self._warmup_steps
        return min(1.0, max(0.0, step - self._warmup_steps) / rest) if rest > 0 else 0.0


def _exponential_decay(base_lr: float, factor: float, epochs: int) -> float:
    # Repeated products, as in torch's ExponentialLR: a power differs in the last bit.
    for _ in range(epochs):
        base_lr *= factor
    return base_lr


def parameter_groups(network: Network, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: each trainable parameter of `network` in exactly one of them.

    A group has a name, its parameters, their learning rate `initial_lr` after warm-up, and their `weight_decay`. Stage
    i of n pretrained encoder stages has the rate encoder_lr * layer_decay ** (n - 1 - i). All other parameters, and
    those of an encoder without pretrained weights, have decoder_lr; their groups come last.
    """
    rates = _stage_rates(network, config)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    encoder = _grouped("encoder", [p for p in trainable if p in rates], rates, config)
    return encoder + _grouped("decoder", [p for p in trainable if p not in rates], rates, config)


def build_optimizer(network: Network, config: TrainConfig, fused: bool = False) -> Optimizer:
    """Return Adam or AdamW over `parameter_groups`, with torch's defaults but for learning rates and weight decay.

    `fused` updates all parameters in one kernel, which rounds otherwise: for GPUs, where many small kernels cost time,
    and it leaves them as they are if its attribute `found_inf`, a tensor, is 1.
    """
    groups = parameter_groups(network, config)
    return AdamW(groups, fused=fused or None) if config.optimizer == "adamw" else Adam(groups, fused=fused or None)


def has_matching_shapes(optimizer: Optimizer) -> bool:
    """Return whether the tensors in the state of `optimizer` have the shapes of their parameters, which torch assumes.

    Numbers, such as the step, have no shape.
    """
    return all(
        not isinstance(value, Tensor) or value.ndim == 0 or value.shape == parameter.shape
        for parameter, state in optimizer.state.items()
        for value in state.values()
    )


def set_learning_rates(optimizer: Optimizer, schedule: Schedule, step: int) -> None:
    """Set the learning rate of each parameter group of `optimizer` for one step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate(group["initial_lr"], step)


def freeze_encoder(network: Network, frozen: int) -> None:
    """Freeze the first `frozen` stages of the encoder, weights and batch-norm statistics, and unfreeze the others."""
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
        # No weight decay for biases and norm parameters, which are vectors.
        decay = config.weight_decay if config.optimizer == "adamw" and parameter.ndim > 1 else 0.0
        groups.setdefault((rates.get(parameter, config.decoder_lr), decay), []).append(parameter)
    return [
        {"name": name, "params": params, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), params in groups.items()
    ]


EMA_WARMUP = 10
"""Constant of the EMA's warm-up: the decay at step n is at most (1 + n) / (EMA_WARMUP + n)."""


class ModelEMA(AveragedModel):
    """Exponential moving average (EMA) of a network's weights and batch-norm statistics.

    `module` is a copy of the network that holds the average, in evaluation mode, on the same device. The decay at step
    n is min(decay, (1 + n) / (EMA_WARMUP + n)), so that the initial weights are soon forgotten; integer buffers are
    copied. Source: B. T. Polyak and A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), in
    the exponential form of TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def __init__(self, network: Network, decay: float) -> None:
        super().__init__(network, use_buffers=True)
        self._decay = decay
        self.requires_grad_(requires_grad=False).eval()
        # The initial weights count as the first average; from 0, torch would replace them by those of the first step.
        self.n_averaged.fill_(1)

    @property
    def network(self) -> Network:
        """The network that holds the average."""
        return cast("Network", self.module)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the values of `model`, the network, to the average.

        Torch's own method copies the number of updates to the device at each of them, and so waits for it.
        """
        step = int(self.n_averaged) - 1
        weight = 1 - min(self._decay, (1 + step) / (EMA_WARMUP + step))
        for averages, values in _group_by_dtype(self.module, model):
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, values, weight)
            else:
                torch._foreach_copy_(averages, values)
        self.n_averaged += 1


def _group_by_dtype(module: nn.Module, other: nn.Module) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return the parameters and buffers of two equal modules, those of one dtype together."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    tensors = (chain(each.parameters(), each.buffers()) for each in (module, other))
    for one, another in zip(*tensors, strict=True):
        own, theirs = groups.setdefault(one.dtype, ([], []))
        own.append(one.detach())
        theirs.append(another.detach())
    return list(groups.values())


@dataclass(frozen=True)
class StartAverage:
    """Average of the weights that a training started from and of its present ones.

    It keeps more of what the first could do than the second does. Source: M. Wortsman et al., "Robust Fine-Tuning of
    Zero-Shot Models", CVPR 2022 (arXiv:2109.01903), section 3. Batch-norm statistics are averaged as well; integer
    buffers are the present ones.
    """

    start: Network
    """A copy of the network before the training."""
    fraction: float
    """Weight of `start` in the average."""

    def of(self, network: Network) -> Network:
        """Return a copy of `network` with averaged weights, in evaluation mode."""
        averaged = deepcopy(network).eval()
        before = self.start.state_dict()
        with torch.no_grad():
            for name, value in averaged.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(before[name].to(value), self.fraction)
        return averaged
