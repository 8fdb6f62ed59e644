"""Fine-tuning: a network that begins with the weights of an earlier run, on other bands or other classes too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geograft.networks.network import Network, padded_px

HEAD = ("body.head.", "body.coarse.")
"""What the names of the tensors begin with that put the classes out."""


@dataclass(frozen=True)
class Ends:
    """What goes into a network and what comes out of it, by name and in order."""

    bands: tuple[str, ...]
    classes: tuple[str, ...]
    overlapping: bool = False
    """Whether each class has a yes or no of its own."""


def start_from(network: Network, state: Mapping[str, Tensor], before: Ends, now: Ends) -> tuple[str, ...]:
    """Fill `network` from the weights `state` of one that differs in bands and classes alone; return what is new.

    That is a phrase each: "head new", "band nir new, from zero". Bands are matched by name, as `sources` says. With
    other classes the head keeps its random numbers.

    Raises:
        ValueError: when `state` is of another network; nothing was changed then.
    """
    own = network.state_dict()
    stems = input_weights(network, len(now.bands))
    new_head = (before.classes, before.overlapping) != (now.classes, now.overlapping)
    fitted = {}
    for key in (key for key in own if not (new_head and key.startswith(HEAD))):
        given = state.get(key)
        if given is not None and key in stems:
            given = with_bands(given, before.bands, now.bands)
        if given is None or given.shape != own[key].shape:
            raise ValueError(f"{key} {tuple(own[key].shape)} is needed, and it has {_shape(state.get(key))}")
        fitted[key] = given
    network.load_state_dict(fitted, strict=False)
    return *new_bands(before.bands, now.bands), *(["head new"] if new_head else [])


def sources(before: Sequence[str], now: Sequence[str]) -> list[int | None]:
    """Return which of the bands `before` each band of `now` is: by name; or by place, for as many and no name known."""
    if len(before) == len(now) and not set(before) & set(now):
        return list(range(len(now)))
    return [before.index(band) if band in before else None for band in now]


def learns_bands(before: Sequence[str], now: Sequence[str]) -> bool:
    """Return whether a band of `now` has no filters of its own from the bands `before`."""
    return None in sources(before, now)


def new_bands(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Return a phrase for each band that comes or goes."""
    found = sources(before, now)
    if set(found) == {None}:
        return [f"filters of {len(before)} bands shared out among {len(now)}"]
    added = [f"{_named(band)} new, from zero" for band, source in zip(now, found, strict=True) if source is None]
    return [*added, *(f"{_named(band)} gone" for i, band in enumerate(before) if i not in found)]


def with_bands(
    weight: Float[Tensor, "out old h w"], before: Sequence[str], now: Sequence[str]
) -> Float[Tensor, "out new h w"]:
    """Return the filters of a first convolution for the bands `now`, from those for the bands `before`.

    A new band begins at zero: the network computes at first what it computed without it. Where no band is known, each
    gets the mean filter, scaled so that the sum over the bands stays.

    Raises:
        ValueError: when the convolution does not take a channel for each band.
    """
    if weight.shape[1] != len(before):
        raise ValueError(f"its first convolution takes {weight.shape[1]} channels for {len(before)} bands")
    found = sources(before, now)
    if set(found) == {None}:
        mean = weight.mean(dim=1, keepdim=True) * (len(before) / len(now))
        return mean.expand(-1, len(now), -1, -1).clone()
    zero = torch.zeros_like(weight[:, 0])
    return torch.stack([zero if source is None else weight[:, source] for source in found], dim=1)


def input_weights(network: Network, bands: int) -> set[str]:
    """Return the names of the weights of all convolutions that see the image itself. Costs one small prediction."""
    edge = padded_px(1, network.body.stride)
    image = torch.zeros(1, bands, edge, edge)
    found: set[str] = set()
    training = network.training
    hooks = [
        module.register_forward_pre_hook(
            lambda _module, given, name=name: found.add(f"{name}.weight") if given[0] is image else None
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
    return found


def _named(band: str) -> str:
    return band if band.startswith("band ") else f"band {band}"


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else f"{tuple(tensor.shape)}"
