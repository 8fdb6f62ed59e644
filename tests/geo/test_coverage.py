"""Every count is compared with a simple implementation: one boolean raster per scene."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.geo import coverage
from geograft.geo.coverage import (
    Overlap,
    SceneWindow,
    covered_pixels,
    earlier_overlaps,
    smallest_gap,
    tile_overlap,
    window_boxes,
)
from geograft.geo.grid import Window, tiling

SIDE = 24
windows = st.builds(Window, st.integers(0, SIDE - 8), st.integers(0, SIDE - 8), st.integers(1, 8), st.integers(1, 8))
placed = st.lists(st.tuples(st.sampled_from(["one", "two"]), windows), max_size=12)


def tile_count(tiles: list[SceneWindow], scene: str) -> ndarray:
    """Return the number of tiles of a scene that contain each pixel."""
    count = np.zeros((SIDE, SIDE), dtype=int)
    for name, window in tiles:
        if name == scene:
            count[window.slices] += 1
    return count


def plain_overlap(tiles: list[SceneWindow], others: list[SceneWindow]) -> Overlap:
    found = Overlap()
    held = {scene: tile_count(others, scene) > 0 for scene in ("one", "two")}
    for scene, window in tiles:
        inside = held[scene][window.slices]
        found += Overlap(1, int(inside.all()), int(not inside.any()), inside.size, int(inside.sum()))
    for scene in ("one", "two"):
        mine = tile_count(tiles, scene) > 0
        found += Overlap(unique_pixels=int(mine.sum()))
    return found


@given(placed, placed)
@settings(deadline=None)
def test_overlap_equals_counts_on_rasters(tiles: list[SceneWindow], others: list[SceneWindow]) -> None:
    assert tile_overlap(tiles, others) == plain_overlap(tiles, others)


@given(placed, placed)
@settings(deadline=None)
def test_overlap_does_not_depend_on_the_chunk_size(tiles: list[SceneWindow], others: list[SceneWindow]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "CHUNK_CELLS", 20)
        assert tile_overlap(tiles, others) == plain_overlap(tiles, others)


def test_fractions_of_no_tiles_are_zero() -> None:
    nothing = tile_overlap([], [("one", Window(0, 0, 2, 2))])
    assert (nothing.pixel_fraction, nothing.contained_fraction) == (0, 0)


def test_pixels_are_counted_per_tile_and_unique_pixels_once() -> None:
    left, right = ("a", Window(0, 0, 2, 4)), ("a", Window(0, 2, 2, 4))
    found = tile_overlap([left, right], [("a", Window(0, 0, 2, 4)), ("b", Window(0, 0, 9, 9))])
    assert (found.pixels, found.shared_pixels, found.unique_pixels) == (16, 12, 12)
    assert (found.tiles, found.contained, found.disjoint) == (2, 1, 0)


@given(placed)
@settings(deadline=None)
def test_a_tile_set_covers_itself(tiles: list[SceneWindow]) -> None:
    found = tile_overlap(tiles, tiles)
    assert found.shared_pixels == found.pixels
    assert found.contained == len(tiles)


@given(placed, placed)
@settings(deadline=None)
def test_smallest_gap_is_the_distance_of_the_nearest_pixels(
    tiles: list[SceneWindow], others: list[SceneWindow]
) -> None:
    gaps = []
    for scene in ("one", "two"):
        mine, theirs = (np.argwhere(tile_count(kind, scene) > 0) for kind in (tiles, others))
        if len(mine) and len(theirs):
            steps = np.abs(mine[:, None] - theirs[None]).max(axis=2).min()
            gaps.append(max(int(steps) - 1, 0))
    assert smallest_gap(tiles, others) == min(gaps, default=None)


@given(placed)
@settings(deadline=None)
def test_earlier_overlaps_cover_exactly_the_pixels_of_earlier_tiles(tiles: list[SceneWindow]) -> None:
    parts = earlier_overlaps(tiles)
    assert len(parts) == len(tiles)
    for index, (scene, window) in enumerate(tiles):
        marked = np.zeros((window.height, window.width), dtype=bool)
        for part in parts[index]:
            assert 0 <= part.row < part.stop_row <= window.height
            assert 0 <= part.col < part.stop_col <= window.width
            marked[part.slices] = True
        np.testing.assert_array_equal(marked, tile_count(tiles[:index], scene)[window.slices] > 0)


@given(placed)
@settings(deadline=None)
def test_no_earlier_overlap_contains_another(tiles: list[SceneWindow]) -> None:
    for parts in earlier_overlaps(tiles):
        for part in parts:
            assert not any(part.intersection(other) == part for other in parts if other is not part)


@given(placed)
@settings(deadline=None)
def test_tiles_without_earlier_overlaps_count_each_pixel_once(tiles: list[SceneWindow]) -> None:
    left = 0
    for (_, window), parts in zip(tiles, earlier_overlaps(tiles), strict=True):
        free = np.ones((window.height, window.width), dtype=bool)
        for part in parts:
            free[part.slices] = False
        left += int(free.sum())
    assert left == tile_overlap(tiles, []).unique_pixels


def test_many_tiles_are_cheap_and_exact() -> None:
    # 14,400 tiles of a scene of 13,552 x 13,552 pixels, in several chunks of the tree's queries.
    tiles = tiling(Window(0, 0, 119 * 112 + 224, 119 * 112 + 224), 224, 112)
    parts = earlier_overlaps([("a", window) for window in tiles])
    assert [len(found) for found in parts[:3]] == [0, 1, 1]
    assert parts[-1] == (Window(0, 0, 112, 224), Window(0, 0, 224, 112))
    shared = covered_pixels(window_boxes(tiles[1::2]), window_boxes(tiles[::2]))
    assert shared.max() == 224 * 224
    assert tile_overlap([("a", window) for window in tiles], []).unique_pixels == (119 * 112 + 224) ** 2
