"""Mean and standard deviation of every band, from pixels that pass by once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64, Shaped
from numpy import ndarray

from geograft.geo.grid import Window, cells
from geograft.geo.rasters.raster import Image, read_mask
from geograft.indices import Index, with_indices
from geograft.legend import IGNORE

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
