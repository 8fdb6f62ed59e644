"""Regions of equal value as polygons, block by block, without ever holding the whole raster.

Each block is labelled and polygonized by itself. Parts of one region that meet at a border between blocks are brought
together by a union-find over the labels on both sides, and a region leaves as soon as no block to come can touch it.
All coordinates are whole pixels, (column, row), so that joining is exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float64, Int32, Int64, Integer
from numpy import ndarray
from rasterio.features import shapes as outlines
from scipy import ndimage
from shapely import LinearRing, MultiPolygon, Polygon

from tilth.geo.grid import Window, cells

Read = Callable[[Window], tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]]
"""A window inside the raster -> its values, and which pixels belong to a region at all."""
NEIGHBOURS = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}
SHRINK = 0.75
"""Factor from one trial of simplifying to the next."""


@dataclass(frozen=True)
class Region:
    """Pixels of one value that hang together."""

    value: int
    shape: Polygon | MultiPolygon
    """In pixels, (column, row). Several polygons where parts touch at corners only."""


def regions(height: int, width: int, read: Read, connectivity: int = 4, block_px: int = 1024) -> Iterator[Region]:
    """Yield every region of a raster once, with its holes; valid polygons without vertices along straight edges.

    Pixels that share an edge (`connectivity` 4), or an edge or a corner (8), belong to one region. The result but for
    its order does not depend on `block_px`.

    Memory: about 100 bytes a pixel of a block, 40 a column of the raster, and the outlines of the regions that cross
    from one row of blocks to the next.
    """
    seams = _Seams(connectivity)
    for row in range(0, height, block_px):
        band = Window(row, 0, min(block_px, height - row), width)
        for window in cells(band, block_px, block_px):
            yield from seams.add(window, *read(window))
        yield from seams.close_row(last=band.stop_row == height)


def simplified(shapes: ndarray, distance: float) -> ndarray:
    """Return (n,) polygons of a coverage with fewer vertices; no point of an outline is moved by more than `distance`.

    Neighbours keep their common edges: nothing overlaps or comes apart. By shapely's coverage_simplify (Visvalingam and
    Whyatt 1993, doi:10.1179/000870493786962263), which limits areas; its tolerance is lowered until distances fit.

    Memory: all polygons at once, 50 bytes for each pixel's edge on an outline. Time: some 20 s for a million edges.
    """
    if not len(shapes):
        return shapes
    # A vertex at every pixel corner is what makes neighbours' edges match, which a coverage needs.
    fine = shapely.transform(shapely.segmentize(shapes, 1.0), np.rint)
    tolerance = distance
    while not _near(fine, simple := shapely.coverage_simplify(fine, tolerance), distance):
        tolerance *= SHRINK
    result: ndarray = simple
    return result


def labelled(
    values: Integer[ndarray, "h w"], kept: Bool[ndarray, "h w"], connectivity: int
) -> tuple[Int32[ndarray, "h w"], Int64[ndarray, " n"]]:
    """Return the number of each pixel's region, from 1 on, 0 where not `kept`, and the value of every region."""
    labels = np.zeros(values.shape, np.int32)
    owners: list[int] = []
    for value in np.unique(values[kept]):
        found, count = ndimage.label(kept & (values == value), NEIGHBOURS[connectivity], output=np.int32)
        labels += np.where(found, found + len(owners), 0).astype(np.int32)
        owners += [int(value)] * count
    return labels, np.array(owners, np.int64)


@dataclass
class _Border:
    """Labels and values along a line of pixels; label 0 where there is no region."""

    labels: Int64[ndarray, " n"]
    values: Int64[ndarray, " n"]

    def meets(self, other: "_Border", connectivity: int) -> Int64[ndarray, "pairs 2"]:
        """Return the pairs of labels that belong together across the line between two borders."""
        pairs = [np.empty((0, 2), np.int64)]
        for here, there in _facing(connectivity):
            same = (self.values[here] == other.values[there]) & (self.labels[here] > 0) & (other.labels[there] > 0)
            pairs.append(np.stack([self.labels[here][same], other.labels[there][same]], axis=1))
        return np.unique(np.concatenate(pairs), axis=0)


def _facing(connectivity: int) -> list[tuple[slice, slice]]:
    straight = [(slice(None), slice(None))]
    return straight if connectivity == 4 else [*straight, (slice(1, None), slice(-1)), (slice(-1), slice(1, None))]


class _Seams:
    """Regions that blocks to come may still touch."""

    def __init__(self, connectivity: int) -> None:
        self._connectivity = connectivity
        self._next = 1
        self._parent: dict[int, int] = {}
        self._open: dict[int, tuple[int, list[Polygon]]] = {}
        """Value and parts of each region, by its root label."""
        self._above: _Border | None = None
        """The last row of the row of blocks above."""
        self._left: _Border | None = None
        """The last column of the block to the left."""
        self._tops: list[_Border] = []
        self._bottoms: list[_Border] = []

    def add(self, window: Window, values: Integer[ndarray, "h w"], kept: Bool[ndarray, "h w"]) -> Iterator[Region]:
        """Yield the regions that lie within the block; keep those that touch its border."""
        labels, owners = labelled(values, kept, self._connectivity)
        parts = _parts(labels, window)
        edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        border = {int(label) for label in np.unique(edges) if label}
        for label, polygons in parts.items():
            value = int(owners[label - 1])
            if label in border:
                self._open[label + self._next] = (value, polygons)
                self._parent[label + self._next] = label + self._next
            else:
                yield Region(value, joined(polygons))
        numbers = np.where(labels > 0, labels + np.int64(self._next), 0)
        self._note_borders(numbers, values.astype(np.int64))
        self._next += len(owners) + 1

    def close_row(self, last: bool) -> Iterator[Region]:
        """End a row of blocks: yield the regions that do not reach its last row, or all of them after the last."""
        top, bottom = _strung(self._tops), _strung(self._bottoms)
        if self._above is not None:
            self._join(self._above.meets(top, self._connectivity))
        numbers, places = np.unique(bottom.labels, return_inverse=True)
        roots = np.array([self._root(int(number)) if number else 0 for number in numbers], np.int64)
        alive = set() if last else set(roots.tolist())
        for root in [root for root in self._open if root not in alive]:
            value, polygons = self._open.pop(root)
            yield Region(value, joined(polygons))
        self._parent = {root: root for root in self._open}
        self._above, self._left = _Border(roots[places], bottom.values), None
        self._tops, self._bottoms = [], []

    def _note_borders(self, labels: Int64[ndarray, "h w"], values: Int64[ndarray, "h w"]) -> None:
        if self._left is not None:
            self._join(self._left.meets(_Border(labels[:, 0], values[:, 0]), self._connectivity))
        self._left = _Border(labels[:, -1].copy(), values[:, -1].copy())
        self._tops.append(_Border(labels[0].copy(), values[0].copy()))
        self._bottoms.append(_Border(labels[-1].copy(), values[-1].copy()))

    def _join(self, pairs: Int64[ndarray, "pairs 2"]) -> None:
        for one, other in pairs.tolist():
            keeps, goes = self._root(one), self._root(other)
            if keeps == goes:
                continue
            if len(self._open[keeps][1]) < len(self._open[goes][1]):
                keeps, goes = goes, keeps
            self._open[keeps][1].extend(self._open.pop(goes)[1])
            self._parent[goes] = keeps

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


def _strung(borders: list[_Border]) -> _Border:
    labels, values = ([getattr(border, side) for border in borders] for side in ("labels", "values"))
    return _Border(np.concatenate(labels), np.concatenate(values))


def _parts(labels: Int32[ndarray, "h w"], window: Window) -> dict[int, list[Polygon]]:
    """Return the polygons of each label, in pixels of the raster that `window` lies in.

    Always with the corners of diagonal neighbours apart: GDAL's outlines across corners touch themselves.
    """
    parts: dict[int, list[Polygon]] = {}
    if not labels.any():
        return parts
    place = Affine.translation(window.col, window.row)
    for outline, label in outlines(labels, mask=labels > 0, connectivity=4, transform=place):
        shell, *holes = (np.array(ring) for ring in outline["coordinates"])
        parts.setdefault(int(label), []).append(Polygon(shell, holes))
    return parts


def joined(polygons: list[Polygon]) -> Polygon | MultiPolygon:
    """Return polygons with edges along pixels as one, without vertices along straight edges."""
    if len(polygons) == 1:
        return polygons[0]
    parts = [_straightened(part) for part in shapely.get_parts(shapely.union_all(polygons))]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _straightened(polygon: Polygon) -> Polygon:
    return Polygon(_turns(polygon.exterior), [_turns(hole) for hole in polygon.interiors])


def _turns(ring: LinearRing) -> Float64[ndarray, "n 2"]:
    """Return the vertices of a ring at which its direction changes."""
    points = shapely.get_coordinates(ring)
    steps = np.sign(np.diff(points, axis=0))
    turns: ndarray = points[:-1][(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
    return turns


def _near(before: ndarray, after: ndarray, distance: float) -> bool:
    """Return whether every vertex of each shape before lies within `distance` of its outline after."""
    shapely.prepare(lines := shapely.boundary(after))
    pairs = zip(lines, before, strict=True)
    return all(
        shapely.dwithin(line, shapely.points(shapely.get_coordinates(old)), distance).all() for line, old in pairs
    )
