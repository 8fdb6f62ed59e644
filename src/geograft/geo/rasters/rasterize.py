"""Polygons into pixels: a pixel is of the polygon that holds its centre; of several, of the last.

An area of interest: the polygons of a vector file, asked by windows of a raster.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, UInt8
from numpy import ndarray
from rasterio.features import rasterize
from shapely import STRtree

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, transformed
from geograft.geo.vectors.reader import read_polygons, valid_polygons

NUDGE = Affine.translation(1e-6 * 2**0.5, 1e-6 * 3**0.5)
"""Moves polygons by a millionth of a pixel, so that no edge drawn through a pixel's centre is left to rounding."""


@dataclass(frozen=True)
class PixelShapes:
    """Polygons of one scene in its pixel coordinates (x = column, y = row), with the class index of each."""

    parts: ndarray
    """(n,) shapely Polygons, holes included; the parts of a multipolygon one after the other."""
    values: UInt8[ndarray, " n"]

    @cached_property
    def tree(self) -> STRtree:
        """The index of the parts; its answers are positions in `parts`."""
        return STRtree(self.parts)

    def only(self, value: int) -> "PixelShapes":
        """Return the polygons of one class."""
        mine = self.values == value
        return PixelShapes(self.parts[mine], self.values[mine])


def in_pixels(shapes: ndarray, values: UInt8[ndarray, " n"], to_pixels: Affine) -> PixelShapes:
    """Return (n,) polygons or multipolygons in pixel coordinates, which `to_pixels` makes of theirs.

    For shapes on the ground `to_pixels` is the inverse of the grid's transform. Doing this once for the whole scene,
    and moving windows by whole pixels only, makes windows agree where they meet.
    """
    parts, owners = shapely.get_parts(shapes, return_index=True)
    return PixelShapes(shapely.transform(parts, lambda xy: transformed(xy, NUDGE @ to_pixels)), values[owners])


def burned(shapes: PixelShapes, window: Window, fill: int, fine: int = 1) -> UInt8[ndarray, "rows cols"]:
    """Return the class index of every pixel of `window`; `fill` where no polygon holds its centre.

    With `fine`, of every part of a pixel that is cut in so many rows and columns. Costs the vertices of the polygons
    that touch the window, whatever the scene holds besides.
    """
    hits = np.sort(shapes.tree.query(window.outline))
    size = (window.height * fine, window.width * fine)
    if not len(hits):
        return np.full(size, fill, np.uint8)
    to_window = Affine.translation(window.col, window.row) @ Affine.scale(1 / fine)
    pairs = zip(shapes.parts[hits], shapes.values[hits].tolist(), strict=True)
    labels: ndarray[Any, Any] = rasterize(pairs, size, fill=fill, transform=to_window, dtype="uint8")
    return labels


MOST_VERTICES = 256
"""Polygons with more are cut up."""
LEAST_PX = 64
"""Pieces are not cut smaller than this."""


class Area:
    """Polygons in a raster's pixel coordinates, cut into pieces so that a window costs little however long they are."""

    def __init__(self, shapes: ndarray, grid: Grid) -> None:
        """Take (n,) valid polygons or multipolygons in the CRS of `grid`, of which the part on the grid counts."""
        whole = in_pixels(shapes, np.ones(len(shapes), np.uint8), ~grid.transform)
        pieces = _pieces(whole.parts, grid.window)
        self._pieces = PixelShapes(pieces, np.ones(len(pieces), np.uint8))

    @classmethod
    def read(cls, path: Path, grid: Grid) -> "Area":
        """Return the area that the polygons of a vector file, of any CRS, cover on `grid`.

        Raises:
            InputError: when the file cannot be read or holds no polygon, when it or the raster has no CRS and the
                other has, or when no polygon lies on the raster.
        """
        polygons = read_polygons(path, grid.crs)
        if grid.crs is None and polygons.crs is not None:
            raise InputError(
                f"{path} has a CRS ({polygons.crs.name}), but the raster has none, so the area has no place on it. "
                "Assign the raster its CRS, or map it whole."
            )
        area = cls(valid_polygons(polygons.shapes)[0], grid)
        if not len(area._pieces.parts):
            raise InputError(
                f"{path}: none of its {len(polygons.shapes)} polygons lies on the raster. "
                "Check that both show the same place and state their CRS rightly."
            )
        return area

    def touches(self, window: Window) -> bool:
        """Return False only when no pixel of `window` lies in the area. Costs microseconds."""
        return len(self._pieces.tree.query(window.outline, predicate="intersects")) > 0

    def mask(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return which pixels of `window` have their centre in the area: the rule of labels, see `burn`."""
        return burned(self._pieces, window, fill=0).astype(bool)


def _pieces(parts: ndarray, frame: Window) -> ndarray:
    """Return polygons cut along lines between pixels until each has few vertices; what lies outside `frame` is gone.

    No pixel's centre is on such a line, so the pieces hold the centres that the polygons held.
    """
    parts = parts[shapely.intersects(frame.outline, parts)]
    large = shapely.get_num_coordinates(parts) > MOST_VERTICES
    if not large.any() or max(frame.height, frame.width) < 2 * LEAST_PX:
        return parts
    finer = [_pieces(_clipped(parts[large], half), half) for half in _halves(frame)]
    return np.concatenate([parts[~large], *finer])


def _clipped(parts: ndarray, frame: Window) -> ndarray:
    """Return the parts of polygons that lie in `frame`, each a polygon with an area."""
    inside = shapely.clip_by_rect(parts, frame.col, frame.row, frame.stop_col, frame.stop_row)
    pieces = shapely.get_parts(inside)
    return pieces[shapely.area(pieces) > 0]


def _halves(frame: Window) -> tuple[Window, Window]:
    half, col, row = max(frame.height, frame.width) // 2, frame.col, frame.row
    if frame.width >= frame.height:
        return Window(row, col, frame.height, half), Window(row, col + half, frame.height, frame.width - half)
    return Window(row, col, half, frame.width), Window(row + half, col, frame.height - half, frame.width)
