"""Build networks from settings or from the weights of an earlier run, also for other bands or classes (fine-tuning)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from geograft.config import ModelConfig
from geograft.errors import SettingError
from geograft.losses.segmentation import Logits, MultiScaleLogits
from geograft.networks.bodies import LightUNet, LinearClassifier, TransferUNet, UNet
from geograft.networks.encoder import build_encoder, set_checkpointing
from geograft.networks.pyramid import build_pyramid
from geograft.networks.weights import (
    RANDOM,
    InputScaling,
    WeightsOrigin,
    pretrained_bands,
    pretrained_network,
    random_network,
    uninitialised_network,
)

MIN_CELLS = 2

Body: TypeAlias = UNet | TransferUNet | LightUNet | LinearClassifier
"""Network for images whose sides are multiples of `stride`. `stages` are its encoder, whose `maps` have `strides`."""


class Network(nn.Module):
    """A U-Net for images of any size, with the origin of its encoder's weights.

    Attributes:
        body: the U-Net itself, for heights and widths that are multiples of `body.stride`.
        frozen: number of frozen encoder stages, from the image downwards: no gradient, fixed batch norm statistics.
        pretrained_encoder: whether the encoder is pretrained.
        weights_from: description of the origin of its weights.
        input_scaling: scaling of the images in pretraining; None without pretraining.
        start_fraction: fraction of its present weights in those that a training validates and saves.
    """

    def __init__(self, body: Body, origin: WeightsOrigin = RANDOM, frozen: int = 0, trained: bool = False) -> None:
        super().__init__()
        self.body = body
        self.frozen = frozen
        self.pretrained_encoder = trained
        self.weights_from = origin.description
        self.input_scaling: InputScaling | None = origin.scaling
        self.start_fraction = 0.0
        for stage in self.stages[:frozen]:
            stage.requires_grad_(requires_grad=False)

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder's stages, from the image downwards."""
        return self.body.stages

    def train(self, mode: bool = True) -> "Network":
        """Set training mode, except for the frozen stages: their batch norm keeps its statistics."""
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.eval()
        return self

    def set_deep_supervision(self, enabled: bool) -> None:
        """Switch auxiliary outputs in training on or off, if the network has them: LightUNet does."""
        if isinstance(self.body, LightUNet):
            self.body.deep_supervision = enabled

    def set_checkpointing(self, enabled: bool) -> bool:
        """Switch activation checkpointing of the encoder on or off; return whether it can save memory."""
        return set_checkpointing(self.stages, enabled)

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Logits | MultiScaleLogits:
        """Return the logits of every pixel. The image is padded to the body's stride, and the logits are cropped back.

        In training mode with deep supervision, also the auxiliary logits.
        """
        height, width = image.shape[2:]
        result: Logits | MultiScaleLogits = self.body(pad_to_multiple(image, self.body.stride))
        if not isinstance(result, tuple):
            return result[..., :height, :width]
        logits, auxiliary = result
        cropped = {n: each[..., : -(-height // n), : -(-width // n)] for n, each in auxiliary.items()}
        return logits[..., :height, :width], cropped


FROZEN_STAGES = 2
"""Stages that are frozen where `frozen_stages` is auto and the weights fit the bands."""


def build(model: ModelConfig, bands: int, outputs: int, pretrained: bool = True) -> Network:
    """Return the network that `model` describes, for images of `bands` bands and `outputs` logits per pixel.

    Layers without pretrained weights use PyTorch's default initialisation and torch's global random generator, as in
    the article. With `pretrained=False`, or if `model` starts from a run, no weights are loaded: the network has its
    final shape and frozen stages, and a run's weights can be loaded into it.

    Raises:
        SettingError: for an encoder that timm does not have or that cannot be used as one, or too many frozen stages.
        WeightsError: if the weights cannot be downloaded or read, or do not match.
    """
    trained = bool(model.start) or (model.architecture != "unet" and model.weights != "none")
    builders = {"light": _light, "linear": _linear, "transfer": _transfer, "unet": _unet}
    body, origin = builders[model.architecture](model, bands, outputs, pretrained and not model.start)
    if isinstance(body, LinearClassifier):
        return Network(body, origin, len(body.stages), trained)
    frozen = frozen_stages(model, bands, len(body.stages)) if trained else 0
    if frozen > len(body.stages):
        stages = f"{model.encoder if model.architecture != 'unet' else 'unet'} has {len(body.stages)} stages"
        raise SettingError(f"frozen_stages = {frozen}: {stages}. Use at most {len(body.stages)}.")
    return Network(body, origin, frozen, trained)


def frozen_stages(model: ModelConfig, bands: int, stages: int) -> int:
    """Return how many of an encoder's `stages` are frozen in training, if it has weights to begin with.

    With auto, filters that are repeated and scaled for another number of bands are trained, and all that follows them.

    Raises:
        WeightsError: with auto, if the file of the encoder's weights cannot be read.
    """
    if model.frozen_stages != "auto":
        return model.frozen_stages
    fits = model.start or model.architecture == "unet"
    own_bands = bands if fits else pretrained_bands(model.encoder, model.weights)
    return min(FROZEN_STAGES, stages) if own_bands in (None, bands) else 0


def _unet(_model: ModelConfig, bands: int, outputs: int, _pretrained: bool) -> tuple[Body, WeightsOrigin]:
    return UNet(bands, outputs), RANDOM


def _light(model: ModelConfig, bands: int, outputs: int, pretrained: bool) -> tuple[Body, WeightsOrigin]:
    encoder, origin = build_pyramid(model.encoder, bands, model.weights, pretrained)
    return LightUNet(encoder, bands, outputs), origin


def _linear(model: ModelConfig, bands: int, outputs: int, pretrained: bool) -> tuple[Body, WeightsOrigin]:
    encoder, origin = build_pyramid(model.encoder, bands, model.weights, pretrained)
    return LinearClassifier(encoder, bands, outputs), origin


def _transfer(model: ModelConfig, bands: int, outputs: int, pretrained: bool) -> tuple[Body, WeightsOrigin]:
    if model.weights == "none":
        network, origin = random_network(model.encoder, bands)
    elif pretrained:
        network, origin = pretrained_network(model.encoder, bands, model.weights)
    else:
        network, origin = uninitialised_network(model.encoder, bands, model.weights)
    return TransferUNet(build_encoder(network, model.encoder, bands), outputs), origin


def pad_to_multiple(image: Float[Tensor, "n c h w"], multiple: int) -> Float[Tensor, "n c h2 w2"]:
    """Return `image` padded at the bottom and right, so that both sides have `padded_size`.

    Padding is by reflection if the image is large enough, else by repeating its edge.
    """
    height, width = image.shape[2:]
    below, right = padded_size(height, multiple) - height, padded_size(width, multiple) - width
    image = pad(image, (0, 0, 0, below), mode="reflect" if below < height else "replicate") if below else image
    return pad(image, (0, right, 0, 0), mode="reflect" if right < width else "replicate") if right else image


def padded_size(size: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `size` and at least 2 x `multiple`.

    Two, because batch norm cannot train on a single value per channel, as a deepest map of one pixel would have.
    """
    return max(math.ceil(size / multiple), MIN_CELLS) * multiple


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
