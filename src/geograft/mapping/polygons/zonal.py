"""Sums of class probabilities over the regions of a block, exact, so that they can be added up in any order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import CERTAIN

FINE = 2**24
"""Steps that other probabilities are rounded to; every float16 between 0 and 1 is a whole number of them."""


@dataclass(frozen=True)
class Probabilities:
    """The probability of every class in every pixel of a map."""

    image: Image
    bands: Mapping[int, int]
    """The band by the class's value in the map, counted from 1."""
    below: float
    """A pixel is uncertain where the probability of its class is below this."""

    @property
    def unit(self) -> int:
        """What stands for probability 1 in the sums."""
        return CERTAIN if np.dtype(self.image.info.dtype).kind == "u" else FINE

    def sums(
        self, window: Window, labels: Int32[ndarray, "h w"], owners: Int64[ndarray, " n"]
    ) -> Int64[ndarray, "n 3"]:
        """Return for every label the pixels whose probability is known, its sum in units, and the uncertain pixels.

        The probability is that of the label's own class, `owners`. Sums are exact up to 2^53.
        """
        found = np.zeros((len(owners), 3), np.int64)
        of_pixel = np.concatenate([[0], owners])[labels]
        for value in np.unique(owners):
            pixels, valid = self.image.read(window, [self.bands[int(value)]])
            mine = valid & (labels > 0) & (of_pixel == value)
            where, units = labels[mine] - 1, pixels[0][mine]
            if self.unit == FINE:
                units = np.rint(units.astype(float) * FINE).astype(np.int64)
            weights = (None, units.astype(float), (units < self.below * self.unit).astype(float))
            for column, weight in enumerate(weights):
                found[:, column] += np.bincount(where, weight, len(owners)).astype(np.int64)
        return found

    def figures(self, sums: Int64[ndarray, "n 3"]) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Return the mean probability and the share of uncertain pixels; NaN where no pixel's is known."""
        return figures(sums, self.unit)


def figures(sums: Int64[ndarray, "n 3"], unit: int) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return the mean probability and the share of uncertain pixels from sums; NaN where no pixel's is known."""
    known = np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
    return sums[:, 1] / (known * unit), sums[:, 2] / known


def fitting(image: Image, grid: Grid, names: Mapping[int, str], below: float) -> Probabilities:
    """Return the probabilities in `image` for a map on `grid` whose classes have these names by value.

    Raises:
        InputError: when the image lies elsewhere, or lacks a class.
    """
    info = image.info
    if info.grid != grid:
        raise InputError(
            f"{info.path} does not lie on the map's pixels. Move it away, or predict both again with --probabilities."
        )
    bands = {value: info.band_names.index(name) + 1 for value, name in names.items() if name in info.band_names}
    missing = [name for value, name in names.items() if value not in bands]
    if missing:
        raise InputError(
            f"{info.path} has no band called {missing[0]!r}; it has: {', '.join(info.band_names)}. "
            "Move it away, or predict both again with --probabilities."
        )
    return Probabilities(image, bands, below)
