"""Statistics of a tile set: mean and standard deviation of each band in one pass, and pixel counts of each class."""

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
from geograft.geo.grid import Window, block_windows
from geograft.geo.rasters.nodata import ValidityRule
from geograft.geo.rasters.raster import DEFAULT_RULE, Image, read_mask
from geograft.indices import Index, append_indices
from geograft.labels import MAX_CODE
from geograft.legend import IGNORE, Legend

MOMENTS_BLOCK = (512, 1024)
"""Rows and columns read at a time."""
RELATIVE_ROUNDING_ERROR = 1e-12
"""A standard deviation below this fraction of the mean is float64 rounding error."""


@dataclass(frozen=True)
class Moments:
    """Number, mean and sum of squared deviations of the pixels of each band. NaN is not counted."""

    count: Int64[ndarray, " b"]
    mean: Float64[ndarray, " b"]
    squared_deviations: Float64[ndarray, " b"]

    @classmethod
    def zeros(cls, bands: int) -> "Moments":
        """Return the moments of zero pixels."""
        return cls(np.zeros(bands, np.int64), np.zeros(bands), np.zeros(bands))

    @classmethod
    def from_pixels(cls, pixels: Shaped[ndarray, "b n"]) -> "Moments":
        """Return the moments of an array of pixels, in two passes."""
        exact = pixels.astype(np.float64)
        known = ~np.isnan(exact)
        count = known.sum(axis=1, dtype=np.int64)
        # Without a mask, numpy uses pairwise summation, which is faster and more accurate.
        where = known if not known.all() else np.True_
        mean = exact.sum(axis=1, where=where) / np.maximum(count, 1)
        return cls(count, mean, ((exact - mean[:, None]) ** 2).sum(axis=1, where=where))

    def __add__(self, other: "Moments") -> "Moments":
        # Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for ... sample variances", (2.1).
        count = self.count + other.count
        divisor = np.maximum(count, 1)
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / divisor)
        # The product of two counts may overflow int64.
        weight = self.count.astype(np.float64) * other.count / divisor
        return Moments(count, mean, self.squared_deviations + other.squared_deviations + difference**2 * weight)

    @property
    def std(self) -> Float64[ndarray, " b"]:
        """The standard deviation of each band; 1 for a constant band, so division is safe."""
        std: Float64[ndarray, " b"] = np.sqrt(self.squared_deviations / np.maximum(self.count, 1))
        # The deviation of a constant band is rounding error.
        return np.where(std > RELATIVE_ROUNDING_ERROR * np.abs(self.mean), std, 1.0)


def band_moments(
    image: Path,
    mask: Path,
    windows: Sequence[Window],
    indices: Sequence[Index] = (),
    bands: Sequence[int] = (),
    validity: ValidityRule = DEFAULT_RULE,
) -> Iterable[Moments]:
    """Yield the moments of the labelled pixels of a scene that lie in any of `windows`, each pixel counted once.

    Covers the `bands`, counted from 1 (default: all), then the `indices`, computed from these; `validity` tells how
    invalid pixels are recognised. Reads each block of the
    scene once, and only blocks that touch a window.

    Raises:
        InputError: if image or mask cannot be decoded.
    """
    tree = shapely.STRtree([_box(window) for window in windows])
    with Image.open(image, bands=bands, validity=validity) as opened:
        for cell in block_windows(opened.info.grid.window, *MOMENTS_BLOCK):
            hits = [windows[hit] for hit in tree.query(_box(cell))]
            if hits:
                pixels, valid = opened.read(cell)
                labelled = (read_mask(mask, cell) != IGNORE).any(axis=0)
                counted = valid & _coverage_mask(cell, hits) & labelled
                yield Moments.from_pixels(append_indices(pixels, valid, indices)[:, counted])


def _coverage_mask(cell: Window, windows: Iterable[Window]) -> Bool[ndarray, "h w"]:
    covered = np.zeros((cell.height, cell.width), bool)
    for window in windows:
        part = window.intersection(cell)
        if part is not None:
            covered[part.relative_to(cell).slices] = True
    return covered


def _box(window: Window) -> shapely.Polygon:
    return shapely.box(window.col, window.row, window.stop_col, window.stop_row)


COUNT_BLOCK = (512, 4096)
"""Rows and columns read at a time."""


@dataclass(frozen=True)
class ClassCounts:
    """Number of labelled pixels of each class; fractional labels count in proportion."""

    labelled: int
    """Pixels with at least one known class."""
    present: tuple[float, ...]
    """Pixels of each class, by class index."""
    absent: tuple[float, ...] = ()
    """Pixels known not to belong to each class, by class index; only for overlapping classes."""

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        present = map(add, self.present, other.present)
        return ClassCounts(self.labelled + other.labelled, tuple(present), tuple(map(add, self.absent, other.absent)))

    @property
    def fractions(self) -> tuple[float, ...]:
        """Fraction of each class among the labelled pixels; 0 if there are none."""
        return tuple(pixels / max(self.labelled, 1) for pixels in self.present)

    @property
    def stratification_counts(self) -> tuple[int, ...]:
        """The counts that a split stratifies: pixels of each class and, for overlapping classes, pixels without it.

        Their sum is proportional to the number of labelled pixels.
        """
        return tuple(round(pixels) for pixels in self.present + self.absent)


def count_labels(bands: UInt8[ndarray, "o h w"], legend: Legend, fractional: bool) -> ClassCounts:
    """Count classes in a mask: one band of class indices, or one band of fractions in 250ths per output."""
    if not fractional:
        pixels = np.bincount(bands.ravel(), minlength=IGNORE + 1)[: len(legend.names)].tolist()
        return ClassCounts(sum(pixels), tuple(pixels))
    known = bands <= MAX_CODE
    inside = [int(band[here].sum(dtype=np.int64)) / MAX_CODE for band, here in zip(bands, known, strict=True)]
    pixels = [int(here.sum()) for here in known]
    labelled = int(known.any(axis=0).sum())
    if legend.binary:
        return ClassCounts(labelled, (labelled - inside[0], inside[0]))
    absent = [total - part for total, part in zip(pixels, inside, strict=True)] if legend.overlapping else []
    return ClassCounts(labelled, tuple(inside), tuple(absent))


def count_classes(mask: Path, window: Window, legend: Legend, fractional: bool) -> ClassCounts:
    """Count classes in a window of a label mask, which must contain the window.

    Raises:
        InputError: if the mask cannot be read.
    """
    return reduce(
        add, (count_labels(read_mask(mask, cell), legend, fractional) for cell in block_windows(window, *COUNT_BLOCK))
    )


def labelled_tiles(
    planned: Iterable[tuple[str, Window, Split]], count_window: Callable[[str, Window], ClassCounts], min_valid: float
) -> list[Tile]:
    """Return the planned tiles with a labelled fraction of at least `min_valid`, with their class fractions."""
    tiles = []
    for name, window, split in planned:
        counts = count_window(name, window)
        valid = counts.labelled / (window.height * window.width)
        if counts.labelled and valid >= min_valid:
            tiles.append(Tile(name, window, split, valid, counts.fractions))
    return tiles
