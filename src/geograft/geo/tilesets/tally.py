"""How many pixels of a window are labelled, and how many are of each class."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from geograft.geo.grid import Window, cells
from geograft.geo.rasters.raster import read_mask
from geograft.geo.tilesets.tileset import Split, Tile
from geograft.labels import FULL
from geograft.legend import IGNORE, Legend

TALLY_CELL = (512, 4096)
"""Rows and columns read at a time."""


@dataclass(frozen=True)
class Tally:
    """What labels hold, in pixels; of shares, half a pixel of a class counts a half."""

    labelled: int
    """Pixels of which something is known."""
    present: tuple[float, ...]
    """By class index, the pixels of the class."""
    absent: tuple[float, ...] = ()
    """Of overlapping classes, by class index, the pixels that are known not to be of it."""

    def __add__(self, other: "Tally") -> "Tally":
        present = map(add, self.present, other.present)
        return Tally(self.labelled + other.labelled, tuple(present), tuple(map(add, self.absent, other.absent)))

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each class among the labelled pixels; 0 where there are none."""
        return tuple(pixels / max(self.labelled, 1) for pixels in self.present)

    @property
    def balance(self) -> tuple[int, ...]:
        """What a split holds even: whole pixels of each class; of overlapping ones, also those without each.

        The sum goes with what is labelled.
        """
        return tuple(round(pixels) for pixels in self.present + self.absent)


def counted(bands: UInt8[ndarray, "o h w"], legend: Legend, shares: bool) -> Tally:
    """Return what the bands of a mask hold: class indices in one band, or shares in steps of 1/250, one an output."""
    if not shares:
        pixels = np.bincount(bands.ravel(), minlength=IGNORE + 1)[: len(legend.names)].tolist()
        return Tally(sum(pixels), tuple(pixels))
    known = bands <= FULL
    inside = [int(band[here].sum(dtype=np.int64)) / FULL for band, here in zip(bands, known, strict=True)]
    pixels = [int(here.sum()) for here in known]
    labelled = int(known.any(axis=0).sum())
    if legend.binary:
        return Tally(labelled, (labelled - inside[0], inside[0]))
    absent = [total - part for total, part in zip(pixels, inside, strict=True)] if legend.overlapping else []
    return Tally(labelled, tuple(inside), tuple(absent))


def tally(mask: Path, window: Window, legend: Legend, shares: bool) -> Tally:
    """Return what a label mask holds in `window`, which lies inside it.

    Raises:
        InputError: when the mask cannot be read.
    """
    return reduce(add, (counted(read_mask(mask, cell), legend, shares) for cell in cells(window, *TALLY_CELL)))


def labelled_tiles(
    planned: Iterable[tuple[str, Window, Split]], tally_of: Callable[[str, Window], Tally], min_valid: float
) -> list[Tile]:
    """Return the planned tiles of which at least the share `min_valid` is labelled, with the shares of the classes."""
    tiles = []
    for name, window, split in planned:
        found = tally_of(name, window)
        valid = found.labelled / (window.height * window.width)
        if found.labelled and valid >= min_valid:
            tiles.append(Tile(name, window, split, valid, found.shares))
    return tiles
