"""Probabilities from logits, and test-time augmentation (TTA) by flips and rotations. NumPy only.

TTA predicts a tile in several of the eight symmetries of a square (the dihedral group D4), transforms the predictions
back and averages them. The sets of 1, 2, 4 and 8 transforms form a chain of groups, none of which favours an axis or a
side: the identity; the half turn; the quarter turns; the flips.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Shaped
from numpy import ndarray

Item = TypeVar("Item")
Term = TypeVar("Term")


def output_layers(logits: Float32[ndarray, "n o h w"], overlapping: bool = False) -> Float32[ndarray, "n o h w"]:
    """Return the layers of a map: the sigmoid of a single output, or of each overlapping class; else the softmax."""
    if overlapping or logits.shape[1] == 1:
        with np.errstate(over="ignore"):  # exp(-x) is infinite for x < -88, and the sigmoid 0
            sigmoid: Float32[ndarray, "n o h w"] = np.float32(1) / (np.float32(1) + np.exp(-logits))
            return sigmoid
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    layers: Float32[ndarray, "n o h w"] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return layers


def pairwise_mean(
    items: Sequence[Item], term: Callable[[Item], Float32[ndarray, "*size"]]
) -> Float32[ndarray, "*size"]:
    """Return the mean of `term` over `items` by pairwise summation in their order.

    The mean of 2, 4 or 8 equal terms is exactly their value. Memory: one term per level of pairs.
    """
    if len(items) == 1:
        return term(items[0])
    mean: Float32[ndarray, "*size"] = pairwise_sum(items, term) / np.float32(len(items))
    return mean


def pairwise_sum(items: Sequence[Item], term: Callable[[Item], Term]) -> Term:
    """Return the sum of `term` over `items` by pairwise summation in their order, of arrays or tensors."""
    if len(items) == 1:
        return term(items[0])
    half = len(items) // 2
    total: Any = pairwise_sum(items[:half], term)
    total = total + pairwise_sum(items[half:], term)
    found: Term = total
    return found


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


def flip_rotate(images: Shaped[ndarray, "*n t t"], transform: FlipRotation) -> Shaped[ndarray, "*n t t"]:
    """Return a view of the images, flipped and rotated by `transform`."""
    flipped = images[..., ::-1] if transform.flipped else images
    return np.rot90(flipped, transform.quarter_turns, (-2, -1)) if transform.quarter_turns else flipped


def undo_flip_rotate(maps: Shaped[ndarray, "*n t t"], transform: FlipRotation) -> Shaped[ndarray, "*n t t"]:
    """Undo `flip_rotate`."""
    upright = np.rot90(maps, -transform.quarter_turns, (-2, -1)) if transform.quarter_turns else maps
    return upright[..., ::-1] if transform.flipped else upright
