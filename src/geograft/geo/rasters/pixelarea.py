"""The area on the ground of every pixel of a grid, which is not the same everywhere in every CRS."""

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from pyproj import Transformer

from geograft.geo.grid import Grid, Window
from geograft.geo.metres import geod_of, method, unit_m

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
