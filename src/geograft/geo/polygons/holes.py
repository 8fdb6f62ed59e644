"""Holes in regions that are filled, and the regions inside them that give way."""

from collections.abc import Callable

import numpy as np
import shapely
from jaxtyping import Bool, Int64
from numpy import ndarray

from geograft.geo.polygons.arcs import keys
from geograft.geo.polygons.shapes import assembled


def filled(
    shapes: ndarray, small: Callable[[ndarray], Bool[ndarray, " n"]], connectivity: int
) -> tuple[ndarray, ndarray]:
    """Return (n,) polygons with edges along pixels without their small holes, and these holes as polygons.

    `small` tells of polygons whether they are. With `connectivity` 8 a hole that touches another ring of its region at
    a corner stays, for what lies in it may go on through that corner.
    """
    if not len(shapes):
        return shapes, shapes
    polygons, shape_of = shapely.get_parts(shapes, return_index=True)
    rings, polygon_of = shapely.get_rings(polygons, return_index=True)
    hole = np.concatenate([[False], polygon_of[1:] == polygon_of[:-1]])
    goes = hole.copy()
    goes[hole] = small(shapely.polygons(rings[hole]))
    if connectivity == 8:
        goes &= ~_touching(rings, shape_of[polygon_of])
    if not goes.any():
        return shapes, rings[:0]
    return assembled(rings[~goes], polygon_of[~goes], shape_of, len(shapes)), shapely.polygons(rings[goes])


def first_pixels(shapes: ndarray) -> Int64[ndarray, "n 2"]:
    """Return the uppermost pixel of each polygon with edges along pixels, the leftmost of several, (column, row)."""
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    order = np.lexsort((points[:, 0], points[:, 1], owner))
    _, first = np.unique(owner[order], return_index=True)
    return points[order[first]].astype(np.int64).reshape(-1, 2)


def swallowed(pixels: Int64[ndarray, "n 2"], holes: ndarray) -> Bool[ndarray, " n"]:
    """Return which regions, given by their first pixels, lie in a filled hole."""
    found = np.zeros(len(pixels), bool)
    found[shapely.STRtree(holes).query(shapely.points(pixels + 0.5), predicate="intersects")[0]] = True
    return found


def _touching(rings: ndarray, shape_of: Int64[ndarray, " r"]) -> Bool[ndarray, " r"]:
    """Return which rings share a corner with another ring of their shape."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    met = np.unique(np.stack([shape_of[ring], keys(points), ring], axis=1), axis=0)
    _, place, count = np.unique(met[:, :2], axis=0, return_inverse=True, return_counts=True)
    touching = np.zeros(len(rings), bool)
    touching[met[count[place.ravel()] > 1, 2]] = True
    return touching
