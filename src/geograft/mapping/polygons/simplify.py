"""Fewer vertices, and rounder lines, without any line crossing another.

Every decision about a piece of an arc looks only at corners near it, which both of its sides know; so regions can be
treated one by one, and neighbours still fit. What is near: see `reach_px`.

Outlines with right angles along their main direction, as buildings have them.
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

from geograft.mapping.polygons.arcs import SIDE, Arcs, Rings, cut, keys, spread
from geograft.mapping.polygons.shapes import Corners

CUT_PX = 2.0
"""Smoothing cuts corners by at most so many pixels more than simplifying may move a line."""


@dataclass(frozen=True)
class Kept:
    """The vertices that are left of arcs, by their places in `arcs.points`."""

    arcs: Arcs
    vertices: Int64[ndarray, " n"]
    sizes: Int64[ndarray, " k"]

    def lines(self) -> Arcs:
        """Return the arcs with these vertices only."""
        return Arcs(self.arcs.points[self.vertices], np.cumsum(self.sizes) - self.sizes, self.sizes)


def reach_px(distance: float, rounds: int) -> int:
    """Return how far around a region, in pixels, `eased` must know all corners."""
    if not distance and not rounds:
        return 0
    return math.floor(max(2 * distance, distance + CUT_PX if rounds else 0)) + 1


def eased(shapes: ndarray, near: Corners, distance: float, rounds: int) -> ndarray:
    """Return (n,) polygons with edges along pixels, simplified and then smoothed; neighbours keep their common lines.

    No old vertex ends up farther than `distance` pixels from the simplified line. Smoothing is Chaikin's corner cutting
    (1974, doi:10.1016/0146-664X(74)90028-8), `rounds` times, and moves a line by less than `distance` + 2 pixels.
    `near` holds all corners within `reach_px`. Valid polygons stay valid and distinct ones do not come to overlap.
    """
    if not len(shapes) or not (distance or rounds):
        return shapes
    rings = cut(shapes, near.nodes)
    places = np.unique(np.concatenate([keys(near.turns), keys(rings.arcs.points)]))
    tree = shapely.STRtree(np.asarray(shapely.points(places // SIDE, places % SIDE), object))
    kept = _all(rings.arcs) if not distance else _simplified(rings.arcs, distance, tree)
    return rings.with_lines(
        _smoothed(rings, kept, distance + CUT_PX, rounds, (tree, places)) if rounds else kept.lines()
    )


def _all(arcs: Arcs) -> Kept:
    return Kept(arcs, np.arange(len(arcs.points)), arcs.sizes)


def _simplified(arcs: Arcs, distance: float, tree: shapely.STRtree) -> Kept:
    """Return what Douglas and Peucker's rule (1973, doi:10.3138/FM57-6770-U75U-7727) keeps, and what must stay.

    A piece becomes one segment only when the convex hull of its vertices holds no other corner. Two segments s and t
    of such pieces cannot cross: an edge of the one piece would have to cross t, and as its ends lie outside the other
    piece's hull, it would part that hull and cross the piece itself, which outlines do not do. An arc keeps at least
    one vertex between its ends, and a closed one three, so that two arcs between the same ends stay apart.
    """
    kept = np.zeros(len(arcs.points), bool)
    kept[arcs.starts] = kept[arcs.lasts] = True
    pieces = np.stack([arcs.starts, arcs.lasts, 1 + arcs.closed.astype(np.int64)], axis=1)
    while len(pieces := pieces[pieces[:, 1] - pieces[:, 0] > 1]):
        farthest, far = _farthest(arcs.points, pieces)
        split = (pieces[:, 2] > 0) | (far > distance)
        split[~split] = ~_alone(arcs.points, pieces[~split], tree)
        kept[farthest[split]] = True
        first, last, must = pieces[split].T
        must = np.maximum(must - 1, 0)
        halves = ((first, farthest[split]), (farthest[split], last))
        pieces = np.concatenate([np.stack([start, stop, must], axis=1) for start, stop in halves])
    sizes = np.add.reduceat(kept.astype(np.int64), arcs.starts)
    return Kept(arcs, np.flatnonzero(kept), sizes)


def _farthest(
    points: Float64[ndarray, "n 2"], pieces: Int64[ndarray, "k 3"]
) -> tuple[Int64[ndarray, " k"], Float64[ndarray, " k"]]:
    """Return the vertex of each piece that lies farthest from the segment between its ends, and how far."""
    inner, owner = spread(pieces[:, 0] + 1, pieces[:, 1] - pieces[:, 0] - 1)
    start, chord = points[pieces[:, 0]], points[pieces[:, 1]] - points[pieces[:, 0]]
    length2 = np.maximum((chord**2).sum(axis=1), 1.0)
    offset = points[inner] - start[owner]
    along = np.clip((offset * chord[owner]).sum(axis=1) / length2[owner], 0, 1)
    away2 = ((offset - along[:, None] * chord[owner]) ** 2).sum(axis=1)
    opens = np.flatnonzero(np.diff(owner, prepend=-1))
    most = np.maximum.reduceat(away2, opens)
    best = np.flatnonzero(away2 == most[owner])
    _, first = np.unique(owner[best], return_index=True)
    return inner[best[first]], np.sqrt(most)


def _alone(
    points: Float64[ndarray, "n 2"], pieces: Int64[ndarray, "k 3"], tree: shapely.STRtree
) -> Bool[ndarray, " k"]:
    """Return which pieces have no corner but their own in their convex hull."""
    if not len(pieces):
        return np.zeros(0, bool)
    sizes = pieces[:, 1] - pieces[:, 0] + 1
    index, owner = spread(pieces[:, 0], sizes)
    hulls = shapely.convex_hull(shapely.linestrings(points[index], indices=owner))
    found: ndarray = np.bincount(tree.query(hulls, predicate="intersects")[0], minlength=len(pieces)) == sizes
    return found


def _smoothed(rings: Rings, kept: Kept, most: float, rounds: int, known: tuple[shapely.STRtree, ndarray]) -> Arcs:
    """Return arcs with their corners cut `rounds` times, nodes fixed, no corner cut by more than `most`.

    After n rounds a corner is the control polygons of the 2^n parts of a quadratic Bezier curve between the middles of
    its edges. A corner whose triangle holds another corner stays as it is: of two lines whose triangles hold no vertex
    of the other, neither enters the other's triangle, and the curves lie in the triangles.
    """
    lines = kept.lines()
    corner, before, after, arc = _corners(lines, rings.free)
    v, u, w = (lines.points[side] for side in (corner, before, after))
    a, b = (v + (end - v) * np.minimum(0.5, most / np.hypot(*(end - v).T))[:, None] for end in (u, w))
    free = _undisturbed(kept, (corner, before, after, arc), np.stack([a, v, b], axis=1), known)
    parts = 2**rounds
    s = np.arange(parts)[:, None, None] / parts
    t = s + 1 / parts
    curve = (1 - s) * (1 - t) * a + ((1 - s) * t + s * (1 - t)) * v + s * t * b
    counts = np.ones(len(lines.points), np.int64)
    counts[corner[free]] = parts
    index, owner = spread(np.zeros_like(counts), counts)
    points = lines.points[owner]
    which = np.full(len(lines.points), -1)
    which[corner[free]] = np.flatnonzero(free)
    cut_here = which[owner] >= 0
    points[cut_here] = curve[index[cut_here], which[owner[cut_here]]]
    sizes = np.add.reduceat(counts, lines.starts)
    starts = np.cumsum(sizes) - sizes
    # A ring without nodes ends where it begins now.
    points[(starts + sizes - 1)[rings.free]] = points[starts[rings.free]]
    return Arcs(points, starts, sizes)


def _corners(lines: Arcs, free: Bool[ndarray, " k"]) -> tuple[Int64[ndarray, " n"], ...]:
    """Return the vertices that may be cut, the ones before and after each, and their arcs.

    All but the ends of arcs; of rings without nodes, the vertex where they begin too.
    """
    inner, arc = spread(lines.starts + 1, lines.sizes - 2)
    ring = np.flatnonzero(free)
    corner = np.concatenate([inner, lines.starts[ring]])
    before = np.concatenate([inner - 1, lines.lasts[ring] - 1])
    after = np.concatenate([inner + 1, lines.starts[ring] + 1])
    return corner, before, after, np.concatenate([arc, ring])


def _undisturbed(
    kept: Kept,
    corners: tuple[Int64[ndarray, " n"], ...],
    triangles: Float64[ndarray, "n 3 2"],
    known: tuple[shapely.STRtree, ndarray],
) -> Bool[ndarray, " n"]:
    """Return which triangles hold no corner but those of their own arc from one neighbour to the other."""
    tree, places = known
    arcs, (_, before, after, arc) = kept.arcs, corners
    one, other = tree.query(shapely.polygons(triangles), predicate="intersects")
    # Where in its own arc is the corner that was met? The last vertex of a closed arc is its first.
    owner = np.repeat(np.arange(len(arcs.sizes)), arcs.sizes)
    code = owner * np.int64(len(places)) + np.searchsorted(places, keys(arcs.points))
    single = np.ones(len(code), bool)
    single[arcs.lasts[arcs.closed]] = False
    order = np.argsort(code[single], kind="stable")
    ordered, vertex = code[single][order], np.flatnonzero(single)[order]
    wanted = arc[one] * np.int64(len(places)) + other
    found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    own = ordered[found] == wanted
    length = np.where(arcs.closed, arcs.sizes - 1, SIDE)[arc[one]]
    start = kept.vertices[before[one]]
    within = (vertex[found] - start) % length <= (kept.vertices[after[one]] - start) % length
    disturbed = np.zeros(len(triangles), bool)
    disturbed[one[~(own & within)]] = True
    return ~disturbed


LEAST_IOU = 0.8
"""A squared outline that agrees less with the one it came from is not taken."""
COARSE_PX, LEAST_SIDE_PX = 1.0, 1.5
"""How far the steps of pixels may lie from a wall, and the shortest wall."""


def squared(shape: BaseGeometry, aspect: float = 1.0) -> BaseGeometry:
    """Return a polygon in pixels, or each part of several, with right angles and the same area; see `_best`.

    `aspect` is a pixel's height over its width on the ground, where the angles are right. Time: about 3 ms a polygon.
    """
    ground = scale(shape, 1.0, aspect, origin=(0, 0))
    parts = [_best(part) for part in shapely.get_parts(ground)]
    result = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    # Parts of one region may run into each other when they are squared one by one.
    return scale(result, 1.0, 1 / aspect, origin=(0, 0)) if result.is_valid else shape


def iou(one: BaseGeometry, other: BaseGeometry) -> float:
    """Return the area that two shapes share over the area that they cover."""
    return float(shapely.area(shapely.intersection(one, other)) / shapely.area(shapely.union(one, other)))


def _best(polygon: Polygon) -> Polygon:
    """Return the squared outline that agrees best with a polygon, or the polygon where none does well.

    Tried are right angles along the walls' mean direction and along that of the least rectangle around it, and this
    rectangle itself; each is brought to the polygon's area.
    """
    plain, box = polygon.simplify(COARSE_PX), shapely.minimum_rotated_rectangle(polygon)
    if not (isinstance(plain, Polygon) and isinstance(box, Polygon)):
        return polygon
    tried = [_right_angled(plain, angle) for angle in (_direction(plain), _direction(box))]
    tried += [box] if not polygon.interiors else []
    able = [_of_area(shape, polygon.area) for shape in tried if shape is not None and shape.is_valid and shape.area > 0]
    scores = [iou(shape, polygon) for shape in able]
    return able[int(np.argmax(scores))] if scores and max(scores) >= LEAST_IOU else polygon


def _of_area(shape: Polygon, area: float) -> Polygon:
    factor = math.sqrt(area / shape.area)
    return scale(shape, factor, factor, origin="centroid")


def _direction(polygon: Polygon) -> float:
    """Return the mean direction of the sides in degrees, up to quarter turns, by the squares of their lengths."""
    sides = np.diff(shapely.get_coordinates(polygon.exterior), axis=0)
    lengths, angles = np.hypot(*sides.T), np.arctan2(sides[:, 1], sides[:, 0])
    return math.degrees(np.angle((lengths**2 * np.exp(4j * angles)).sum()) / 4)


def _right_angled(polygon: Polygon, angle: float) -> Polygon | None:
    """Return the polygon with every side along `angle` or across it; None where that leaves no outline."""
    if polygon.is_empty:
        return None
    level = rotate(polygon, -angle, origin=(0, 0))
    rings = [_stepped(shapely.get_coordinates(ring)[:-1]) for ring in (level.exterior, *level.interiors)]
    if rings[0] is None:
        return None
    return rotate(Polygon(rings[0], [ring for ring in rings[1:] if ring is not None]), angle, origin=(0, 0))


def _stepped(points: Float64[ndarray, "n 2"]) -> Float64[ndarray, "m 2"] | None:
    """Return a ring of level and upright sides, each at the mean place of those it stands for; None under four."""
    ends = np.roll(points, -1, axis=0)
    level = np.abs(ends - points)[:, 0] >= np.abs(ends - points)[:, 1]
    middles = (points + ends) / 2
    places, lengths = np.where(level, middles[:, 1], middles[:, 0]), np.abs(ends - points).max(axis=1)
    while True:
        level, places, lengths = _merged(level, places, lengths)
        if len(level) < 4:
            return None
        spans = np.abs(np.roll(places, -1) - np.roll(places, 1))
        if spans.min() >= LEAST_SIDE_PX or len(level) == 4:
            break
        level, places, lengths = (np.delete(side, spans.argmin()) for side in (level, places, lengths))
    before = np.roll(places, 1)
    return np.stack([np.where(level, before, places), np.where(level, places, before)], axis=1)


def _merged(
    level: Bool[ndarray, " n"], places: Float64[ndarray, " n"], lengths: Float64[ndarray, " n"]
) -> tuple[Bool[ndarray, " m"], Float64[ndarray, " m"], Float64[ndarray, " m"]]:
    """Return sides of which no two neighbours are both level or both upright."""
    turns = np.flatnonzero(level != np.roll(level, 1))
    if not len(turns):
        return level[:0], places[:0], lengths[:0]
    level, places, lengths = (np.roll(side, -turns[0]) for side in (level, places, lengths))
    starts = turns - turns[0]
    total = np.add.reduceat(lengths, starts)
    return level[starts], np.add.reduceat(places * lengths, starts) / total, total
