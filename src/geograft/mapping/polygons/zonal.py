"""Zonal statistics: exact integer sums of class probabilities over regions, which can be added in any order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import BYTE_SCALE

FLOAT_UNITS = 2**24
"""Float probabilities are rounded to multiples of 1 / FLOAT_UNITS; every float16 from 0 to 1 is one."""


@dataclass(frozen=True)
class ProbabilityRaster:
    """A raster of the probability of each class at each pixel of a map."""

    image: Image
    bands: Mapping[int, int]
    """Band number, from 1, by class value."""
    uncertain_below: float
    """A pixel is uncertain if the probability of its class is below this."""

    @property
    def units(self) -> int:
        """The integer that represents probability 1 in the sums."""
        return BYTE_SCALE if np.dtype(self.image.info.dtype).kind == "u" else FLOAT_UNITS

    def sum_by_label(
        self, window: Window, labels: Int32[ndarray, "h w"], label_values: Int64[ndarray, " n"]
    ) -> Int64[ndarray, "n 3"]:
        """Return for each label the number of pixels with a probability, its sum in units, and the uncertain pixels.

        The probability is that of the label's class, `label_values`. Sums are exact up to 2^53.
        """
        found = np.zeros((len(label_values), 3), np.int64)
        of_pixel = np.concatenate([[0], label_values])[labels]
        for value in np.unique(label_values):
            pixels, valid = self.image.read(window, [self.bands[int(value)]])
            mine = valid & (labels > 0) & (of_pixel == value)
            where, units = labels[mine] - 1, pixels[0][mine]
            if self.units == FLOAT_UNITS:
                units = np.rint(units.astype(float) * FLOAT_UNITS).astype(np.int64)
            weights = (None, units.astype(float), (units < self.uncertain_below * self.units).astype(float))
            for column, weight in enumerate(weights):
                found[:, column] += np.bincount(where, weight, len(label_values)).astype(np.int64)
        return found

    def statistics(self, sums: Int64[ndarray, "n 3"]) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Return the mean probability and the fraction of uncertain pixels; NaN for regions without a probability."""
        return zonal_statistics(sums, self.units)


def zonal_statistics(sums: Int64[ndarray, "n 3"], units: int) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return the mean probability and the fraction of uncertain pixels; NaN for regions without a probability."""
    known = np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
    return sums[:, 1] / (known * units), sums[:, 2] / known


def match_probabilities(
    image: Image, grid: Grid, names: Mapping[int, str], uncertain_below: float
) -> ProbabilityRaster:
    """Return the probability raster in `image` for a map on `grid`; `names` are the class names by value.

    Raises:
        InputError: when the image has another grid, or lacks a class.
    """
    info = image.info
    if info.grid != grid:
        raise InputError(
            f"{info.path} has another grid than the map. Move it away, or predict both again with --probabilities."
        )
    bands = {value: info.band_names.index(name) + 1 for value, name in names.items() if name in info.band_names}
    missing = [name for value, name in names.items() if value not in bands]
    if missing:
        raise InputError(
            f"{info.path} has no band {missing[0]!r}; it has: {', '.join(info.band_names)}. "
            "Move it away, or predict both again with --probabilities."
        )
    return ProbabilityRaster(image, bands, uncertain_below)
