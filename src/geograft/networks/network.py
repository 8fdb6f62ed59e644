"""Networks from settings: built, filled with weights, frozen, and ready for images of any size."""

import math
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from geograft.config import ModelConfig
from geograft.errors import SettingError
from geograft.losses.segmentation import Deep, Logits
from geograft.networks.encoder import encoder_of
from geograft.networks.light import LightUNet
from geograft.networks.pyramid import pyramid
from geograft.networks.unet import TransferUNet, UNet
from geograft.networks.weights import RANDOM, InputScaling, Origin, pretrained_network, random_network, unfilled_network

LEAST_CELLS = 2

Body: TypeAlias = UNet | TransferUNet | LightUNet
"""Takes images of whole multiples of `stride`; `stages` are its encoder, whose `maps` have the `strides`."""


class Network(nn.Module):
    """A U-Net for images of any size, with what is known of its encoder's weights.

    Attributes:
        body: the U-Net itself, for heights and widths that are multiples of `body.stride`.
        frozen: encoder stages, counted from the image, whose weights get no gradient and whose batch norm stands still.
        trained_stages: whether the encoder was trained before.
        weights_from: where its weights came from, in words.
        input_scaling: what the encoder's images were scaled with; None where it was never trained.
    """

    def __init__(self, body: Body, origin: Origin = RANDOM, frozen: int = 0, trained: bool = False) -> None:
        super().__init__()
        self.body = body
        self.frozen = frozen
        self.trained_stages = trained
        self.weights_from = origin.words
        self.input_scaling: InputScaling | None = origin.scaling
        for stage in self.stages[:frozen]:
            stage.requires_grad_(requires_grad=False)

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder's stages, from the image downwards."""
        return self.body.stages

    def train(self, mode: bool = True) -> "Network":
        """Set training mode, but for the frozen stages: their batch norm keeps its statistics."""
        super().train(mode)
        for stage in self.stages[: self.frozen]:
            stage.eval()
        return self

    def supervise(self, deep: bool) -> None:
        """Set whether training also gets coarser logits, of a network that has them: the light one."""
        if isinstance(self.body, LightUNet):
            self.body.deep = deep

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Logits | Deep:
        """Return the logits of every pixel. The image is padded to what the body needs; the margin is cut off.

        In training mode, where that was asked for (`supervise`), also coarser logits.
        """
        height, width = image.shape[2:]
        result: Logits | Deep = self.body(padded(image, self.body.stride))
        if not isinstance(result, tuple):
            return result[..., :height, :width]
        logits, coarser = result
        cut = {n: each[..., : -(-height // n), : -(-width // n)] for n, each in coarser.items()}
        return logits[..., :height, :width], cut


def build(model: ModelConfig, bands: int, outputs: int, pretrained: bool = True) -> Network:
    """Return the network that `model` describes, for images of `bands` bands and `outputs` logits a pixel.

    What is not pretrained starts from torch's global random numbers with PyTorch's own initialisation, as in the
    article. With `pretrained=False`, or where `model` starts from a run, no weights are looked up; the shape and what
    is frozen are the same, ready for a run's weights.

    Raises:
        SettingError: for an encoder that timm does not have or that cannot be an encoder.
        WeightsError: when the weights cannot be had, read or fitted.
    """
    trained = bool(model.start) or (model.architecture != "unet" and model.weights != "none")
    makers = {"light": _light, "transfer": _transfer, "unet": _unet}
    body, origin = makers[model.architecture](model, bands, outputs, pretrained and not model.start)
    frozen = model.frozen_stages if trained else 0
    if frozen > len(body.stages):
        stages = f"{model.encoder if model.architecture != 'unet' else 'unet'} has {len(body.stages)} stages"
        raise SettingError(f"frozen_stages = {frozen}: {stages}; give at most that.")
    return Network(body, origin, frozen, trained)


def _unet(_model: ModelConfig, bands: int, outputs: int, _pretrained: bool) -> tuple[Body, Origin]:
    return UNet(bands, outputs), RANDOM


def _light(model: ModelConfig, bands: int, outputs: int, pretrained: bool) -> tuple[Body, Origin]:
    encoder, origin = pyramid(model.encoder, bands, model.weights, pretrained)
    return LightUNet(encoder, bands, outputs), origin


def _transfer(model: ModelConfig, bands: int, outputs: int, pretrained: bool) -> tuple[Body, Origin]:
    if model.weights == "none":
        network, origin = random_network(model.encoder, bands)
    elif pretrained:
        network, origin = pretrained_network(model.encoder, bands, model.weights)
    else:
        network, origin = unfilled_network(model.encoder, bands, model.weights)
    return TransferUNet(encoder_of(network, model.encoder, bands), outputs), origin


def padded(image: Float[Tensor, "n c h w"], multiple: int) -> Float[Tensor, "n c h2 w2"]:
    """Return `image` continued below and to the right until both sides are as `padded_px` says.

    It continues as its mirror image where it is large enough, else by repeating its edge.
    """
    height, width = image.shape[2:]
    below, right = padded_px(height, multiple) - height, padded_px(width, multiple) - width
    image = pad(image, (0, 0, 0, below), mode="reflect" if below < height else "replicate") if below else image
    return pad(image, (0, right, 0, 0), mode="reflect" if right < width else "replicate") if right else image


def padded_px(size: int, multiple: int) -> int:
    """Return the least multiple of `multiple` that is `size` or more, and at least two of them.

    Two, for batch norm cannot be trained on one value a channel, which a single deepest pixel would be.
    """
    return max(math.ceil(size / multiple), LEAST_CELLS) * multiple
