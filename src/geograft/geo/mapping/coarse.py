"""A raster cut into square frames of whole cells, and the grid that has one pixel a cell."""

from dataclasses import dataclass

import numpy as np
from affine import Affine
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.geo.grid import Grid, Window
from geograft.geo.mapping.batches import Source
from geograft.geo.mapping.tiles import Lanes, Reflection, TileGrid, panel_width


def coarse(grid: Grid, cell_px: int) -> Grid:
    """Return the grid of the same place with one pixel for `cell_px` x `cell_px` of `grid`, counted from upper left.

    The last row and column of cells may reach beyond `grid`.
    """
    rows, cols = (-(-length // cell_px) for length in (grid.height, grid.width))
    return Grid(rows, cols, grid.transform @ Affine.scale(cell_px), grid.crs)


def frames(grid: Grid, frame_px: int, pixel_bytes: int) -> Lanes:
    """Return frames side by side from the upper left corner of `grid`; the last ones reach beyond it.

    They lie in panels so narrow that blocks of the file under them, `pixel_bytes` a pixel, are decoded once.
    """
    height, width = (-(-length // frame_px) * frame_px for length in (grid.height, grid.width))
    tiles = TileGrid(height, width, frame_px, overlap=0.0)
    return Lanes(tiles, panel_width(tiles, 1, pixel_bytes))


@dataclass(frozen=True)
class Mirrored:
    """A source that goes on as its mirror image below and to the right of its raster."""

    source: Source
    height: int
    """Of the raster itself."""
    width: int

    def empty(self, window: Window) -> bool:
        """Return True only where it is known without reading that no pixel of a window is valid and wanted."""
        inside = self._inside(window)
        return inside is None or self.source.empty(inside)

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window, mirrored beyond the raster, and which are valid."""
        shown = Reflection.of(window, self.height, self.width)
        pixels, valid = self.source.read(shown.inside)
        return shown.unfolded(pixels), shown.unfolded(valid)

    def wanted(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return which pixels of a window the map has; none of the mirrored ones."""
        found = np.zeros((window.height, window.width), bool)
        inside = self._inside(window)
        if inside is not None:
            wanted = self.source.wanted(inside)
            found[inside.within(window).slices] = True if wanted is None else wanted
        return found

    def _inside(self, window: Window) -> Window | None:
        return window.overlap(Window(0, 0, self.height, self.width))
