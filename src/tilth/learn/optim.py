"""Which parameter learns at which rate, and how the rates fall."""

from typing import Any

from torch.optim import Adam, Optimizer

from tilth.learn.networks import Network


def parameter_groups(network: Network, encoder_lr: float, decoder_lr: float) -> list[dict[str, Any]]:
    """Return Adam's groups: every trainable parameter of `network` in exactly one, frozen ones in none.

    Encoder stages that are pretrained learn at `encoder_lr`. Everything else learns at `decoder_lr`, and so does an
    encoder that starts from random values.
    """
    pretrained = set(network.stages.parameters()) if network.trained_stages else set()
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = (
        {"name": "encoder", "params": [p for p in trainable if p in pretrained], "lr": encoder_lr},
        {"name": "decoder", "params": [p for p in trainable if p not in pretrained], "lr": decoder_lr},
    )
    return [group for group in groups if group["params"]]


def adam(network: Network, encoder_lr: float, decoder_lr: float) -> Adam:
    """Return Adam over `parameter_groups`, with torch's own defaults for everything but the rates."""
    return Adam(parameter_groups(network, encoder_lr, decoder_lr))


def decay(optimizer: Optimizer, factor: float) -> None:
    """Multiply every learning rate of `optimizer` by `factor`. Once after each epoch, this is torch's ExponentialLR.

    That class itself keeps a count of steps, and warns where a run goes on at the very end of an epoch.
    """
    for group in optimizer.param_groups:
        group["lr"] *= factor
