"""The linear classifier: a logistic regression per pixel on the feature maps of a frozen encoder and the image's bands.

It is what a linear probe is for whole images (Alain and Bengio 2017, arXiv:1610.01644), for pixels: all maps of the
pyramid, upsampled to the image (hypercolumns: Hariharan et al. 2015, arXiv:1411.5752), and one linear layer. Projecting
and upsampling commute, so each map is projected to the few logits first, and only these are upsampled.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate

from geograft.networks.pyramid import Pyramid


class LinearClassifier(nn.Module):
    """Logits that are a linear function of a pixel's bands and of the bilinearly upsampled maps of a frozen pyramid.

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
