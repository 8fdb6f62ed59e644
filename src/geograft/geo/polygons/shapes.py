"""Regions of equal value within one block, as labels and as polygons.

All coordinates are whole pixels of the raster, (column, row), so that joining parts from several blocks is exact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float64, Int32, Int64, Integer
from numpy import ndarray
from rasterio.features import shapes as outlines
from scipy import ndimage
from shapely import LinearRing, MultiPolygon, Polygon

from geograft.geo.grid import Window

NEIGHBOURS = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}
NO_SUMS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Region:
    """Pixels of one value that hang together."""

    value: int
    shape: Polygon | MultiPolygon
    """In pixels, (column, row). Several polygons where parts touch at corners only."""
    sums: Int64[ndarray, " k"] = field(default_factory=lambda: NO_SUMS, compare=False)
    """Sums over its pixels, of whatever was measured."""


def labelled(
    values: Integer[ndarray, "h w"], kept: Bool[ndarray, "h w"], connectivity: int
) -> tuple[Int32[ndarray, "h w"], Int64[ndarray, " n"]]:
    """Return the number of each pixel's region, from 1 on, 0 where not `kept`, and the value of every region.

    Pixels that share an edge (`connectivity` 4), or an edge or a corner (8), belong to one region.
    """
    labels = np.zeros(values.shape, np.int32)
    owners: list[int] = []
    for value in np.unique(values[kept]):
        found, count = ndimage.label(kept & (values == value), NEIGHBOURS[connectivity], output=np.int32)
        labels += np.where(found, found + len(owners), 0).astype(np.int32)
        owners += [int(value)] * count
    return labels, np.array(owners, np.int64)


def parts(labels: Int32[ndarray, "h w"], window: Window) -> dict[int, list[Polygon]]:
    """Return the polygons of each label, in pixels of the raster that `window` lies in.

    Always with the corners of diagonal neighbours apart: GDAL's outlines across corners touch themselves.
    """
    found: dict[int, list[Polygon]] = {}
    if not labels.any():
        return found
    place = Affine.translation(window.col, window.row)
    for outline, label in outlines(labels, mask=labels > 0, connectivity=4, transform=place):
        shell, *holes = (np.array(ring) for ring in outline["coordinates"])
        found.setdefault(int(label), []).append(Polygon(shell, holes))
    return found


def joined(polygons: list[Polygon]) -> Polygon | MultiPolygon:
    """Return polygons with edges along pixels as one, without vertices along straight edges."""
    if len(polygons) == 1:
        return polygons[0]
    pieces = [_straightened(part) for part in shapely.get_parts(shapely.union_all(polygons))]
    return pieces[0] if len(pieces) == 1 else MultiPolygon(pieces)


def assembled(rings: ndarray, polygon_of: Int64[ndarray, " r"], shape_of: Int64[ndarray, " p"], count: int) -> ndarray:
    """Return `count` shapes from rings, each polygon's outer one first; multipolygons where a shape has several."""
    polygons = np.asarray(shapely.polygons(rings, indices=polygon_of), object)
    several = np.bincount(shape_of, minlength=count) > 1
    shapes, alone = np.empty(count, object), ~several[shape_of]
    shapes[shape_of[alone]] = polygons[alone]
    if several.any():
        numbers = np.cumsum(several) - 1
        shapes[several] = shapely.multipolygons(polygons[~alone], indices=numbers[shape_of[~alone]])
    return shapes


def as_array(shapes: Iterable[shapely.Geometry]) -> ndarray:
    """Return shapes as an array of objects, (n,)."""
    listed: Sequence[shapely.Geometry] = list(shapes)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


def _straightened(polygon: Polygon) -> Polygon:
    return Polygon(_turns(polygon.exterior), [_turns(hole) for hole in polygon.interiors])


def _turns(ring: LinearRing) -> Float64[ndarray, "n 2"]:
    """Return the vertices of a ring at which its direction changes."""
    points = shapely.get_coordinates(ring)
    steps = np.sign(np.diff(points, axis=0))
    turns: ndarray = points[:-1][(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
    return turns
