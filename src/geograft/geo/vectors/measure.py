"""Areas and lengths of shapes that are given in the pixels of a grid."""

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64
from numpy import ndarray

from geograft.geo.grid import Grid
from geograft.geo.metres import degrees, geod_of, method, unit_m


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
