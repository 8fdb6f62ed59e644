"""Fine-tuning: initialise a network from an earlier run, also for other bands or other classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geograft.networks.network import Network, padded_size

HEAD_PREFIXES = ("body.head.", "body.coarse.")
"""Prefixes of the names of the tensors that depend on the classes."""


@dataclass(frozen=True)
class Signature:
    """The bands and classes of a network, in order."""

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    overlapping: bool = False
    """Whether classes overlap: each has its own sigmoid."""


def transfer_weights(
    network: Network, state: Mapping[str, Tensor], source: Signature, target: Signature
) -> tuple[str, ...]:
    """Load the weights `state` of a network with other bands or classes into `network`; describe what is new.

    Bands are matched as by `match_bands`. If the classes differ, the head keeps its random weights. Returns a phrase
    per change: "head new", "band nir new (zero weights)".

    Raises:
        ValueError: if `state` is from another architecture; `network` is then unchanged.
    """
    own = network.state_dict()
    stems = input_conv_weights(network, len(target.bands))
    new_head = (source.classes, source.overlapping) != (target.classes, target.overlapping)
    fitted = {}
    for key in (key for key in own if not (new_head and key.startswith(HEAD_PREFIXES))):
        given = state.get(key)
        if given is not None and key in stems:
            given = adapt_first_conv(given, source.bands, target.bands)
        if given is None or given.shape != own[key].shape:
            raise ValueError(f"it needs {key} {tuple(own[key].shape)}, found {_shape(state.get(key))}")
        fitted[key] = given
    network.load_state_dict(fitted, strict=False)
    return *describe_band_changes(source.bands, target.bands), *(["head new"] if new_head else [])


def match_bands(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """Return the index in `source` of each band of `target`, None if missing.

    Bands match by name, or by position if the numbers are equal and no name occurs in both.
    """
    if len(source) == len(target) and not set(source) & set(target):
        return list(range(len(target)))
    return [source.index(band) if band in source else None for band in target]


def has_new_bands(source: Sequence[str], target: Sequence[str]) -> bool:
    """Return whether `target` has a band without filters in `source`."""
    return None in match_bands(source, target)


def describe_band_changes(source: Sequence[str], target: Sequence[str]) -> list[str]:
    """Return a phrase for each band that is added or dropped."""
    matches = match_bands(source, target)
    if set(matches) == {None}:
        return [f"mean filter of {len(source)} bands used for {len(target)} new bands"]
    added = [f"{_named(band)} new (zero weights)" for band, i in zip(target, matches, strict=True) if i is None]
    return [*added, *(f"{_named(band)} dropped" for i, band in enumerate(source) if i not in matches)]


def adapt_first_conv(
    weight: Float[Tensor, "out old h w"], source: Sequence[str], target: Sequence[str]
) -> Float[Tensor, "out new h w"]:
    """Return the filters of a first convolution for the bands `target`, from those for the bands `source`.

    A new band gets zero weights, so that the network's output does not change at first. If no band matches, each gets
    the mean filter, scaled to preserve the sum over the bands.

    Raises:
        ValueError: if the convolution does not have one channel per band.
    """
    if weight.shape[1] != len(source):
        raise ValueError(f"its first convolution has {weight.shape[1]} channels for {len(source)} bands")
    matches = match_bands(source, target)
    if set(matches) == {None}:
        mean = weight.mean(dim=1, keepdim=True) * (len(source) / len(target))
        return mean.expand(-1, len(target), -1, -1).clone()
    zero = torch.zeros_like(weight[:, 0])
    return torch.stack([zero if i is None else weight[:, i] for i in matches], dim=1)


def input_conv_weights(network: Network, bands: int) -> set[str]:
    """Return the names of the weights of all convolutions whose input is the image. Costs one small forward pass."""
    edge = padded_size(1, network.body.stride)
    image = torch.zeros(1, bands, edge, edge)
    names: set[str] = set()
    training = network.training
    hooks = [
        module.register_forward_pre_hook(
            lambda _module, given, name=name: names.add(f"{name}.weight") if given[0] is image else None
        )
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return names


def _named(band: str) -> str:
    return band if band.startswith("band ") else f"band {band}"


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)}"
