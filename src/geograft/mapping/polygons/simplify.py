"""Simplify, smooth and orthogonalize the outlines of regions.

Simplification (Douglas-Peucker) and smoothing (Chaikin) keep the topology: no line crosses another, and neighbours keep
their common boundary. Each decision about an arc depends only on the corners within `reach_px` of it, which both of its
sides know, so regions can be processed one at a time. Orthogonalization is meant for buildings and treats every
polygon by itself.
"""

import math
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from shapely import Polygon
from shapely.affinity import rotate, scale
from shapely.geometry.base import BaseGeometry

from geograft.mapping.polygons.arcs import MAX_SIDE, Arcs, Rings, cut_into_arcs, expand_ranges, point_keys
from geograft.mapping.polygons.shapes import Corners

CORNER_CUT_PX = 2.0
"""Smoothing cuts a corner by at most the simplification tolerance plus this, in pixels."""


@dataclass(frozen=True)
class KeptVertices:
    """The vertices of arcs that are kept, as indices into `arcs.points`."""

    arcs: Arcs
    vertices: Int64[ndarray, " n"]
    sizes: Int64[ndarray, " k"]

    def to_arcs(self) -> Arcs:
        """Return the arcs with only these vertices."""
        return Arcs(self.arcs.points[self.vertices], np.cumsum(self.sizes) - self.sizes, self.sizes)


def reach_px(tolerance: float, iterations: int) -> int:
    """Return the distance from a region, in pixels, within which `simplify_and_smooth` needs all corners."""
    if not tolerance and not iterations:
        return 0
    return math.floor(max(2 * tolerance, tolerance + CORNER_CUT_PX if iterations else 0)) + 1


def simplify_and_smooth(shapes: ndarray, corners: Corners, tolerance: float, iterations: int) -> ndarray:
    """Return (n,) polygons along pixel edges, simplified and then smoothed; neighbours keep their common boundary.

    `tolerance` is the largest distance in pixels between an original vertex and the simplified line. Smoothing is
    `iterations` rounds of Chaikin's corner cutting (1974, doi:10.1016/0146-664X(74)90028-8) and moves a line by less
    than `tolerance` + 2 pixels. `corners` holds all corners within `reach_px`. Valid polygons stay valid, and disjoint
    ones stay disjoint.
    """
    if not len(shapes) or not (tolerance or iterations):
        return shapes
    rings = cut_into_arcs(shapes, corners.nodes)
    corner_keys = np.unique(np.concatenate([point_keys(corners.turns), point_keys(rings.arcs.points)]))
    tree = shapely.STRtree(np.asarray(shapely.points(corner_keys // MAX_SIDE, corner_keys % MAX_SIDE), object))
    kept = _all(rings.arcs) if not tolerance else _simplify(rings.arcs, tolerance, tree)
    return rings.with_arcs(
        _smooth(rings, kept, tolerance + CORNER_CUT_PX, iterations, (tree, corner_keys))
        if iterations
        else kept.to_arcs()
    )


def _all(arcs: Arcs) -> KeptVertices:
    return KeptVertices(arcs, np.arange(len(arcs.points)), arcs.sizes)


def _simplify(arcs: Arcs, distance: float, tree: shapely.STRtree) -> KeptVertices:
    """Return the vertices that Douglas-Peucker (1973, doi:10.3138/FM57-6770-U75U-7727) and the topology keep.

    A piece is replaced by one segment only if the convex hull of its vertices contains no other corner. Segments s and
    t of two such pieces cannot cross: an edge of the first piece would have to cross t, and since its ends lie outside
    the second piece's hull, it would divide that hull and cross the second piece itself, but outlines do not cross. An
    arc keeps at least one vertex between its ends, and a closed arc three, so that two arcs with the same ends stay
    distinct.
    """
    kept = np.zeros(len(arcs.points), bool)
    kept[arcs.starts] = kept[arcs.last] = True
    pieces = np.stack([arcs.starts, arcs.last, 1 + arcs.closed.astype(np.int64)], axis=1)
    while len(pieces := pieces[pieces[:, 1] - pieces[:, 0] > 1]):
        farthest, far = _farthest(arcs.points, pieces)
        split = (pieces[:, 2] > 0) | (far > distance)
        split[~split] = ~_contain_no_other_corner(arcs.points, pieces[~split], tree)
        kept[farthest[split]] = True
        first, last, must = pieces[split].T
        must = np.maximum(must - 1, 0)
        halves = ((first, farthest[split]), (farthest[split], last))
        pieces = np.concatenate([np.stack([start, stop, must], axis=1) for start, stop in halves])
    sizes = np.add.reduceat(kept.astype(np.int64), arcs.starts)
    return KeptVertices(arcs, np.flatnonzero(kept), sizes)


def _farthest(
    points: Float64[ndarray, "n 2"], pieces: Int64[ndarray, "k 3"]
) -> tuple[Int64[ndarray, " k"], Float64[ndarray, " k"]]:
    """Return the vertex of each piece that is farthest from the segment between its ends, and its distance."""
    inner, owner = expand_ranges(pieces[:, 0] + 1, pieces[:, 1] - pieces[:, 0] - 1)
    start, chord = points[pieces[:, 0]], points[pieces[:, 1]] - points[pieces[:, 0]]
    length2 = np.maximum((chord**2).sum(axis=1), 1.0)
    offset = points[inner] - start[owner]
    along = np.clip((offset * chord[owner]).sum(axis=1) / length2[owner], 0, 1)
    away2 = ((offset - along[:, None] * chord[owner]) ** 2).sum(axis=1)
    opens = np.flatnonzero(np.diff(owner, prepend=-1))
    largest = np.maximum.reduceat(away2, opens)
    best = np.flatnonzero(away2 == largest[owner])
    _, first = np.unique(owner[best], return_index=True)
    return inner[best[first]], np.sqrt(largest)


def _contain_no_other_corner(
    points: Float64[ndarray, "n 2"], pieces: Int64[ndarray, "k 3"], tree: shapely.STRtree
) -> Bool[ndarray, " k"]:
    """Return which pieces have only their own corners in their convex hull."""
    if not len(pieces):
        return np.zeros(0, bool)
    sizes = pieces[:, 1] - pieces[:, 0] + 1
    index, owner = expand_ranges(pieces[:, 0], sizes)
    hulls = shapely.convex_hull(shapely.linestrings(points[index], indices=owner))
    found: ndarray = np.bincount(tree.query(hulls, predicate="intersects")[0], minlength=len(pieces)) == sizes
    return found


def _smooth(
    rings: Rings, kept: KeptVertices, max_cut: float, iterations: int, known: tuple[shapely.STRtree, ndarray]
) -> Arcs:
    """Return arcs smoothed by `iterations` of corner cutting; nodes stay, and no cut is longer than `max_cut`.

    After n iterations a corner is the control polygons of the 2^n parts of a quadratic Bezier curve between the
    midpoints of its edges. A corner whose triangle contains another corner is not cut: if the triangles of two lines
    contain no vertex of the other, neither line enters the other's triangle, and the curves lie in the triangles.
    """
    lines = kept.to_arcs()
    corner, before, after, arc = _corners(lines, rings.without_nodes)
    v, u, w = (lines.points[side] for side in (corner, before, after))
    a, b = (v + (end - v) * np.minimum(0.5, max_cut / np.hypot(*(end - v).T))[:, None] for end in (u, w))
    free = _contain_only_own_corners(kept, (corner, before, after, arc), np.stack([a, v, b], axis=1), known)
    parts = 2**iterations
    s = np.arange(parts)[:, None, None] / parts
    t = s + 1 / parts
    curve = (1 - s) * (1 - t) * a + ((1 - s) * t + s * (1 - t)) * v + s * t * b
    counts = np.ones(len(lines.points), np.int64)
    counts[corner[free]] = parts
    index, owner = expand_ranges(np.zeros_like(counts), counts)
    points = lines.points[owner]
    which = np.full(len(lines.points), -1)
    which[corner[free]] = np.flatnonzero(free)
    cut_here = which[owner] >= 0
    points[cut_here] = curve[index[cut_here], which[owner[cut_here]]]
    sizes = np.add.reduceat(counts, lines.starts)
    starts = np.cumsum(sizes) - sizes
    # A ring without nodes must end at its new start.
    points[(starts + sizes - 1)[rings.without_nodes]] = points[starts[rings.without_nodes]]
    return Arcs(points, starts, sizes)


def _corners(lines: Arcs, free: Bool[ndarray, " k"]) -> tuple[Int64[ndarray, " n"], ...]:
    """Return the vertices that may be cut, the vertices before and after each, and the arc of each.

    These are all but the ends of arcs; for rings without nodes, the start vertex too.
    """
    inner, arc = expand_ranges(lines.starts + 1, lines.sizes - 2)
    ring = np.flatnonzero(free)
    corner = np.concatenate([inner, lines.starts[ring]])
    before = np.concatenate([inner - 1, lines.last[ring] - 1])
    after = np.concatenate([inner + 1, lines.starts[ring] + 1])
    return corner, before, after, np.concatenate([arc, ring])


def _contain_only_own_corners(
    kept: KeptVertices,
    corners: tuple[Int64[ndarray, " n"], ...],
    triangles: Float64[ndarray, "n 3 2"],
    known: tuple[shapely.STRtree, ndarray],
) -> Bool[ndarray, " n"]:
    """Return which triangles contain only corners of their own arc, between the two neighbouring vertices."""
    tree, corner_keys = known
    arcs, (_, before, after, arc) = kept.arcs, corners
    one, other = tree.query(shapely.polygons(triangles), predicate="intersects")
    # Find the position of each corner within its own arc. The last vertex of a closed arc is its first.
    owner = np.repeat(np.arange(len(arcs.sizes)), arcs.sizes)
    code = owner * np.int64(len(corner_keys)) + np.searchsorted(corner_keys, point_keys(arcs.points))
    single = np.ones(len(code), bool)
    single[arcs.last[arcs.closed]] = False
    order = np.argsort(code[single], kind="stable")
    ordered, vertex = code[single][order], np.flatnonzero(single)[order]
    target = arc[one] * np.int64(len(corner_keys)) + other
    found = np.minimum(np.searchsorted(ordered, target), len(ordered) - 1)
    own = ordered[found] == target
    length = np.where(arcs.closed, arcs.sizes - 1, MAX_SIDE)[arc[one]]
    start = kept.vertices[before[one]]
    within = (vertex[found] - start) % length <= (kept.vertices[after[one]] - start) % length
    disturbed = np.zeros(len(triangles), bool)
    disturbed[one[~(own & within)]] = True
    return ~disturbed


MIN_IOU = 0.8
"""Lowest IoU of an orthogonal outline with its original; below this the original is kept."""
STAIRCASE_PX, MIN_SIDE_PX = 1.0, 1.5
"""Tolerance that removes the pixel staircase along a wall, and the shortest wall."""


SQUARE_PX = 2.0
"""Simplification tolerance in pixels for orthogonalized polygons where none is set."""
LEFT, SQUARED, RECTANGLE = range(3)
"""What became of a polygon: it was left as it was, has right angles now, or is a rectangle."""


def orthogonalize(shape: BaseGeometry, aspect: float = 1.0) -> BaseGeometry:
    """Return a polygon in pixels with right angles and the same area; of a multipolygon, each part. See `_best`.

    `aspect` is the height of a pixel divided by its width in metres: angles are right in metres, not in pixels. Where
    no part changes, the result is `shape` itself. Time: about 3 ms a polygon.
    """
    metric = shapely.get_parts(scale(shape, 1.0, aspect, origin=(0, 0)))
    parts = [_best(part) for part in metric]
    result = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    changed = any(after is not before for before, after in zip(metric, parts, strict=True))
    # Parts of one region may overlap after each is orthogonalized by itself.
    return scale(result, 1.0, 1 / aspect, origin=(0, 0)) if changed and result.is_valid else shape


def orthogonalize_simplest(outline: BaseGeometry, simplified: BaseGeometry, aspect: float) -> tuple[BaseGeometry, int]:
    """Return the orthogonalized form of an outline or of its simplification, and one of LEFT, SQUARED and RECTANGLE.

    The form with fewer vertices; with as many, that of the outline, which is more exact. If none can be
    orthogonalized, the simplification.
    """
    fine, coarse = orthogonalize(outline, aspect), orthogonalize(simplified, aspect)
    fewer = shapely.get_num_coordinates(fine) <= shapely.get_num_coordinates(coarse)
    if fine is not outline and (coarse is simplified or fewer):
        return fine, _form(fine)
    return coarse, LEFT if coarse is simplified else _form(coarse)


def _form(shape: BaseGeometry) -> int:
    """Return RECTANGLE if each part has four corners and no hole, else SQUARED."""
    parts = shapely.get_parts(shape)
    plain = (shapely.get_num_coordinates(parts) == 5) & (shapely.get_num_interior_rings(parts) == 0)
    return RECTANGLE if plain.all() else SQUARED


def iou(one: BaseGeometry, other: BaseGeometry) -> float:
    """Return the intersection over union of two shapes."""
    return float(shapely.area(shapely.intersection(one, other)) / shapely.area(shapely.union(one, other)))


def _best(polygon: Polygon) -> Polygon:
    """Return the orthogonal outline with the highest IoU; the polygon itself if that is below MIN_IOU.

    The candidates are right angles along the mean direction of the walls, right angles along the minimum rotated
    rectangle, and that rectangle itself, each scaled to the polygon's area.
    """
    plain, box = polygon.simplify(STAIRCASE_PX), shapely.minimum_rotated_rectangle(polygon)
    if not (isinstance(plain, Polygon) and isinstance(box, Polygon)):
        return polygon
    outlines = [_right_angled(plain, angle) for angle in (_direction(plain), _direction(box))]
    outlines += [box] if not polygon.interiors else []
    usable = [shape for shape in outlines if shape is not None and shape.is_valid and shape.area > 0]
    candidates = [_scale_to_area(shape, polygon.area) for shape in usable]
    scores = [iou(shape, polygon) for shape in candidates]
    return candidates[int(np.argmax(scores))] if scores and max(scores) >= MIN_IOU else polygon


def _scale_to_area(shape: Polygon, area: float) -> Polygon:
    factor = math.sqrt(area / shape.area)
    return scale(shape, factor, factor, origin="centroid")


def _direction(polygon: Polygon) -> float:
    """Return the mean direction of the sides in degrees modulo 90, weighted by the squares of their lengths."""
    sides = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    lengths, angles = np.hypot(*sides.T), np.arctan2(sides[:, 1], sides[:, 0])
    return math.degrees(np.angle((lengths**2 * np.exp(4j * angles)).sum()) / 4)


def _right_angled(polygon: Polygon, angle: float) -> Polygon | None:
    """Return the polygon with every side parallel or perpendicular to `angle`; None if no outline is left."""
    if polygon.is_empty:
        return None
    level = rotate(polygon, -angle, origin=(0, 0))
    rings = [_axis_parallel(shapely.get_coordinates(ring)[:-1]) for ring in (level.exterior, *level.interiors)]
    if rings[0] is None:
        return None
    return rotate(Polygon(rings[0], [ring for ring in rings[1:] if ring is not None]), angle, origin=(0, 0))


def _axis_parallel(points: Float64[ndarray, "n 2"]) -> Float64[ndarray, "m 2"] | None:
    """Return a ring of horizontal and vertical sides, each at the mean position of the sides it replaces.

    None if fewer than four sides are left.
    """
    ends = np.roll(points, -1, axis=0)
    level = np.abs(ends - points)[:, 0] >= np.abs(ends - points)[:, 1]
    middles = (points + ends) / 2
    positions, lengths = np.where(level, middles[:, 1], middles[:, 0]), np.abs(ends - points).max(axis=1)
    while True:
        level, positions, lengths = _merge_sides(level, positions, lengths)
        if len(level) < 4:
            return None
        spans = np.abs(np.roll(positions, -1) - np.roll(positions, 1))
        if spans.min() >= MIN_SIDE_PX or len(level) == 4:
            break
        level, positions, lengths = (np.delete(side, spans.argmin()) for side in (level, positions, lengths))
    before = np.roll(positions, 1)
    return np.stack([np.where(level, before, positions), np.where(level, positions, before)], axis=1)


def _merge_sides(
    level: Bool[ndarray, " n"], positions: Float64[ndarray, " n"], lengths: Float64[ndarray, " n"]
) -> tuple[Bool[ndarray, " m"], Float64[ndarray, " m"], Float64[ndarray, " m"]]:
    """Merge neighbouring sides of the same direction, so that horizontal and vertical ones alternate."""
    turns = np.flatnonzero(level != np.roll(level, 1))
    if not len(turns):
        return level[:0], positions[:0], lengths[:0]
    level, positions, lengths = (np.roll(side, -turns[0]) for side in (level, positions, lengths))
    starts = turns - turns[0]
    total = np.add.reduceat(lengths, starts)
    return level[starts], np.add.reduceat(positions * lengths, starts) / total, total
