"""Tiles in full batches, read chunk by chunk, leaving out what needs no computing.

A raster cut into square frames of whole cells, and the grid that has one pixel a cell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from affine import Affine
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.geo.grid import Grid, Window
from geograft.mapping.windows import Lanes, Reflection, TileGrid, panel_width

CHUNK_TILES = 8
"""Neighbouring tiles that are read at once."""


@runtime_checkable
class Source(Protocol):
    """What tiles are read from. Windows lie inside the raster."""

    def empty(self, window: Window) -> bool:
        """Return True only where it is known without reading that no pixel of a window is valid and wanted."""

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window as the file holds them, and which are valid."""

    def wanted(self, window: Window) -> Bool[ndarray, "h w"] | None:
        """Return which pixels of a window the map shall have; None for all."""


@dataclass(frozen=True)
class Tile:
    """One tile to compute. Beyond the raster's border it holds the raster mirrored."""

    lane: int
    column: int
    """Which of the grid's columns of tiles."""
    pixels: Shaped[ndarray, "b t t"]
    valid: Bool[ndarray, "t t"]
    """Which pixels the network may see."""
    mapped: Bool[ndarray, "t t"]
    """Which pixels the map shall have: the valid and wanted ones. At least one."""


@dataclass(frozen=True)
class Batch:
    """Tiles for one call of the model: always the same number, the last one repeated where there are no more."""

    tiles: list[Tile]
    pixels: Shaped[ndarray, "n b t t"]
    valid: Bool[ndarray, "n t t"]


def tiles_of(lanes: Lanes, source: Source, first: int = 0, chunk_tiles: int = CHUNK_TILES) -> Iterator[Tile]:
    """Yield the tiles that hold a pixel the map shall have, lane by lane from lane `first` on, from left to right.

    Where `source` knows a window to be empty, nothing is read: an empty lane costs one question.
    """
    for lane in range(first, len(lanes)):
        columns, row = lanes.place(lane)
        for some in occupied(lanes.tiles, source, row, columns, chunk_tiles):
            yield from _read_tiles(lanes, source, lane, some)


def occupied(tiles: TileGrid, source: Source, row: int, columns: range, most: int) -> Iterator[range]:
    """Yield neighbouring columns of tiles, at most `most` at once, of one row of tiles that are not known to be empty.

    Halves the row until it is known or small, so that a row without data costs one question.
    """
    if source.empty(_shown(tiles, _window(tiles, row, columns)).inside):
        return
    if len(columns) <= most:
        yield columns
        return
    chunks = -(-len(columns) // most)
    cut = columns.start + chunks // 2 * most
    yield from occupied(tiles, source, row, range(columns.start, cut), most)
    yield from occupied(tiles, source, row, range(cut, columns.stop), most)


def batches(tiles: Iterator[Tile], size: int) -> Iterator[Batch]:
    """Yield `tiles` by `size`."""
    waiting: list[Tile] = []
    for tile in tiles:
        waiting.append(tile)
        if len(waiting) == size:
            yield _batch(waiting, size)
            waiting = []
    if waiting:
        yield _batch(waiting, size)


def _batch(tiles: list[Tile], size: int) -> Batch:
    full = [*tiles, *[tiles[-1]] * (size - len(tiles))]
    return Batch(tiles, np.stack([tile.pixels for tile in full]), np.stack([tile.valid for tile in full]))


def _read_tiles(lanes: Lanes, source: Source, lane: int, columns: range) -> Iterator[Tile]:
    tiles = lanes.tiles
    window = _window(tiles, lanes.place(lane)[1], columns)
    shown = _shown(tiles, window)
    pixels, valid = source.read(shown.inside)
    wanted = source.wanted(shown.inside)
    mapped = valid if wanted is None else valid & wanted
    pixels, valid, mapped = shown.unfolded(pixels), shown.unfolded(valid), shown.unfolded(mapped)
    for column in columns:
        left = tiles.lefts[column] - window.col
        part = slice(left, left + tiles.tile_px)
        if mapped[:, part].any():
            yield Tile(lane, column, pixels[:, :, part], valid[:, part], mapped[:, part])


def _window(tiles: TileGrid, row: int, columns: range) -> Window:
    left = tiles.lefts[columns[0]]
    return Window(tiles.tops[row], left, tiles.tile_px, tiles.lefts[columns[-1]] - left + tiles.tile_px)


def _shown(tiles: TileGrid, window: Window) -> Reflection:
    return Reflection.of(window, tiles.height, tiles.width)


def coarse(grid: Grid, cell_px: int) -> Grid:
    """Return the grid of the same place with one pixel for `cell_px` x `cell_px` of `grid`, counted from upper left.

    The last row and column of cells may reach beyond `grid`.
    """
    rows, cols = (-(-length // cell_px) for length in (grid.height, grid.width))
    return Grid(rows, cols, grid.transform @ Affine.scale(cell_px), grid.crs)


def frames(grid: Grid, frame_px: int, pixel_bytes: int) -> Lanes:
    """Return frames side by side from the upper left corner of `grid`; the last ones reach beyond it.

    They lie in panels so narrow that blocks of the file under them, `pixel_bytes` a pixel, are decoded once.
    """
    height, width = (-(-length // frame_px) * frame_px for length in (grid.height, grid.width))
    tiles = TileGrid(height, width, frame_px, overlap=0.0)
    return Lanes(tiles, panel_width(tiles, 1, pixel_bytes))


@dataclass(frozen=True)
class Mirrored:
    """A source that goes on as its mirror image below and to the right of its raster."""

    source: Source
    height: int
    """Of the raster itself."""
    width: int

    def empty(self, window: Window) -> bool:
        """Return True only where it is known without reading that no pixel of a window is valid and wanted."""
        inside = self._inside(window)
        return inside is None or self.source.empty(inside)

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window, mirrored beyond the raster, and which are valid."""
        shown = Reflection.of(window, self.height, self.width)
        pixels, valid = self.source.read(shown.inside)
        return shown.unfolded(pixels), shown.unfolded(valid)

    def wanted(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return which pixels of a window the map has; none of the mirrored ones."""
        found = np.zeros((window.height, window.width), bool)
        inside = self._inside(window)
        if inside is not None:
            wanted = self.source.wanted(inside)
            found[inside.within(window).slices] = True if wanted is None else wanted
        return found

    def _inside(self, window: Window) -> Window | None:
        return window.overlap(Window(0, 0, self.height, self.width))
