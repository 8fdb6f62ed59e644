"""What a label says of each output of the network: how much of a pixel is of a class, and whether that is known."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from geograft.legend import IGNORE

Label: TypeAlias = UInt8[Tensor, "n h w"] | Float32[Tensor, "n o h w"]
"""Class indices, 255 where the class is not known; or the share of each output's class in a pixel, 0 to 1, NaN where it
is not known."""

BORDER = 4
"""Pixels from a border at which nearness to it is left: 1, 1/2, 1/4, 1/8, then 0."""


@dataclass(frozen=True)
class Truth:
    """A label as the losses take it. Outputs that exclude each other are known together or not at all."""

    share: Float32[Tensor, "n o h w"]
    """Of each output's class, 0 to 1; 0 where it is not known."""
    valid: Bool[Tensor, "n v h w"]
    """Where it is known: one map for outputs that exclude each other, else one for each."""
    exclusive: bool
    """Whether the shares of a pixel sum to one (softmax), or each output stands for itself (sigmoid)."""
    index: Int64[Tensor, "n h w"] | None = None
    """The class of whole pixels; 0 where it is not known."""

    @classmethod
    def of(cls, label: Label, outputs: int, overlapping: bool = False) -> "Truth":
        """Return what `label` says to a network of so many outputs.

        One output is the class of index 1. More exclude each other, unless they are `overlapping`.
        """
        exclusive = outputs > 1 and not overlapping
        if label.dtype == torch.uint8:
            known = label != IGNORE
            index = label.masked_fill(~known, 0).long()
            share = index[:, None] if outputs == 1 else functional.one_hot(index, outputs).movedim(-1, 1)
            valid = known[:, None] if exclusive else known[:, None].expand(share.shape)
            return cls(share.float() * valid, valid, exclusive, index)
        finite = label.isfinite()
        valid = finite.all(dim=1, keepdim=True) if exclusive else finite
        return cls(label.masked_fill(~valid, 0.0), valid, exclusive)

    def coarser(self, stride: int) -> "Truth":
        """Return the truth of larger pixels: the mean of what is known in each, where at least half of it is known.

        Each is stride x stride pixels, from the upper left corner on; of the last ones what lies inside counts.
        """
        known = _means(self.valid.float(), stride)
        valid = known >= 0.5 * _means(torch.ones_like(self.valid[:1, :1], dtype=known.dtype), stride)
        # A pixel alone is the least that is known of a cell.
        share = _means(self.share, stride) / known.clamp(min=1 / stride**2)
        return Truth(share.clamp(max=1) * valid, valid, self.exclusive)


def class_index(label: Label) -> UInt8[Tensor, "n h w"]:
    """Return the class of each pixel, of shares the one that has most of it; 255 where it is not known.

    The share of one output is that of class 1, which has a pixel from one half on.
    """
    if label.dtype == torch.uint8:
        return label
    index = label[:, 0] >= 0.5 if label.shape[1] == 1 else label.argmax(dim=1)
    return index.to(torch.uint8).masked_fill(~label.isfinite().all(dim=1), IGNORE)


def nearness(truth: Truth) -> Float32[Tensor, "n v h w"]:
    """Return how near each pixel is to one of another class: 1 beside it, half with each pixel further, then 0.

    Distances are by the larger of rows and columns. Pixels that are not known have no class and make no border. Shares
    count for the class they are most of.
    """
    owner = truth.share.argmax(dim=1, keepdim=True) if truth.exclusive else truth.share > 0.5
    # A class that no pixel has stands for what is not known: below all for the largest, above all for the smallest.
    outside = truth.share.shape[1] + 1
    number = owner.float()
    most = _largest_around(number.masked_fill(~truth.valid, -outside))
    least = -_largest_around((-number).masked_fill(~truth.valid, -outside))
    near = (most > least).float() * truth.valid
    for _ in range(BORDER - 1):
        near = torch.maximum(near, _largest_around(near) / 2)
    return near


def _means(values: Float32[Tensor, "n v h w"], stride: int) -> Float32[Tensor, "n v h2 w2"]:
    """Return the means of stride x stride pixels; beyond the last rows and columns lie zeros."""
    height, width = values.shape[2:]
    rows, cols = -(-height // stride), -(-width // stride)
    continued = functional.pad(values, (0, cols * stride - width, 0, rows * stride - height))
    return functional.adaptive_avg_pool2d(continued, (rows, cols))


def _largest_around(values: Float32[Tensor, "n v h w"]) -> Float32[Tensor, "n v h w"]:
    return functional.max_pool2d(values, 3, stride=1, padding=1)
