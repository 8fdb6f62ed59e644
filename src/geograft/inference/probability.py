"""Probabilities from logits, and test-time augmentation (TTA) by flips and rotations.

TTA predicts a tile in several of the eight symmetries of a square (the dihedral group D4), transforms the predictions
back and averages them. The sets of 1, 2, 4 and 8 transforms form a chain of groups, none of which favours an axis or a
side: the identity; the half turn; the quarter turns; the flips.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Float32, Shaped
from torch import Tensor

Item = TypeVar("Item")


def probabilities(logits: Float32[Tensor, "n o h w"], overlapping: bool = False) -> Float32[Tensor, "n k h w"]:
    """Return the probability of each class: softmax, or (1 - p, p) from the sigmoid p of a single output.

    For overlapping classes it is the sigmoid of each output.
    """
    if overlapping:
        return torch.sigmoid(logits)
    if logits.shape[1] > 1:
        return torch.softmax(logits, dim=1)
    first = torch.sigmoid(logits)
    return torch.cat([1 - first, first], dim=1)


def output_layers(logits: Float32[Tensor, "n o h w"], overlapping: bool = False) -> Float32[Tensor, "n o h w"]:
    """Return the layers of a map: the probability of the positive class for a single output, else of each class."""
    return torch.sigmoid(logits) if logits.shape[1] == 1 or overlapping else torch.softmax(logits, dim=1)


def pairwise_mean(items: Sequence[Item], term: Callable[[Item], Float[Tensor, "*size"]]) -> Float[Tensor, "*size"]:
    """Return the mean of `term` over `items` by pairwise summation in their order.

    The mean of 2, 4 or 8 equal terms is exactly their value. Memory: one term per level of pairs.
    """
    return _sum_over(items, term) / len(items)


def _sum_over(items: Sequence[Item], term: Callable[[Item], Float[Tensor, "*size"]]) -> Float[Tensor, "*size"]:
    if len(items) == 1:
        return term(items[0])
    half = len(items) // 2
    return _sum_over(items[:half], term) + _sum_over(items[half:], term)


class FlipRotation(NamedTuple):
    """An optional left-right flip, followed by counter-clockwise quarter turns."""

    quarter_turns: int
    flipped: bool


FLIP_ROTATIONS = tuple(FlipRotation(quarters, flipped) for flipped in (False, True) for quarters in (0, 2, 1, 3))
"""All eight. The first 1, 2, 4 or 8 are a group, which is a normal subgroup of the next larger."""


def flip_rotations(count: Literal[1, 2, 4, 8]) -> tuple[FlipRotation, ...]:
    """Return the first `count` transforms of the chain: the identity; the half turn; the quarter turns; the flips.

    Since they form a group, the averaged map of a transformed tile is the transformed map of the tile.
    """
    return FLIP_ROTATIONS[:count]


def flip_rotate(images: Shaped[Tensor, "n c t t"], transform: FlipRotation) -> Shaped[Tensor, "n c t t"]:
    """Return the images flipped and rotated by `transform`."""
    flipped = images.flip(3) if transform.flipped else images
    return torch.rot90(flipped, transform.quarter_turns, (2, 3)) if transform.quarter_turns else flipped


def undo_flip_rotate(maps: Shaped[Tensor, "n c t t"], transform: FlipRotation) -> Shaped[Tensor, "n c t t"]:
    """Undo `flip_rotate`."""
    upright = torch.rot90(maps, -transform.quarter_turns, (2, 3)) if transform.quarter_turns else maps
    return upright.flip(3) if transform.flipped else upright
