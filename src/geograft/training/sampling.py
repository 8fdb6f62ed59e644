"""Sampling of training tiles: the order of an epoch, its batches, and class-balanced sampling."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from geograft.errors import SettingError

T = TypeVar("T")


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """Return the indices 0 to `length` - 1 in the random order of an epoch."""
    return [int(index) for index in generator(seed, epoch).permutation(length)]


def make_batches(order: Sequence[T], size: int, world_size: int = 1) -> list[list[T]]:
    """Return `order` split into batches of `size`. The remainder is a smaller last batch; nothing is dropped.

    A remainder of a single tile, or of fewer than `world_size`, joins the batch before it: batch norm may not be
    defined for one small tile, and each process needs at least one tile.

    >>> make_batches(range(7), 3)
    [[0, 1, 2], [3, 4, 5, 6]]
    """
    batches = [list(order[start : start + size]) for start in range(0, len(order), size)]
    if size > 1 and len(batches) > 1 and len(batches[-1]) < max(2, world_size):
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def shard(batch: Sequence[T], rank: int, world_size: int) -> list[T]:
    """Return the tiles of a batch that process `rank` of `world_size` takes. Sizes differ by at most one.

    >>> [shard([5, 3, 8, 6, 7], rank, 2) for rank in range(2)]
    [[5, 8, 7], [3, 6]]
    """
    return list(batch[rank::world_size])


def check_batch_size(world_size: int, size: int, train: int, val: int) -> None:
    """Check that each of `world_size` processes gets a tile of every full batch.

    Raises:
        SettingError: if a batch of `size`, or the training or (non-empty) validation split, has fewer tiles.
    """
    if world_size > min(size, train or world_size, val or world_size):
        raise SettingError(
            f"{world_size} processes need batches of at least {world_size} tiles: batch_size is {size}, with {train} "
            f"training and {val} validation tiles. Raise batch_size, or train on fewer devices."
        )


def generator(*key: int) -> np.random.Generator:
    """Return the random generator seeded by `key`: integers of any sign and size; trailing zeros do not count."""
    return np.random.default_rng([part % 2**64 for part in key])


ClassFractions = Float[ndarray, "tiles k"]
"""Fraction of each tile's pixels that belong to each class."""


def class_balanced_weights(fractions: ClassFractions) -> Float64[ndarray, " tiles"]:
    """Return sampling weights of the tiles that balance the classes; they sum to 1.

    A draw chooses one of the classes present with equal probability, then a tile in proportion to its pixels of that
    class. Tiles without labels get the average weight.
    """
    total = fractions.sum(axis=0)
    present = total > 0
    weights = (fractions[:, present] / total[present]).mean(axis=1) if present.any() else np.zeros(len(fractions))
    unlabelled = fractions.sum(axis=1) == 0
    weights = np.where(unlabelled, 1 / len(fractions), weights)
    normalised: Float64[ndarray, " tiles"] = weights / weights.sum()
    return normalised


def weighted_order(weights: Float64[ndarray, " tiles"], rng: np.random.Generator) -> list[int]:
    """Return len(weights) indices in random order, each as often as its weight says, rounded up or down.

    Systematic resampling: Carpenter, Clifford and Fearnhead (1999), "Improved particle filter for nonlinear problems".
    """
    count = len(weights)
    marks = (rng.random() + np.arange(count)) / count
    # The last cumulative sum may round to less than one, and a mark beyond it would select no tile.
    chosen = np.searchsorted(np.cumsum(weights)[:-1], marks, side="right")
    return [int(index) for index in rng.permutation(chosen)]


def choose_donor(fractions: ClassFractions, rng: np.random.Generator) -> tuple[int, int]:
    """Return a tile and a class that it contains, for copy-paste.

    The class is drawn in inverse proportion to its frequency, the tile in proportion to its pixels of that class. Costs
    a pass over the class's fractions.
    """
    total = fractions.sum(axis=0)
    (present,) = np.nonzero(total)
    index = int(present[_weighted_choice(1 / total[present], rng)])
    return _weighted_choice(fractions[:, index], rng), index


def _weighted_choice(weights: Float[ndarray, " n"], rng: np.random.Generator) -> int:
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums[:-1], rng.random() * sums[-1], side="right"))
