"""How far held-out tiles lie from training tiles, and how much of their ground training tiles of other scenes show.

With a CRS everything happens on the Mercator map, whatever the CRS of the tiles: it is conformal, so that a tile's
nearest neighbour there is its nearest on the ground, and lengths divided by the local scale are metres. Distances
between tiles that are hundreds of kilometres apart are rough, and nobody's buffer.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float64, Int, Shaped
from numpy import ndarray
from pyproj import CRS, Transformer

from geograft.geo.coverage import Placed

MERCATOR = "EPSG:3395"
"""World Mercator on the ellipsoid of WGS 84."""
ECCENTRICITY2 = 0.00669437999014
NOTHING_SHARED = 0.01
"""Shares below are rounding, or sheets of one map that touch."""


def on_mercator(shapes: Shaped[ndarray, " n"], crs: CRS) -> tuple[Shaped[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return outlines on the Mercator map, and how many of its metres a metre on the ground is at each.

    The scale is that of the ellipsoid, sqrt(1 - e^2 sin^2 lat) / cos lat (Snyder 1987, "Map Projections: A Working
    Manual", eq. 7-8).
    """
    there = Transformer.from_crs(crs, MERCATOR, always_xy=True)
    degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    moved = shapely.transform(shapes, lambda xy: np.column_stack(there.transform(xy[:, 0], xy[:, 1])))
    middle = shapely.centroid(shapes)
    latitude = np.radians(np.clip(degrees.transform(shapely.get_x(middle), shapely.get_y(middle))[1], -89, 89))
    return np.array(moved, object), np.sqrt(1 - ECCENTRICITY2 * np.sin(latitude) ** 2) / np.cos(latitude)


def nearest_distances(
    shapes: Shaped[ndarray, " n"], others: Shaped[ndarray, " m"], scale: Float64[ndarray, " n"] | None = None
) -> Float64[ndarray, " n"]:
    """Return the distance from each shape to the nearest of the others, 0 where they touch; infinite without others.

    Divided by `scale`, map units a metre. 100,000 tiles take a few seconds.
    """
    found = np.full(len(shapes), np.inf)
    if len(others) and len(shapes):
        (index, _), distance = shapely.STRtree(others).query_nearest(shapes, return_distance=True, all_matches=False)
        found[index] = distance if scale is None else distance / scale[index]
    return found


def nearest_in_scene(tiles: Sequence[Placed], others: Iterable[Placed]) -> Float64[ndarray, " n"]:
    """Return the distance in pixels from each window to the nearest of the others in its scene; infinite without any.

    Of pixel edges, straight (Euclid's): 0 where windows touch or overlap.
    """
    theirs: dict[str, list[shapely.Polygon]] = defaultdict(list)
    mine: dict[str, list[int]] = defaultdict(list)
    for scene, window in others:
        theirs[scene].append(window.outline)
    for index, (scene, _) in enumerate(tiles):
        mine[scene].append(index)
    found = np.full(len(tiles), np.inf)
    for scene, indices in mine.items():
        shapes = [tiles[index][1].outline for index in indices]
        found[indices] = nearest_distances(np.array(shapes, object), np.array(theirs[scene], object))
    return found


@dataclass(frozen=True)
class Outlines:
    """Outlines, and for each the number of the scene that it is a part of."""

    shapes: Shaped[ndarray, " n"]
    scenes: Int[ndarray, " n"]


def shared_ground(tiles: Outlines, others: Outlines) -> tuple[Float64[ndarray, " n"], Int[ndarray, "p 2"]]:
    """Return the share of each tile that lies in the union of the others of other scenes, and those pairs of scenes.

    A pair of tiles that share less than a hundredth of the first does not count. 100,000 tiles that share nothing take
    seconds, those that lie on 16 others each half a minute.
    """
    share = np.zeros(len(tiles.shapes))
    if not len(tiles.shapes) or not len(others.shapes):
        return share, np.zeros((0, 2), int)
    mine, theirs = shapely.STRtree(others.shapes).query(tiles.shapes, predicate="intersects")
    unlike = tiles.scenes[mine] != others.scenes[theirs]
    mine, theirs = mine[unlike], theirs[unlike]
    common = shapely.intersection(tiles.shapes[mine], others.shapes[theirs])
    real = shapely.area(common) > NOTHING_SHARED * shapely.area(tiles.shapes[mine])
    mine, theirs, common = mine[real], theirs[real], common[real]
    starts = np.flatnonzero(np.diff(mine, prepend=-1))
    for tile, parts in zip(mine[starts], np.split(common, starts[1:]), strict=False):
        share[tile] = min(shapely.union_all(parts).area / tiles.shapes[tile].area, 1.0)
    return share, np.unique(np.column_stack([tiles.scenes[mine], others.scenes[theirs]]), axis=0)
