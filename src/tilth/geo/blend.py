"""A raster of any size predicted by overlapping tiles: where they lie, what each counts, and sums without rounding.

Tiles lie on a grid that is anchored to the raster's upper left corner and reaches half an overlap beyond its borders,
where the raster is reflected: a pixel at the border has as much context as any other. A tile counts most at its centre
and least at its edge: a Hann window (Pielawski and Wählby 2020, doi:10.1371/journal.pone.0229839), divided by the sum
of all windows at the pixel.

Probabilities and weights are whole numbers here: a probability has LEVELS steps, the weights of a pixel add up to
WHOLE in each direction, and a sum fits 32 bits. So weights sum to one exactly, and the order of tiles cannot matter.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped, UInt32
from numpy import ndarray

from tilth.errors import InputError
from tilth.geo.ahead import ahead
from tilth.geo.grid import Window, starts

LEVELS = 2**18 - 1
"""What stands for probability 1."""
WHOLE = 2**7
"""What the weights of a pixel's tiles add up to, in each direction: LEVELS * WHOLE * WHOLE fits 32 bits."""

Read: TypeAlias = Callable[[Window], tuple[Float32[ndarray, "b h w"], Bool[ndarray, "h w"]]]
"""A window inside the raster -> its pixels, those that are not valid filled in, and which are valid."""
Model: TypeAlias = Callable[[Float32[ndarray, "n b t t"]], Float32[ndarray, "n k t t"]]
"""A batch of tiles -> k probabilities of every pixel."""


@dataclass(frozen=True)
class TileGrid:
    """Where square tiles of `tile_px` lie on a raster of `height` x `width` pixels."""

    height: int
    width: int
    tile_px: int
    overlap: float
    """Share of a tile that its neighbour also holds."""

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return max(1, round(self.tile_px * (1 - self.overlap)))

    @property
    def margin(self) -> int:
        """How far the tiles reach beyond the raster's borders, in pixels."""
        return (self.tile_px - self.stride) // 2

    @cached_property
    def tops(self) -> tuple[int, ...]:
        """The first row of each row of tiles. The last row lies flush with the reflected margin."""
        return self._begins(self.height)

    @cached_property
    def lefts(self) -> tuple[int, ...]:
        """The first column of each column of tiles."""
        return self._begins(self.width)

    def strip(self, index: int) -> Window:
        """Return the rows of the raster that are complete after tile row `index` and were not before it.

        The strips of all tile rows are the raster. A strip may have no rows.
        """
        first = max(0, self.tops[index]) if index else 0
        stop = min(self.height, max(0, self.tops[index + 1])) if index + 1 < len(self.tops) else self.height
        return Window(first, 0, stop - first, self.width)

    def strip_from(self, row: int) -> int:
        """Return the index of the strip that holds `row`; the number of strips when `row` is the raster's height."""
        return next((i for i in range(len(self.tops)) if self.strip(i).stop_row > row), len(self.tops))

    def first_tile_row(self, strip: int) -> int:
        """Return the index of the first tile row that reaches into a strip."""
        return next(i for i, top in enumerate(self.tops) if top + self.tile_px > max(0, self.tops[strip]))

    def _begins(self, length: int) -> tuple[int, ...]:
        return tuple(begin - self.margin for begin in starts(length + 2 * self.margin, self.tile_px, self.stride))


@dataclass(frozen=True)
class Strip:
    """Finished rows of a raster, as wide as the raster."""

    window: Window
    sums: UInt32[ndarray, "k h w"]
    """Probabilities in steps of 1 / (LEVELS * WHOLE * WHOLE)."""
    valid: Bool[ndarray, "h w"]

    @property
    def probabilities(self) -> Float32[ndarray, "k h w"]:
        """The probabilities, 0 to 1."""
        return self.sums.astype(np.float32) / np.float32(LEVELS * WHOLE**2)

    def at_least(self, probability: float) -> Bool[ndarray, "k h w"]:
        """Return where the probabilities are at least `probability`, rounded as they are."""
        enough: ndarray = self.sums >= round(probability * LEVELS) * WHOLE**2
        return enough


def blend(
    tiles: TileGrid, read: Read, model: Model, channels: int, batch_size: int = 8, first: int = 0
) -> Generator[Strip, None, None]:
    """Yield the raster's strips from top to bottom, from strip `first` on, with `channels` probabilities a pixel.

    Reads ahead in one thread; `model` and `read` run at the same time. A batch holds tiles of one tile row, so its
    content, and with it the result to the bit, does not depend on `first`. A tile without a valid pixel is not
    predicted. Sums are 0 in pixels that no tile with a valid pixel reaches.

    Memory: about 4 * channels * tile_px bytes for each column of the raster, and three batches of tiles.

    Raises:
        InputError: when the model puts out something that is not a number.
    """
    begin = tiles.first_tile_row(first) if first < len(tiles.tops) else len(tiles.tops)
    sums = _Sums(tiles, channels)
    with closing(ahead(_chunks(tiles, read, batch_size, begin))) as chunks:
        for index, row in groupby(chunks, key=lambda chunk: chunk.index):
            valid = np.zeros((tiles.tile_px, tiles.width), bool)
            waiting: list[_Tile] = []
            for chunk in row:
                valid[:, chunk.columns] = chunk.valid
                waiting += chunk.tiles
                if len(waiting) >= batch_size:
                    sums.add(index, waiting[:batch_size], model)
                    waiting = waiting[batch_size:]
            if waiting:
                sums.add(index, waiting, model)
            done, strip = sums.take(index), tiles.strip(index)
            if index >= first and strip.height:
                top = strip.row - tiles.tops[index]
                yield Strip(strip, done[:, top : top + strip.height], valid[top : top + strip.height])


def shares(begins: Sequence[int], size: int) -> UInt32[ndarray, "tiles size"]:
    """Return what each pixel of each window counts, for windows of `size` pixels that begin at `begins` (ascending).

    At every pixel that a window covers, the shares of all windows add up to WHOLE.
    """
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    total = np.zeros(begins[-1] - begins[0] + size)
    for begin in begins:
        total[begin - begins[0] :][:size] += window
    running, result = np.zeros_like(total), np.empty((len(begins), size), np.uint32)
    for row, begin in zip(result, begins, strict=True):
        here = slice(begin - begins[0], begin - begins[0] + size)
        # Rounding the running sum, not each share, is what makes the last one fill up WHOLE.
        before = np.rint(WHOLE * running[here] / total[here])
        running[here] += window
        row[:] = np.rint(WHOLE * running[here] / total[here]) - before
    return result


def reflected(start: int, size: int, length: int) -> Int[ndarray, " size"]:
    """Return the indices in range(`length`) that stand for `start` to `start` + `size` - 1, mirrored at both ends.

    The pixels at the ends are the mirrors and are not repeated, as in numpy's pad mode "reflect".

    >>> reflected(-2, 6, 3).tolist()
    [2, 1, 0, 1, 2, 1]
    """
    period = max(1, 2 * (length - 1))
    place = np.arange(start, start + size) % period
    return np.minimum(place, period - place) if length > 1 else np.zeros(size, int)


@dataclass(frozen=True)
class _Tile:
    column: int
    """Which of the grid's columns of tiles."""
    pixels: Float32[ndarray, "b t t"]


@dataclass(frozen=True)
class _Chunk:
    """Some neighbouring tiles of one tile row, read at once."""

    index: int
    """Which of the grid's rows of tiles."""
    columns: slice
    """Columns of the raster that the chunk holds."""
    valid: Bool[ndarray, "t w"]
    tiles: list[_Tile]
    """Those with a valid pixel."""


def _chunks(tiles: TileGrid, read: Read, count: int, begin: int) -> Iterator[_Chunk]:
    size, lefts = tiles.tile_px, tiles.lefts
    for index in range(begin, len(tiles.tops)):
        for at in range(0, len(lefts), count):
            some = lefts[at : at + count]
            window = Window(tiles.tops[index], some[0], size, some[-1] - some[0] + size)
            pixels, valid = _read_reflected(tiles, read, window)
            parts = [
                (column, slice(left - window.col, left - window.col + size)) for column, left in enumerate(some, at)
            ]
            found = [_Tile(column, pixels[:, :, part]) for column, part in parts if valid[:, part].any()]
            columns = slice(max(0, window.col), min(tiles.width, window.stop_col))
            known = valid[:, columns.start - window.col : columns.stop - window.col]
            yield _Chunk(index, columns, known, found)


def _read_reflected(
    tiles: TileGrid, read: Read, window: Window
) -> tuple[Float32[ndarray, "b h w"], Bool[ndarray, "h w"]]:
    rows = reflected(window.row, window.height, tiles.height)
    cols = reflected(window.col, window.width, tiles.width)
    inner = Window(int(rows.min()), int(cols.min()), int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
    pixels, valid = read(inner)
    if inner == window:
        return pixels, valid
    rows, cols = rows[:, None] - inner.row, cols - inner.col
    return pixels[:, rows, cols], valid[rows, cols]


class _Sums:
    """Weighted sums over the rows that the current tile row touches, in the frame of all tiles' columns."""

    def __init__(self, tiles: TileGrid, channels: int) -> None:
        self._tiles = tiles
        self._rows, self._cols = shares(tiles.tops, tiles.tile_px), shares(tiles.lefts, tiles.tile_px)
        self._sums = np.zeros((channels, tiles.tile_px, tiles.lefts[-1] - tiles.lefts[0] + tiles.tile_px), np.uint32)
        self._reach = 0
        """Rows from here on are 0."""

    def add(self, index: int, batch: Sequence[_Tile], model: Model) -> None:
        """Add what the model makes of some tiles of tile row `index`."""
        probabilities = model(np.stack([tile.pixels for tile in batch]))
        if np.isnan(probabilities).any():
            raise InputError("The network puts out NaN: its weights are not numbers. Train the run again.")
        levels = np.rint(probabilities.clip(0, 1) * np.float32(LEVELS)).astype(np.uint32)
        for tile, level in zip(batch, levels, strict=True):
            left = self._tiles.lefts[tile.column] - self._tiles.lefts[0]
            weights = np.outer(self._rows[index], self._cols[tile.column])
            self._sums[:, :, left : left + self._tiles.tile_px] += level * weights
        self._reach = self._tiles.tile_px

    def take(self, index: int) -> Shaped[ndarray, "k rows w"]:
        """Return the rows that no later tile row touches, within the raster's columns, and move on to the next row."""
        tops, size = self._tiles.tops, self._tiles.tile_px
        step = tops[index + 1] - tops[index] if index + 1 < len(tops) else size
        done: ndarray = self._sums[:, :step, -self._tiles.lefts[0] :][:, :, : self._tiles.width].copy()
        if self._reach:
            self._sums[:, : size - step] = self._sums[:, step:]
            self._sums[:, size - step :] = 0
            self._reach = max(0, self._reach - step)
        return done
