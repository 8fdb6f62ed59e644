"""Where pixels lie. A Grid is a raster's frame on the ground, a Window a rectangle of its pixels; rows before columns.

Both are values: nothing here opens a file or changes in place.

Which of many windows lie at a place, without asking each of them.
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
    """`height` x `width` pixels whose upper left one is at (`row`, `col`) of a grid."""

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

    def overlap(self, other: "Window") -> "Window | None":
        """Return the pixels that both windows hold, or None when they share none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.stop_row, other.stop_row) - row
        width = min(self.stop_col, other.stop_col) - col
        return Window(row, col, height, width) if height > 0 and width > 0 else None

    def within(self, other: "Window") -> "Window":
        """Return the same pixels counted from the upper left pixel of `other`."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)

    def grown(self, margin: int) -> "Window":
        """Return the window with `margin` more pixels on each of its four sides; it may begin at negative rows."""
        return Window(self.row - margin, self.col - margin, self.height + 2 * margin, self.width + 2 * margin)

    def to_rasterio(self) -> RasterioWindow:
        """Return the window in rasterio's own order, columns first."""
        return RasterioWindow(self.col, self.row, self.width, self.height)


@dataclass(frozen=True)
class Grid:
    """`height` x `width` pixels; `transform` takes (column, row) to (x, y) in `crs`. Without `crs`, in pixels."""

    height: int
    width: int
    transform: Affine
    crs: CRS | None

    @property
    def window(self) -> Window:
        """The window that holds every pixel of the grid."""
        return Window(0, 0, self.height, self.width)

    def crop(self, window: Window) -> "Grid":
        """Return the grid of the pixels of `window` alone."""
        shifted = self.transform @ Affine.translation(window.col, window.row)
        return Grid(window.height, window.width, shifted, self.crs)

    def footprint(self, window: Window | None = None) -> Polygon:
        """Return the outline of `window` (default: of the whole grid) in ground coordinates."""
        w = window or self.window
        corners = ((w.col, w.row), (w.stop_col, w.row), (w.stop_col, w.stop_row), (w.col, w.stop_row))
        return Polygon([self.transform @ corner for corner in corners])


def transformed(points: Float64[ndarray, "n 2"], transform: Affine) -> Float64[ndarray, "n 2"]:
    """Return where a transform takes points, (x, y) or (column, row)."""
    a, b, c, d, e, f = transform[:6]
    x, y = points.T
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows of `size` begin so that they cover `length`: every `stride`, the last one flush.

    >>> starts(500, 224, 224)
    [0, 224, 276]
    >>> starts(100, 224, 112)
    [0]
    """
    regular = list(range(0, max(length - size, 0) + 1, stride))
    flush = max(length - size, 0)
    return regular if regular[-1] == flush else [*regular, flush]


def tiling(area: Window, size: int, stride: int) -> list[Window]:
    """Return square windows of `size` that cover `area`, row by row; larger than `area` where it is too small."""
    return [
        Window(area.row + row, area.col + col, size, size)
        for row in starts(area.height, size, stride)
        for col in starts(area.width, size, stride)
    ]


def cells(area: Window, height: int, width: int) -> Iterator[Window]:
    """Yield windows of at most `height` x `width` that hold every pixel of `area` once, row by row."""
    for row in range(area.row, area.stop_row, height):
        for col in range(area.col, area.stop_col, width):
            yield Window(row, col, min(height, area.stop_row - row), min(width, area.stop_col - col))


class Places:
    """Windows of one grid in a fixed order, found by where they lie; asking thousands costs microseconds."""

    def __init__(self, windows: Sequence[Window]) -> None:
        edges = np.array([(w.col, w.row, w.stop_col, w.stop_row) for w in windows], float).reshape(-1, 4)
        self._tree = STRtree(shapely.box(*edges.T))

    def near(self, window: Window) -> list[int]:
        """Return the positions of all windows that share a pixel with `window`, ascending."""
        # Boxes that only touch are found too; half a pixel less leaves them out.
        box = shapely.box(window.col + 0.5, window.row + 0.5, window.stop_col - 0.5, window.stop_row - 0.5)
        return sorted(self._tree.query(box).tolist())
