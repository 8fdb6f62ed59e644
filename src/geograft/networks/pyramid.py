"""Feature pyramids: all feature maps that timm lists for a network, from fine to coarse, in freezable stages.

Plain vision transformers have maps of one stride, the size of their patches. They get a simple feature pyramid.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from geograft.errors import SettingError, first_line
from geograft.networks.encoder import BUILD_ERRORS, is_plain_vit, iter_modules, probe, run_stage, strides_of
from geograft.networks.weights import WeightsOrigin, pretrained_network, random_network, uninitialised_network


class Pyramid(nn.Module):
    """A chain of stages with ever coarser feature maps: the last map of a stage is the input of the next.

    Attributes:
        pyramid: module that makes the maps from those of the stages; by default they are the maps.
        stages: the stages, from the image downwards; every parameter is in exactly one. A network that is a chain has
            one stage per map; any other (HRNet) is a single stage that returns all maps.
        widths: the channels of each map, from fine to coarse.
        strides: downsampling factor of each map relative to the image: 2, 4, 8, 16, 32 for most networks.
    """

    def __init__(self, stages: Sequence[nn.Module], bands: int, pyramid: nn.Module | None = None) -> None:
        """Take `stages` and `pyramid`, and measure widths and strides of their maps on one small image.

        Raises:
            ValueError: if the outputs are not feature maps, or a map is not coarser than the one before.
        """
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.pyramid = pyramid or nn.Identity()
        maps = probe(self, bands)
        self.strides = strides_of(maps)
        self.widths = tuple(each.shape[1] for each in maps)
        if len(maps) < 2 or any(fine >= coarse for fine, coarse in pairwise(self.strides)):
            raise ValueError(f"its maps have strides {', '.join(map(str, self.strides))}, which form no pyramid")

    def forward(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the maps of all stages, from fine to coarse; height and width are multiples of the last stride."""
        maps: list[Tensor] = []
        for stage in self.stages:
            output = run_stage(stage, maps[-1] if maps else image)
            maps += [output] if isinstance(output, Tensor) else output
        made: list[Tensor] = self.pyramid(maps)
        return made


class SimpleFeaturePyramid(nn.Module):
    """Four maps from the last map of a vision transformer, of a quarter, half, once and twice its stride.

    The finer ones are transposed convolutions, the coarsest is max pooling. Source: Y. Li et al., "Exploring Plain
    Vision Transformer Backbones for Object Detection" (ECCV 2022), section 3; without its convolutions of each map to a
    common width, because the decoder has its own.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.finer = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
        self.finest = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2),
            nn.GroupNorm(1, width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, kernel_size=2, stride=2),
        )

    def forward(self, maps: list[Float[Tensor, "n c h w"]]) -> list[Tensor]:
        """Return the pyramid, from fine to coarse."""
        last = maps[-1]
        return [self.finest(last), self.finer(last), last, max_pool2d(last, 2)]


def build_pyramid(name: str, bands: int, weights: str, pretrained: bool = True) -> tuple[Pyramid, WeightsOrigin]:
    """Return timm's network `name` as a pyramid for images of `bands` bands, and the origin of its weights.

    `weights` is hub, package, none (random) or the path of a file with the tensor names of timm's classifier or of its
    features_only network. With `pretrained=False` no weights are loaded; a run's own weights can be. Costs three
    forward passes of a small image.

    Raises:
        SettingError: for a network that timm does not have, without a pyramid of maps, or not for this number of bands.
        WeightsError: if the weights cannot be downloaded or read, or do not match.
    """
    if weights == "none":
        network, origin = random_network(name, bands, features=True)
    elif pretrained:
        network, origin = pretrained_network(name, bands, weights, features=True)
    else:
        network, origin = uninitialised_network(name, bands, weights, features=True)
    return pyramid_from_network(network, name, bands), origin


def pyramid_from_network(network: nn.Module, name: str, bands: int) -> Pyramid:
    """Return timm's features_only `network` called `name` as a pyramid that shares its weights.

    It is split into stages if these give exactly the same maps for a small image, and stays one stage otherwise. A
    plain vision transformer is one stage with a simple feature pyramid.

    Raises:
        SettingError: if its maps form no pyramid.
    """
    try:
        if is_plain_vit(name):
            return Pyramid([network], bands, SimpleFeaturePyramid(_last_width(network)))
        whole = Pyramid([network], bands)
        split = _split(network, bands)
        alike = split is not None and _same(probe(split, bands), probe(whole, bands))
    except BUILD_ERRORS as error:
        raise SettingError(_no_pyramid(name, first_line(error))) from error
    return split if split is not None and alike else whole


def _last_width(network: nn.Module) -> int:
    info: Any = network.feature_info
    return int(info.channels()[-1])


def _split(network: nn.Module, bands: int) -> Pyramid | None:
    info: Any = network.feature_info
    listed = info.module_name()
    modules = [(key.replace(".", "_"), module) for key, module in iter_modules(network, listed)]
    names = [key for key, _ in modules]
    split_points = [each.replace(".", "_") for each in listed]
    if any(point not in names for point in split_points):
        return None
    ends = [0, *(names.index(point) + 1 for point in split_points)]
    try:
        return Pyramid([nn.Sequential(OrderedDict(modules[start:end])) for start, end in pairwise(ends)], bands)
    except BUILD_ERRORS:  # its modules are not a simple chain
        return None


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


def _no_pyramid(name: str, reason: str) -> str:
    others = "tf_efficientnet_b0, resnet18, convnext_tiny, ..."
    return f"encoder = {name!r} has no feature pyramid for images of any size ({reason}). Use {others}"
