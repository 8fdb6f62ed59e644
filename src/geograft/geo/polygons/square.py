"""Outlines with right angles along their main direction, as buildings have them."""

import math

import numpy as np
import shapely
from jaxtyping import Bool, Float64
from numpy import ndarray
from shapely import Polygon
from shapely.affinity import rotate, scale
from shapely.geometry.base import BaseGeometry

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
