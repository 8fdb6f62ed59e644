"""Build networks from settings, load their weights, freeze their first stages, and pad images to their stride."""

import math
from typing import TypeAlias

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
    frozen = model.frozen_stages if trained else 0
    if isinstance(body, LinearClassifier):
        return Network(body, origin, len(body.stages), trained)
    if frozen > len(body.stages):
        stages = f"{model.encoder if model.architecture != 'unet' else 'unet'} has {len(body.stages)} stages"
        raise SettingError(f"frozen_stages = {frozen}: {stages}. Use at most {len(body.stages)}.")
    return Network(body, origin, frozen, trained)


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
