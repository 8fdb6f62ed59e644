"""Where tiles lie on a raster, and in which order they are computed.

Tiles lie on a grid that is anchored to the raster's upper left corner and reaches half an overlap beyond its borders,
where the raster is mirrored: a pixel at the border has as much context as any other.

A raster is worked through in panels, some neighbouring columns of tiles each, from left to right; a panel from top to
bottom. One row of tiles of one panel is a lane. After a lane is computed, the pixels of its strip are complete.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Int, Shaped
from numpy import ndarray

from geograft.geo.grid import Window, starts

PANEL_BYTES = 2**25
"""What the sums of a panel and the image blocks under it may take in memory, together."""
ROWS_READ = 512
"""Rows of image blocks that a row of tiles is read from, as most files are cut."""


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

    def _begins(self, length: int) -> tuple[int, ...]:
        return tuple(begin - self.margin for begin in starts(length + 2 * self.margin, self.tile_px, self.stride))


@dataclass(frozen=True)
class Lanes:
    """The lanes of a tile grid that is cut into panels of about `panel_px` columns of pixels."""

    tiles: TileGrid
    panel_px: int

    @cached_property
    def panels(self) -> tuple[range, ...]:
        """The columns of tiles of each panel, as even as can be."""
        total = len(self.tiles.lefts)
        number = -(-total // max(1, self.panel_px // self.tiles.stride))
        cuts = [total * i // number for i in range(number + 1)]
        return tuple(range(first, stop) for first, stop in pairwise(cuts))

    def __len__(self) -> int:
        return len(self.panels) * len(self.tiles.tops)

    def place(self, lane: int) -> tuple[range, int]:
        """Return a lane's columns of tiles and its row of tiles."""
        panel, row = divmod(lane, len(self.tiles.tops))
        return self.panels[panel], row

    def strip(self, lane: int) -> Window:
        """Return the pixels that are complete after `lane` and were not before it.

        The strips of all lanes are the raster, each pixel once. A strip may have no rows or no columns.
        """
        columns, row = self.place(lane)
        top, bottom = _between(self.tiles.tops, row, row + 1, self.tiles.height)
        left, right = _between(self.tiles.lefts, columns.start, columns.stop, self.tiles.width)
        return Window(top, left, bottom - top, right - left)

    def before(self, lane: int) -> int | None:
        """Return the lane of the same row of tiles in the panel to the left; None in the first panel."""
        left = lane - len(self.tiles.tops)
        return left if left >= 0 else None

    def first_reaching(self, lane: int) -> int:
        """Return the first lane of the same panel whose tiles reach into the strip of `lane`."""
        _, row = self.place(lane)
        tops = self.tiles.tops
        return lane - row + bisect_right(tops, max(0, tops[row]) - self.tiles.tile_px)

    def ends_panel(self, lane: int) -> bool:
        """Return whether `lane` is the last one of its panel."""
        return (lane + 1) % len(self.tiles.tops) == 0


def panel_width(tiles: TileGrid, layers: int, pixel_bytes: int) -> int:
    """Return how many columns of pixels a panel may have for `layers` sums a pixel and `pixel_bytes` of image."""
    return max(tiles.tile_px, PANEL_BYTES // (4 * layers * tiles.tile_px + pixel_bytes * ROWS_READ))


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
class Reflection:
    """What a window shows of a raster that goes on as its mirror image beyond its border."""

    window: Window
    inside: Window
    """The part of the raster that holds it."""
    rows: Int[ndarray, " h"]
    """Which row of that part each row of the window is."""
    cols: Int[ndarray, " w"]

    @classmethod
    def of(cls, window: Window, height: int, width: int) -> "Reflection":
        """Return what a window shows of a raster of that size."""
        rows = reflected(window.row, window.height, height)
        cols = reflected(window.col, window.width, width)
        row, col = int(rows.min()), int(cols.min())
        inside = Window(row, col, int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
        return cls(window, inside, rows - row, cols - col)

    def unfolded(self, pixels: Shaped[ndarray, "*b p q"]) -> Shaped[ndarray, "*b h w"]:
        """Return the window's pixels from those of the part; the same array where nothing is mirrored."""
        return pixels if self.inside == self.window else pixels[..., self.rows[:, None], self.cols]


def _between(begins: Sequence[int], first: int, stop: int, length: int) -> tuple[int, int]:
    """Return which pixels of `length` belong to windows `first` up to `stop`: from where one begins to the next."""
    begin = max(0, begins[first]) if first else 0
    end = min(length, max(0, begins[stop])) if stop < len(begins) else length
    return min(begin, length), end
