"""Which tiles an epoch holds, and which give pixels of a rare class to others.

The order in which an epoch takes tiles, its batches, and which tiles of a batch are whose.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from geograft.errors import SettingError

T = TypeVar("T")


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """Return the indices 0 to `length` - 1 in the order in which an epoch takes them."""
    return [int(index) for index in generator(seed, epoch).permutation(length)]


def make_batches(order: Sequence[T], size: int, world_size: int = 1) -> list[list[T]]:
    """Return `order` cut into batches of `size`. Nothing is left out: what remains is the last, smaller batch.

    A single tile that remains joins the batch before it, for batch statistics of one small tile may not exist. So do
    fewer than `world`, for each process needs one.

    >>> batched(range(7), 3)
    [[0, 1, 2], [3, 4, 5, 6]]
    """
    batches = [list(order[start : start + size]) for start in range(0, len(order), size)]
    if size > 1 and len(batches) > 1 and len(batches[-1]) < max(2, world_size):
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def shard(batch: Sequence[T], rank: int, world_size: int) -> list[T]:
    """Return what process `rank` of `world` takes of a batch. Parts differ by at most one tile, the first are larger.

    >>> [part_of([5, 3, 8, 6, 7], rank, 2) for rank in range(2)]
    [[5, 8, 7], [3, 6]]
    """
    return list(batch[rank::world_size])


def check_batch_size(world_size: int, size: int, train: int, val: int) -> None:
    """Check that each of `world` processes gets a tile of every batch, and of the validation part where there is one.

    Raises:
        SettingError: when there are fewer in a batch of `size`, or in a part.
    """
    if world_size > min(size, train or world_size, val or world_size):
        raise SettingError(
            f"{world_size} processes cannot share batches of {size} of {train} training and {val} validation tiles: each "
            "needs one of every batch. Raise batch_size, or train on fewer devices."
        )


def generator(*key: int) -> np.random.Generator:
    """Return the source of random numbers of a `key`: whole numbers of any sign and size, zeros at its end left out."""
    return np.random.default_rng([part % 2**64 for part in key])


ClassFractions = Float[ndarray, "tiles k"]
"""Share of each class among all pixels of each tile."""


def class_balanced_weights(fractions: ClassFractions) -> Float64[ndarray, " tiles"]:
    """Return how often each tile is drawn so that every class is sought alike; the rates sum to 1.

    A draw chooses a class, each that is there as likely, and then a tile in proportion to its pixels of that class.
    Tiles of which nothing is known come as often as others do on the mean.
    """
    total = fractions.sum(axis=0)
    there = total > 0
    rates = (fractions[:, there] / total[there]).mean(axis=1) if there.any() else np.zeros(len(fractions))
    bare = fractions.sum(axis=1) == 0
    rates = np.where(bare, 1 / len(fractions), rates)
    found: Float64[ndarray, " tiles"] = rates / rates.sum()
    return found


def weighted_order(weights: Float64[ndarray, " tiles"], rng: np.random.Generator) -> list[int]:
    """Return as many indices as there are `rates`, at random but each as often as its rate says, up or down to a whole.

    Systematic resampling: Carpenter, Clifford and Fearnhead (1999), "Improved particle filter for nonlinear problems".
    """
    count = len(weights)
    marks = (rng.random() + np.arange(count)) / count
    # The last sum may be a little less than one, and a mark beyond it would be of no tile.
    chosen = np.searchsorted(np.cumsum(weights)[:-1], marks, side="right")
    return [int(index) for index in rng.permutation(chosen)]


def choose_donor(fractions: ClassFractions, rng: np.random.Generator) -> tuple[int, int]:
    """Return a tile and a class that it holds: rare classes more often, by the inverse of their share of all pixels.

    The tile is drawn in proportion to its pixels of the class. Costs a pass over the class's shares.
    """
    total = fractions.sum(axis=0)
    (there,) = np.nonzero(total)
    wanted = 1 / total[there]
    index = int(there[_weighted_choice(wanted, rng)])
    return _weighted_choice(fractions[:, index], rng), index


def _weighted_choice(weights: Float[ndarray, " n"], rng: np.random.Generator) -> int:
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums[:-1], rng.random() * sums[-1], side="right"))
