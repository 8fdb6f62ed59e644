"""Tiles shown to a network: a few at a time, the next ones read meanwhile."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from geograft.geo.ahead import ahead
from geograft.geo.tilesets.tileset import Samples
from geograft.learn.feeding.feed import Sample, imaged

BATCH = 8


def batched(order: Sequence[int]) -> list[list[int]]:
    """Return indices of tiles in the same order, BATCH at a time; the last may be fewer."""
    return [list(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def read(samples: Samples, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], list[Sample]]]:
    """Yield the indices and the tiles of each batch. While one is used, the next is read in a thread of its own."""
    return ahead((indices, [samples[i] for i in indices]) for indices in batches)


def stacked(tiles: Sequence[Sample]) -> tuple[Float32[ndarray, "n b h w"], Bool[ndarray, "n h w"]]:
    """Return what a network takes of tiles: their images, and which pixels have one."""
    return np.stack([image for image, _ in tiles]), np.stack([imaged(*tile) for tile in tiles])
