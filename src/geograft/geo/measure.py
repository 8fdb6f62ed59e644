"""Pixel sizes, pixel areas, and areas and perimeters of shapes, in metres, for grids in any CRS.

Projections that distort areas (Web Mercator) and geographic CRSs are measured on the ellipsoid.
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

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window

Method = Literal["pixels", "planar", "geodesic"]
MAX_AREA_DISTORTION = 0.01
"""Relative area error from which lengths and areas are measured on the ellipsoid rather than in the projection."""


# Called for every polygon and window of a map; pyproj takes half a millisecond each time.
@lru_cache(maxsize=64)
def measurement_method(grid: Grid) -> Method:
    """Return how to measure lengths and areas on `grid`.

    "pixels" without a CRS; "geodesic" (on the ellipsoid) for a geographic CRS, and for a projection whose areas are
    wrong by 1 % or more at the grid's centre or corners (such as Web Mercator); "planar" otherwise.
    """
    if grid.crs is None:
        return "pixels"
    if grid.crs.is_geographic or (grid.crs.is_projected and _distortion(grid) >= MAX_AREA_DISTORTION):
        return "geodesic"
    return "planar"


def pixel_size_m(grid: Grid, col: float, row: float) -> tuple[float, float]:
    """Return the width and height in metres of the pixel at (`col`, `row`); 1 without a CRS."""
    chosen = measurement_method(grid)
    if chosen == "pixels":
        return 1.0, 1.0
    centre, *ends = np.array([grid.transform @ place for place in ((col, row), (col + 1, row), (col, row + 1))])
    if chosen == "planar":
        across, down = (math.dist(centre, end) * crs_unit_m(grid) for end in ends)
    else:
        start, *stops = to_lonlat(np.array([centre, *ends]), grid)
        across, down = (float(ellipsoid(grid).inv(*start, *stop)[2]) for stop in stops)
    return across, down


def central_pixel_size_m(grid: Grid) -> tuple[float, float]:
    """Return the width and height in metres of the pixel at the grid's centre; 1 without a CRS."""
    return pixel_size_m(grid, grid.width / 2, grid.height / 2)


def check_on_earth(name: str, grid: Grid) -> None:
    """Raise InputError unless the grid's central pixel has a finite size in metres; `name` is used in messages.

    It has none where the coordinates lie outside the area of the projection, which a wrong CRS or transform causes.
    """
    size = central_pixel_size_m(grid) if grid.crs is not None else (1.0, 1.0)
    if grid.crs is not None and not all(0 < length < math.inf for length in size):
        x, y = grid.transform @ (grid.width / 2, grid.height / 2)
        raise InputError(
            f"{name} has its centre at x {x:.6g}, y {y:.6g}, which is not on the earth in its CRS ({grid.crs.name}). "
            "Correct its transform or CRS (gdal_edit)."
        )


def resolution_m(grid: Grid) -> float | None:
    """Return the geometric mean of the pixel width and height at the grid's centre, in metres; None without a CRS."""
    return None if grid.crs is None else math.sqrt(math.prod(central_pixel_size_m(grid)))


def to_lonlat(points: Float64[ndarray, "n 2"], grid: Grid) -> Float64[ndarray, "n 2"]:
    """Return points in the grid's CRS as (longitude, latitude) in the CRS's own datum."""
    assert grid.crs is not None
    if grid.crs.is_geographic:
        return points
    assert grid.crs.geodetic_crs is not None
    transformer = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    return np.stack(transformer.transform(*points.T), axis=1)


def ellipsoid(grid: Grid) -> Geod:
    """Return the ellipsoid of the grid's CRS; WGS 84 where it has none."""
    return (grid.crs and grid.crs.get_geod()) or Geod(ellps="WGS84")


def crs_unit_m(grid: Grid) -> float:
    """Return the length in metres of the unit of a projected CRS."""
    assert grid.crs is not None
    return float(grid.crs.axis_info[0].unit_conversion_factor)


def _distortion(grid: Grid) -> float:
    """Return the largest relative area error of the projection at the grid's centre and corners."""
    corners = shapely.get_coordinates(grid.footprint())
    lon, lat = to_lonlat(np.vstack([corners, corners[:4].mean(axis=0)]), grid).T
    return float(np.abs(np.asarray(Proj(grid.crs).get_factors(lon, lat).areal_scale) - 1).max())


LATTICE_PX = 16
"""Areas that vary along rows and columns are computed at every 16th pixel and interpolated linearly."""


def pixel_areas(grid: Grid, window: Window) -> Float64[ndarray, "h w"]:
    """Return the area of each pixel of `window`, in m2; 1 where the grid has no CRS. See `measurement_method`.

    Geodesic areas are those of the parallelogram on the ellipsoid through the midpoints of the pixel's four sides,
    exact to 1e-6 for pixels of up to some kilometres. The result may be a read-only broadcast of one row or column.
    """
    shape = window.height, window.width
    if grid.crs is None:
        return np.broadcast_to(1.0, shape)
    if measurement_method(grid) == "planar":
        return np.broadcast_to(abs(grid.transform.determinant) * crs_unit_m(grid) ** 2, shape)
    rows, cols = window.row + np.arange(window.height), window.col + np.arange(window.width)
    if grid.crs.is_geographic and grid.transform.d == 0:
        return np.broadcast_to(ellipsoidal_areas(grid, rows[:, None], cols[None, :1]), shape)
    return _interpolated(grid, rows, cols)


def _interpolated(grid: Grid, rows: ndarray, cols: ndarray) -> Float64[ndarray, "h w"]:
    """Return the area of each pixel, interpolated bilinearly from a lattice."""
    lattice = [np.arange(axis[0], axis[-1] + LATTICE_PX + 1, LATTICE_PX) for axis in (rows, cols)]
    known = ellipsoidal_areas(grid, lattice[0][:, None], lattice[1][None, :])
    part = [(axis - axis[0]) / LATTICE_PX for axis in (rows, cols)]
    (top, left), (row, col) = ([p.astype(np.intp) for p in part], [p % 1 for p in part])
    between = known[top] * (1 - row[:, None]) + known[top + 1] * row[:, None]
    areas: Float64[ndarray, "h w"] = between[:, left] * (1 - col) + between[:, left + 1] * col
    return areas


def ellipsoidal_areas(grid: Grid, rows: ndarray, cols: ndarray) -> Float64[ndarray, "..."]:
    """Return the area in m2 of the pixels at `rows` and `cols`, two arrays that broadcast."""
    across = _geocentric(grid, rows + 0.5, cols + 1) - _geocentric(grid, rows + 0.5, cols)
    down = _geocentric(grid, rows + 1, cols + 0.5) - _geocentric(grid, rows, cols + 0.5)
    areas: ndarray = np.linalg.norm(np.cross(across, down), axis=-1)
    return areas


def _geocentric(grid: Grid, rows: ndarray, cols: ndarray) -> Float64[ndarray, "... 3"]:
    """Return geocentric coordinates in metres, which have no singularity at the poles or the date line.

    Snyder (1987), "Map projections: a working manual", USGS Professional Paper 1395, eq. 4-20 for the radius.
    """
    assert grid.crs is not None and grid.crs.geodetic_crs is not None
    a, b, c, d, e, f = grid.transform[:6]
    rows, cols = np.broadcast_arrays(rows, cols)
    to_degrees = Transformer.from_crs(grid.crs, grid.crs.geodetic_crs, always_xy=True)
    angles = to_degrees.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    unit = grid.crs.geodetic_crs.axis_info[0].unit_conversion_factor
    # pyproj returns infinity outside the area of the projection, where there is no angle.
    lon, lat = (np.where(np.isfinite(angle), angle, np.nan) * unit for angle in angles)
    geod = ellipsoid(grid)
    radius = geod.a / np.sqrt(1 - geod.es * np.sin(lat) ** 2)
    axis_distance = radius * np.cos(lat)
    return np.stack(
        [axis_distance * np.cos(lon), axis_distance * np.sin(lon), radius * (1 - geod.es) * np.sin(lat)], axis=-1
    )


def gis_transform(grid: Grid) -> Affine:
    """Return the transform from (column, row) to the coordinates at which a GIS shows the pixel.

    For a grid that is not georeferenced y is negated, since a GIS draws such an image below y = 0.
    """
    georeferenced = grid.crs is not None or not grid.transform.is_identity
    return grid.transform if georeferenced else grid.transform.scale(1, -1)


def to_gis_coordinates(shapes: ndarray, grid: Grid) -> ndarray:
    """Return (n,) shapes in pixels after `gis_transform`, with outer rings counterclockwise."""
    a, b, c, d, e, f = gis_transform(grid)[:6]
    matrix, shift = np.array([[a, d], [b, e]]), np.array([c, f])
    moved: ndarray = shapely.transform(shapes, lambda points: points @ matrix + shift)
    return np.asarray(shapely.orient_polygons(moved), object)


def areas_and_perimeters(shapes: ndarray, grid: Grid) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return areas in m2 and perimeters in m (with those of holes) of (n,) shapes in pixels; see `measurement_method`.

    In pixels without a CRS. The geodesic method is that of Karney (2013), doi:10.1007/s00190-012-0578-z; it takes
    about 5 us per vertex.
    """
    chosen = measurement_method(grid)
    if chosen == "pixels":
        return shapely.area(shapes), shapely.length(shapes)
    projected = to_gis_coordinates(shapes, grid)
    if chosen == "planar":
        return shapely.area(projected) * crs_unit_m(grid) ** 2, shapely.length(projected) * crs_unit_m(grid)
    lonlat, geod = shapely.transform(projected, lambda points: to_lonlat(points, grid)), ellipsoid(grid)
    # pyproj's perimeter excludes holes.
    areas = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in lonlat]
    return np.array(areas, float), np.array([geod.geometry_length(line) for line in shapely.boundary(lonlat)], float)
