"""Distances from tiles to their nearest neighbours, the area that tiles of different scenes share, adjacent scenes.

Georeferenced tiles are projected to World Mercator, whatever their CRS. The projection is conformal, so nearest
neighbours are preserved locally, and a distance divided by the local scale is in metres. Distances of hundreds of
kilometres are approximate, which is enough here: no buffer is that wide.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse.csgraph
import shapely
from jaxtyping import Float64, Int, Shaped
from numpy import ndarray
from pyproj import CRS, Transformer

from geograft.dataset.tileset import Position
from geograft.geo.coverage import SceneWindow
from geograft.geo.grid import Grid

MERCATOR = "EPSG:3395"
"""World Mercator on the ellipsoid of WGS 84."""
ECCENTRICITY_SQUARED = 0.00669437999014
MIN_SHARED_FRACTION = 0.01
"""Smaller fractions come from rounding, or from adjacent sheets of one map."""


def project_to_mercator(
    shapes: Shaped[ndarray, " n"], crs: CRS
) -> tuple[Shaped[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return outlines in World Mercator, and the scale factor of the projection at each.

    The scale is that of the ellipsoid, sqrt(1 - e^2 sin^2 lat) / cos lat (Snyder 1987, "Map Projections: A Working
    Manual", eq. 7-8).
    """
    to_mercator = Transformer.from_crs(crs, MERCATOR, always_xy=True)
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    projected = shapely.transform(shapes, lambda xy: np.column_stack(to_mercator.transform(xy[:, 0], xy[:, 1])))
    centre = shapely.centroid(shapes)
    latitude = np.radians(np.clip(to_degrees.transform(shapely.get_x(centre), shapely.get_y(centre))[1], -89, 89))
    return np.array(projected, object), np.sqrt(1 - ECCENTRICITY_SQUARED * np.sin(latitude) ** 2) / np.cos(latitude)


def find_positions(grids: Mapping[str, Grid], distance_px: float) -> dict[str, Position]:
    """Return the positions of all scenes that touch, overlap or lie within `distance_px` of another, by name.

    These are scenes of one CRS, pixel size and orientation; their offset is rounded to whole pixels. Scenes that are
    connected through others have the same place. 1,000 scenes take less than a second.
    """
    names = [name for name, grid in grids.items() if grid.crs is not None]
    by_crs: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        by_crs[grids[name].crs.to_wkt()].append(number)  # type: ignore[union-attr]
    pairs: list[tuple[int, int]] = []
    for numbers in by_crs.values():
        shapes = np.array([grids[names[number]].footprint() for number in numbers], object)
        reach = [distance_px * abs(grids[names[number]].transform.determinant) ** 0.5 for number in numbers]
        near = shapely.STRtree(shapes).query(shapes, predicate="dwithin", distance=reach)
        pairs += [(numbers[i], numbers[j]) for i, j in near.T.tolist() if i < j]
    pairs = [(i, j) for i, j in pairs if _same_pixels(grids[names[i]], grids[names[j]])]
    connected = connected_components(len(names), pairs)
    members = Counter(connected)
    found = {}
    for name, first in zip(names, connected, strict=True):
        if members[first] > 1:
            to_pixels = ~grids[names[first]].transform
            col, row = to_pixels @ (grids[name].transform.c, grids[name].transform.f)
            found[name] = Position(names[first], round(row), round(col))
    return found


def connected_components(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the first item of the component of each of `count` items that `pairs` connect.

    >>> connected_components(5, [(4, 1), (3, 1)])
    [0, 1, 2, 1, 1]
    """
    rows, cols = np.array(pairs, int).reshape(-1, 2).T
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, cols)), shape=(count, count))
    labels = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    return [int(first) for first in np.unique(labels, return_index=True)[1][labels]]


def _same_pixels(grid: Grid, other: Grid) -> bool:
    """Return whether the pixels of two grids agree in size and orientation, to half a pixel over the second grid."""
    corners = np.array(((0, 0), (other.width, 0), (0, other.height)))
    here = np.array([~grid.transform @ (other.transform @ tuple(corner)) for corner in corners])
    return bool(np.abs(here - here[0] - corners).max() < 0.5)


def nearest_distances(
    shapes: Shaped[ndarray, " n"], others: Shaped[ndarray, " m"], scale: Float64[ndarray, " n"] | None = None
) -> Float64[ndarray, " n"]:
    """Return the distance from each shape to the nearest of `others`: 0 if they touch, infinite if there are none.

    Distances are divided by `scale`, in map units per metre. 100,000 tiles take a few seconds.
    """
    found = np.full(len(shapes), np.inf)
    if len(others) and len(shapes):
        (index, _), distance = shapely.STRtree(others).query_nearest(shapes, return_distance=True, all_matches=False)
        found[index] = distance if scale is None else distance / scale[index]
    return found


def nearest_distances_in_scene(tiles: Sequence[SceneWindow], others: Iterable[SceneWindow]) -> Float64[ndarray, " n"]:
    """Return the distance in pixels from each window to the nearest of `others` in its scene; infinite without any.

    The distance is Euclidean, between pixel edges: 0 if windows touch or overlap.
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
    """Outlines, and the number of the scene of each."""

    shapes: Shaped[ndarray, " n"]
    scenes: Int[ndarray, " n"]


def shared_area(tiles: Outlines, others: Outlines) -> tuple[Float64[ndarray, " n"], Int[ndarray, "p 2"]]:
    """Return the fraction of each tile covered by the union of `others` from other scenes, and the pairs of scenes.

    Pairs of tiles that share less than 1 % of the first are ignored. 100,000 disjoint tiles take seconds; 100,000 tiles
    that each overlap 16 others take 30 s.
    """
    fractions = np.zeros(len(tiles.shapes))
    if not len(tiles.shapes) or not len(others.shapes):
        return fractions, np.zeros((0, 2), int)
    mine, theirs = shapely.STRtree(others.shapes).query(tiles.shapes, predicate="intersects")
    different = tiles.scenes[mine] != others.scenes[theirs]
    mine, theirs = mine[different], theirs[different]
    common = shapely.intersection(tiles.shapes[mine], others.shapes[theirs])
    significant = shapely.area(common) > MIN_SHARED_FRACTION * shapely.area(tiles.shapes[mine])
    mine, theirs, common = mine[significant], theirs[significant], common[significant]
    starts = np.flatnonzero(np.diff(mine, prepend=-1))
    for tile, parts in zip(mine[starts], np.split(common, starts[1:]), strict=False):
        fractions[tile] = min(shapely.union_all(parts).area / tiles.shapes[tile].area, 1.0)
    return fractions, np.unique(np.column_stack([tiles.scenes[mine], others.scenes[theirs]]), axis=0)
