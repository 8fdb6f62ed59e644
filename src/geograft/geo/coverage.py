"""Which pixels tiles share: exact counts from the tiles' corners alone, so that no array grows with the raster."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import shapely
from jaxtyping import Bool, Int, Int64, Shaped
from numpy import ndarray

from geograft.geo.grid import Window

Placed = tuple[str, Window]
"""A scene's name and a window of it."""

OUTWARDS = np.array([-1, -1, 1, 1])
CELLS_AT_ONCE = 1 << 22
TILES_AT_ONCE = 4096


@dataclass(frozen=True)
class Overlap:
    """How much of some tiles other tiles hold as well. Counts, so that scenes add up."""

    tiles: int = 0
    inside: int = 0
    """Tiles of which every pixel is shared."""
    apart: int = 0
    """Tiles of which no pixel is shared."""
    pixels: int = 0
    """Pixels, counted again in every tile that holds them."""
    shared_pixels: int = 0
    ground: int = 0
    """Pixels, counted once however many tiles hold them."""
    shared_ground: int = 0

    @property
    def pixel_share(self) -> float:
        """Share of the pixels, counted per tile, that the other tiles hold too; 0 without tiles."""
        return self.shared_pixels / max(self.pixels, 1)

    @property
    def ground_share(self) -> float:
        """Share of the pixels, counted once, that the other tiles hold too; 0 without tiles."""
        return self.shared_ground / max(self.ground, 1)

    @property
    def inside_share(self) -> float:
        """Share of the tiles that lie wholly in other tiles; 0 without tiles."""
        return self.inside / max(self.tiles, 1)

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(*(mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)))

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(vars(self).values())


def overlap(tiles: Iterable[Placed], others: Iterable[Placed]) -> Overlap:
    """Return how much of `tiles` lies in any of `others`, scene by scene.

    Exact. Time and memory follow the number of distinct tile edges, never the raster; 200,000 tiles take seconds.
    """
    theirs = _by_scene(others)
    return sum((_scene_overlap(boxes, theirs.get(scene, NONE)) for scene, boxes in _by_scene(tiles).items()), Overlap())


def smallest_gap(tiles: Iterable[Placed], others: Iterable[Placed]) -> int | None:
    """Return how many pixels lie between the two nearest windows, one of each kind, in the same scene.

    The larger of the gap in rows and the gap in columns counts (Chebyshev distance); 0 when they touch or overlap.
    None when no scene holds both kinds.
    """
    theirs = _by_scene(others)
    gaps = (_scene_gap(boxes, theirs[scene]) for scene, boxes in _by_scene(tiles).items() if scene in theirs)
    return min(gaps, default=None)


def earlier_overlaps(tiles: Sequence[Placed]) -> tuple[tuple[Window, ...], ...]:
    """Return for every tile the parts of it, in its own pixels, that earlier tiles of its scene hold.

    Parts that lie in another part of the same tile are left out; the rest may overlap each other.
    """
    found: list[tuple[Window, ...]] = [()] * len(tiles)
    places: dict[str, list[int]] = defaultdict(list)
    for index, (scene, _) in enumerate(tiles):
        places[scene].append(index)
    for indices in places.values():
        windows = [tiles[index][1] for index in indices]
        for later, parts in _earlier_in_scene(windows):
            found[indices[later]] = parts
    return tuple(found)


def boxes_of(windows: Iterable[Window]) -> Int64[ndarray, "n 4"]:
    """Return windows as rows of (row, col, stop_row, stop_col)."""
    corners = [(w.row, w.col, w.stop_row, w.stop_col) for w in windows]
    return np.array(corners, dtype=np.int64).reshape(-1, 4)


def covered_pixels(boxes: Int64[ndarray, "n 4"], by: Int64[ndarray, "m 4"]) -> Int64[ndarray, " n"]:
    """Return for every box how many of its pixels lie in at least one box of `by`."""
    total = np.zeros(len(boxes), dtype=np.int64)
    for rows, cols in _bands(boxes, by):
        area = _held(by, rows, cols) * np.outer(np.diff(rows), np.diff(cols))
        table = np.pad(area.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        top, left, bottom, right = _places(boxes, rows, cols)
        total += table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return total


def areas(boxes: Int64[ndarray, "n 4"]) -> Int64[ndarray, " n"]:
    """Return the number of pixels of every box."""
    size: Int64[ndarray, " n"] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return size


NONE = boxes_of(())


def _by_scene(tiles: Iterable[Placed]) -> dict[str, Int64[ndarray, "_ 4"]]:
    windows: dict[str, list[Window]] = defaultdict(list)
    for scene, window in tiles:
        windows[scene].append(window)
    return {scene: boxes_of(found) for scene, found in windows.items()}


def _scene_overlap(boxes: Int64[ndarray, "n 4"], others: Int64[ndarray, "m 4"]) -> Overlap:
    pixels, shared = areas(boxes), covered_pixels(boxes, others)
    ground = shared_ground = 0
    for rows, cols in _bands(boxes, others):
        area, mine = np.outer(np.diff(rows), np.diff(cols)), _held(boxes, rows, cols)
        ground += int(area[mine].sum())
        shared_ground += int(area[mine & _held(others, rows, cols)].sum())
    inside, apart = int((shared == pixels).sum()), int((shared == 0).sum())
    return Overlap(len(boxes), inside, apart, int(pixels.sum()), int(shared.sum()), ground, shared_ground)


def _bands(*kinds: Int64[ndarray, "_ 4"]) -> Iterator[tuple[Int64[ndarray, " _"], Int64[ndarray, " _"]]]:
    """Yield the distinct row edges, a band at a time, each with all column edges.

    Between two edges next to each other every box is either there or not, so that one cell stands for all its pixels.
    """
    boxes = np.concatenate(kinds)
    rows, cols = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    step = max(CELLS_AT_ONCE // max(len(cols), 1), 1)
    for first in range(0, len(rows) - 1, step):
        yield rows[first : first + step + 1], cols


def _places(
    boxes: Int64[ndarray, "n 4"], rows: Int64[ndarray, " r"], cols: Int64[ndarray, " c"]
) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"], Int[ndarray, " n"], Int[ndarray, " n"]]:
    # A box outside the band begins and ends at the same place, and so counts for nothing.
    within = np.clip(boxes[:, [0, 2]], rows[0], rows[-1])
    top, bottom = np.searchsorted(rows, within).T
    left, right = np.searchsorted(cols, boxes[:, [1, 3]]).T
    return top, left, bottom, right


def _held(
    boxes: Int64[ndarray, "n 4"], rows: Int64[ndarray, " r"], cols: Int64[ndarray, " c"]
) -> Bool[ndarray, "r-1 c-1"]:
    # Summed-area trick backwards: +1 and -1 at the corners, summed over rows and columns, count the boxes of a cell.
    count = np.zeros((len(rows), len(cols)), dtype=np.int32)
    top, left, bottom, right = _places(boxes, rows, cols)
    for row, col, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(count, (row, col), sign)
    held: Bool[ndarray, "r-1 c-1"] = count.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return held


def _scene_gap(boxes: Int64[ndarray, "n 4"], others: Int64[ndarray, "m 4"]) -> int:
    tree = shapely.STRtree(_shapes(others))
    # Chebyshev's distance is at most Euclid's, so the nearest pair lies among those that the shortest of these reaches.
    nearest = tree.query_nearest(_shapes(boxes), return_distance=True, all_matches=False)[1]
    reach = int(nearest.min())
    best = reach
    for first in range(0, len(boxes), TILES_AT_ONCE):
        some = boxes[first : first + TILES_AT_ONCE]
        mine, their = tree.query(_shapes(some + reach * OUTWARDS))
        if len(mine):
            a, b = some[mine], others[their]
            between = np.maximum(a[:, :2] - b[:, 2:], b[:, :2] - a[:, 2:]).max(axis=1)
            best = min(best, max(int(between.min()), 0))
    return best


def _earlier_in_scene(windows: Sequence[Window]) -> Iterator[tuple[int, tuple[Window, ...]]]:
    boxes = boxes_of(windows)
    shapes = _shapes(boxes)
    tree = shapely.STRtree(shapes)
    for first in range(0, len(boxes), TILES_AT_ONCE):
        later, earlier = tree.query(shapes[first : first + TILES_AT_ONCE])
        later, earlier = later[earlier < later + first] + first, earlier[earlier < later + first]
        low, high = np.maximum(boxes[later, :2], boxes[earlier, :2]), np.minimum(boxes[later, 2:], boxes[earlier, 2:])
        real = (low < high).all(axis=1)
        tile, part = _outermost(later[real], np.hstack([low, high])[real])
        within = np.hstack([part[:, :2] - boxes[tile, :2], part[:, 2:] - part[:, :2]]).tolist()
        rows = zip(tile.tolist(), (Window(*corner) for corner in within), strict=True)
        for index, parts in groupby(rows, key=itemgetter(0)):
            yield index, tuple(window for _, window in parts)


def _outermost(
    tile: Int[ndarray, " n"], part: Int64[ndarray, "n 4"]
) -> tuple[Int[ndarray, " k"], Int64[ndarray, "k 4"]]:
    # Largest parts first, tile by tile: the first part left of every tile stays, and takes away all that lie in it.
    order = np.lexsort((*part.T[::-1], -areas(part), tile))
    left, kept = order, [order[:0]]
    while len(left):
        leads = np.diff(tile[left], prepend=-1) != 0
        kept.append(left[leads])
        lead = part[left[leads]][leads.cumsum() - 1]
        inside = (part[left, :2] >= lead[:, :2]).all(axis=1) & (part[left, 2:] <= lead[:, 2:]).all(axis=1)
        left = left[~inside]
    found = np.concatenate(kept)
    found = found[np.argsort(tile[found], kind="stable")]
    return tile[found], part[found]


def _shapes(boxes: Int64[ndarray, "n 4"]) -> Shaped[ndarray, " n"]:
    return shapely.box(boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2])
