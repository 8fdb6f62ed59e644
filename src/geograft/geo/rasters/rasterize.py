"""Rasterisation of polygons: a pixel belongs to the polygon that contains its centre, the last one of several.

`AreaOfInterest` holds the polygons of a vector file, and is queried by windows of a raster.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float64, UInt8
from numpy import ndarray
from rasterio.features import rasterize
from shapely import STRtree

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, transform_points

NUDGE = Affine.translation(1e-6 * 2**0.5, 1e-6 * 3**0.5)
"""Shifts polygons by a millionth of a pixel, so that rounding does not decide on edges through pixel centres."""


@dataclass(frozen=True)
class PixelShapes:
    """Polygons in pixel coordinates (x = column, y = row) with their class indices."""

    parts: ndarray
    """(n,) shapely Polygons, with holes; the parts of a multipolygon follow each other."""
    values: UInt8[ndarray, " n"]

    @cached_property
    def tree(self) -> STRtree:
        """Spatial index of `parts`."""
        return STRtree(self.parts)

    def of_class(self, value: int) -> "PixelShapes":
        """Return the polygons of one class."""
        selected = self.values == value
        return PixelShapes(self.parts[selected], self.values[selected])


def to_pixel_shapes(shapes: ndarray, values: UInt8[ndarray, " n"], to_pixels: Affine) -> PixelShapes:
    """Return (n,) polygons or multipolygons in the pixel coordinates to which `to_pixels` transforms them.

    For shapes in CRS coordinates `to_pixels` is the inverse of the grid's transform. Transforming once per scene, and
    shifting windows by whole pixels, makes adjacent windows agree.
    """
    parts, owners = shapely.get_parts(shapes, return_index=True)
    return PixelShapes(shapely.transform(parts, lambda xy: transform_points(xy, NUDGE @ to_pixels)), values[owners])


def rasterize_window(
    shapes: PixelShapes, window: Window, fill: int, oversampling: int = 1
) -> UInt8[ndarray, "rows cols"]:
    """Return the class index of each pixel of `window`; `fill` where no polygon contains its centre.

    With `oversampling` n, each pixel is split into n x n. The cost depends on the vertices of the polygons that touch
    the window, not on the other polygons of the scene.
    """
    hits = np.sort(shapes.tree.query(window.outline))
    size = (window.height * oversampling, window.width * oversampling)
    if not len(hits):
        return np.full(size, fill, np.uint8)
    to_window = Affine.translation(window.col, window.row) @ Affine.scale(1 / oversampling)
    pairs = zip(shapes.parts[hits], shapes.values[hits].tolist(), strict=True)
    labels: ndarray[Any, Any] = rasterize(pairs, size, fill=fill, transform=to_window, dtype="uint8")
    return labels


def last_value_at(shapes: PixelShapes, points: Float64[ndarray, "2 n"], fill: int) -> UInt8[ndarray, " n"]:
    """Return the value of the last polygon that contains each point (column, row); `fill` where there is none.

    For centres of pixels, the rule of `rasterize_window`, also where they do not lie side by side.
    """
    x, y = points
    values = np.full(len(x), fill, np.uint8)
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return values
    frame = shapely.box(x[finite].min(), y[finite].min(), x[finite].max(), y[finite].max())
    for i in np.sort(shapes.tree.query(frame)).tolist():
        left, low, right, high = shapes.parts[i].bounds
        near = np.flatnonzero((x >= left) & (x <= right) & (y >= low) & (y <= high))
        if len(near):
            shapely.prepare(shapes.parts[i])
            values[near[shapely.contains_xy(shapes.parts[i], x[near], y[near])]] = shapes.values[i]
    return values


MAX_VERTICES = 256
"""Polygons with more vertices are cut into pieces."""
MIN_PIECE_PX = 64
"""Smallest extent of a piece that is cut further."""


class AreaOfInterest:
    """Polygons in a raster's pixel coordinates, cut into pieces so that windows of very long polygons stay cheap."""

    def __init__(self, shapes: ndarray, grid: Grid) -> None:
        """Take (n,) valid polygons or multipolygons in the CRS of `grid`; parts outside the grid are dropped."""
        pixel_shapes = to_pixel_shapes(shapes, np.ones(len(shapes), np.uint8), ~grid.transform)
        pieces = _cut(pixel_shapes.parts, grid.window)
        self._pieces = PixelShapes(pieces, np.ones(len(pieces), np.uint8))

    @classmethod
    def read(cls, path: Path, grid: Grid) -> "AreaOfInterest":
        """Return the area that the polygons of a vector file, in any CRS, cover on `grid`.

        Raises:
            InputError: when the file cannot be read or has no polygon, when only one of file and raster has a CRS, or
                when no polygon intersects the raster.
        """
        # GeoPandas takes longer to import than a small map to predict, and most maps have no area of interest.
        from geograft.geo.vectors.reader import read_polygons, repair_polygons  # noqa: PLC0415

        polygons = read_polygons(path, grid.crs)
        if grid.crs is None and polygons.crs is not None:
            raise InputError(
                f"{path} has a CRS ({polygons.crs.name}), but the raster has none, so they cannot be aligned. "
                "Assign the raster its CRS, or map the whole raster."
            )
        area = cls(repair_polygons(polygons.shapes)[0], grid)
        if not len(area._pieces.parts):
            raise InputError(
                f"{path}: none of its {len(polygons.shapes)} polygons intersects the raster. "
                "Check that both cover the same area and have the correct CRS."
            )
        return area

    def intersects(self, window: Window) -> bool:
        """Return whether `window` intersects the area. Takes microseconds."""
        return len(self._pieces.tree.query(window.outline, predicate="intersects")) > 0

    def mask(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return the mask of pixels of `window` whose centre lies in the area: the rule of `rasterize_window`."""
        return rasterize_window(self._pieces, window, fill=0).astype(bool)


def _cut(parts: ndarray, frame: Window) -> ndarray:
    """Clip polygons to `frame`, and cut them along pixel borders until each piece has few vertices.

    No pixel centre lies on a pixel border, so the pieces contain the same pixel centres as the polygons.
    """
    parts = parts[shapely.intersects(frame.outline, parts)]
    large = shapely.get_num_coordinates(parts) > MAX_VERTICES
    if not large.any() or max(frame.height, frame.width) < 2 * MIN_PIECE_PX:
        return parts
    finer = [_cut(_clip(parts[large], half), half) for half in _halves(frame)]
    return np.concatenate([parts[~large], *finer])


def _clip(parts: ndarray, frame: Window) -> ndarray:
    """Return the polygons clipped to `frame`, without parts of zero area."""
    inside = shapely.clip_by_rect(parts, frame.col, frame.row, frame.stop_col, frame.stop_row)
    pieces = shapely.get_parts(inside)
    return pieces[shapely.area(pieces) > 0]


def _halves(frame: Window) -> tuple[Window, Window]:
    half, col, row = max(frame.height, frame.width) // 2, frame.col, frame.row
    if frame.width >= frame.height:
        return Window(row, col, frame.height, half), Window(row, col + half, frame.height, frame.width - half)
    return Window(row, col, half, frame.width), Window(row + half, col, frame.height - half, frame.width)
