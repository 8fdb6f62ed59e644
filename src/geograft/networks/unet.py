"""The article's two networks: a U-Net trained from scratch, and a U-Net over a pretrained encoder.

Source: O. Belkovskiy, "Enhancing UNet: Tailoring Superior Segmentation Models through Transfer Learning" (2023), after
Ronneberger et al., "U-Net" (2015). Both return logits instead of probabilities. The transfer network reads widths and
strides from its encoder, so that it accepts any.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geograft.networks.checkpointing import run_stage
from geograft.networks.encoder import Encoder

WIDTHS = (32, 16, 24, 40, 80)
"""Channels of the encoder stages, from the image downwards."""

POOLED = (True, False, True, True, True)
"""Whether each stage's output is pooled to half its size. Stage 2's is not, as in EfficientNet."""

STRIDE = 16
"""Stride of the deepest map; heights and widths of images are multiples of it."""


class DoubleConv(nn.Sequential):
    """Two 3 x 3 convolutions, each with bias, batch norm and ReLU, that keep the map's size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )


class UpsampleConcat(nn.Module):
    """A decoder step: upsample the deeper map, concatenate skip and map, then convolve."""

    def __init__(self, channels: int, width: int, *, upsample: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2) if upsample else nn.Identity()
        self.mix = DoubleConv(2 * channels, width)

    def forward(self, x: Float[Tensor, "n c h w"], skip: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n width h2 w2"]:
        """Return the convolved map, with the size of the skip."""
        mixed: Tensor = self.mix(torch.cat([skip, self.up(x)], dim=1))
        return mixed


class UNet(nn.Module):
    """The article's original U-Net: 441,137 parameters for three bands and one output."""

    def __init__(self, bands: int, outputs: int) -> None:
        super().__init__()
        self.strides = (1, 2, 2, 4, 8)
        self.stride = STRIDE
        self.stages = nn.ModuleList(
            DoubleConv(channels, width) for channels, width in zip((bands, *WIDTHS), WIDTHS, strict=False)
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(2) if pooled else nn.Identity() for pooled in POOLED)
        self.bottleneck = DoubleConv(WIDTHS[-1], WIDTHS[-1])
        self.decoder = nn.ModuleList(
            UpsampleConcat(width, narrower, upsample=pooled)
            for width, narrower, pooled in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], WIDTHS[0]), POOLED[::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], outputs, kernel_size=1)

    def maps(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the feature map of each encoder stage, from the image downwards."""
        x, maps = image, []
        for stage, pool in zip(self.stages, self.pools, strict=True):
            maps.append(run_stage(stage, x))
            x = pool(maps[-1])
        return maps

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Float[Tensor, "n outputs h w"]:
        """Return the logits of an image whose height and width are multiples of `STRIDE`."""
        skips = self.maps(image)
        x = self.bottleneck(self.pools[-1](skips[-1]))
        for step, skip in zip(self.decoder, reversed(skips), strict=True):
            x = step(x, skip)
        logits: Tensor = self.head(x)
        return logits


class ConcatUpsample(nn.Module):
    """A decoder step: concatenate skip and deeper map, upsample both by `factor`, then convolve."""

    def __init__(self, channels: int, width: int, factor: int) -> None:
        super().__init__()
        both = 2 * channels
        self.up = nn.ConvTranspose2d(both, both, kernel_size=factor, stride=factor) if factor > 1 else nn.Identity()
        self.mix = DoubleConv(both, width)

    def forward(self, x: Float[Tensor, "n c h w"], skip: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n width h3 w3"]:
        """Return the convolved map, `factor` times the size of `x`. A skip of another size is first resized to it."""
        if skip.shape[2:] != x.shape[2:]:
            skip = interpolate(skip, size=x.shape[2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(self.up(torch.cat([skip, x], dim=1)))
        return mixed


class TransferUNet(nn.Module):
    """The article's U-Net over an encoder: 728,949 parameters over EfficientNet-B0 for three bands and one output."""

    def __init__(self, encoder: Encoder, outputs: int) -> None:
        super().__init__()
        self.strides = encoder.strides
        self.stride = encoder.strides[-1]
        self.stages = encoder.stages
        widths = encoder.widths
        self.bottleneck = DoubleConv(widths[-1], widths[-1])
        shallower = zip((*widths[-2::-1], widths[0]), (*encoder.strides[-2::-1], 1), strict=True)
        self.decoder = nn.ModuleList(
            ConcatUpsample(width, next_width, stride // next_stride)
            for width, stride, (next_width, next_stride) in zip(
                widths[::-1], encoder.strides[::-1], shallower, strict=True
            )
        )
        self.head = nn.Conv2d(widths[0], outputs, kernel_size=1)

    def maps(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the feature map of each encoder stage, from the image downwards."""
        maps = [image]
        for stage in self.stages:
            maps.append(run_stage(stage, maps[-1]))
        return maps[1:]

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Float[Tensor, "n outputs h w"]:
        """Return the logits of an image whose height and width are multiples of the encoder's deepest stride."""
        skips = self.maps(image)
        x = self.bottleneck(skips[-1])
        for step, skip in zip(self.decoder, reversed(skips), strict=True):
            x = step(x, skip)
        logits: Tensor = self.head(x)
        return logits
