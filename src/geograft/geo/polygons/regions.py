"""Regions of equal value as polygons, block by block, without ever holding the whole raster.

Each block is labelled and polygonized by itself; `geograft.geo.polygons.seams` brings the parts of one region together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer
from numpy import ndarray

from geograft.geo.grid import Window, cells
from geograft.geo.polygons.corners import NO_CORNERS, Corners, corners
from geograft.geo.polygons.seams import NOTHING, Block, Finished, Seams
from geograft.geo.polygons.shapes import Region, labelled

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
