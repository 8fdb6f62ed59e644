"""Another ground resolution, computed while a raster is read: means where it gets coarser, linear where finer.

GDAL's WarpedVRT is not used: what its bilinear pixels hold depends, by one level, on the window that was asked for.
Here a pixel is a weighted mean whose weights and order of summation follow from its row and column alone, so all
windows agree to the bit. It also keeps to this package's rule of what is valid, and works on rotated and south-up
rasters, for it sees rows and columns only.
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
from geograft.geo.grid import Grid, Window, cells
from geograft.geo.measure import central_sides_m

SNAP = 1e-3
"""A ratio this close to a whole number, or to one divided by a whole number, is taken for it."""
MOST_RATIO = 256
"""Pixels may become this much larger or smaller, in each direction."""
HALF = 0.5 - 1e-5
"""The share of a pixel's ground that has to be valid: half, where rounding settles no tie."""
MOST_PX = 2**21
"""Pixels that are computed with at a time."""

Source: TypeAlias = Callable[[Window], tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]]
"""A window, which may reach beyond the raster -> its pixels, 0 where they are not valid, and which are valid."""


@dataclass(frozen=True)
class Taps:
    """What n neighbouring pixels of a new axis take from the old one: k neighbouring pixels each."""

    first: Int64[ndarray, " n"]
    """The first of the k old pixels; may lie outside the raster."""
    values: Float64[ndarray, "n k"]
    """What each counts in the pixel's value; they add up to 1."""
    ground: Float64[ndarray, "n k"]
    """The share that each has of the pixel's ground; 0 outside the raster."""

    @property
    def span(self) -> range:
        """The old pixels that are needed."""
        return range(int(self.first[0]), int(self.first[-1]) + self.values.shape[1])


@dataclass(frozen=True)
class Scaling:
    """A raster's grid, and the coarser or finer one it is to be read on: same CRS, directions, upper left corner."""

    source: Grid
    rows: float
    """Rows of the source in one row."""
    cols: float
    """Columns of the source in one column."""

    @cached_property
    def grid(self) -> Grid:
        """The new grid. It ends at most half a new pixel inside or outside of the source."""
        height, width = round_up(self.source.height / self.rows), round_up(self.source.width / self.cols)
        return Grid(height, width, self.source.transform @ Affine.scale(self.cols, self.rows), self.source.crs)

    def needs(self, window: Window) -> Window:
        """Return the window of the source from which `window` is made; it may reach a pixel beyond the source."""
        rows, cols = (taps.span for taps in self._taps(window))
        return Window(rows.start, cols.start, len(rows), len(cols))

    def read(self, source: Source, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window` of the new grid in the source's number format, and which of them are valid.

        A pixel is valid when at least half of its ground is, not counting what lies outside the source; its value is
        the weighted mean of valid pixels alone, rounded for whole numbers; 0 where it is not valid. The window may
        reach beyond the grid. Memory besides the result: a few times MOST_PX pixels, whatever the window.
        """
        inside = window.overlap(self.grid.window) or Window(0, 0, 1, 1)
        pixels: ndarray[Any, Any] | None = None
        valid = np.zeros((window.height, window.width), bool)
        for cell in self._cells(inside):
            made, known = self._made(source, cell)
            if pixels is None:
                pixels = np.zeros((len(made), window.height, window.width), made.dtype)
            if cell.overlap(window):
                rows, cols = cell.within(window).slices
                pixels[:, rows, cols], valid[rows, cols] = made, known
        assert pixels is not None
        return pixels, valid

    def _taps(self, window: Window) -> tuple[Taps, Taps]:
        return (
            taps(window.row, window.height, self.rows, self.source.height),
            taps(window.col, window.width, self.cols, self.source.width),
        )

    def _cells(self, window: Window) -> list[Window]:
        """Return parts of a window that each need few pixels, but not many for their borders."""
        high, wide = max(1.0, self.rows), max(1.0, self.cols)
        width = min(window.width, max(1, int(MOST_PX / max(256, 4 * high) / wide)))
        height = max(1, int(MOST_PX / (width * wide * high)))
        return list(cells(window, height, width))

    def _made(self, source: Source, cell: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        rows, cols = self._taps(cell)
        pixels, valid = source(self.needs(cell))
        if not valid.any():
            size = (cell.height, cell.width)
            return np.zeros((len(pixels), *size), pixels.dtype), np.zeros(size, bool)
        exact = np.result_type(pixels.dtype, np.float32)
        there = valid[None].astype(exact)
        whole = np.outer(rows.ground.sum(1), cols.ground.sum(1))
        share = _summed(there, rows, cols, "ground")[0]
        known = share >= HALF * whole
        # For means by area the two are the same sums.
        finer = min(self.rows, self.cols) < 1
        weight = np.where(known, _summed(there, rows, cols, "values")[0] if finer else share, 1)
        means = np.where(known, _summed(pixels.astype(exact), rows, cols, "values") / weight, 0)
        return _as(means, pixels.dtype), known


def scaled_to(grid: Grid, resolution_m: float, name: str) -> Scaling | None:
    """Return how a raster is brought to `resolution_m` metres on the ground; None when it has that already.

    Both directions get that resolution at the grid's centre, so pixels that were not square on the ground become so
    there; with a geographic CRS that is one number of degrees a row and another a column. `name` is for messages.

    Raises:
        InputError: when the ground resolution is not known, or too far from what is asked for.
    """
    if grid.crs is None:
        raise InputError(
            f"{name} has no CRS, so the size of its pixels on the ground is not known. "
            "Assign its CRS, or map it without resampling."
        )
    across, down = central_sides_m(grid)
    ratios = [resolution_m / size if size > 0 else math.inf for size in (down, across)]
    if not all(1 / MOST_RATIO <= ratio <= MOST_RATIO for ratio in ratios):
        raise InputError(
            f"{name} has pixels of {across:.3g} x {down:.3g} m on the ground, too far from {resolution_m:.3g} m to be "
            "resampled. Check its CRS and transform, or map it without resampling."
        )
    rows, cols = (_snapped(ratio) for ratio in ratios)
    return None if rows == cols == 1 else Scaling(grid, rows, cols)


def taps(start: int, count: int, step: float, length: int) -> Taps:
    """Return where the pixels `start` to `start` + `count` - 1 come from, when each is `step` pixels of `length` long.

    The values of longer pixels (`step` at least 1) are means by area; those of shorter ones are interpolated
    linearly between the two nearest centres.

    >>> taps(0, 2, 1.5, 3).values.round(3).tolist()
    [[0.667, 0.333, 0.0], [0.333, 0.667, 0.0]]
    """
    begins = np.arange(start, start + count, dtype=float)
    low, high = begins * step, (begins + 1) * step
    centre = (begins + 0.5) * step - 0.5
    k = 2 if step < 1 else math.ceil(step) + (not float(step).is_integer())
    first = np.floor(centre if step < 1 else low).astype(np.int64)
    pixels = first[:, None] + np.arange(k)
    shares = (np.minimum(high[:, None], pixels + 1) - np.maximum(low[:, None], pixels)).clip(0) / step
    ground = np.where((pixels >= 0) & (pixels < length), shares, 0)
    if step >= 1:
        return Taps(first, shares, ground)
    second = centre - first
    return Taps(first, np.column_stack([1 - second, second]), ground)


def round_up(size: float) -> int:
    """Return the nearest whole number, of two the larger; at least 1."""
    return max(1, math.floor(size + 0.5))


def _snapped(ratio: float) -> float:
    whole = round(max(ratio, 1 / ratio))
    near = whole if ratio >= 1 else 1 / whole
    return near if abs(ratio / near - 1) < SNAP else ratio


def _summed(
    pixels: Float[ndarray, "b h w"], rows: Taps, cols: Taps, what: Literal["values", "ground"]
) -> Float[ndarray, "b m n"]:
    """Return weighted sums, down and then across, always in the same order."""
    down = _sums(pixels, 1, rows, getattr(rows, what)[:, :, None])
    return _sums(down, 2, cols, getattr(cols, what))


def _sums(
    pixels: Float[ndarray, "b h w"], axis: int, axis_taps: Taps, weights: Float64[ndarray, "n k ..."]
) -> Float[ndarray, "b r c"]:
    at = axis_taps.first - axis_taps.span.start
    weights = weights.astype(pixels.dtype)
    total: ndarray[Any, Any] = np.take(pixels, at, axis) * weights[:, 0]
    for tap in range(1, weights.shape[1]):
        total += np.take(pixels, at + tap, axis) * weights[:, tap]
    return total


def _as(means: Float[ndarray, "b h w"], dtype: np.dtype[Any]) -> Shaped[ndarray, "b h w"]:
    if dtype.kind == "f":
        return means.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    whole: ndarray[Any, Any] = np.rint(means).clip(limits.min, limits.max).astype(dtype)
    return whole
