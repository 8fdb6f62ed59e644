"""Mean and standard deviation of every band, from pixels that pass by once.

How many pixels of a window are labelled, and how many are of each class.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.dataset.tileset import Split, Tile
from geograft.geo.grid import Window, cells
from geograft.geo.rasters.raster import Image, read_mask
from geograft.indices import Index, with_indices
from geograft.labels import FULL
from geograft.legend import IGNORE, Legend

CELL = (512, 1024)
"""Rows and columns read at a time."""
ROUNDING = 1e-12
"""To the mean of a band; below it a deviation of 64-bit numbers is none."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of the pixels of each band so far. NaN counts in no band."""

    count: Int64[ndarray, " b"]
    mean: Float64[ndarray, " b"]
    squares: Float64[ndarray, " b"]

    @classmethod
    def none(cls, bands: int) -> "Moments":
        """Return the moments of no pixel."""
        return cls(np.zeros(bands, np.int64), np.zeros(bands), np.zeros(bands))

    @classmethod
    def of(cls, pixels: Shaped[ndarray, "b n"]) -> "Moments":
        """Return the moments of some pixels, in two passes over them."""
        exact = pixels.astype(np.float64)
        known = ~np.isnan(exact)
        count = known.sum(axis=1, dtype=np.int64)
        # Where all is known, numpy adds in pairs, which is faster and rounds less.
        where = known if not known.all() else np.True_
        mean = exact.sum(axis=1, where=where) / np.maximum(count, 1)
        return cls(count, mean, ((exact - mean[:, None]) ** 2).sum(axis=1, where=where))

    def __add__(self, other: "Moments") -> "Moments":
        # Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for ... sample variances", (2.1).
        count = self.count + other.count
        some = np.maximum(count, 1)
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / some)
        # The product of two counts may pass what 64 bits hold as a whole number.
        weight = self.count.astype(np.float64) * other.count / some
        return Moments(count, mean, self.squares + other.squares + apart**2 * weight)

    @property
    def std(self) -> Float64[ndarray, " b"]:
        """The standard deviation of each band; 1 where a band is constant, so that it can be divided by."""
        found: Float64[ndarray, " b"] = np.sqrt(self.squares / np.maximum(self.count, 1))
        # What is left of a constant after rounding is no deviation.
        return np.where(found > ROUNDING * np.abs(self.mean), found, 1.0)


def band_moments(
    image: Path, mask: Path, windows: Sequence[Window], indices: Sequence[Index] = ()
) -> Iterable[Moments]:
    """Yield the moments of the labelled pixels of a scene that lie in any of `windows`, each pixel once.

    Of the bands, then of the `indices`. Reads each part of the scene once, and only where windows are.

    Raises:
        InputError: when image or mask cannot be decoded.
    """
    tree = shapely.STRtree([_box(window) for window in windows])
    with Image.open(image) as opened:
        for cell in cells(opened.info.grid.window, *CELL):
            hits = [windows[hit] for hit in tree.query(_box(cell))]
            if hits:
                pixels, valid = opened.read(cell)
                labelled = (read_mask(mask, cell) != IGNORE).any(axis=0)
                counted = valid & _painted(cell, hits) & labelled
                yield Moments.of(with_indices(pixels, valid, indices)[:, counted])


def _painted(cell: Window, windows: Iterable[Window]) -> Bool[ndarray, "h w"]:
    painted = np.zeros((cell.height, cell.width), bool)
    for window in windows:
        part = window.overlap(cell)
        if part is not None:
            painted[part.within(cell).slices] = True
    return painted


def _box(window: Window) -> shapely.Polygon:
    return shapely.box(window.col, window.row, window.stop_col, window.stop_row)


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
