"""Regions of equal value as polygons, block by block, without ever holding the whole raster.

Each block is labelled and polygonized by itself; `geograft.mapping.polygons.regions` brings the parts of one region
together.

Regions that cross borders between blocks, brought together by a union-find over the labels on both sides.

A region leaves as soon as no block to come can touch it. What is open between two rows of blocks can be saved and
taken up again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer
from numpy import ndarray
from shapely import Polygon

from geograft.geo.grid import Window, cells
from geograft.mapping.polygons.shapes import (
    NO_CORNERS,
    Corners,
    Region,
    by_label,
    corners,
    joined,
    labelled,
    packed,
    parts,
    strung,
    unpacked,
    unstrung,
)

NOTHING = np.iinfo(np.int64).min
"""The value of a pixel that belongs to no region."""


@dataclass(frozen=True)
class Block:
    """A labelled block."""

    window: Window
    values: Int64[ndarray, "h w"]
    labels: Int32[ndarray, "h w"]
    """From 1 on; 0 where there is no region."""
    owners: Int64[ndarray, " n"]
    """The value of every label."""
    sums: Int64[ndarray, "n k"]
    """What was summed up over the pixels of every label."""
    corners: Corners = NO_CORNERS
    """Those in the block and around it."""


@dataclass(frozen=True)
class Finished:
    """Regions that are whole, with all corners that lie near them."""

    regions: list[Region]
    corners: Corners


@dataclass
class _Border:
    """Labels and values along a line of pixels; label 0 where there is no region."""

    labels: Int64[ndarray, " n"]
    values: Int64[ndarray, " n"]

    @classmethod
    def nothing(cls, length: int) -> "_Border":
        return cls(np.zeros(length, np.int64), np.zeros(length, np.int64))

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


@dataclass
class _Open:
    """A region, as far as it is known."""

    value: int
    sums: Int64[ndarray, " k"]
    parts: list[Polygon]
    turns: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)
    nodes: list[Int64[ndarray, "_ 2"]] = field(default_factory=list)

    def take(self, other: "_Open") -> None:
        self.sums = self.sums + other.sums
        for mine, theirs in ((self.parts, other.parts), (self.turns, other.turns), (self.nodes, other.nodes)):
            mine.extend(theirs)  # type: ignore[arg-type]


class Seams:
    """Regions that blocks to come may still touch. Blocks are added row by row, from left to right."""

    def __init__(self, width: int, connectivity: int, reach: int = 0) -> None:
        """`width` is the raster's. With `reach`, regions come with all corners within so many pixels of them."""
        self.connectivity, self._reach = connectivity, reach
        self._next = 1
        self._parent: dict[int, int] = {}
        self._open: dict[int, _Open] = {}
        """By root label."""
        self._above = _Border.nothing(width)
        """The last row of the row of blocks above."""
        self._top, self._bottom = _Border.nothing(width), _Border.nothing(width)
        self._left: tuple[int, _Border] | None = None
        """The last column of the block to the left, and the column after it."""

    def add(self, block: Block) -> Finished:
        """Return the regions that lie within the block; keep those that touch its border."""
        labels, regions = block.labels, []
        edges = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        on_border = np.bincount(edges, minlength=len(block.owners) + 1) > 0
        on_border[0] = False
        for label, polygons in parts(labels, block.window).items():
            value, sums = int(block.owners[label - 1]), block.sums[label - 1]
            if on_border[label]:
                self._open[label + self._next] = _Open(value, sums, polygons)
                self._parent[label + self._next] = label + self._next
            else:
                regions.append(Region(value, joined(polygons), sums))
        self._note_corners(block, on_border)
        self._note_borders(block)
        self._next += len(block.owners) + 1
        return Finished(regions, block.corners)

    def close_row(self, last: bool) -> Finished:
        """End a row of blocks: return the regions that do not reach its last row, or all of them after the last."""
        if not self._open:
            self._left = None
            return Finished([], NO_CORNERS)
        self._join(self._above.meets(self._top, self.connectivity))
        numbers, places = np.unique(self._bottom.labels, return_inverse=True)
        roots = np.array([self._root(int(number)) if number else 0 for number in numbers], np.int64)
        alive = set() if last else set(roots.tolist())
        done = [self._open.pop(root) for root in list(self._open) if root not in alive]
        self._parent = {root: root for root in self._open}
        width = len(self._above.labels)
        self._above, self._left = _Border(roots[places], self._bottom.values), None
        self._top, self._bottom = _Border.nothing(width), _Border.nothing(width)
        found = [np.unique(strung([side])[0], axis=0) for side in _corners_of(done)]
        return Finished([Region(region.value, joined(region.parts), region.sums) for region in done], Corners(*found))

    def state(self) -> dict[str, ndarray]:
        """Return what is open between two rows of blocks, as arrays."""
        regions = list(self._open.values())
        above = self._above if regions else _Border.nothing(0)
        content, ends = packed([part for region in regions for part in region.parts])
        turns, turn_ends = strung([region.turns for region in regions])
        nodes, node_ends = strung([region.nodes for region in regions])
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

    def take_up(self, state: Mapping[str, ndarray]) -> None:
        """Go on from a `state`."""
        self._next = int(state["next"])
        if len(state["above_labels"]):
            self._above = _Border(state["above_labels"], state["above_values"])
        shapes = unpacked(state["wkb"], state["wkb_ends"])
        groups = np.split(shapes, state["part_ends"][:-1])
        turns, nodes = (unstrung(state[f"{side}s"], state[f"{side}_ends"]) for side in ("turn", "node"))
        rows = zip(state["roots"], state["values"], state["sums"], groups, turns, nodes, strict=False)
        self._open = {
            int(root): _Open(int(value), sums, list(group), [turn], [node])
            for root, value, sums, group, turn, node in rows
        }
        self._parent = {root: root for root in self._open}

    def _note_corners(self, block: Block, wanted: Bool[ndarray, " k"]) -> None:
        if not self._reach:
            return
        for side, points, reach in (("turns", block.corners.turns, self._reach), ("nodes", block.corners.nodes, 1)):
            for label, found in by_label(points, block.labels, block.window, wanted, reach).items():
                getattr(self._open[label + self._next], side).append(found)

    def _note_borders(self, block: Block) -> None:
        window, labels = block.window, block.labels
        columns = slice(window.col, window.stop_col)
        for border, row in ((self._top, 0), (self._bottom, -1)):
            border.labels[columns], border.values[columns] = self._numbers(labels[row]), block.values[row]
        if self._left is not None and self._left[0] == window.col:
            first = _Border(self._numbers(labels[:, 0]), block.values[:, 0])
            self._join(self._left[1].meets(first, self.connectivity))
        self._left = window.stop_col, _Border(self._numbers(labels[:, -1]), block.values[:, -1].copy())

    def _numbers(self, labels: Int32[ndarray, " n"]) -> Int64[ndarray, " n"]:
        return np.where(labels > 0, labels + np.int64(self._next), 0)

    def _join(self, pairs: Int64[ndarray, "pairs 2"]) -> None:
        for one, other in pairs.tolist():
            keeps, goes = self._root(one), self._root(other)
            if keeps == goes:
                continue
            if len(self._open[keeps].parts) < len(self._open[goes].parts):
                keeps, goes = goes, keeps
            self._open[keeps].take(self._open.pop(goes))
            self._parent[goes] = keeps

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label


def _corners_of(regions: list[_Open]) -> tuple[list[ndarray], list[ndarray]]:
    """Return the arrays of turns and of nodes of all regions."""
    return [a for region in regions for a in region.turns], [a for region in regions for a in region.nodes]


BLOCK_PX = 1024
"""Edge of a block."""
Read = Callable[[Window], tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]]
"""A window inside the raster -> its values, and which pixels belong to a region at all."""
Sums = Callable[[Window, Int32[ndarray, "h w"], Int64[ndarray, " n"]], Int64[ndarray, "n k"]]
"""A window, its labels and their values -> what is summed up over every label's pixels."""


@dataclass(frozen=True)
class Source:
    """What regions are found in."""

    height: int
    width: int
    read: Read
    empty: Callable[[Window], bool] = lambda window: False
    """Whether it is known without reading that no pixel of a window belongs to a region."""
    sums: Sums = lambda window, labels, owners: np.zeros((len(owners), 0), np.int64)

    def rows(self, block_px: int = BLOCK_PX, start_row: int = 0) -> Iterator[Window]:
        """Yield the rows of blocks from `start_row` on."""
        for row in range(start_row, self.height, block_px):
            yield Window(row, 0, min(block_px, self.height - row), self.width)


def regions(source: Source, connectivity: int = 4, block_px: int = BLOCK_PX) -> Iterator[Region]:
    """Yield every region of a raster once, with its holes; valid polygons without vertices along straight edges.

    Pixels that share an edge (`connectivity` 4), or an edge or a corner (8), belong to one region. The result but for
    its order does not depend on `block_px`.

    Memory: about 100 bytes a pixel of a block, 50 a column of the raster, and the outlines of the regions that cross
    from one row of blocks to the next.
    """
    seams = Seams(source.width, connectivity)
    for row in source.rows(block_px):
        for found in finished(source, seams, row, block_px):
            yield from found.regions


def finished(source: Source, seams: Seams, row: Window, block_px: int = BLOCK_PX, reach: int = 0) -> Iterator[Finished]:
    """Yield the regions that end in a row of blocks, a batch a block and then those that cross between blocks.

    With `reach`, with all corners within so many pixels of them; `seams` must have the same.
    """
    connectivity = seams.connectivity
    for window in cells(row, block_px, block_px):
        if not source.empty(window):
            yield seams.add(_block(source, window, connectivity, reach))
    yield seams.close_row(last=row.stop_row == source.height)


def _block(source: Source, window: Window, connectivity: int, reach: int) -> Block:
    around = _values(source, window.grown(reach))
    values = around[reach : reach + window.height, reach : reach + window.width]
    labels, owners = labelled(values, values != NOTHING, connectivity)
    near = _near(source, around, window.grown(reach)) if reach else NO_CORNERS
    return Block(window, values, labels, owners, source.sums(window, labels, owners), near)


def _near(source: Source, values: Int64[ndarray, "h w"], window: Window) -> Corners:
    """Return the corners in a window. Those of the raster itself are nodes, so that its frame stays a rectangle."""
    found = corners(values, window.row, window.col)
    frame = (np.isin(found.turns, [0, side])[:, i] for i, side in enumerate((source.width, source.height)))
    fixed = np.logical_and(*frame)
    return Corners(found.turns, np.concatenate([found.nodes, found.turns[fixed]]))


def _values(source: Source, window: Window) -> Int64[ndarray, "h w"]:
    """Return the values in a window that may reach beyond the raster, NOTHING where there is no region."""
    found = np.full((window.height, window.width), NOTHING, np.int64)
    inside = window.overlap(Window(0, 0, source.height, source.width))
    assert inside is not None
    values, kept = source.read(inside)
    found[inside.within(window).slices] = np.where(kept, values.astype(np.int64), NOTHING)
    return found
