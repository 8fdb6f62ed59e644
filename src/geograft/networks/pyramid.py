"""Pyramids: all feature maps that timm lists for a network, from fine to coarse, over stages that can be frozen."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from geograft.errors import SettingError
from geograft.networks.encoder import FAILURES, chain, first_line, probed, strides_of
from geograft.networks.weights import Origin, pretrained_network, random_network, unfilled_network


class Pyramid(nn.Module):
    """Stages one after another whose maps grow coarser: each stage's last map is the next one's input.

    Attributes:
        stages: the stages, from the image downwards; every parameter is in exactly one. A network that is a chain has
            one for each map; any other (HRNet) is a single stage that puts out all maps.
        widths: the channels of each map, from fine to coarse.
        strides: pixels of the image under one pixel of each map, along an edge: 2, 4, 8, 16, 32 for most networks.
    """

    def __init__(self, stages: Sequence[nn.Module], bands: int) -> None:
        """Take `stages`, and read widths and strides from what they make of one small image.

        Raises:
            ValueError: when what they put out are no feature maps, or not each is coarser than the one before.
        """
        super().__init__()
        self.stages = nn.ModuleList(stages)
        maps = probed(self, bands)
        self.strides = strides_of(maps)
        self.widths = tuple(each.shape[1] for each in maps)
        if len(maps) < 2 or any(fine >= coarse for fine, coarse in pairwise(self.strides)):
            raise ValueError(f"its maps have the strides {', '.join(map(str, self.strides))}, no pyramid")

    def forward(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the maps of all stages, from fine to coarse; height and width are multiples of the last stride."""
        maps: list[Tensor] = []
        for stage in self.stages:
            made = stage(maps[-1] if maps else image)
            maps += [made] if isinstance(made, Tensor) else made
        return maps


def pyramid(name: str, bands: int, weights: str, pretrained: bool = True) -> tuple[Pyramid, Origin]:
    """Return timm's network `name` as a pyramid for images of `bands` bands, and where its weights came from.

    `weights` is hub, package, none (random) or the path of a file, whose names are those of timm's classifier or of
    its features_only network. With `pretrained=False` no weights are looked up: ready for a run's own. Costs three
    predictions of a small image.

    Raises:
        SettingError: for a network that timm does not have, that has no pyramid of maps, or not for so many bands.
        WeightsError: when the weights cannot be had, read or fitted.
    """
    if weights == "none":
        network, origin = random_network(name, bands, features=True)
    elif pretrained:
        network, origin = pretrained_network(name, bands, weights, features=True)
    else:
        network, origin = unfilled_network(name, bands, weights, features=True)
    return pyramid_of(network, name, bands), origin


def pyramid_of(network: nn.Module, name: str, bands: int) -> Pyramid:
    """Return timm's features_only `network` called `name` as a pyramid, sharing its weights.

    It is split where that changes no bit of a small image's maps, and stays one stage otherwise.

    Raises:
        SettingError: when its maps are no pyramid.
    """
    try:
        whole = Pyramid([network], bands)
        split = _split(network, bands)
        alike = split is not None and _same(probed(split, bands), probed(whole, bands))
    except FAILURES as error:
        raise SettingError(_no_pyramid(name, first_line(error))) from error
    return split if split is not None and alike else whole


def _split(network: nn.Module, bands: int) -> Pyramid | None:
    info: Any = network.feature_info
    listed = info.module_name()
    modules = [(key.replace(".", "_"), module) for key, module in chain(network, listed)]
    names = [key for key, _ in modules]
    cuts = [each.replace(".", "_") for each in listed]
    if any(cut not in names for cut in cuts):
        return None
    ends = [0, *(names.index(cut) + 1 for cut in cuts)]
    try:
        return Pyramid([nn.Sequential(OrderedDict(modules[start:end])) for start, end in pairwise(ends)], bands)
    except FAILURES:  # its modules do more than run one after another
        return None


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _no_pyramid(name: str, reason: str) -> str:
    others = "tf_efficientnet_b0, resnet18, convnext_tiny, ..."
    return f"encoder = {name!r} has no feature maps of several strides for images of any size ({reason}). Take {others}"
