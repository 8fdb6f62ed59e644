"""Polygonize the regions of a raster block by block, in constant memory.

Each block is labelled and polygonized by itself. Regions that cross block borders are merged by union-find over the
labels on both sides. A region is returned as soon as no later block can touch it. Until then its parts are handed over
to the caller after each row of blocks (`RegionMerger.take_parts`), and read back when it ends (see `ledger`): what
stays in memory does not grow with the raster, and each part is stored once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Bool, Int32, Int64, Integer
from numpy import ndarray
from shapely import MultiPolygon, Polygon

from geograft.geo.grid import Window, block_windows
from geograft.mapping.polygons.ledger import OpenParts, RowReader, load_parts, pack_parts
from geograft.mapping.polygons.shapes import (
    NO_CORNERS,
    Corners,
    Region,
    concatenate_points,
    find_corners,
    label_regions,
    merge_polygons,
    points_by_label,
    polygonize,
)
from geograft.mapping.polygons.stitch import stitch_polygons

NO_REGION = np.iinfo(np.int64).min
"""Value of pixels that belong to no region."""


@dataclass(frozen=True)
class Block:
    """A labelled block."""

    window: Window
    values: Int64[ndarray, "h w"]
    labels: Int32[ndarray, "h w"]
    """1 to n; 0 where there is no region."""
    label_values: Int64[ndarray, " n"]
    """Value of each label."""
    sums: Int64[ndarray, "n k"]
    """Sums over the pixels of each label."""
    corners: Corners = NO_CORNERS
    """Corners in the block and around it."""


@dataclass(frozen=True)
class FinishedRegions:
    """Complete regions, with all corners near them."""

    regions: list[Region]
    corners: Corners


@dataclass
class _Border:
    """Labels and values along a row or column of pixels; label 0 where there is no region."""

    labels: Int64[ndarray, " n"]
    values: Int64[ndarray, " n"]

    @classmethod
    def empty(cls, length: int) -> "_Border":
        return cls(np.zeros(length, np.int64), np.zeros(length, np.int64))

    def matching_labels(self, other: "_Border", connectivity: int) -> Int64[ndarray, "pairs 2"]:
        """Return the pairs of labels that are connected across the line between two borders."""
        pairs = [np.empty((0, 2), np.int64)]
        for here, there in _facing(connectivity):
            same = (self.values[here] == other.values[there]) & (self.labels[here] > 0) & (other.labels[there] > 0)
            pairs.append(np.stack([self.labels[here][same], other.labels[there][same]], axis=1))
        return np.unique(np.concatenate(pairs), axis=0)


def _facing(connectivity: int) -> list[tuple[slice, slice]]:
    straight = [(slice(None), slice(None))]
    return straight if connectivity == 4 else [*straight, (slice(1, None), slice(-1)), (slice(-1), slice(1, None))]


@dataclass
class OpenRegion:
    """A region that crosses the borders of blocks, and that later blocks may still extend."""

    value: int
    sums: Int64[ndarray, " k"]
    count: int
    """Number of parts in all blocks so far."""
    parts: OpenParts

    def merge(self, other: "OpenRegion") -> None:
        """Add the parts and sums of `other`."""
        self.sums = self.sums + other.sums
        self.count += other.count
        self.parts.extend(other.parts)


class RegionMerger:
    """Merges regions across block borders. Blocks are added row by row, from left to right."""

    def __init__(
        self, width: int, connectivity: int, reach: int = 0, read_row: RowReader | None = None, left: int = 0
    ) -> None:
        """`width` is that of the raster, or of a part of it whose first column is `left`.

        With `reach`, regions come with all corners within that many pixels of them. `read_row` reads back what
        `take_parts` returned; it is not needed where that is never called.
        """
        self.connectivity, self._reach, self._read_row, self._left_col = connectivity, reach, read_row, left
        self._next = 1
        self._parent: dict[int, int] = {}
        self._open: dict[int, OpenRegion] = {}
        """Open regions by root label."""
        self._above = _Border.empty(width)
        """The last pixel row of the row of blocks above."""
        self._top, self._bottom = _Border.empty(width), _Border.empty(width)
        self._left: tuple[int, _Border] | None = None
        """The index of the column after the block to the left, and that block's last column."""

    def add(self, block: Block) -> FinishedRegions:
        """Return the regions inside the block; keep those that touch its border open."""
        labels, regions = block.labels, []
        edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        on_border = np.bincount(edges, minlength=len(block.label_values) + 1) > 0
        on_border[0] = False
        for label, polygons in polygonize(labels, block.window).items():
            value, sums = int(block.label_values[label - 1]), block.sums[label - 1]
            if on_border[label]:
                self._open[label + self._next] = OpenRegion(value, sums, len(polygons), OpenParts([*polygons]))
                self._parent[label + self._next] = label + self._next
            else:
                regions.append(Region(value, merge_polygons(polygons), sums))
        self._add_corners(block, on_border)
        self._add_borders(block)
        self._next += len(block.label_values) + 1
        return FinishedRegions(regions, block.corners)

    def end_row(self, last: bool) -> list[OpenRegion]:
        """End a row of blocks; return the regions that do not reach its last pixel row, or all after the last row."""
        if not self._open:
            self._left = None
            return []
        self._join(self._above.matching_labels(self._top, self.connectivity))
        numbers, index = np.unique(self._bottom.labels, return_inverse=True)
        roots = np.array([self._root(int(number)) if number else 0 for number in numbers], np.int64)
        alive = set() if last else set(roots.tolist())
        ended = [self._open.pop(root) for root in list(self._open) if root not in alive]
        self._parent = {root: root for root in self._open}
        width = len(self._above.labels)
        self._above, self._left = _Border(roots[index], self._bottom.values), None
        self._top, self._bottom = _Border.empty(width), _Border.empty(width)
        if self._read_row is not None:
            load_parts([region.parts for region in ended], self._read_row)
        return ended

    def take_parts(self) -> dict[str, ndarray]:
        """Return the parts of the open regions in the row of blocks that was closed, to be stored; forget them here."""
        arrays = pack_parts([region.parts for region in self._open.values()])
        for index, region in enumerate(self._open.values()):
            region.parts = OpenParts([index])
        return arrays

    def state(self) -> dict[str, ndarray]:
        """Return the open regions between two rows of blocks, without their parts, as arrays; after `take_parts`.

        Their size depends on the raster's width alone.
        """
        regions = list(self._open.values())
        above = self._above if regions else _Border.empty(0)
        return {
            "next": np.array(self._next),
            "above_labels": above.labels,
            "above_values": above.values,
            "roots": np.array(list(self._open), np.int64),
            "values": np.array([region.value for region in regions], np.int64),
            "sums": np.array([region.sums for region in regions] or np.empty((0, 0)), np.int64),
            "counts": np.array([region.count for region in regions], np.int64),
        }

    def load_state(self, state: Mapping[str, ndarray]) -> None:
        """Restore the open regions from the output of `state`."""
        self._next = int(state["next"])
        if len(state["above_labels"]):
            self._above = _Border(state["above_labels"], state["above_values"])
        rows = zip(state["roots"], state["values"], state["sums"], state["counts"], strict=False)
        self._open = {
            int(root): OpenRegion(int(value), sums, int(count), OpenParts([index]))
            for index, (root, value, sums, count) in enumerate(rows)
        }
        self._parent = {root: root for root in self._open}

    def _add_corners(self, block: Block, on_border: Bool[ndarray, " k"]) -> None:
        if not self._reach:
            return
        for side, points, reach in (("turns", block.corners.turns, self._reach), ("nodes", block.corners.nodes, 1)):
            for label, found in points_by_label(points, block.labels, block.window, on_border, reach).items():
                getattr(self._open[label + self._next].parts, side).append(found)

    def _add_borders(self, block: Block) -> None:
        window, labels = block.window, block.labels
        columns = slice(window.col - self._left_col, window.stop_col - self._left_col)
        for border, row in ((self._top, 0), (self._bottom, -1)):
            border.labels[columns], border.values[columns] = self._numbers(labels[row]), block.values[row]
        if self._left is not None and self._left[0] == window.col:
            first = _Border(self._numbers(labels[:, 0]), block.values[:, 0])
            self._join(self._left[1].matching_labels(first, self.connectivity))
        self._left = window.stop_col, _Border(self._numbers(labels[:, -1]), block.values[:, -1].copy())

    def _numbers(self, labels: Int32[ndarray, " n"]) -> Int64[ndarray, " n"]:
        return np.where(labels > 0, labels + np.int64(self._next), 0)

    def _join(self, pairs: Int64[ndarray, "pairs 2"]) -> None:
        for one, other in pairs.tolist():
            kept, merged = self._root(one), self._root(other)
            if kept == merged:
                continue
            if self._open[kept].count < self._open[merged].count:
                kept, merged = merged, kept
            self._open[kept].merge(self._open.pop(merged))
            self._parent[merged] = kept

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


MAX_UNION_VERTICES = 2**20
"""Maximum number of vertices of a region's parts whose union is left to GEOS."""


def merge_parts(parts: list[Polygon], block_px: int) -> Polygon | MultiPolygon:
    """Return the union of the parts of a region, each inside a block of `block_px` pixels; the order does not matter.

    A single part is returned as it is, the union of several in shapely's normal form. May empty `parts`.
    """
    large = int(shapely.get_num_coordinates(np.array(parts, object)).sum()) > MAX_UNION_VERTICES
    if large:
        return stitch_polygons(parts, block_px)
    return parts[0] if len(parts) == 1 else shapely.normalize(merge_polygons(parts))


def finish_regions(ended: list[OpenRegion], block_px: int) -> FinishedRegions:
    """Return regions that have all of their parts, each inside a block of `block_px` pixels. Takes the parts."""
    if not ended:
        return FinishedRegions([], NO_CORNERS)
    corners = [region.parts.corners() for region in ended]
    found = [np.unique(concatenate_points([[a for pair in corners for a in pair[i]]])[0], axis=0) for i in (0, 1)]
    regions = []
    for region in ended:
        polygons, region.parts = region.parts.polygons(), OpenParts([])
        regions.append(Region(region.value, merge_parts(polygons, block_px), region.sums))
    return FinishedRegions(regions, Corners(*found))


BLOCK_PX = 1024
"""Edge length of a block."""
ReadWindow = Callable[[Window], tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]]
"""Returns the values of a window inside the raster, and which of its pixels belong to a region."""
SumPixels = Callable[[Window, Int32[ndarray, "h w"], Int64[ndarray, " n"]], Int64[ndarray, "n k"]]
"""Returns sums over the pixels of each label, from a window, its labels and the value of each label."""


@dataclass(frozen=True)
class ClassMapSource:
    """A class map, or one layer of it, that is read window by window."""

    height: int
    width: int
    read: ReadWindow
    is_empty: Callable[[Window], bool] = lambda window: False
    """Whether a window is known to contain no region without reading it."""
    sum_pixels: SumPixels = lambda window, labels, label_values: np.zeros((len(label_values), 0), np.int64)

    def block_rows(self, block_px: int = BLOCK_PX, start_row: int = 0) -> Iterator[Window]:
        """Yield the rows of blocks from `start_row` on."""
        for row in range(start_row, self.height, block_px):
            yield Window(row, 0, min(block_px, self.height - row), self.width)


def find_regions(source: ClassMapSource, connectivity: int = 4, block_px: int = BLOCK_PX) -> Iterator[Region]:
    """Yield each region of a raster once, with its holes, as valid polygons without vertices on straight edges.

    Pixels that share an edge (`connectivity` 4), or an edge or a corner (8), belong to one region. `block_px` changes
    only the order of the regions.

    Memory: about 100 bytes per pixel of a block, 50 per column of the raster, and the outlines of the regions that
    cross from one row of blocks to the next; `RegionMerger.take_parts`, by which these can be stored, is not used.
    """
    merger = RegionMerger(source.width, connectivity)
    for row in source.block_rows(block_px):
        for found in finish_row(source, merger, row, block_px):
            yield from found.regions


def finish_row(
    source: ClassMapSource, merger: RegionMerger, row: Window, block_px: int = BLOCK_PX, reach: int = 0
) -> Iterator[FinishedRegions]:
    """Yield the regions that end in a row of blocks: one batch per block, then those that cross block borders.

    They come with all corners within `reach` pixels of them; `merger` must have the same `reach`.
    """
    yield from add_row(source, merger, row, block_px, reach)
    yield finish_regions(merger.end_row(row.stop_row == source.height), block_px)


def add_row(
    source: ClassMapSource, merger: RegionMerger, row: Window, block_px: int, reach: int
) -> Iterator[FinishedRegions]:
    """Add the blocks of a row, or of a part of one, to `merger`; yield the regions inside each."""
    for window in block_windows(row, block_px, block_px):
        if not source.is_empty(window):
            yield merger.add(_block(source, window, merger.connectivity, reach))


def _block(source: ClassMapSource, window: Window, connectivity: int, reach: int) -> Block:
    around = _values(source, window.pad(reach))
    values = around[reach : reach + window.height, reach : reach + window.width]
    labels, label_values = label_regions(values, values != NO_REGION, connectivity)
    near = _near(source, around, window.pad(reach)) if reach else NO_CORNERS
    return Block(window, values, labels, label_values, source.sum_pixels(window, labels, label_values), near)


def _near(source: ClassMapSource, values: Int64[ndarray, "h w"], window: Window) -> Corners:
    """Return the corners in a window. The raster's own corners are nodes, so that its outline stays a rectangle."""
    found = find_corners(values, window.row, window.col)
    frame = (np.isin(found.turns, [0, side])[:, i] for i, side in enumerate((source.width, source.height)))
    fixed = np.logical_and(*frame)
    return Corners(found.turns, np.concatenate([found.nodes, found.turns[fixed]]))


def _values(source: ClassMapSource, window: Window) -> Int64[ndarray, "h w"]:
    """Return the values of a window that may extend beyond the raster, NO_REGION where there is no region."""
    found = np.full((window.height, window.width), NO_REGION, np.int64)
    inside = window.intersection(Window(0, 0, source.height, source.width))
    assert inside is not None
    values, valid = source.read(inside)
    found[inside.relative_to(window).slices] = np.where(valid, values.astype(np.int64), NO_REGION)
    return found
