"""Areas and lengths of shapes that are given in the pixels of a grid."""

import math
from typing import Literal

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64
from numpy import ndarray
from pyproj import Geod, Proj, Transformer

from tilth.geo.grid import Grid

Method = Literal["pixels", "planar", "geodesic"]
MOST_DISTORTED = 0.01
"""From this relative error of areas on, a projection's plane is not measured in."""


def ground_transform(grid: Grid) -> Affine:
    """Return what takes (column, row) to the ground coordinates that a GIS shows.

    A grid without any place on the ground is turned upside down: a GIS draws its image below y = 0.
    """
    placed = grid.crs is not None or not grid.transform.is_identity
    return grid.transform if placed else grid.transform.scale(1, -1)


def on_ground(shapes: ndarray, grid: Grid) -> ndarray:
    """Return (n,) shapes where `ground_transform` puts them, outer rings anticlockwise."""
    a, b, c, d, e, f = ground_transform(grid)[:6]
    matrix, shift = np.array([[a, d], [b, e]]), np.array([c, f])
    ground: ndarray = shapely.transform(shapes, lambda points: points @ matrix + shift)
    return np.asarray(shapely.orient_polygons(ground), object)


def method(grid: Grid) -> Method:
    """Return how shapes on `grid` are measured.

    In pixels without a CRS; on the ellipsoid where the CRS is geographic, or is a projection that errs in areas by
    1 % or more at the grid's centre or corners (as Web Mercator does); in the projection's plane otherwise.
    """
    if grid.crs is None:
        return "pixels"
    if grid.crs.is_geographic or (grid.crs.is_projected and _distortion(grid) >= MOST_DISTORTED):
        return "geodesic"
    return "planar"


def areas_and_perimeters(shapes: ndarray, grid: Grid) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return the areas in m2 and the perimeters in m, holes included, of (n,) shapes in pixels; see `method`.

    Without a CRS, in pixels. Geodesic figures after Karney 2013 (doi:10.1007/s00190-012-0578-z), some 5 us a vertex.
    """
    chosen = method(grid)
    if chosen == "pixels":
        return shapely.area(shapes), shapely.length(shapes)
    ground = on_ground(shapes, grid)
    if chosen == "planar":
        return shapely.area(ground) * unit_m(grid) ** 2, shapely.length(ground) * unit_m(grid)
    degrees, geod = shapely.transform(ground, lambda points: _degrees(points, grid)), geod_of(grid)
    # pyproj's perimeter leaves the holes out.
    areas = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in degrees]
    return np.array(areas, float), np.array([geod.geometry_length(line) for line in shapely.boundary(degrees)], float)


def longest_side_m(grid: Grid) -> float:
    """Return the length of a pixel's longer side at the grid's centre, in metres; 1 without a CRS."""
    return max(pixel_sides_m(grid, grid.width / 2, grid.height / 2))


def pixel_sides_m(grid: Grid, col: float, row: float) -> tuple[float, float]:
    """Return the length of a pixel along a row and along a column at a place in pixels, in metres; 1 without a CRS."""
    chosen = method(grid)
    if chosen == "pixels":
        return 1.0, 1.0
    centre, *ends = np.array([grid.transform @ place for place in ((col, row), (col + 1, row), (col, row + 1))])
    if chosen == "planar":
        across, down = (math.dist(centre, end) * unit_m(grid) for end in ends)
    else:
        start, *stops = _degrees(np.array([centre, *ends]), grid)
        across, down = (float(geod_of(grid).inv(*start, *stop)[2]) for stop in stops)
    return across, down


def _distortion(grid: Grid) -> float:
    """Return the largest relative error of areas at the grid's centre and corners."""
    corners = shapely.get_coordinates(grid.footprint())
    lon, lat = _degrees(np.vstack([corners, corners[:4].mean(axis=0)]), grid).T
    return float(np.abs(np.asarray(Proj(grid.crs).get_factors(lon, lat).areal_scale) - 1).max())


def _degrees(points: Float64[ndarray, "n 2"], grid: Grid) -> Float64[ndarray, "n 2"]:
    """Return longitude and latitude of points in ground coordinates."""
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
