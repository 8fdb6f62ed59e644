"""Polygonize the regions of a raster block by block, in constant memory.

Each block is labelled and polygonized by itself. Regions that cross block borders are merged by union-find over the
labels on both sides. A region is returned as soon as no later block can touch it. The state between two rows of blocks
can be saved and loaded.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer
from numpy import ndarray
from shapely import Polygon

from geograft.geo.grid import Window, block_windows
from geograft.mapping.polygons.shapes import (
    NO_CORNERS,
    Corners,
    Region,
    concatenate_points,
    find_corners,
    label_regions,
    merge_polygons,
    pack_wkb,
    points_by_label,
    polygonize,
    split_points,
    unpack_wkb,
)

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
class _OpenRegion:
    """A region that later blocks may still extend."""

    value: int
    sums: Int64[ndarray, " k"]
    parts: list[Polygon]
    turns: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)
    nodes: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)

    def merge(self, other: "_OpenRegion") -> None:
        self.sums = self.sums + other.sums
        for mine, theirs in ((self.parts, other.parts), (self.turns, other.turns), (self.nodes, other.nodes)):
            mine.extend(theirs)  # type: ignore[arg-type]


class RegionMerger:
    """Merges regions across block borders. Blocks are added row by row, from left to right."""

    def __init__(self, width: int, connectivity: int, reach: int = 0) -> None:
        """`width` is the raster's. With `reach`, regions come with all corners within that many pixels of them."""
        self.connectivity, self._reach = connectivity, reach
        self._next = 1
        self._parent: dict[int, int] = {}
        self._open: dict[int, _OpenRegion] = {}
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
                self._open[label + self._next] = _OpenRegion(value, sums, polygons)
                self._parent[label + self._next] = label + self._next
            else:
                regions.append(Region(value, merge_polygons(polygons), sums))
        self._add_corners(block, on_border)
        self._add_borders(block)
        self._next += len(block.label_values) + 1
        return FinishedRegions(regions, block.corners)

    def close_row(self, last: bool) -> FinishedRegions:
        """End a row of blocks; return the regions that do not reach its last pixel row, or all after the last row."""
        if not self._open:
            self._left = None
            return FinishedRegions([], NO_CORNERS)
        self._join(self._above.matching_labels(self._top, self.connectivity))
        numbers, index = np.unique(self._bottom.labels, return_inverse=True)
        roots = np.array([self._root(int(number)) if number else 0 for number in numbers], np.int64)
        alive = set() if last else set(roots.tolist())
        done = [self._open.pop(root) for root in list(self._open) if root not in alive]
        self._parent = {root: root for root in self._open}
        width = len(self._above.labels)
        self._above, self._left = _Border(roots[index], self._bottom.values), None
        self._top, self._bottom = _Border.empty(width), _Border.empty(width)
        found = [np.unique(concatenate_points([side])[0], axis=0) for side in _corners_of(done)]
        return FinishedRegions(
            [Region(region.value, merge_polygons(region.parts), region.sums) for region in done], Corners(*found)
        )

    def state(self) -> dict[str, ndarray]:
        """Return the open regions between two rows of blocks, as arrays."""
        regions = list(self._open.values())
        above = self._above if regions else _Border.empty(0)
        content, ends = pack_wkb([part for region in regions for part in region.parts])
        turns, turn_ends = concatenate_points([region.turns for region in regions])
        nodes, node_ends = concatenate_points([region.nodes for region in regions])
        return {
            "next": np.array(self._next),
            "above_labels": above.labels,
            "above_values": above.values,
            "roots": np.array(list(self._open), np.int64),
            "values": np.array([region.value for region in regions], np.int64),
            "sums": np.array([region.sums for region in regions] or np.empty((0, 0)), np.int64),
            "part_ends": np.cumsum([len(region.parts) for region in regions], dtype=np.int64),
            "wkb": content,
            "wkb_ends": ends,
            "turns": turns,
            "turn_ends": turn_ends,
            "nodes": nodes,
            "node_ends": node_ends,
        }

    def load_state(self, state: Mapping[str, ndarray]) -> None:
        """Restore the open regions from the output of `state`."""
        self._next = int(state["next"])
        if len(state["above_labels"]):
            self._above = _Border(state["above_labels"], state["above_values"])
        shapes = unpack_wkb(state["wkb"], state["wkb_ends"])
        groups = np.split(shapes, state["part_ends"][:-1])
        turns, nodes = (split_points(state[f"{side}s"], state[f"{side}_ends"]) for side in ("turn", "node"))
        rows = zip(state["roots"], state["values"], state["sums"], groups, turns, nodes, strict=False)
        self._open = {
            int(root): _OpenRegion(int(value), sums, list(group), [turn], [node])
            for root, value, sums, group, turn, node in rows
        }
        self._parent = {root: root for root in self._open}

    def _add_corners(self, block: Block, on_border: Bool[ndarray, " k"]) -> None:
        if not self._reach:
            return
        for side, points, reach in (("turns", block.corners.turns, self._reach), ("nodes", block.corners.nodes, 1)):
            for label, found in points_by_label(points, block.labels, block.window, on_border, reach).items():
                getattr(self._open[label + self._next], side).append(found)

    def _add_borders(self, block: Block) -> None:
        window, labels = block.window, block.labels
        columns = slice(window.col, window.stop_col)
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
            if len(self._open[kept].parts) < len(self._open[merged].parts):
                kept, merged = merged, kept
            self._open[kept].merge(self._open.pop(merged))
            self._parent[merged] = kept

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


def _corners_of(regions: list[_OpenRegion]) -> tuple[list[ndarray], list[ndarray]]:
    """Return the arrays of turns and the arrays of nodes of all regions."""
    return [a for region in regions for a in region.turns], [a for region in regions for a in region.nodes]


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
    cross from one row of blocks to the next.
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
    connectivity = merger.connectivity
    for window in block_windows(row, block_px, block_px):
        if not source.is_empty(window):
            yield merger.add(_block(source, window, connectivity, reach))
    yield merger.close_row(last=row.stop_row == source.height)


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
