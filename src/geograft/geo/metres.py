"""How long the pixels of a grid are on the ground, whatever its CRS."""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import shapely
from jaxtyping import Float64
from numpy import ndarray
from pyproj import Geod, Proj, Transformer

from geograft.geo.grid import Grid

Method = Literal["pixels", "planar", "geodesic"]
MOST_DISTORTED = 0.01
"""From this relative error of areas on, a projection's plane is not measured in."""


# Asked for every polygon and window of a map, and half a millisecond of pyproj's each time.
@lru_cache(maxsize=64)
def method(grid: Grid) -> Method:
    """Return how lengths and areas on `grid` are measured.

    In pixels without a CRS; on the ellipsoid where the CRS is geographic, or is a projection that errs in areas by
    1 % or more at the grid's centre or corners (as Web Mercator does); in the projection's plane otherwise.
    """
    if grid.crs is None:
        return "pixels"
    if grid.crs.is_geographic or (grid.crs.is_projected and _distortion(grid) >= MOST_DISTORTED):
        return "geodesic"
    return "planar"


def pixel_sides_m(grid: Grid, col: float, row: float) -> tuple[float, float]:
    """Return the length of a pixel along a row and along a column at a place in pixels, in metres; 1 without a CRS."""
    chosen = method(grid)
    if chosen == "pixels":
        return 1.0, 1.0
    centre, *ends = np.array([grid.transform @ place for place in ((col, row), (col + 1, row), (col, row + 1))])
    if chosen == "planar":
        across, down = (math.dist(centre, end) * unit_m(grid) for end in ends)
    else:
        start, *stops = degrees(np.array([centre, *ends]), grid)
        across, down = (float(geod_of(grid).inv(*start, *stop)[2]) for stop in stops)
    return across, down


def central_sides_m(grid: Grid) -> tuple[float, float]:
    """Return `pixel_sides_m` at the grid's centre."""
    return pixel_sides_m(grid, grid.width / 2, grid.height / 2)


def resolution_m(grid: Grid) -> float | None:
    """Return the geometric mean of a pixel's sides at the grid's centre, in metres; None without a CRS."""
    return None if grid.crs is None else math.sqrt(math.prod(central_sides_m(grid)))


def degrees(points: Float64[ndarray, "n 2"], grid: Grid) -> Float64[ndarray, "n 2"]:
    """Return longitude and latitude of points in the coordinates of the grid's CRS."""
    assert grid.crs is not None
    if grid.crs.is_geographic:
        return points
    assert grid.crs.geodetic_crs is not None
    transformer = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    return np.stack(transformer.transform(*points.T), axis=1)


def geod_of(grid: Grid) -> Geod:
    """Return the ellipsoid of the grid's CRS; that of WGS 84 where it states none."""
    return (grid.crs and grid.crs.get_geod()) or Geod(ellps="WGS84")


def unit_m(grid: Grid) -> float:
    """Return how many metres the unit of a projected CRS is."""
    assert grid.crs is not None
    return float(grid.crs.axis_info[0].unit_conversion_factor)


def _distortion(grid: Grid) -> float:
    """Return the largest relative error of areas at the grid's centre and corners."""
    corners = shapely.get_coordinates(grid.footprint())
    lon, lat = degrees(np.vstack([corners, corners[:4].mean(axis=0)]), grid).T
    return float(np.abs(np.asarray(Proj(grid.crs).get_factors(lon, lat).areal_scale) - 1).max())
