"""The order in which an epoch takes tiles, its batches, and which tiles of a batch are whose."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from geograft.errors import SettingError

T = TypeVar("T")


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """Return the indices 0 to `length` - 1 in the order in which an epoch takes them."""
    return [int(index) for index in generator(seed, epoch).permutation(length)]


def batched(order: Sequence[T], size: int, world: int = 1) -> list[list[T]]:
    """Return `order` cut into batches of `size`. Nothing is left out: what remains is the last, smaller batch.

    A single tile that remains joins the batch before it, for batch statistics of one small tile may not exist. So do
    fewer than `world`, for each process needs one.

    >>> batched(range(7), 3)
    [[0, 1, 2], [3, 4, 5, 6]]
    """
    batches = [list(order[start : start + size]) for start in range(0, len(order), size)]
    if size > 1 and len(batches) > 1 and len(batches[-1]) < max(2, world):
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def part_of(batch: Sequence[T], rank: int, world: int) -> list[T]:
    """Return what process `rank` of `world` takes of a batch. Parts differ by at most one tile, the first are larger.

    >>> [part_of([5, 3, 8, 6, 7], rank, 2) for rank in range(2)]
    [[5, 8, 7], [3, 6]]
    """
    return list(batch[rank::world])


def check_shared(world: int, size: int, train: int, val: int) -> None:
    """Check that each of `world` processes gets a tile of every batch, and of the validation part where there is one.

    Raises:
        SettingError: when there are fewer in a batch of `size`, or in a part.
    """
    if world > min(size, train or world, val or world):
        raise SettingError(
            f"{world} processes cannot share batches of {size} of {train} training and {val} validation tiles: each "
            "needs one of every batch. Raise batch_size, or train on fewer devices."
        )


def generator(*key: int) -> np.random.Generator:
    """Return the source of random numbers of a `key`: whole numbers of any sign and size, zeros at its end left out."""
    return np.random.default_rng([part % 2**64 for part in key])
