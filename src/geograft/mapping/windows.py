"""Positions of the tiles on a raster and the order in which they are predicted.

The tile grid is anchored to the raster's upper left corner and extends half an overlap beyond its borders, where the
raster is mirrored: pixels at the border have as much context as all others.

A raster is processed in panels, groups of adjacent tile columns, from left to right, and each panel from top to bottom.
A lane is one row of tiles within one panel. When a lane has been predicted, the pixels of its strip are complete.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from jaxtyping import Int, Shaped
from numpy import ndarray

from geograft.geo.grid import Window, window_offsets

PANEL_BYTES = 2**25
"""Memory limit in bytes for the sums of a panel and the image blocks below it."""
ROWS_READ = 512
"""Assumed height in pixels of the image blocks that a row of tiles is read from."""


def fit_window(window_px: int, overlap_px: int, height: int, width: int, least_px: int) -> tuple[int, int]:
    """Return the size and the overlap of windows for a raster.

    A raster that fits into one window gets only that, halved while the raster still fits and the window is not smaller
    than `least_px`, the size of the training tiles: a larger one would be computed for mirrored pixels. Sizes are
    halved, so that rasters of many sizes share a few window sizes.

    >>> [fit_window(640, 80, size, size, 160) for size in (1000, 640, 512, 256, 90)]
    [(640, 80), (640, 0), (640, 0), (320, 0), (160, 0)]
    """
    longest = max(height, width)
    if longest > window_px:
        return window_px, overlap_px
    while window_px % 2 == 0 and window_px // 2 >= max(longest, least_px):
        window_px //= 2
    return window_px, 0


@dataclass(frozen=True)
class TileGrid:
    """Grid of square tiles with edge `tile_px` on a raster of `height` x `width` pixels."""

    height: int
    width: int
    tile_px: int
    overlap: float
    """Overlap of adjacent tiles as a fraction of the tile edge."""

    @property
    def stride(self) -> int:
        """Distance between adjacent tiles in pixels."""
        return max(1, round(self.tile_px * (1 - self.overlap)))

    @property
    def margin(self) -> int:
        """Distance in pixels that the tiles extend beyond the raster's borders."""
        return (self.tile_px - self.stride) // 2

    @cached_property
    def tops(self) -> tuple[int, ...]:
        """First pixel row of each row of tiles. The last one ends with the mirrored margin."""
        return self._begins(self.height)

    @cached_property
    def lefts(self) -> tuple[int, ...]:
        """First pixel column of each column of tiles."""
        return self._begins(self.width)

    def _begins(self, length: int) -> tuple[int, ...]:
        return tuple(
            begin - self.margin for begin in window_offsets(length + 2 * self.margin, self.tile_px, self.stride)
        )


@dataclass(frozen=True)
class Lanes:
    """Lanes of a tile grid divided into panels of about `panel_px` pixel columns."""

    tiles: TileGrid
    panel_px: int
    part: Window | None = None
    """Part of the raster whose pixels are wanted: the lanes have only the tiles that share a pixel with it. None: all
    of the raster."""

    @cached_property
    def rows(self) -> range:
        """The tile rows."""
        part = self.part
        return range(len(self.tiles.tops)) if part is None else self._touching(self.tiles.tops, part.row, part.stop_row)

    @cached_property
    def columns(self) -> range:
        """The tile columns."""
        part = self.part
        if part is None:
            return range(len(self.tiles.lefts))
        return self._touching(self.tiles.lefts, part.col, part.stop_col)

    @cached_property
    def panels(self) -> tuple[range, ...]:
        """Tile columns of each panel, distributed as evenly as possible."""
        total = len(self.columns)
        number = -(-total // max(1, self.panel_px // self.tiles.stride))
        cuts = [self.columns.start + total * i // number for i in range(number + 1)]
        return tuple(range(first, stop) for first, stop in pairwise(cuts))

    def __len__(self) -> int:
        return len(self.panels) * len(self.rows)

    def position(self, lane: int) -> tuple[range, int]:
        """Return the tile columns and the tile row of a lane."""
        panel, row = divmod(lane, len(self.rows))
        return self.panels[panel], self.rows[row]

    def strip(self, lane: int) -> Window:
        """Return the window of the pixels that `lane` completes.

        The strips of all lanes partition the raster. A strip may have no rows or no columns. With `part` they partition
        an area around it, and only pixels of the part are complete.
        """
        columns, row = self.position(lane)
        top, bottom = _between(self.tiles.tops, row, row + 1, self.tiles.height)
        left, right = _between(self.tiles.lefts, columns.start, columns.stop, self.tiles.width)
        return Window(top, left, bottom - top, right - left)

    def left_neighbour(self, lane: int) -> int | None:
        """Return the lane of the same tile row in the panel to the left; None in the first panel."""
        left = lane - len(self.rows)
        return left if left >= 0 else None

    def first_overlapping(self, lane: int) -> int:
        """Return the first lane of the same panel whose tiles overlap the strip of `lane`."""
        _, row = self.position(lane)
        tops = self.tiles.tops
        first = bisect_right(tops, max(0, tops[row]) - self.tiles.tile_px)
        return lane - row + max(self.rows.start, first)

    def is_last_in_panel(self, lane: int) -> bool:
        """Whether `lane` is the last one of its panel."""
        return (lane + 1) % len(self.rows) == 0

    def _touching(self, begins: Sequence[int], start: int, stop: int) -> range:
        """Return which of the tiles that begin at `begins` share a pixel with the range from `start` to `stop`."""
        return range(bisect_right(begins, start - self.tiles.tile_px), bisect_left(begins, stop))


def panel_width(tiles: TileGrid, layers: int, pixel_bytes: int) -> int:
    """Return the panel width in pixels for `layers` sums and `pixel_bytes` bytes of image per pixel."""
    return max(tiles.tile_px, PANEL_BYTES // (4 * layers * tiles.tile_px + pixel_bytes * ROWS_READ))


def reflect_indices(start: int, size: int, length: int) -> Int[ndarray, " size"]:
    """Map the indices `start` to `start` + `size` - 1 into range(`length`) by reflection at both ends.

    As numpy's pad mode "reflect": the end pixels are not repeated.

    >>> reflect_indices(-2, 6, 3).tolist()
    [2, 1, 0, 1, 2, 1]
    """
    period = max(1, 2 * (length - 1))
    place = np.arange(start, start + size) % period
    return np.minimum(place, period - place) if length > 1 else np.zeros(size, int)


@dataclass(frozen=True)
class Reflection:
    """A window of a raster that is mirrored beyond its borders."""

    window: Window
    inside: Window
    """Window of the raster that contains all its pixels."""
    rows: Int[ndarray, " h"]
    """Row of `inside` for each row of the window."""
    cols: Int[ndarray, " w"]
    """Column of `inside` for each column of the window."""

    @classmethod
    def of(cls, window: Window, height: int, width: int) -> "Reflection":
        """Return the reflection of a window at the borders of a raster of `height` x `width` pixels."""
        rows = reflect_indices(window.row, window.height, height)
        cols = reflect_indices(window.col, window.width, width)
        row, col = int(rows.min()), int(cols.min())
        inside = Window(row, col, int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1)
        return cls(window, inside, rows - row, cols - col)

    def unfold(self, pixels: Shaped[ndarray, "*b p q"]) -> Shaped[ndarray, "*b h w"]:
        """Return the pixels of the window from those of `inside`; the same array where nothing is mirrored."""
        return pixels if self.inside == self.window else pixels[..., self.rows[:, None], self.cols]


def _between(begins: Sequence[int], first: int, stop: int, length: int) -> tuple[int, int]:
    """Return the pixel range that windows `first` to `stop` - 1 complete, within range(`length`)."""
    begin = max(0, begins[first]) if first else 0
    end = min(length, max(0, begins[stop])) if stop < len(begins) else length
    return min(begin, length), end
