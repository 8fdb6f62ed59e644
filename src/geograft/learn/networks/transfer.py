"""A U-Net over a pretrained encoder, in the article's shape: a skip joins the deeper map, then both are enlarged.

Source: O. Belkovskiy, "Enhancing UNet: Tailoring Superior Segmentation Models through Transfer Learning" (2023). Two
departures: logits come out, not probabilities; widths and strides are read from the encoder, so that any will do.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from geograft.learn.networks.encoder import Encoder
from geograft.learn.networks.unet import DoubleConv


class JoinThenUp(nn.Module):
    """A decoder step: put the skip before the deeper map, enlarge both by `factor`, mix the two."""

    def __init__(self, channels: int, width: int, factor: int) -> None:
        super().__init__()
        both = 2 * channels
        self.up = nn.ConvTranspose2d(both, both, kernel_size=factor, stride=factor) if factor > 1 else nn.Identity()
        self.mix = DoubleConv(both, width)

    def forward(self, x: Float[Tensor, "n c h w"], skip: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n width h3 w3"]:
        """Return the mixed map, `factor` times the size of `x`; a skip of another size is resized to that of `x`."""
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
            JoinThenUp(width, next_width, stride // next_stride)
            for width, stride, (next_width, next_stride) in zip(
                widths[::-1], encoder.strides[::-1], shallower, strict=True
            )
        )
        self.head = nn.Conv2d(widths[0], outputs, kernel_size=1)

    def maps(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return what each encoder stage puts out, from the image downwards."""
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Float[Tensor, "n outputs h w"]:
        """Return the logits of an image whose height and width are multiples of the encoder's deepest stride."""
        skips = self.maps(image)
        x = self.bottleneck(skips[-1])
        for step, skip in zip(self.decoder, reversed(skips), strict=True):
            x = step(x, skip)
        logits: Tensor = self.head(x)
        return logits
