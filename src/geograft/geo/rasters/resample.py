"""Resampling to another pixel size while a raster is read: area means when downsampling, bilinear when upsampling.

GDAL's WarpedVRT is not used because the values of its bilinear pixels depend, by one level, on the window requested.
Here the weights and the order of summation of a pixel depend only on its row and column, so all windows agree bit for
bit. The module also applies the package's rule for valid pixels, and handles rotated and south-up rasters, since it
works in rows and columns.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from affine import Affine
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.measure import central_pixel_size_m

RATIO_TOLERANCE = 1e-3
"""A ratio within this relative distance of an integer, or of 1 / an integer, is rounded to it."""
MAX_RATIO = 256
"""Largest factor between the old and the new pixel size."""
MIN_VALID_FRACTION = 0.5 - 1e-5
"""Fraction of a pixel's area that must be valid: half, less a margin so that rounding does not decide ties."""
MAX_CHUNK_PX = 2**21
"""Largest number of source pixels processed at a time."""

WindowReader: TypeAlias = Callable[[Window], tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]]
"""Returns the pixels of a window, 0 where invalid, and the mask of valid ones. The window may exceed the raster."""


@dataclass(frozen=True)
class Taps:
    """The filter of n consecutive pixels along one axis of the new grid: k consecutive source pixels for each."""

    first: Int64[ndarray, " n"]
    """Index of the first of the k source pixels; may lie outside the raster."""
    weights: Float64[ndarray, "n k"]
    """Weight of each source pixel in the new pixel's value; they sum to 1."""
    coverage: Float64[ndarray, "n k"]
    """Fraction of the new pixel that each source pixel covers; 0 outside the raster."""

    @property
    def span(self) -> range:
        """The range of source pixels needed."""
        return range(int(self.first[0]), int(self.first[-1]) + self.weights.shape[1])


@dataclass(frozen=True)
class Resampler:
    """Resampling from a raster's grid to one with the same CRS, orientation and upper left corner."""

    source: Grid
    rows: float
    """Source rows per row of the new grid."""
    cols: float
    """Source columns per column of the new grid."""

    @cached_property
    def grid(self) -> Grid:
        """The new grid. Its far edges lie within half a new pixel of the source's edges."""
        height, width = round_half_up(self.source.height / self.rows), round_half_up(self.source.width / self.cols)
        return Grid(height, width, self.source.transform @ Affine.scale(self.cols, self.rows), self.source.crs)

    def source_window(self, window: Window) -> Window:
        """Return the source window needed for `window`; it may extend one pixel beyond the source."""
        rows, cols = (taps.span for taps in self._taps(window))
        return Window(rows.start, cols.start, len(rows), len(cols))

    def read(self, source: WindowReader, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window` of the new grid in the source's dtype, and the mask of valid ones.

        A pixel is valid when at least half of its area inside the source is valid. Its value is the weighted mean of
        the valid source pixels, rounded for integer dtypes, and 0 where invalid. The window may extend beyond the grid.
        Memory besides the result: a few times MAX_CHUNK_PX pixels.
        """
        inside = window.intersection(self.grid.window) or Window(0, 0, 1, 1)
        pixels: ndarray[Any, Any] | None = None
        valid = np.zeros((window.height, window.width), bool)
        for cell in self._cells(inside):
            part_pixels, part_valid = self._resample(source, cell)
            if pixels is None:
                pixels = np.zeros((len(part_pixels), window.height, window.width), part_pixels.dtype)
            if cell.intersection(window):
                rows, cols = cell.relative_to(window).slices
                pixels[:, rows, cols], valid[rows, cols] = part_pixels, part_valid
        assert pixels is not None
        return pixels, valid

    def _taps(self, window: Window) -> tuple[Taps, Taps]:
        return (
            filter_taps(window.row, window.height, self.rows, self.source.height),
            filter_taps(window.col, window.width, self.cols, self.source.width),
        )

    def _cells(self, window: Window) -> list[Window]:
        """Split a window into chunks that need few source pixels each, without too much overlap at their borders."""
        high, wide = max(1.0, self.rows), max(1.0, self.cols)
        width = min(window.width, max(1, int(MAX_CHUNK_PX / max(256, 4 * high) / wide)))
        height = max(1, int(MAX_CHUNK_PX / (width * wide * high)))
        return list(block_windows(window, height, width))

    def _resample(self, source: WindowReader, cell: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        rows, cols = self._taps(cell)
        pixels, valid = source(self.source_window(cell))
        if not valid.any():
            size = (cell.height, cell.width)
            return np.zeros((len(pixels), *size), pixels.dtype), np.zeros(size, bool)
        float_dtype = np.result_type(pixels.dtype, np.float32)
        float_valid = valid[None].astype(float_dtype)
        area_inside = np.outer(rows.coverage.sum(1), cols.coverage.sum(1))
        valid_area = _weighted_sums(float_valid, rows, cols, "coverage")[0]
        known = valid_area >= MIN_VALID_FRACTION * area_inside
        # When downsampling, weights and coverage give the same sums.
        upsampling = min(self.rows, self.cols) < 1
        weight = _weighted_sums(float_valid, rows, cols, "weights")[0] if upsampling else valid_area
        sums = _weighted_sums(pixels.astype(float_dtype), rows, cols, "weights")
        return _cast(np.where(known, sums / np.where(known, weight, 1), 0), pixels.dtype), known


def make_resampler(grid: Grid, resolution_m: float, name: str) -> Resampler | None:
    """Return the resampler of `grid` to a pixel size of `resolution_m` metres; None when it already has that size.

    Pixels become square at the grid's centre; in a geographic CRS the step in degrees then differs between rows and
    columns. `name` is used in messages.

    Raises:
        InputError: without a CRS, or when the pixel size differs from `resolution_m` by more than MAX_RATIO.
    """
    if grid.crs is None:
        raise InputError(
            f"{name} has no CRS, so its pixel size in metres is unknown. Assign its CRS, or map it without resampling."
        )
    across, down = central_pixel_size_m(grid)
    ratios = [resolution_m / size if size > 0 else math.inf for size in (down, across)]
    if not all(1 / MAX_RATIO <= ratio <= MAX_RATIO for ratio in ratios):
        raise InputError(
            f"{name} has pixels of {across:.3g} x {down:.3g} m, too different from {resolution_m:.3g} m to resample. "
            "Check its CRS and transform, or map it without resampling."
        )
    rows, cols = (round_ratio(ratio) for ratio in ratios)
    return None if rows == cols == 1 else Resampler(grid, rows, cols)


def filter_taps(start: int, count: int, step: float, length: int) -> Taps:
    """Return the filter of the new pixels `start` to `start` + `count` - 1, each `step` of the `length` source pixels.

    For `step` of at least 1 the weights are those of an area mean, otherwise of linear interpolation between the two
    nearest pixel centres.

    >>> filter_taps(0, 2, 1.5, 3).weights.round(3).tolist()
    [[0.667, 0.333, 0.0], [0.333, 0.667, 0.0]]
    """
    begins = np.arange(start, start + count, dtype=float)
    low, high = begins * step, (begins + 1) * step
    centre = (begins + 0.5) * step - 0.5
    k = 2 if step < 1 else math.ceil(step) + (not float(step).is_integer())
    first = np.floor(centre if step < 1 else low).astype(np.int64)
    pixels = first[:, None] + np.arange(k)
    fractions = (np.minimum(high[:, None], pixels + 1) - np.maximum(low[:, None], pixels)).clip(0) / step
    coverage = np.where((pixels >= 0) & (pixels < length), fractions, 0)
    if step >= 1:
        return Taps(first, fractions, coverage)
    second = centre - first
    return Taps(first, np.column_stack([1 - second, second]), coverage)


def round_half_up(size: float) -> int:
    """Round to the nearest integer, halves up; at least 1."""
    return max(1, math.floor(size + 0.5))


def round_ratio(ratio: float) -> float:
    """Return the integer, or 1 / integer, that a ratio of pixel sizes is close to; itself if there is none."""
    factor = round(max(ratio, 1 / ratio))
    rounded = factor if ratio >= 1 else 1 / factor
    return rounded if abs(ratio / rounded - 1) < RATIO_TOLERANCE else ratio


def _weighted_sums(
    pixels: Float[ndarray, "b h w"], rows: Taps, cols: Taps, what: Literal["weights", "coverage"]
) -> Float[ndarray, "b m n"]:
    """Return weighted sums over rows and then columns, always in the same order."""
    down = _axis_sums(pixels, 1, rows, getattr(rows, what)[:, :, None])
    return _axis_sums(down, 2, cols, getattr(cols, what))


def _axis_sums(
    pixels: Float[ndarray, "b h w"], axis: int, axis_taps: Taps, weights: Float64[ndarray, "n k ..."]
) -> Float[ndarray, "b r c"]:
    at = axis_taps.first - axis_taps.span.start
    weights = weights.astype(pixels.dtype)
    total: ndarray[Any, Any] = np.take(pixels, at, axis) * weights[:, 0]
    for tap in range(1, weights.shape[1]):
        total += np.take(pixels, at + tap, axis) * weights[:, tap]
    return total


def _cast(means: Float[ndarray, "b h w"], dtype: np.dtype[Any]) -> Shaped[ndarray, "b h w"]:
    if dtype.kind == "f":
        return means.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    rounded: ndarray[Any, Any] = np.rint(means).clip(limits.min, limits.max).astype(dtype)
    return rounded
