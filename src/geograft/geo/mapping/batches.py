"""Tiles in full batches, read chunk by chunk, leaving out what needs no computing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.geo.mapping.tiles import Lanes, Reflection, TileGrid

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
