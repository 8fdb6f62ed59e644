"""How long the pixels of a grid are on the ground, whatever its CRS.

The area on the ground of every pixel of a grid, which is not the same everywhere in every CRS.

Areas and lengths of shapes that are given in the pixels of a grid.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64
from numpy import ndarray
from pyproj import Geod, Proj, Transformer

from geograft.geo.grid import Grid, Window

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


LATTICE_PX = 16
"""Areas that change along rows and columns are worked out at every 16th pixel, and linearly in between."""


def pixel_areas(grid: Grid, window: Window) -> Float64[ndarray, "h w"]:
    """Return the area of each pixel of `window`, in m2; 1 where the grid has no CRS. See `metres.method`.

    Where the plane is not true to areas, a pixel is the parallelogram on the ellipsoid between the middles of its four
    sides, right to a millionth for pixels of up to some kilometres. The result may be a read-only view of one row or
    column.
    """
    shape = window.height, window.width
    if grid.crs is None:
        return np.broadcast_to(1.0, shape)
    if method(grid) == "planar":
        return np.broadcast_to(abs(grid.transform.determinant) * unit_m(grid) ** 2, shape)
    rows, cols = window.row + np.arange(window.height), window.col + np.arange(window.width)
    if grid.crs.is_geographic and grid.transform.d == 0:
        return np.broadcast_to(areas_on_ellipsoid(grid, rows[:, None], cols[None, :1]), shape)
    return _interpolated(grid, rows, cols)


def _interpolated(grid: Grid, rows: ndarray, cols: ndarray) -> Float64[ndarray, "h w"]:
    """Return the area of each pixel, linearly between the points of a lattice."""
    lattice = [np.arange(axis[0], axis[-1] + LATTICE_PX + 1, LATTICE_PX) for axis in (rows, cols)]
    known = areas_on_ellipsoid(grid, lattice[0][:, None], lattice[1][None, :])
    part = [(axis - axis[0]) / LATTICE_PX for axis in (rows, cols)]
    (top, left), (row, col) = ([p.astype(np.intp) for p in part], [p % 1 for p in part])
    between = known[top] * (1 - row[:, None]) + known[top + 1] * row[:, None]
    areas: Float64[ndarray, "h w"] = between[:, left] * (1 - col) + between[:, left + 1] * col
    return areas


def areas_on_ellipsoid(grid: Grid, rows: ndarray, cols: ndarray) -> Float64[ndarray, "..."]:
    """Return the area in m2 of the pixels of these rows and columns, arrays that fit each other's shape."""
    across = _geocentric(grid, rows + 0.5, cols + 1) - _geocentric(grid, rows + 0.5, cols)
    down = _geocentric(grid, rows + 1, cols + 0.5) - _geocentric(grid, rows, cols + 0.5)
    areas: ndarray = np.linalg.norm(np.cross(across, down), axis=-1)
    return areas


def _geocentric(grid: Grid, rows: ndarray, cols: ndarray) -> Float64[ndarray, "... 3"]:
    """Return places in metres from the centre of the earth, where neither poles nor the date line are special.

    Snyder (1987), "Map projections: a working manual", USGS Professional Paper 1395, eq. 4-20 for the radius.
    """
    assert grid.crs is not None and grid.crs.geodetic_crs is not None
    a, b, c, d, e, f = grid.transform[:6]
    rows, cols = np.broadcast_arrays(rows, cols)
    to_degrees = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    turned = to_degrees.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    lon, lat = (np.asarray(angle) * grid.crs.geodetic_crs.axis_info[0].unit_conversion_factor for angle in turned)
    geod = geod_of(grid)
    radius = geod.a / np.sqrt(1 - geod.es * np.sin(lat) ** 2)
    around = radius * np.cos(lat)
    return np.stack([around * np.cos(lon), around * np.sin(lon), radius * (1 - geod.es) * np.sin(lat)], axis=-1)


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


def areas_and_perimeters(shapes: ndarray, grid: Grid) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return the areas in m2 and the perimeters in m, holes included, of (n,) shapes in pixels; see `metres.method`.

    Without a CRS, in pixels. Geodesic figures after Karney 2013 (doi:10.1007/s00190-012-0578-z), some 5 us a vertex.
    """
    chosen = method(grid)
    if chosen == "pixels":
        return shapely.area(shapes), shapely.length(shapes)
    ground = on_ground(shapes, grid)
    if chosen == "planar":
        return shapely.area(ground) * unit_m(grid) ** 2, shapely.length(ground) * unit_m(grid)
    lonlat, geod = shapely.transform(ground, lambda points: degrees(points, grid)), geod_of(grid)
    # pyproj's perimeter leaves the holes out.
    areas = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in lonlat]
    return np.array(areas, float), np.array([geod.geometry_length(line) for line in shapely.boundary(lonlat)], float)
