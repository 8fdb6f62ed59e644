"""Overlap between sets of tiles: exact pixel counts from tile corners alone, without arrays of the raster's size."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Literal

import numpy as np
import shapely
from jaxtyping import Bool, Int, Int64, Shaped
from numpy import ndarray

from geograft.geo.grid import Window

SceneWindow = tuple[str, Window]
"""The name of a scene, and a window of it."""

AreaKind = Literal["random scoring area", "training area", "block"]
SAMPLE: AreaKind = "random scoring area"


@dataclass(frozen=True)
class AreaWindow:
    """The window of a labelled area on one scene. Areas that overlap there are one."""

    name: str
    """Equal for one area on several scenes."""
    scene: str
    kind: AreaKind
    """block: a part of a training area."""
    window: Window


OUTWARDS = np.array([-1, -1, 1, 1])
CHUNK_CELLS = 1 << 22
CHUNK_TILES = 4096


@dataclass(frozen=True)
class Overlap:
    """How much of a set of tiles other tiles cover. All fields are counts, so scenes can be summed."""

    tiles: int = 0
    contained: int = 0
    """Tiles that other tiles cover completely."""
    disjoint: int = 0
    """Tiles that no other tile overlaps."""
    pixels: int = 0
    """Pixels, counted once per tile."""
    shared_pixels: int = 0
    unique_pixels: int = 0
    """Pixels, each counted once however many tiles contain it."""

    @property
    def pixel_fraction(self) -> float:
        """Fraction of the pixels, counted per tile, that other tiles cover; 0 without tiles."""
        return self.shared_pixels / max(self.pixels, 1)

    @property
    def contained_fraction(self) -> float:
        """Fraction of the tiles that other tiles cover completely; 0 without tiles."""
        return self.contained / max(self.tiles, 1)

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(*(a + b for a, b in zip(self._counts, other._counts, strict=True)))

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple(vars(self).values())


def tile_overlap(tiles: Iterable[SceneWindow], others: Iterable[SceneWindow]) -> Overlap:
    """Return how much of `tiles` the tiles in `others` of the same scenes cover.

    Exact. Time and memory grow with the number of distinct tile edges, not with the raster; 200,000 tiles take seconds.
    """
    other_boxes = _by_scene(others)
    overlaps = (_scene_overlap(boxes, other_boxes.get(scene, NO_BOXES)) for scene, boxes in _by_scene(tiles).items())
    return sum(overlaps, Overlap())


def smallest_gap(tiles: Iterable[SceneWindow], others: Iterable[SceneWindow]) -> int | None:
    """Return the smallest distance in pixels between a tile of `tiles` and one of `others` in the same scene.

    The distance is the larger of the gaps in rows and columns (Chebyshev); 0 when two touch or overlap. None when no
    scene has tiles of both sets.
    """
    other_boxes = _by_scene(others)
    gaps = (_scene_gap(boxes, other_boxes[scene]) for scene, boxes in _by_scene(tiles).items() if scene in other_boxes)
    return min(gaps, default=None)


def earlier_overlaps(tiles: Sequence[SceneWindow]) -> tuple[tuple[Window, ...], ...]:
    """Return for each tile the windows, in its own pixels, that earlier tiles of its scene cover.

    Windows contained in another one of the same tile are omitted; the others may overlap.
    """
    overlaps: list[tuple[Window, ...]] = [()] * len(tiles)
    by_scene: dict[str, list[int]] = defaultdict(list)
    for index, (scene, _) in enumerate(tiles):
        by_scene[scene].append(index)
    for indices in by_scene.values():
        windows = [tiles[index][1] for index in indices]
        for later, parts in _earlier_in_scene(windows):
            overlaps[indices[later]] = parts
    return tuple(overlaps)


def ignored_windows(tiles: Sequence[tuple[str, Window, Window]], unique_pixels: bool) -> tuple[tuple[Window, ...], ...]:
    """Return for each tile the windows, in its own pixels, whose labels do not count; they may overlap.

    A tile is (scene, window, part): only labels of its `part` count, and with `unique_pixels` only those that are in no
    part of an earlier tile.
    """
    overlaps: Iterable[tuple[Window, ...]] = [()] * len(tiles)
    if unique_pixels:
        overlaps = earlier_overlaps([(scene, part) for scene, _, part in tiles])
    return tuple(
        (*_around(window, part), *(_shift(one, part.relative_to(window)) for one in earlier))
        for (_, window, part), earlier in zip(tiles, overlaps, strict=True)
    )


def _around(window: Window, part: Window) -> list[Window]:
    """Return the windows, in pixels of `window`, that with `part` partition it."""
    inner, height, width = part.relative_to(window), window.height, window.width
    sides = (
        Window(0, 0, inner.row, width),
        Window(inner.stop_row, 0, height - inner.stop_row, width),
        Window(inner.row, 0, inner.height, inner.col),
        Window(inner.row, inner.stop_col, inner.height, width - inner.stop_col),
    )
    return [side for side in sides if side.height and side.width]


def _shift(window: Window, by: Window) -> Window:
    return Window(window.row + by.row, window.col + by.col, window.height, window.width)


def window_boxes(windows: Iterable[Window]) -> Int64[ndarray, "n 4"]:
    """Return windows as rows of (row, col, stop_row, stop_col)."""
    corners = [(w.row, w.col, w.stop_row, w.stop_col) for w in windows]
    return np.array(corners, dtype=np.int64).reshape(-1, 4)


def covered_pixels(boxes: Int64[ndarray, "n 4"], by: Int64[ndarray, "m 4"]) -> Int64[ndarray, " n"]:
    """Return for each box how many of its pixels at least one box of `by` covers."""
    total = np.zeros(len(boxes), dtype=np.int64)
    for rows, cols in _bands(boxes, by):
        area = _covered_cells(by, rows, cols) * np.outer(np.diff(rows), np.diff(cols))
        table = np.pad(area.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        top, left, bottom, right = _cell_indices(boxes, rows, cols)
        total += table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]
    return total


def box_areas(boxes: Int64[ndarray, "n 4"]) -> Int64[ndarray, " n"]:
    """Return the number of pixels of each box."""
    size: Int64[ndarray, " n"] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return size


NO_BOXES = window_boxes(())


def _by_scene(tiles: Iterable[SceneWindow]) -> dict[str, Int64[ndarray, "_ 4"]]:
    windows: dict[str, list[Window]] = defaultdict(list)
    for scene, window in tiles:
        windows[scene].append(window)
    return {scene: window_boxes(in_scene) for scene, in_scene in windows.items()}


def _scene_overlap(boxes: Int64[ndarray, "n 4"], others: Int64[ndarray, "m 4"]) -> Overlap:
    pixels, shared = box_areas(boxes), covered_pixels(boxes, others)
    unique = 0
    for rows, cols in _bands(boxes):
        area, covered = np.outer(np.diff(rows), np.diff(cols)), _covered_cells(boxes, rows, cols)
        unique += int(area[covered].sum())
    contained, disjoint = int((shared == pixels).sum()), int((shared == 0).sum())
    return Overlap(len(boxes), contained, disjoint, int(pixels.sum()), int(shared.sum()), unique)


def _bands(*kinds: Int64[ndarray, "_ 4"]) -> Iterator[tuple[Int64[ndarray, " _"], Int64[ndarray, " _"]]]:
    """Yield the distinct row edges in bands of bounded size, each band with all column edges.

    Between two consecutive edges no box begins or ends, so one cell represents all its pixels.
    """
    boxes = np.concatenate(kinds)
    rows, cols = np.unique(boxes[:, [0, 2]]), np.unique(boxes[:, [1, 3]])
    step = max(CHUNK_CELLS // max(len(cols), 1), 1)
    for first in range(0, len(rows) - 1, step):
        yield rows[first : first + step + 1], cols


def _cell_indices(
    boxes: Int64[ndarray, "n 4"], rows: Int64[ndarray, " r"], cols: Int64[ndarray, " c"]
) -> tuple[Int[ndarray, " n"], Int[ndarray, " n"], Int[ndarray, " n"], Int[ndarray, " n"]]:
    # A box outside the band is clipped to zero height, and so counts for nothing.
    clipped = np.clip(boxes[:, [0, 2]], rows[0], rows[-1])
    top, bottom = np.searchsorted(rows, clipped).T
    left, right = np.searchsorted(cols, boxes[:, [1, 3]]).T
    return top, left, bottom, right


def _covered_cells(
    boxes: Int64[ndarray, "n 4"], rows: Int64[ndarray, " r"], cols: Int64[ndarray, " c"]
) -> Bool[ndarray, "r-1 c-1"]:
    # Inverse of a summed-area table: +1 and -1 at the corners, summed over rows and columns, count the boxes per cell.
    count = np.zeros((len(rows), len(cols)), dtype=np.int32)
    top, left, bottom, right = _cell_indices(boxes, rows, cols)
    for row, col, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(count, (row, col), sign)
    covered: Bool[ndarray, "r-1 c-1"] = count.cumsum(0).cumsum(1)[:-1, :-1] > 0
    return covered


def _scene_gap(boxes: Int64[ndarray, "n 4"], others: Int64[ndarray, "m 4"]) -> int:
    tree = shapely.STRtree(_shapes(others))
    # Chebyshev distance never exceeds Euclidean distance, so the pair nearest by the former is within `reach`.
    nearest = tree.query_nearest(_shapes(boxes), return_distance=True, all_matches=False)[1]
    reach = int(nearest.min())
    best = reach
    for first in range(0, len(boxes), CHUNK_TILES):
        chunk = boxes[first : first + CHUNK_TILES]
        index, other_index = tree.query(_shapes(chunk + reach * OUTWARDS))
        if len(index):
            a, b = chunk[index], others[other_index]
            gaps = np.maximum(a[:, :2] - b[:, 2:], b[:, :2] - a[:, 2:]).max(axis=1)
            best = min(best, max(int(gaps.min()), 0))
    return best


def _earlier_in_scene(windows: Sequence[Window]) -> Iterator[tuple[int, tuple[Window, ...]]]:
    boxes = window_boxes(windows)
    shapes = _shapes(boxes)
    tree = shapely.STRtree(shapes)
    for first in range(0, len(boxes), CHUNK_TILES):
        later, earlier = tree.query(shapes[first : first + CHUNK_TILES])
        later, earlier = later[earlier < later + first] + first, earlier[earlier < later + first]
        low, high = np.maximum(boxes[later, :2], boxes[earlier, :2]), np.minimum(boxes[later, 2:], boxes[earlier, 2:])
        nonempty = (low < high).all(axis=1)
        tile, part = _drop_contained(later[nonempty], np.hstack([low, high])[nonempty])
        relative = np.hstack([part[:, :2] - boxes[tile, :2], part[:, 2:] - part[:, :2]]).tolist()
        rows = zip(tile.tolist(), (Window(*row) for row in relative), strict=True)
        for index, parts in groupby(rows, key=itemgetter(0)):
            yield index, tuple(window for _, window in parts)


def _drop_contained(
    tile: Int[ndarray, " n"], part: Int64[ndarray, "n 4"]
) -> tuple[Int[ndarray, " k"], Int64[ndarray, "k 4"]]:
    # Per tile, largest parts first: keep the first remaining part, and drop all parts that it contains.
    order = np.lexsort((*part.T[::-1], -box_areas(part), tile))
    remaining, kept = order, [order[:0]]
    while len(remaining):
        is_first = np.diff(tile[remaining], prepend=-1) != 0
        kept.append(remaining[is_first])
        first = part[remaining[is_first]][is_first.cumsum() - 1]
        begins_inside = (part[remaining, :2] >= first[:, :2]).all(axis=1)
        contained = begins_inside & (part[remaining, 2:] <= first[:, 2:]).all(axis=1)
        remaining = remaining[~contained]
    index = np.concatenate(kept)
    index = index[np.argsort(tile[index], kind="stable")]
    return tile[index], part[index]


def _shapes(boxes: Int64[ndarray, "n 4"]) -> Shaped[ndarray, " n"]:
    return shapely.box(boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2])


CellKey = tuple[str, int, int]


@dataclass(frozen=True)
class TrainingArea:
    """The pixels that lie in a training tile and in no validation or test tile.

    The buffer of a split by block lies in no training tile, so it is not part of the training area.
    """

    scenes: Mapping[str, tuple[int, int]]
    """Height and width of each scene."""
    train: Mapping[CellKey, Int64[ndarray, "_ 4"]]
    """Corners of the training tiles, by scene and grid cell of their upper left pixel."""
    held_out: Mapping[CellKey, Int64[ndarray, "_ 4"]]
    """Corners of the validation and test tiles, likewise."""
    cell_px: int
    """Side of a grid cell; at least that of the largest tile."""

    @classmethod
    def from_tiles(
        cls, scenes: Mapping[str, tuple[int, int]], train: Sequence[SceneWindow], held_out: Sequence[SceneWindow]
    ) -> "TrainingArea":
        """Return the training area. Time and memory are proportional to the number of tiles."""
        cell_px = max((max(window.height, window.width) for _, window in (*train, *held_out)), default=1)
        return cls(scenes, _by_cell(train, cell_px), _by_cell(held_out, cell_px), cell_px)

    def random_window(self, scene: str, window: Window, rng: np.random.Generator) -> Window:
        """Return a random window inside the training area, at most half a tile from `window` in each direction.

        The window is shifted by a random number of rows and columns, limited to the scene. If it leaves the training
        area, the shift is halved until it does not; the last resort is `window` itself.
        """
        height, width = self.scenes[scene]
        reach = window.height // 2, window.width // 2
        down, right = (int(rng.integers(-length, length + 1)) for length in reach)
        while down or right:
            moved = Window(
                min(max(window.row + down, 0), height - window.height),
                min(max(window.col + right, 0), width - window.width),
                window.height,
                window.width,
            )
            if self.contains(scene, moved):
                return moved
            down, right = int(down / 2), int(right / 2)
        return window

    def contains(self, scene: str, window: Window) -> bool:
        """Return whether the training area contains `window`, which may be no larger than a tile."""
        box = window_boxes([window])
        train, held = (self._near(corners, scene, window) for corners in (self.train, self.held_out))
        return bool((covered_pixels(box, train) == box_areas(box)).all() and not covered_pixels(box, held).any())

    def _near(
        self, corners: Mapping[CellKey, Int64[ndarray, "_ 4"]], scene: str, window: Window
    ) -> Int64[ndarray, "_ 4"]:
        rows = range((window.row - self.cell_px) // self.cell_px, (window.stop_row - 1) // self.cell_px + 1)
        cols = range((window.col - self.cell_px) // self.cell_px, (window.stop_col - 1) // self.cell_px + 1)
        found = [corners[scene, row, col] for row in rows for col in cols if (scene, row, col) in corners]
        return np.concatenate(found) if found else NO_BOXES


def _by_cell(tiles: Iterable[SceneWindow], cell_px: int) -> dict[CellKey, Int64[ndarray, "_ 4"]]:
    found: dict[CellKey, list[Window]] = defaultdict(list)
    for scene, window in dict.fromkeys(tiles):
        found[scene, window.row // cell_px, window.col // cell_px].append(window)
    return {key: window_boxes(windows) for key, windows in found.items()}
