"""Which parameter learns, at which rate, and by which rule."""

from collections.abc import Iterable
from typing import Any

from torch.nn import Parameter
from torch.optim import Adam, AdamW, Optimizer

from geograft.config import TrainConfig
from geograft.learn.networks.network import Network
from geograft.learn.training.schedule import Schedule


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


def optimizer_of(network: Network, config: TrainConfig) -> Optimizer:
    """Return Adam or AdamW over `parameter_groups`, with torch's own defaults for everything but rates and decay."""
    groups = parameter_groups(network, config)
    return AdamW(groups) if config.optimizer == "adamw" else Adam(groups)


def set_rates(optimizer: Optimizer, schedule: Schedule, step: int) -> None:
    """Give every group of `optimizer` its learning rate of one step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(group["initial_lr"], step)


def hold_encoder(network: Network, frozen: int) -> None:
    """Let the first `frozen` stages of the encoder stand still, weights and batch-norm statistics, and no others."""
    network.frozen = frozen
    for index, stage in enumerate(network.stages):
        stage.requires_grad_(requires_grad=index >= frozen)


def _stage_rates(network: Network, config: TrainConfig) -> dict[Parameter, float]:
    if not network.trained_stages:
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
