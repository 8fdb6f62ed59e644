"""Encoders: the first stages of timm's convolutional networks, with widths and strides read from the network itself."""

import difflib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from torch import Tensor, nn

from geograft.errors import SettingError

DEPTH = 5
"""Stages taken from a network, at most."""

PROBE_PX = 128

FAILURES = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What timm's networks raise that cannot be built or run as they are asked to."""


class Encoder(nn.Module):
    """Stages one after another: each stage's output is the next one's input and a skip of the decoder.

    Attributes:
        stages: the stages, from the image downwards.
        widths: the channels of each stage's output.
        strides: pixels of the image under one pixel of each stage's output, along an edge.
    """

    def __init__(self, stages: Sequence[nn.Module], bands: int) -> None:
        """Take `stages`, and read their widths and strides from what they make of one small image.

        Raises:
            ValueError: when a stage's output is no feature map, or strides do not divide the image and one another.
        """
        super().__init__()
        self.stages = nn.ModuleList(stages)
        maps = probed(self, bands)
        self.widths = tuple(each.shape[1] for each in maps)
        self.strides = strides_of(maps)

    def forward(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the feature maps of all stages, from the image downwards."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


def check_name(name: str) -> None:
    """Raise SettingError when timm knows no network `name`; the message suggests close names."""
    if not timm.is_model(name):
        raise SettingError(f"encoder = {name!r}: timm has no network of that name.{_suggestion(name)}")


def classifier(name: str, bands: int, features: bool = False) -> nn.Module:
    """Return timm's whole network `name` for images of `bands` bands, with random weights.

    With `features` it puts out all feature maps that timm lists for it, from fine to coarse, and has no head.

    Raises:
        SettingError: when timm knows no such network, or it cannot take so many bands, or it has no such maps.
    """
    check_name(name)
    try:
        network: nn.Module = timm.create_model(name, in_chans=bands, **features_only(features))
    except FAILURES as error:
        raise SettingError(f"encoder = {name!r} for {bands} bands cannot be built: {first_line(error)}.") from error
    return network


def features_only(wanted: bool) -> dict[str, Any]:
    """Return the option that makes timm's networks put out feature maps; some take none, even when it is off."""
    return {"features_only": True} if wanted else {}


def encoder_of(network: nn.Module, name: str, bands: int) -> Encoder:
    """Return the first stages of timm's `network` called `name`, sharing its weights.

    Checked on one small image: the stages put out the maps that arise inside the network. Costs three predictions.

    Raises:
        SettingError: when the network has no feature maps, or is not a chain of stages.
    """
    stages = stage_modules(network, name)
    parts = [nn.Sequential(OrderedDict((key.replace(".", "_"), module) for key, module in stage)) for stage in stages]
    try:
        encoder = Encoder(parts, bands)
        inside = _maps_inside(network, [stage[-1][1] for stage in stages], bands)
        alike = all(map(torch.allclose, probed(encoder, bands), inside)) and len(inside) == len(stages)
    except FAILURES as error:
        raise SettingError(_not_an_encoder(name, first_line(error))) from error
    if not alike:
        raise SettingError(_not_an_encoder(name, "its stages do more than run one after another"))
    return encoder


def stage_modules(network: nn.Module, name: str) -> list[list[tuple[str, nn.Module]]]:
    """Return the named modules of each of a network's first stages, in the order in which they run.

    EfficientNet and its kin: the stem, then the first four blocks (strides 2, 2, 4, 8, 16 for B0). Any other
    network: cut after each of the first five feature maps that timm lists for it.

    Raises:
        SettingError: when the network has no feature maps, or they lie too deep inside it to cut there.
    """
    cuts = _block_cuts(network) if isinstance(network, (EfficientNet, MobileNetV3)) else _listed_cuts(network)
    modules = list(chain(network, cuts))
    names = [key for key, _ in modules]
    if not cuts or any(cut not in names for cut in cuts):
        raise SettingError(_not_an_encoder(name, "it has no feature maps, or they lie inside other modules"))
    ends = [names.index(cut) + 1 for cut in cuts]
    return [modules[start:end] for start, end in pairwise([0, *ends])]


def probed(network: nn.Module, bands: int) -> Any:
    """Return what `network` puts out for one image of 128 x 128 pixels, changing nothing in it."""
    # A ramp: maps of a blank image can agree by chance, and random numbers belong to the initial weights.
    image = torch.linspace(-1, 1, bands * PROBE_PX**2).reshape(1, bands, PROBE_PX, PROBE_PX)
    with _still(network), torch.no_grad():
        return network(image)


def strides_of(maps: Sequence[Tensor]) -> tuple[int, ...]:
    """Return the strides of feature maps of the probe's image.

    Raises:
        ValueError: when one of them is no feature map, or strides do not divide the image and one another.
    """
    if not all(isinstance(each, Tensor) and each.ndim == 4 for each in maps):
        raise ValueError("what its stages put out are no feature maps")
    sizes = [tuple(each.shape[2:]) for each in maps]
    strides = tuple(PROBE_PX // max(1, width) for _, width in sizes)
    even = all(deeper % stride == 0 for stride, deeper in pairwise(strides))
    if not even or sizes != [(PROBE_PX // stride, PROBE_PX // stride) for stride in strides]:
        raise ValueError(f"from {PROBE_PX} pixels its stages make {sizes}, and each must divide the one before")
    return strides


def chain(network: nn.Module, cuts: Sequence[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the network's named modules in order, with the containers opened in which `cuts` lie."""
    # A cut such as stages.1 lies in the container `stages`: such containers are opened, everything else stays whole.
    opened = {cut.rpartition(".")[0] for cut in cuts}
    for key, module in network.named_children():
        if key in opened and isinstance(module, nn.Sequential):
            yield from ((f"{key}.{inner}", child) for inner, child in module.named_children())
        else:
            yield key, module


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _block_cuts(network: nn.Module) -> list[str]:
    names = [key for key, _ in network.named_children()]
    stem = names[names.index("blocks") - 1]
    blocks = [key for key, _ in network.get_submodule("blocks").named_children()]
    return [stem, *(f"blocks.{key}" for key in blocks[: DEPTH - 1])]


def _listed_cuts(network: nn.Module) -> list[str]:
    listed = list(getattr(network, "feature_info", ()))
    return [info["module"] for info in listed[:DEPTH]]


def _maps_inside(network: nn.Module, modules: Sequence[nn.Module], bands: int) -> list[Tensor]:
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _given: tuple[Tensor, ...], output: Tensor) -> None:
        maps.append(output.clone())  # a later activation may work in place

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        probed(network, bands)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


@contextmanager
def _still(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _not_an_encoder(name: str, reason: str) -> str:
    return f"encoder = {name!r} cannot be one ({reason}). Take a convolutional network: efficientnet_b0, resnet18, ..."


def _suggestion(name: str) -> str:
    known = timm.list_models()
    close = difflib.get_close_matches(name, known, n=3) or [each for each in known if name.lower() in each][:3]
    return f" Close: {', '.join(close)}." if close else " timm.list_models() lists them all."
