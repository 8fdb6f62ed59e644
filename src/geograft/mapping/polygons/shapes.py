"""Regions of equal value within one block, as labels and as polygons.

All coordinates are whole pixels of the raster, (column, row), so that joining parts from several blocks is exact.

Corners of pixels at which outlines turn or meet: what simplifying and smoothing must know of a region's neighbours.

All that is said of a corner is found in the four pixels around it, and so is the same in every block that sees them.

Lists of outlines and of points as plain arrays, for files that need no pickle.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float64, Int32, Int64, Integer, UInt8
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


MOST_LOOKS = 2**20
"""Pixels that are looked at in one go."""


@dataclass(frozen=True)
class Corners:
    """Places in whole pixels, (column, row)."""

    turns: Int64[ndarray, "n 2"]
    """Where an outline turns or outlines meet: every vertex that any outline has."""
    nodes: Int64[ndarray, "m 2"]
    """Where three outlines or more meet: what several regions' outlines must share."""


NO_CORNERS = Corners(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


def corners(values: Int64[ndarray, "h w"], row: int, col: int) -> Corners:
    """Return the corners between the pixels of `values`, whose first one lies at (`row`, `col`) of the raster.

    A pixel that belongs to no region has a value of its own.
    """
    a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]
    turns = ~(((a == b) & (c == d)) | ((a == c) & (b == d)))
    # Of four pixels, three are equal at a plain turn. What is left has three values, or two that touch crosswise.
    plain = ((a == b) & ((a == c) | (a == d))) | ((c == d) & ((a == c) | (b == c)))
    shift = np.array([col + 1, row + 1])
    return Corners(*(np.argwhere(found)[:, ::-1].astype(np.int64) + shift for found in (turns, turns & ~plain)))


def by_label(
    points: Int64[ndarray, "n 2"],
    labels: Int32[ndarray, "h w"],
    window: Window,
    wanted: Bool[ndarray, " k"],
    reach: int,
) -> dict[int, Int64[ndarray, "_ 2"]]:
    """Return those points that lie within `reach` pixels, rows and columns, of a pixel of each wanted label.

    `labels` are those of `window`; `wanted` tells by label. Time: (2 reach)^2 looks at every point.
    """
    places = points - [window.col, window.row]
    step = max(1, MOST_LOOKS // (2 * reach) ** 2)
    looks = [_seen(places, labels, wanted, reach, start, step) for start in range(0, len(points), step)]
    owners, index = np.divmod(np.concatenate([np.empty(0, np.int64), *looks]), max(len(points), 1))
    order = np.argsort(owners, kind="stable")
    firsts, cuts = np.unique(owners[order], return_index=True)
    groups = np.split(points[index[order]], cuts[1:])
    return dict(zip(firsts.tolist(), groups, strict=False))


def _seen(
    places: Int64[ndarray, "n 2"],
    labels: Int32[ndarray, "h w"],
    wanted: Bool[ndarray, " k"],
    reach: int,
    start: int,
    step: int,
) -> Int64[ndarray, " m"]:
    """Return label * n + index of every wanted label that is seen from `step` places."""
    looks = np.arange(-reach, reach)
    some = places[start : start + step]
    rows, cols = some[:, 1, None, None] + looks[:, None], some[:, 0, None, None] + looks
    height, width = labels.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    found = np.where(inside, labels[rows.clip(0, height - 1), cols.clip(0, width - 1)], 0)
    index = np.broadcast_to(np.arange(start, start + len(some))[:, None, None], found.shape)
    chosen = wanted[found]
    return np.unique(found[chosen].astype(np.int64) * len(places) + index[chosen])


def packed(shapes: ndarray | Sequence[shapely.Geometry]) -> tuple[UInt8[ndarray, " bytes"], Int64[ndarray, " n"]]:
    """Return (n,) shapes as WKB, one after the other, and where each ends."""
    chunks = shapely.to_wkb(np.array(shapes, object)).tolist() if len(shapes) else []
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    return np.frombuffer(b"".join(chunks), np.uint8), ends


def unpacked(content: UInt8[ndarray, " bytes"], ends: Int64[ndarray, " n"]) -> ndarray:
    """Return the (n,) shapes that `packed` packed."""
    chunks = np.empty(len(ends), object)
    view, starts = content.tobytes(), np.concatenate([[0], ends])[:-1]
    chunks[:] = [view[start:end] for start, end in zip(starts, ends, strict=True)]
    shapes: ndarray = shapely.from_wkb(chunks)
    return shapes


def strung(lists: Sequence[Sequence[Int64[ndarray, "_ 2"]]]) -> tuple[Int64[ndarray, "n 2"], Int64[ndarray, " k"]]:
    """Return the points of k lists of arrays one after the other, and where each list ends."""
    joined = [np.concatenate([np.empty((0, 2), np.int64), *arrays]) for arrays in lists]
    ends = np.cumsum([len(points) for points in joined], dtype=np.int64)
    return np.concatenate([np.empty((0, 2), np.int64), *joined]), ends


def unstrung(points: Int64[ndarray, "n 2"], ends: Int64[ndarray, " k"]) -> list[Int64[ndarray, "_ 2"]]:
    """Return the k arrays of points that `strung` strung."""
    return np.split(points, ends[:-1]) if len(ends) else []
