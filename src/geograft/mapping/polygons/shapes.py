"""Label and polygonize the regions of one block, find the corners of outlines, and pack shapes into arrays.

All coordinates are whole pixels of the raster, (column, row), so merging polygons from several blocks is exact. Corners
are what simplification and smoothing need to know of a region's neighbours; each is found from the four pixels around
it and is therefore the same in every block that contains them. Shapes and points are packed into plain arrays, so files
need no pickle.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Int32, Int64, Integer, Num, UInt8
from numpy import ndarray
from rasterio.features import shapes as outlines
from scipy import ndimage
from shapely import LinearRing, MultiPolygon, Polygon

from geograft.geo.grid import Window

NEIGHBOURS = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}
NO_SUMS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Region:
    """A connected region of pixels of one value."""

    value: int
    shape: Polygon | MultiPolygon
    """In pixels, (column, row). A multipolygon where parts touch at corners only."""
    sums: Int64[ndarray, " k"] = field(default_factory=lambda: NO_SUMS, compare=False)
    """Sums over its pixels, see `ClassMapSource.sum_pixels`."""


def label_regions(
    values: Integer[ndarray, "h w"], valid: Bool[ndarray, "h w"], connectivity: int
) -> tuple[Int32[ndarray, "h w"], Int64[ndarray, " n"]]:
    """Return the label of each pixel, 1 to n, 0 where not `valid`, and the value of each label.

    Pixels that share an edge (`connectivity` 4), or an edge or a corner (8), belong to one region.
    """
    labels = np.zeros(values.shape, np.int32)
    label_values: list[int] = []
    distinct = np.unique(values[valid])
    ranks = np.where(valid, np.searchsorted(distinct, values) + 1, 0)
    # Each value is labelled where it occurs: a mask of numbered objects has thousands of values.
    for rank, place in enumerate(ndimage.find_objects(ranks), start=1):
        found, count = ndimage.label(ranks[place] == rank, NEIGHBOURS[connectivity], output=np.int32)
        labels[place] += np.where(found, found + len(label_values), 0).astype(np.int32)
        label_values += [int(distinct[rank - 1])] * count
    return labels, np.array(label_values, np.int64)


def polygonize(labels: Int32[ndarray, "h w"], window: Window) -> dict[int, list[Polygon]]:
    """Return the polygons of each label, in pixels of the raster that contains `window`.

    Diagonal neighbours are always separate polygons: GDAL's 8-connected outlines touch themselves.
    """
    found: dict[int, list[Polygon]] = {}
    if not labels.any():
        return found
    transform = Affine.translation(window.col, window.row)
    for outline, label in outlines(labels, mask=labels > 0, connectivity=4, transform=transform):
        shell, *holes = (np.array(ring) for ring in outline["coordinates"])
        found.setdefault(int(label), []).append(Polygon(shell, holes))
    return found


def merge_polygons(polygons: list[Polygon]) -> Polygon | MultiPolygon:
    """Return the union of polygons along pixel edges, without vertices on straight edges."""
    if len(polygons) == 1:
        return polygons[0]
    pieces = [_without_collinear(part) for part in shapely.get_parts(shapely.union_all(polygons))]
    return pieces[0] if len(pieces) == 1 else MultiPolygon(pieces)


def assemble_shapes(
    rings: ndarray, polygon_of: Int64[ndarray, " r"], shape_of: Int64[ndarray, " p"], count: int
) -> ndarray:
    """Return `count` shapes built from rings, the shell of each polygon first; multipolygons where needed."""
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


def _without_collinear(polygon: Polygon) -> Polygon:
    return Polygon(_turns(polygon.exterior), [_turns(hole) for hole in polygon.interiors])


def _turns(ring: LinearRing) -> Num[ndarray, "n 2"]:
    return drop_collinear(shapely.get_coordinates(ring)[:-1])


def drop_collinear(ring: Num[ndarray, "n 2"]) -> Num[ndarray, "m 2"]:
    """Return the vertices at which a ring along pixel edges changes its direction; the ring is not closed."""
    steps = np.sign(np.roll(ring, -1, axis=0) - ring)
    turns: ndarray = ring[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
    return turns


MAX_LOOKUPS = 2**20
"""Pixels that `points_by_label` looks up at a time."""


@dataclass(frozen=True)
class Corners:
    """Corners of outlines in whole pixels, (column, row)."""

    turns: Int64[ndarray, "n 2"]
    """Where an outline turns or outlines meet: every vertex of any outline."""
    nodes: Int64[ndarray, "m 2"]
    """Where three or more outlines meet: vertices that neighbouring regions must share."""


NO_CORNERS = Corners(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


def find_corners(values: Int64[ndarray, "h w"], row: int, col: int) -> Corners:
    """Return the corners between the pixels of `values`, whose first pixel is (`row`, `col`) of the raster.

    Pixels of no region need a value of their own.
    """
    a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]
    turns = ~(((a == b) & (c == d)) | ((a == c) & (b == d)))
    # At a plain turn three of the four pixels are equal. The rest have three values, or two that touch diagonally.
    plain = ((a == b) & ((a == c) | (a == d))) | ((c == d) & ((a == c) | (b == c)))
    shift = np.array([col + 1, row + 1])
    return Corners(*(np.argwhere(mask)[:, ::-1].astype(np.int64) + shift for mask in (turns, turns & ~plain)))


def points_by_label(
    points: Int64[ndarray, "n 2"],
    labels: Int32[ndarray, "h w"],
    window: Window,
    selected: Bool[ndarray, " k"],
    reach: int,
) -> dict[int, Int64[ndarray, "_ 2"]]:
    """Return for each selected label the points within `reach` rows and columns of one of its pixels.

    `labels` are those of `window`; `selected` is indexed by label. Time: (2 reach)^2 lookups per point.
    """
    local = points - [window.col, window.row]
    step = max(1, MAX_LOOKUPS // (2 * reach) ** 2)
    pairs = [_labels_near(local, labels, selected, reach, start, step) for start in range(0, len(points), step)]
    found, index = np.divmod(np.concatenate([np.empty(0, np.int64), *pairs]), max(len(points), 1))
    order = np.argsort(found, kind="stable")
    selected_labels, starts = np.unique(found[order], return_index=True)
    groups = np.split(points[index[order]], starts[1:])
    return dict(zip(selected_labels.tolist(), groups, strict=False))


def _labels_near(
    local: Int64[ndarray, "n 2"],
    labels: Int32[ndarray, "h w"],
    selected: Bool[ndarray, " k"],
    reach: int,
    start: int,
    step: int,
) -> Int64[ndarray, " m"]:
    """Return label * n + index for each selected label near `step` of the n points, from `start` on."""
    offsets = np.arange(-reach, reach)
    chunk = local[start : start + step]
    rows, cols = chunk[:, 1, None, None] + offsets[:, None], chunk[:, 0, None, None] + offsets
    height, width = labels.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    found = np.where(inside, labels[rows.clip(0, height - 1), cols.clip(0, width - 1)], 0)
    index = np.broadcast_to(np.arange(start, start + len(chunk))[:, None, None], found.shape)
    chosen = selected[found]
    return np.unique(found[chosen].astype(np.int64) * len(local) + index[chosen])


def pack_wkb(shapes: ndarray | Sequence[shapely.Geometry]) -> tuple[UInt8[ndarray, " bytes"], Int64[ndarray, " n"]]:
    """Return (n,) shapes as concatenated WKB, and the end of each."""
    chunks = shapely.to_wkb(np.array(shapes, object)).tolist() if len(shapes) else []
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    return np.frombuffer(b"".join(chunks), np.uint8), ends


def unpack_wkb(content: UInt8[ndarray, " bytes"], ends: Int64[ndarray, " n"]) -> ndarray:
    """Return the (n,) shapes from the output of `pack_wkb`."""
    chunks = np.empty(len(ends), object)
    view, starts = content.tobytes(), np.concatenate([[0], ends])[:-1]
    chunks[:] = [view[start:end] for start, end in zip(starts, ends, strict=True)]
    shapes: ndarray = shapely.from_wkb(chunks)
    return shapes


def concatenate_points(
    lists: Sequence[Sequence[Int64[ndarray, "_ 2"]]],
) -> tuple[Int64[ndarray, "n 2"], Int64[ndarray, " k"]]:
    """Return the concatenated points of k lists of arrays, and the end of each list."""
    joined = [np.concatenate([np.empty((0, 2), np.int64), *arrays]) for arrays in lists]
    ends = np.cumsum([len(points) for points in joined], dtype=np.int64)
    return np.concatenate([np.empty((0, 2), np.int64), *joined]), ends


def split_points(points: Int64[ndarray, "n 2"], ends: Int64[ndarray, " k"]) -> list[Int64[ndarray, "_ 2"]]:
    """Return the k arrays of points from the output of `concatenate_points`."""
    return np.split(points, ends[:-1]) if len(ends) else []
