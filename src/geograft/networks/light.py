"""The light U-Net: a pretrained encoder's feature pyramid and a decoder that works at a quarter of the resolution.

A U-Net spends most of its time on convolutions at full resolution. Here the maps are merged down to stride 4, top-down
as in a feature pyramid network (Lin et al. 2017, doi:10.1109/CVPR.2017.106, section 3), in few channels. A narrow path
at stride 2 restores fine detail, and the last step to full resolution is a sub-pixel convolution (Shi et al. 2016,
doi:10.1109/CVPR.2016.207, section 3.2), which computes four logits for four pixels instead of upsampling one.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, pixel_shuffle

from geograft.losses.segmentation import Logits, MultiScaleLogits
from geograft.networks.pyramid import Pyramid

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
    """The light U-Net over any pyramid. If that has no map of stride 2, a convolution of the image provides one.

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
