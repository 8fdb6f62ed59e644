"""Outlines of tiles in a common CRS, for the tile index shown in a GIS."""

from collections.abc import Mapping, Sequence

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.reader import WGS84, reproject


def common_crs(grids: Sequence[Grid]) -> CRS | None:
    """Return the CRS common to all grids; WGS 84 when they differ; None when any grid has none."""
    first = grids[0].crs
    if first is None or any(grid.crs is None for grid in grids):
        return None
    same = all(grid.crs is not None and first.equals(grid.crs, ignore_axis_order=True) for grid in grids)
    return first if same else WGS84


def tile_outlines(
    tiles: Sequence[tuple[str, Window]], grids: Mapping[str, Grid]
) -> tuple[list[BaseGeometry], CRS | None]:
    """Return the outlines of tiles, pairs of scene and window, and their CRS (see `common_crs`).

    A GIS draws an image without CRS below y = 0, so its outlines have negative y too.
    """
    crs = common_crs(list(grids.values()))
    shapes: list[BaseGeometry] = [_outline(grids[scene], window) for scene, window in tiles]
    if crs is not WGS84:
        return shapes, crs
    outlines = np.array(shapes, object)
    for name, grid in grids.items():
        in_scene = np.array([scene == name for scene, _ in tiles], bool)
        if grid.crs is not None and in_scene.any():
            outlines[in_scene] = reproject(outlines[in_scene], grid.crs, WGS84)
    return list(outlines), crs


def _outline(grid: Grid, window: Window) -> shapely.Polygon:
    if grid.crs is None and grid.transform.e > 0:
        upright = Grid(grid.height, grid.width, Affine.scale(1, -1) @ grid.transform, None)
        return upright.footprint(window)
    return grid.footprint(window)
