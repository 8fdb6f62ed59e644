"""Reading a raster as batches of tiles, skipping tiles that need no prediction.

Also frames: adjacent tiles without overlap that consist of whole cells, for results with one pixel per cell; and
iterators that compute their next items in a thread while the current one is used.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from affine import Affine
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.geo.grid import Grid, Window
from geograft.interrupts import postpone_interrupts
from geograft.mapping.windows import Lanes, Reflection, TileGrid, panel_width

Item = TypeVar("Item")

SPREAD = (0.7548776662466927, 0.5698402909980532)
"""Steps of points that are spread evenly over a square, however many are taken: powers of the inverse of the plastic
number (Roberts, 2018, "The unreasonable effectiveness of quasirandom sequences")."""
POINTS_PER_TILE = 4
CHUNK_TILES = 8
"""Maximum number of adjacent tiles read with one call."""


@runtime_checkable
class RasterSource(Protocol):
    """A raster to read tiles from. All windows lie inside it."""

    def is_empty(self, window: Window) -> bool:
        """Whether a window is known, without reading it, to have no valid pixel of interest."""

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window as stored and a mask of the valid ones."""

    def mask_of_interest(self, window: Window) -> Bool[ndarray, "h w"] | None:
        """Return a mask of the pixels of a window that the map should contain; None for all."""


@dataclass(frozen=True)
class RasterTile:
    """One tile to predict. Beyond the raster's border its pixels are mirrored."""

    lane: int
    column: int
    """Tile column."""
    pixels: Shaped[ndarray, "b t t"]
    valid: Bool[ndarray, "t t"]
    """Mask of the pixels the network may use."""
    mapped: Bool[ndarray, "t t"]
    """Mask of the pixels the map will contain, valid and of interest; at least one."""


@dataclass(frozen=True)
class TileBatch:
    """Tiles for one call of the model."""

    tiles: list[RasterTile]
    pixels: Shaped[ndarray, "n b t t"]
    valid: Bool[ndarray, "n t t"]


def iterate_tiles(
    lanes: Lanes, source: RasterSource, first: int = 0, chunk_tiles: int = CHUNK_TILES
) -> Iterator[RasterTile]:
    """Yield the tiles with at least one pixel of the map, lane by lane from `first`, from left to right.

    Windows that `source` knows to be empty are not read; an empty lane costs one call of `is_empty`.
    """
    for lane in range(first, len(lanes)):
        columns, row = lanes.position(lane)
        for some in nonempty_columns(lanes.tiles, source, row, columns, chunk_tiles):
            yield from _read_chunk(lanes, source, lane, some)


def spread_tiles(tiles: TileGrid, source: RasterSource, count: int) -> TileBatch | None:
    """Return up to `count` tiles with at least one pixel of the map, spread over the raster; None if none was found.

    Depends on the raster and the tiles alone. Reads at most POINTS_PER_TILE x `count` tiles, so it may find none in a
    raster that is almost empty.
    """
    rows, columns = len(tiles.tops), len(tiles.lefts)
    points = np.arange(POINTS_PER_TILE * count)[:, None] * SPREAD % 1 * (rows, columns)
    places, found = dict.fromkeys(map(tuple, points.astype(int).tolist())), list[RasterTile]()
    one_panel = Lanes(tiles, columns * tiles.tile_px)
    for row, column in places:
        if not source.is_empty(_reflection(tiles, _window(tiles, row, range(column, column + 1))).inside):
            found.extend(_read_chunk(one_panel, source, row, range(column, column + 1)))
        if len(found) == count:
            break
    return _batch(found) if found else None


def nonempty_columns(
    tiles: TileGrid, source: RasterSource, row: int, columns: range, max_tiles: int
) -> Iterator[range]:
    """Yield ranges of at most `max_tiles` tile columns of one tile row that are not known to be empty.

    Bisects the row, so that a row without data costs one call of `is_empty`.
    """
    if source.is_empty(_reflection(tiles, _window(tiles, row, columns)).inside):
        return
    if len(columns) <= max_tiles:
        yield columns
        return
    chunks = -(-len(columns) // max_tiles)
    cut = columns.start + chunks // 2 * max_tiles
    yield from nonempty_columns(tiles, source, row, range(columns.start, cut), max_tiles)
    yield from nonempty_columns(tiles, source, row, range(cut, columns.stop), max_tiles)


def batch_tiles(tiles: Iterator[RasterTile], size: int) -> Iterator[TileBatch]:
    """Group `tiles` into batches of `size`; the last one may be smaller."""
    waiting: list[RasterTile] = []
    for tile in tiles:
        waiting.append(tile)
        if len(waiting) == size:
            yield _batch(waiting)
            waiting = []
    if waiting:
        yield _batch(waiting)


def _batch(tiles: list[RasterTile]) -> TileBatch:
    return TileBatch(tiles, np.stack([tile.pixels for tile in tiles]), np.stack([tile.valid for tile in tiles]))


def _read_chunk(lanes: Lanes, source: RasterSource, lane: int, columns: range) -> Iterator[RasterTile]:
    tiles = lanes.tiles
    window = _window(tiles, lanes.position(lane)[1], columns)
    reflection = _reflection(tiles, window)
    pixels, valid = source.read(reflection.inside)
    of_interest = source.mask_of_interest(reflection.inside)
    mapped = valid if of_interest is None else valid & of_interest
    pixels, valid, mapped = (reflection.unfold(array) for array in (pixels, valid, mapped))
    for column in columns:
        left = tiles.lefts[column] - window.col
        part = slice(left, left + tiles.tile_px)
        if mapped[:, part].any():
            yield RasterTile(lane, column, pixels[:, :, part], valid[:, part], mapped[:, part])


def _window(tiles: TileGrid, row: int, columns: range) -> Window:
    left = tiles.lefts[columns[0]]
    return Window(tiles.tops[row], left, tiles.tile_px, tiles.lefts[columns[-1]] - left + tiles.tile_px)


def _reflection(tiles: TileGrid, window: Window) -> Reflection:
    return Reflection.of(window, tiles.height, tiles.width)


def coarsen_grid(grid: Grid, cell_px: int) -> Grid:
    """Return the grid with one pixel for each cell of `cell_px` x `cell_px` pixels of `grid`, from the upper left.

    The last row and column of cells may extend beyond `grid`.
    """
    rows, cols = (-(-length // cell_px) for length in (grid.height, grid.width))
    return Grid(rows, cols, grid.transform @ Affine.scale(cell_px), grid.crs)


def frame_lanes(grid: Grid, frame_px: int, pixel_bytes: int) -> Lanes:
    """Return the lanes of adjacent frames from the upper left corner of `grid`; the last frames extend beyond it.

    Panels are narrow enough for each block of the file, `pixel_bytes` bytes per pixel, to be decoded only once.
    """
    height, width = (-(-length // frame_px) * frame_px for length in (grid.height, grid.width))
    tiles = TileGrid(height, width, frame_px, overlap=0.0)
    return Lanes(tiles, panel_width(tiles, 1, pixel_bytes))


@dataclass(frozen=True)
class MirroredSource:
    """A source whose raster is mirrored at its lower and right borders."""

    source: RasterSource
    height: int
    """Height of the raster itself in pixels."""
    width: int
    """Width of the raster itself in pixels."""

    def is_empty(self, window: Window) -> bool:
        """Whether a window is known, without reading it, to have no valid pixel of interest."""
        inside = self._inside(window)
        return inside is None or self.source.is_empty(inside)

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window, mirrored beyond the raster, and a mask of the valid ones."""
        reflection = Reflection.of(window, self.height, self.width)
        pixels, valid = self.source.read(reflection.inside)
        return reflection.unfold(pixels), reflection.unfold(valid)

    def mask_of_interest(self, window: Window) -> Bool[ndarray, "h w"]:
        """Return a mask of the pixels of a window that the map should contain; mirrored pixels are False."""
        mask = np.zeros((window.height, window.width), bool)
        inside = self._inside(window)
        if inside is not None:
            of_interest = self.source.mask_of_interest(inside)
            mask[inside.relative_to(window).slices] = True if of_interest is None else of_interest
        return mask

    def _inside(self, window: Window) -> Window | None:
        return window.intersection(Window(0, 0, self.height, self.width))


def prefetch(items: Iterator[Item], depth: int = 1) -> Generator[Item, None, None]:
    """Yield the same items in the same order; up to `depth` of them are computed in advance in a thread.

    All items are computed in that one thread, so an open file is never used by two threads at once. An error is raised
    at the position of its item. Closing the generator waits for the item that is being computed, and so does an
    interrupt: the caller may then close the file.
    """
    end = object()
    thread = ThreadPoolExecutor(1, "prefetch")
    try:
        # An interrupt while the thread starts would leave it out of those that `shutdown` waits for.
        with postpone_interrupts():
            pending = deque(thread.submit(next, items, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            pending.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        with postpone_interrupts():
            thread.shutdown(cancel_futures=True)
