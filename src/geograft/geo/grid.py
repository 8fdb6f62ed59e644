"""Raster geometry: a `Grid` is a raster's shape, transform and CRS, a `Window` a rectangle of its pixels, rows first.

Both are immutable values, and no function here opens a file. `WindowIndex` is a spatial index over windows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64
from numpy import ndarray
from pyproj import CRS
from rasterio.windows import Window as RasterioWindow
from shapely import Polygon, STRtree, box


@dataclass(frozen=True, order=True)
class Window:
    """A rectangle of `height` x `width` pixels with its upper left pixel at (`row`, `col`) of a grid."""

    row: int
    col: int
    height: int
    width: int

    @property
    def stop_row(self) -> int:
        """The first row below the window."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """The first column to the right of the window."""
        return self.col + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """The window as an index into an array of the whole grid, (..., H, W)."""
        return slice(self.row, self.stop_row), slice(self.col, self.stop_col)

    @property
    def outline(self) -> Polygon:
        """The window's border in pixels, (column, row)."""
        return box(self.col, self.row, self.stop_col, self.stop_row)

    def intersection(self, other: "Window") -> "Window | None":
        """Return the window of the pixels in both windows, or None when they are disjoint."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.stop_row, other.stop_row) - row
        width = min(self.stop_col, other.stop_col) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def relative_to(self, other: "Window") -> "Window":
        """Return the same window with row and column counted from the upper left pixel of `other`."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)

    def pad(self, margin: int) -> "Window":
        """Return the window extended by `margin` pixels on each side; its row and column may become negative."""
        return Window(self.row - margin, self.col - margin, self.height + 2 * margin, self.width + 2 * margin)

    def to_rasterio(self) -> RasterioWindow:
        """Return the window as rasterio's type."""
        return RasterioWindow(self.col, self.row, self.width, self.height)


@dataclass(frozen=True)
class Grid:
    """A raster's shape, affine transform from (column, row) to (x, y), and CRS (None: not georeferenced)."""

    height: int
    width: int
    transform: Affine
    crs: CRS | None

    @property
    def window(self) -> Window:
        """The window of the whole grid."""
        return Window(0, 0, self.height, self.width)

    def crop(self, window: Window) -> "Grid":
        """Return the grid of `window`."""
        shifted = self.transform @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, shifted, self.crs)

    def footprint(self, window: Window | None = None) -> Polygon:
        """Return the outline of `window` (default: the whole grid) in CRS coordinates."""
        w = window or self.window
        corners = ((w.col, w.row), (w.stop_col, w.row), (w.stop_col, w.stop_row), (w.col, w.stop_row))
        return Polygon([self.transform @ corner for corner in corners])


MAX_COORDINATE, MIN_PIXEL_SIZE, MIN_SINE = 1e12, 1e-12, 1e-6
"""Bounds of coordinates and pixel sizes, in units of the CRS, and of the sine of the angle between rows and columns."""
MAX_LONGITUDE, MAX_LATITUDE = 720.0, 90.0


def grid_fault(grid: Grid) -> str:
    """Return what makes a grid's transform unusable; empty if nothing does.

    >>> grid_fault(Grid(64, 64, Affine(0.1, 0, 0, 0.1, 0, 0), None))
    'its transform (0.1, 0, 0, 0.1, 0, 0) is singular: pixels without area'
    """
    a, b, _, d, e, _ = numbers = grid.transform[:6]
    shown = f"its transform ({', '.join(f'{number:.6g}' for number in numbers)})"
    if not np.isfinite(numbers).all():
        return f"{shown} is not finite"
    if np.abs(numbers).max() > MAX_COORDINATE:
        return f"{shown} has numbers above {MAX_COORDINATE:g}"
    sizes = np.hypot([a, b], [d, e])
    if (sizes < MIN_PIXEL_SIZE).any() or abs(a * e - b * d) < MIN_SINE * sizes.prod():
        return f"{shown} is singular: pixels without area"
    corners = np.abs([grid.transform @ (col, row) for col in (0, grid.width) for row in (0, grid.height)]).max(axis=0)
    if corners.max() > MAX_COORDINATE:
        return f"{shown} puts its corners at coordinates of up to {corners.max():.3g}"
    # Pixels of a grid of the whole earth may be centred on a pole.
    if (
        grid.crs is not None
        and grid.crs.is_geographic
        and (corners > (MAX_LONGITUDE, MAX_LATITUDE + sizes.max())).any()
    ):
        return f"{shown} puts its corners at {corners[0]:.6g} degrees of longitude and {corners[1]:.6g} of latitude"
    return ""


def is_horizontal(crs: CRS) -> bool:
    """Return whether a CRS is geographic, projected or local, and not vertical or geocentric."""
    return bool(crs.is_geographic or crs.is_projected or crs.is_engineering)


def transform_points(points: Float64[ndarray, "n 2"], transform: Affine) -> Float64[ndarray, "n 2"]:
    """Return points, (x, y) or (column, row), after an affine transform."""
    a, b, c, d, e, f = transform[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def window_offsets(length: int, size: int, stride: int) -> list[int]:
    """Return the start offsets of windows of `size` that cover `length`: one per `stride`, the last flush with the end.

    >>> window_offsets(500, 224, 224)
    [0, 224, 276]
    >>> window_offsets(100, 224, 112)
    [0]
    """
    last = max(length - size, 0)
    regular = list(range(0, last + 1, stride))
    return regular if regular[-1] == last else [*regular, last]


def tiling(area: Window, size: int, stride: int) -> list[Window]:
    """Return square windows of `size` that cover `area`, row by row; they exceed an area smaller than `size`."""
    return [
        Window(area.row + row, area.col + col, size, size)
        for row in window_offsets(area.height, size, stride)
        for col in window_offsets(area.width, size, stride)
    ]


def block_windows(area: Window, height: int, width: int) -> Iterator[Window]:
    """Yield windows of at most `height` x `width` that partition `area`, row by row."""
    for row in range(area.row, area.stop_row, height):
        for col in range(area.col, area.stop_col, width):
            yield Window(row, col, min(height, area.stop_row - row), min(width, area.stop_col - col))


class WindowIndex:
    """A spatial index (R-tree) over windows of one grid. A query takes microseconds, for thousands of windows."""

    def __init__(self, windows: Sequence[Window]) -> None:
        edges = np.array([(w.col, w.row, w.stop_col, w.stop_row) for w in windows], float).reshape(-1, 4)
        self._tree = STRtree(shapely.box(*edges.T))

    def query(self, window: Window) -> list[int]:
        """Return the indices of all windows that share a pixel with `window`, ascending."""
        # The tree also finds boxes that only touch; shrinking the query by half a pixel excludes them.
        box = shapely.box(window.col + 0.5, window.row + 0.5, window.stop_col - 0.5, window.stop_row - 0.5)
        return sorted(self._tree.query(box).tolist())
