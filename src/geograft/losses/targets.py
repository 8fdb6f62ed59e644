"""Labels as training targets: the fraction of each output's class in a pixel, and which pixels are labelled."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from geograft.legend import IGNORE

LabelTensor: TypeAlias = UInt8[Tensor, "n h w"] | Float32[Tensor, "n o h w"]
"""Class indices, 255 for unlabelled pixels; or the fraction of each output's class in a pixel, 0 to 1, NaN where
unlabelled."""

BOUNDARY_PX = 4
"""Width in pixels of the band along class boundaries: the proximity is 1, 1/2, 1/4, 1/8, then 0."""


@dataclass(frozen=True)
class Targets:
    """A batch of labels in the form that the losses need."""

    fraction: Float32[Tensor, "n o h w"]
    """Fraction of each output's class, 0 to 1; 0 where unlabelled."""
    valid: Bool[Tensor, "n v h w"]
    """Where pixels are labelled: one mask for mutually exclusive outputs, else one mask per output."""
    exclusive: bool
    """Whether the fractions of a pixel sum to one (softmax), or each output has its own sigmoid."""
    index: Int64[Tensor, "n h w"] | None = None
    """Class of each pixel where labels are class indices; 0 where unlabelled."""

    @classmethod
    def from_label(cls, label: LabelTensor, outputs: int, overlapping: bool = False) -> "Targets":
        """Return the targets of a network with `outputs` outputs.

        A single output stands for class 1. Several outputs are mutually exclusive unless `overlapping`.
        """
        exclusive = outputs > 1 and not overlapping
        if label.dtype == torch.uint8:
            labelled = label != IGNORE
            index = label.masked_fill(~labelled, 0).long()
            # Classes last in memory, as functional.one_hot has them, which waits for some devices.
            classes = torch.arange(outputs, device=label.device)
            fraction = index[:, None] if outputs == 1 else (index[..., None] == classes).movedim(-1, 1)
            valid = labelled[:, None] if exclusive else labelled[:, None].expand(fraction.shape)
            return cls(fraction.float() * valid, valid, exclusive, index)
        finite = label.isfinite()
        valid = finite.all(dim=1, keepdim=True) if exclusive else finite
        return cls(label.masked_fill(~valid, 0.0), valid, exclusive)

    def downsample(self, stride: int) -> "Targets":
        """Return the targets averaged over cells of stride x stride pixels, from the upper left corner.

        A cell counts as labelled if at least half of its pixels inside the image are; only these enter its mean.
        """
        labelled = _cell_means(self.valid.float(), stride)
        inside = _cell_means(torch.ones_like(self.valid[:1, :1], dtype=labelled.dtype), stride)
        valid = labelled >= 0.5 * inside
        # One pixel of a cell is the smallest labelled fraction above 0.
        fraction = _cell_means(self.fraction, stride) / labelled.clamp(min=1 / stride**2)
        return Targets(fraction.clamp(max=1) * valid, valid, self.exclusive)


def class_index(label: LabelTensor) -> UInt8[Tensor, "n h w"]:
    """Return the class of each pixel, 255 where unlabelled; of fractions the largest.

    With a single output the fraction is that of class 1, which a pixel gets from one half on.
    """
    if label.dtype == torch.uint8:
        return label
    index = label[:, 0] >= 0.5 if label.shape[1] == 1 else label.argmax(dim=1)
    return index.to(torch.uint8).masked_fill(~label.isfinite().all(dim=1), IGNORE)


def boundary_proximity(targets: Targets) -> Float32[Tensor, "n v h w"]:
    """Return how close each pixel is to another class: 1 next to it, half as much with each further pixel, then 0.

    Distances are the larger of rows and columns (chessboard metric). Unlabelled pixels form no boundary. Fractional
    pixels count as their largest class.
    """
    index = targets.fraction.argmax(dim=1, keepdim=True) if targets.exclusive else targets.fraction > 0.5
    # Unlabelled pixels get a value outside the classes: below all for the maximum, above all for the minimum.
    outside = targets.fraction.shape[1] + 1
    value = index.float()
    largest = _max_3x3(value.masked_fill(~targets.valid, -outside))
    smallest = -_max_3x3((-value).masked_fill(~targets.valid, -outside))
    proximity = (largest > smallest).float() * targets.valid
    for _ in range(BOUNDARY_PX - 1):
        proximity = torch.maximum(proximity, _max_3x3(proximity) / 2)
    return proximity


def _cell_means(values: Float32[Tensor, "n v h w"], stride: int) -> Float32[Tensor, "n v h2 w2"]:
    """Return the means of stride x stride cells, with zeros beyond the last row and column."""
    height, width = values.shape[2:]
    rows, cols = -(-height // stride), -(-width // stride)
    continued = functional.pad(values, (0, cols * stride - width, 0, rows * stride - height))
    return functional.adaptive_avg_pool2d(continued, (rows, cols))


def _max_3x3(values: Float32[Tensor, "n v h w"]) -> Float32[Tensor, "n v h w"]:
    return functional.max_pool2d(values, 3, stride=1, padding=1)
