"""Every count against the plain way: one boolean raster a scene."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.geo import coverage
from geograft.geo.coverage import Overlap, Placed, boxes_of, covered_pixels, earlier_overlaps, overlap, smallest_gap
from geograft.geo.grid import Window, tiling

SIDE = 24
windows = st.builds(Window, st.integers(0, SIDE - 8), st.integers(0, SIDE - 8), st.integers(1, 8), st.integers(1, 8))
placed = st.lists(st.tuples(st.sampled_from(["one", "two"]), windows), max_size=12)


def burned(tiles: list[Placed], scene: str) -> ndarray:
    """How many tiles of a scene hold each pixel."""
    count = np.zeros((SIDE, SIDE), dtype=int)
    for name, window in tiles:
        if name == scene:
            count[window.slices] += 1
    return count


def plain_overlap(tiles: list[Placed], others: list[Placed]) -> Overlap:
    found = Overlap()
    held = {scene: burned(others, scene) > 0 for scene in ("one", "two")}
    for scene, window in tiles:
        inside = held[scene][window.slices]
        found += Overlap(1, int(inside.all()), int(not inside.any()), inside.size, int(inside.sum()))
    for scene in ("one", "two"):
        mine = burned(tiles, scene) > 0
        found += Overlap(ground=int(mine.sum()), shared_ground=int((mine & held[scene]).sum()))
    return found


@given(placed, placed)
@settings(deadline=None)
def test_overlap_counts_what_rasters_count(tiles: list[Placed], others: list[Placed]) -> None:
    assert overlap(tiles, others) == plain_overlap(tiles, others)


@given(placed, placed)
@settings(deadline=None)
def test_overlap_does_not_depend_on_the_size_of_the_bands(tiles: list[Placed], others: list[Placed]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "CELLS_AT_ONCE", 20)
        assert overlap(tiles, others) == plain_overlap(tiles, others)


def test_shares_of_nothing_are_zero() -> None:
    nothing = overlap([], [("one", Window(0, 0, 2, 2))])
    assert (nothing.pixel_share, nothing.ground_share, nothing.inside_share) == (0, 0, 0)


def test_pixels_count_per_tile_and_ground_counts_once() -> None:
    left, right = ("a", Window(0, 0, 2, 4)), ("a", Window(0, 2, 2, 4))
    found = overlap([left, right], [("a", Window(0, 0, 2, 4)), ("b", Window(0, 0, 9, 9))])
    assert (found.pixels, found.shared_pixels, found.ground, found.shared_ground) == (16, 12, 12, 8)
    assert (found.tiles, found.inside, found.apart) == (2, 1, 0)


@given(placed)
@settings(deadline=None)
def test_a_tile_set_lies_wholly_in_itself(tiles: list[Placed]) -> None:
    found = overlap(tiles, tiles)
    assert found.shared_pixels == found.pixels
    assert found.shared_ground == found.ground
    assert found.inside == len(tiles)


@given(placed, placed)
@settings(deadline=None)
def test_smallest_gap_is_that_of_the_nearest_two_pixels(tiles: list[Placed], others: list[Placed]) -> None:
    gaps = []
    for scene in ("one", "two"):
        mine, theirs = (np.argwhere(burned(kind, scene) > 0) for kind in (tiles, others))
        if len(mine) and len(theirs):
            steps = np.abs(mine[:, None] - theirs[None]).max(axis=2).min()
            gaps.append(max(int(steps) - 1, 0))
    assert smallest_gap(tiles, others) == min(gaps, default=None)


@given(placed)
@settings(deadline=None)
def test_earlier_overlaps_cover_exactly_what_earlier_tiles_hold(tiles: list[Placed]) -> None:
    parts = earlier_overlaps(tiles)
    assert len(parts) == len(tiles)
    for index, (scene, window) in enumerate(tiles):
        marked = np.zeros((window.height, window.width), dtype=bool)
        for part in parts[index]:
            assert 0 <= part.row < part.stop_row <= window.height
            assert 0 <= part.col < part.stop_col <= window.width
            marked[part.slices] = True
        np.testing.assert_array_equal(marked, burned(tiles[:index], scene)[window.slices] > 0)


@given(placed)
@settings(deadline=None)
def test_earlier_overlaps_hold_no_part_within_another(tiles: list[Placed]) -> None:
    for parts in earlier_overlaps(tiles):
        for part in parts:
            assert not any(part.overlap(other) == part for other in parts if other is not part)


@given(placed)
@settings(deadline=None)
def test_what_is_left_of_tiles_counts_the_ground_once(tiles: list[Placed]) -> None:
    left = 0
    for (_, window), parts in zip(tiles, earlier_overlaps(tiles), strict=True):
        free = np.ones((window.height, window.width), dtype=bool)
        for part in parts:
            free[part.slices] = False
        left += int(free.sum())
    assert left == overlap(tiles, []).ground


def test_many_tiles_stay_cheap_and_exact() -> None:
    # 14,400 tiles of a scene of 13,552 x 13,552 pixels, in several chunks of the tree's queries.
    tiles = tiling(Window(0, 0, 119 * 112 + 224, 119 * 112 + 224), 224, 112)
    parts = earlier_overlaps([("a", window) for window in tiles])
    assert [len(found) for found in parts[:3]] == [0, 1, 1]
    assert parts[-1] == (Window(0, 0, 112, 224), Window(0, 0, 224, 112))
    shared = covered_pixels(boxes_of(tiles[1::2]), boxes_of(tiles[::2]))
    assert shared.max() == 224 * 224
    assert overlap([("a", window) for window in tiles], []).ground == (119 * 112 + 224) ** 2
