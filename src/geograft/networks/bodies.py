"""Bodies of networks: the article's two U-Nets, the light U-Net, and the linear classifier. All return logits.

The article is O. Belkovskiy, "Enhancing UNet: Tailoring Superior Segmentation Models through Transfer Learning" (2023),
after Ronneberger et al., "U-Net" (2015). Except for the original U-Net, all read widths and strides from their encoder
and so accept any.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, leaky_relu, pixel_shuffle

from geograft.losses.segmentation import Logits, MultiScaleLogits
from geograft.networks.encoder import Encoder, run_stage
from geograft.networks.pyramid import Pyramid

WIDTHS = (32, 16, 24, 40, 80)
"""Channels of the encoder stages of the original U-Net, from the image downwards."""

POOLED = (True, False, True, True, True)
"""Whether each stage's output is pooled to half its size. Stage 2's is not, as in EfficientNet."""

STRIDE = 16
"""Stride of the original U-Net's deepest map; heights and widths of images are multiples of it."""


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


WIDE, NARROW, FINE = 96, 64, 16
"""Channels of the decoder: at strides from 16 on, at strides 4 and 8, and at stride 2."""
WORK_STRIDE, FINE_STRIDE = 4, 2
NEGATIVE_SLOPE = 0.1
"""Slope of the decoder's leaky ReLUs. With plain ReLUs, the sixteen units before the head can all die on a rare class
while training first learns that it is rare; its pixels then have the same logit for good (see LOG.md)."""


class Context(nn.Module):
    """A residual block on the coarsest map: a depth-wise 5 x 5 convolution and two point-wise ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        around = nn.Conv2d(width, width, kernel_size=5, padding=2, groups=width, bias=False)
        self.look = nn.Sequential(
            around, nn.BatchNorm2d(width), *_convolved(width, 2 * width, 1), *_normed(2 * width, width)
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the map plus the context of each pixel."""
        around: Tensor = self.look(x)
        return x + around


class Merge(nn.Module):
    """A decoder step: add the upsampled coarser map and the encoder's map of this stride, then convolve."""

    def __init__(self, coarse: int, skip: int, width: int) -> None:
        super().__init__()
        self.narrow = _normed(coarse, width) if coarse != width else nn.Identity()
        self.lateral = _normed(skip, width)
        self.mix = _convolved(width, width, 3)

    def forward(self, x: Float[Tensor, "n c h w"], skip: Float[Tensor, "n s h2 w2"]) -> Float[Tensor, "n width h2 w2"]:
        """Return the merged map, with the size of the skip."""
        # The 1 x 1 convolution comes before the upsampling: it has fewer pixels there, and the two commute.
        x = interpolate(self.narrow(x), size=skip.shape[2:], mode="bilinear", align_corners=False)
        mixed: Tensor = self.mix(leaky_relu(x + self.lateral(skip), NEGATIVE_SLOPE))
        return mixed


class Detail(nn.Module):
    """The last decoder step: a sub-pixel convolution from stride 4 to stride 2, plus the fine map there."""

    def __init__(self, width: int, fine: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.spread = nn.Conv2d(width, FINE * factor**2, kernel_size=1)
        self.lateral = _normed(fine, FINE)
        self.mix = _convolved(FINE, FINE, 3)

    def forward(self, x: Float[Tensor, "n c h w"], fine: Float[Tensor, "n f h2 w2"]) -> Float[Tensor, "n d h2 w2"]:
        """Return the map at stride 2."""
        mixed: Tensor = self.mix(
            leaky_relu(pixel_shuffle(self.spread(x), self.factor) + self.lateral(fine), NEGATIVE_SLOPE)
        )
        return mixed


class LightUNet(nn.Module):
    """The light U-Net: a pretrained encoder's feature pyramid and a decoder at a quarter of the resolution.

    A U-Net spends most of its time on convolutions at full resolution. Here the maps are merged down to stride 4,
    top-down as in a feature pyramid network (Lin et al. 2017, doi:10.1109/CVPR.2017.106, section 3), in few channels. A
    narrow path at stride 2 restores fine detail; if the pyramid has no map of stride 2, a convolution of the image
    provides one. The last step to full resolution is a sub-pixel convolution (Shi et al. 2016,
    doi:10.1109/CVPR.2016.207, section 3.2), which computes four logits for four pixels instead of upsampling one.

    Attributes:
        stages: the encoder's stages, from the image downwards.
        stride: the stride of the deepest map; heights and widths of images are multiples of it.
        strides: the strides of the encoder's maps.
        deep_supervision: whether training also gets auxiliary logits from each decoder step (Lee et al. 2015).
    """

    def __init__(self, encoder: Pyramid, bands: int, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.strides, self.stride = encoder.strides, encoder.strides[-1]
        fine = [width for width, stride in zip(encoder.widths, self.strides, strict=True) if stride == FINE_STRIDE]
        working = [(w, stride) for w, stride in zip(encoder.widths, self.strides, strict=True) if stride >= WORK_STRIDE]
        own = [_width(stride) for _, stride in working]
        self.neck = nn.Sequential(_convolved(encoder.widths[-1], own[-1], 1), Context(own[-1]))
        self.decoder = nn.ModuleList(
            Merge(coarse, skip, width)
            for coarse, (skip, _), width in zip(own[:0:-1], working[-2::-1], own[-2::-1], strict=True)
        )
        self.stem = nn.Identity() if fine else _strided(bands, FINE)
        self.detail = Detail(own[0], fine[0] if fine else FINE, working[0][1] // FINE_STRIDE)
        self.head = nn.Conv2d(FINE, outputs * FINE_STRIDE**2, kernel_size=3, padding=1)
        self.coarse = nn.ModuleList(nn.Conv2d(width, outputs, kernel_size=1) for width in own[-2::-1])
        self.deep_supervision = False

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder's stages, from the image downwards."""
        return self.encoder.stages

    def maps(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the encoder's maps, from fine to coarse."""
        maps: list[Tensor] = self.encoder(image)
        return maps

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Logits | MultiScaleLogits:
        """Return the logits of an image whose height and width are multiples of `stride`.

        In training mode with `deep_supervision`, also auxiliary logits, from the coarsest stride to 4.
        """
        maps = dict(zip(self.strides, self.maps(image), strict=True))
        x = self.neck(maps[self.stride])
        strides = [stride for stride in self.strides[-2::-1] if stride >= WORK_STRIDE]
        coarser = {}
        for step, stride, head in zip(self.decoder, strides, self.coarse, strict=True):
            x = step(x, maps[stride])
            if self.deep_supervision and self.training:
                coarser[stride] = head(x)
        fine = maps[FINE_STRIDE] if FINE_STRIDE in maps else self.stem(image)
        logits = pixel_shuffle(self.head(self.detail(x, fine)), FINE_STRIDE)
        return (logits, coarser) if coarser else logits


def _width(stride: int) -> int:
    return WIDE if stride > 2 * WORK_STRIDE else NARROW


def _normed(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, kernel_size=1, bias=False), nn.BatchNorm2d(width))


def _convolved(channels: int, width: int, size: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size=size, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))


def _strided(bands: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(bands, width, kernel_size=3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))


class LinearClassifier(nn.Module):
    """A logistic regression per pixel on the image's bands and the upsampled feature maps of a frozen pyramid.

    It is a linear probe (Alain and Bengio 2017, arXiv:1610.01644) for pixels instead of whole images: all maps of the
    pyramid, bilinearly upsampled to the image (hypercolumns: Hariharan et al. 2015, arXiv:1411.5752), and one linear
    layer. Projection and upsampling commute, so each map is projected to the few logits first, and only these are
    upsampled.

    Attributes:
        stages: the encoder's stages, from the image downwards.
        stride: the stride of the deepest map; heights and widths of images are multiples of it.
        strides: the strides of the encoder's maps.
        widths: the number of features of the image and of each map, in the order of `pixel_features`.
        head: one 1 x 1 convolution for the image, which has the bias, and one for each map, from fine to coarse.
    """

    def __init__(self, encoder: Pyramid, bands: int, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.strides, self.stride = encoder.strides, encoder.strides[-1]
        self.widths = (bands, *encoder.widths)
        of_maps = [nn.Conv2d(width, outputs, kernel_size=1, bias=False) for width in encoder.widths]
        self.head = nn.ModuleList([nn.Conv2d(bands, outputs, kernel_size=1), *of_maps])

    @property
    def stages(self) -> nn.ModuleList:
        """The encoder's stages, from the image downwards."""
        return self.encoder.stages

    def maps(self, image: Float[Tensor, "n bands h w"]) -> list[Tensor]:
        """Return the encoder's maps, from fine to coarse."""
        maps: list[Tensor] = self.encoder(image)
        return maps

    def forward(self, image: Float[Tensor, "n bands h w"]) -> Float[Tensor, "n outputs h w"]:
        """Return the logits of an image whose height and width are multiples of `stride`."""
        return self.logits(image, self.maps(image))

    def logits(self, image: Float[Tensor, "n bands h w"], maps: Sequence[Tensor]) -> Float[Tensor, "n outputs h w"]:
        """Return the logits of an image with the given `maps`."""
        logits: Tensor = self.head[0](image)
        for project, features in zip(list(self.head)[1:], maps, strict=True):
            logits = logits + interpolate(project(features), size=image.shape[2:], mode="bilinear", align_corners=False)
        return logits

    def set_weights(self, weight: Float[Tensor, "outputs d"], bias: Float[Tensor, " outputs"]) -> None:
        """Set the linear layer, for features in the order of `pixel_features`."""
        with torch.no_grad():
            parts = torch.split(weight, list(self.widths), dim=1)
            for project, part in zip(self.head, parts, strict=True):
                project.get_parameter("weight").copy_(part[:, :, None, None])
            self.head.get_parameter("0.bias").copy_(bias)


def pixel_features(
    image: Float[Tensor, "bands h w"], maps: Sequence[Float[Tensor, "1 _ _ _"]], pixels: Int64[Tensor, "n 2"]
) -> Float[Tensor, "n d"]:
    """Return the bands and the upsampled features of some pixels, given as rows and columns; from fine to coarse."""
    size = torch.tensor(image.shape[1:], device=image.device)
    # Pixel centres from -1 to 1 over the image, x first: where `interpolate` without aligned corners reads.
    places = ((2 * pixels + 1) / size - 1).flip(1).to(image.dtype)[None, None]
    read = [grid_sample(each, places, padding_mode="border", align_corners=False)[0, :, 0].T for each in maps]
    return torch.cat([image[:, pixels[:, 0], pixels[:, 1]].T, *read], dim=1)
