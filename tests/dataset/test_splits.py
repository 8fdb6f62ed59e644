"""Splits by scene and block: no training tile touches held-out pixels, and few pixels are lost."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.config import PrepareConfig
from geograft.dataset.splits import (
    PlannedTile,
    SplitScene,
    article_tiles,
    block_tiles,
    cut_blocks,
    plan_tiles,
    training_tiles,
)
from geograft.dataset.tileset import Position, Split
from geograft.errors import SettingError
from geograft.geo.coverage import SceneWindow, smallest_gap, tile_overlap
from geograft.geo.grid import Window, tiling

SHARES: Mapping[Split, float] = {"train": 0.7, "val": 0.15, "test": 0.15}


def scenes(count: int, height: int = 1000, width: int = 1000) -> list[SplitScene]:
    return [SplitScene(f"s{i}", height, width, f"s{i}") for i in range(count)]


def of(planned: Sequence[PlannedTile], split: Split) -> list[SceneWindow]:
    return [(scene, window) for scene, window, found in planned if found == split]


def counts(planned: Sequence[PlannedTile]) -> Counter[Split]:
    return Counter(split for _, _, split in planned)


def burned(windows: Sequence[Window], height: int, width: int) -> ndarray:
    held = np.zeros((height, width), dtype=bool)
    for window in windows:
        held[window.slices] = True
    return held


# blocks


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(50, 600), st.integers(1, 300))
@settings(deadline=None)
def test_blocks_cover_the_scene_and_none_is_narrow(height: int, width: int, block_px: int, least_px: int) -> None:
    found = cut_blocks(Window(5, 7, height, width), block_px, min(least_px, block_px))
    assert sum(w.height * w.width for w in found) == height * width
    assert not any(a.intersection(b) for i, a in enumerate(found[:20]) for b in found[i + 1 : 20])
    assert all(w.height >= min(height, block_px / 2, block_px) and w.width >= min(width, block_px / 2) for w in found)
    assert all(w.height >= min(height, least_px, block_px) for w in found)
    assert found[0].row == 5
    assert (found[-1].stop_row, found[-1].stop_col) == (5 + height, 7 + width)


def test_the_last_block_takes_in_less_than_half_a_block() -> None:
    assert [w.width for w in cut_blocks(Window(0, 0, 100, 523), 100)] == [100, 100, 100, 100, 123]
    assert [w.width for w in cut_blocks(Window(0, 0, 100, 555), 100)] == [100, 100, 100, 100, 100, 55]
    assert [w.width for w in cut_blocks(Window(0, 0, 100, 555), 100, 60)] == [100, 100, 100, 100, 155]
    assert [w.width for w in cut_blocks(Window(0, 0, 100, 30), 100)] == [30]


# training tiles

walls = st.lists(st.builds(Window, st.integers(-3, 38), st.integers(-3, 38), st.integers(1, 15), st.integers(1, 15)))


@given(walls, st.integers(20, 40), st.integers(20, 40), st.integers(3, 12), st.integers(1, 12))
@settings(deadline=None)
def test_training_tiles_cover_every_pixel_that_an_allowed_tile_can_cover(
    forbidden: list[Window], height: int, width: int, size: int, stride: int
) -> None:
    stride = min(stride, size)
    found = training_tiles(Window(0, 0, height, width), forbidden, size, stride)
    every_place = [Window(row, col, size, size) for row in range(height - size + 1) for col in range(width - size + 1)]
    clear = [tile for tile in every_place if not any(tile.intersection(wall) for wall in forbidden)]
    assert set(found) <= set(clear)
    assert len(set(found)) == len(found)
    np.testing.assert_array_equal(burned(found, height, width), burned(clear, height, width))


def test_training_tiles_without_held_out_blocks_are_the_plain_tiling() -> None:
    scene = Window(0, 0, 700, 900)
    assert training_tiles(scene, [], 224, 112) == tiling(scene, 224, 112)


def test_training_tiles_respect_the_origin_of_the_scene() -> None:
    moved = training_tiles(Window(1000, 2000, 50, 60), [Window(1010, 2030, 5, 5)], 20, 10)
    at_zero = training_tiles(Window(0, 0, 50, 60), [Window(10, 30, 5, 5)], 20, 10)
    assert [window.relative_to(Window(1000, 2000, 50, 60)) for window in moved] == at_zero


# blocks to tiles


@given(
    st.integers(300, 900),
    st.integers(300, 900),
    st.sampled_from([0, 1, 17, 40]),
    st.integers(0, 5),
    st.sampled_from([0.0, 0.3, 0.5]),
)
@settings(deadline=None, max_examples=40)
def test_a_split_by_block_keeps_its_buffer(height: int, width: int, buffer_px: int, seed: int, lap: float) -> None:
    config = PrepareConfig(tile_px=48, split="block", buffer_px=buffer_px, seed=seed, overlap=lap)
    planned = plan_tiles([SplitScene("a", height, width, "a")], config)
    train = of(planned, "train")
    for split in ("val", "test"):
        held = of(planned, split)
        assert held
        assert tile_overlap(held, train).shared_pixels == 0
        gap = smallest_gap(held, train)
        assert gap is not None
        assert gap >= buffer_px
    assert tile_overlap(of(planned, "val"), of(planned, "test")).shared_pixels == 0
    assert all(window.stop_row <= height and window.stop_col <= width for _, window, _ in planned)


def test_without_buffer_every_pixel_of_the_scene_is_used() -> None:
    place = SplitScene("a", 2299, 2472, "a")
    planned = plan_tiles([place], PrepareConfig(split="block", buffer_px=0))
    everything = tile_overlap([(scene, window) for scene, window, _ in planned], [])
    assert everything.unique_pixels == place.height * place.width
    ground = {split: tile_overlap(of(planned, split), []).unique_pixels / everything.unique_pixels for split in SHARES}
    assert ground == pytest.approx(SHARES, abs=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_every_training_block_keeps_room_for_a_tile_beside_the_buffer(seed: int) -> None:
    config = PrepareConfig(split="block", seed=seed, tile_px=64, buffer_px=20)
    planned = plan_tiles([SplitScene("a", 420, 350, "a")], config)
    ground = tile_overlap(of(planned, "train"), []).unique_pixels
    trained = 420 * 350 - tile_overlap([*of(planned, "val"), *of(planned, "test")], []).unique_pixels
    assert ground > trained / 2


def test_held_out_tiles_lie_in_their_own_block_and_do_not_overlap() -> None:
    scene = Window(0, 0, 300, 200)
    split_of: dict[Window, Split] = dict.fromkeys(cut_blocks(scene, 100), "train")
    split_of |= {Window(100, 100, 100, 100): "val", Window(200, 0, 100, 100): "test"}
    found = list(block_tiles(scene, split_of, PrepareConfig(tile_px=50, split="block")))
    assert [w for w, split in found if split == "val"] == tiling(Window(100, 100, 100, 100), 50, 50)
    assert [w for w, split in found if split == "test"] == tiling(Window(200, 0, 100, 100), 50, 50)


def test_a_tile_may_reach_beyond_a_scene_that_is_smaller() -> None:
    planned = plan_tiles([SplitScene("a", 100, 3000, "a")], PrepareConfig(split="block"))
    assert set(counts(planned)) == {"train", "val", "test"}
    assert {window.row for _, window, _ in planned} == {0}
    assert tile_overlap(of(planned, "val"), of(planned, "train")).shared_pixels == 0


def test_blocks_are_two_tiles_or_one_where_that_would_be_few() -> None:
    large = of(plan_tiles([SplitScene("a", 2240, 2240, "a")], PrepareConfig(split="block")), "val")
    assert len(large) % 4 == 0
    small = plan_tiles([SplitScene("a", 900, 900, "a")], PrepareConfig(split="block"))
    assert set(counts(small)) == {"train", "val", "test"}


def test_two_dates_of_one_area_are_held_out_together() -> None:
    pair = [SplitScene("june", 1344, 1344, "field"), SplitScene("august", 1344, 1344, "field")]
    planned = plan_tiles(pair, PrepareConfig(split="block"))
    for split in ("train", "val", "test"):
        june, august = ([w for name, w in of(planned, split) if name == scene] for scene in ("june", "august"))
        assert june == august


def test_a_group_of_scenes_of_different_sizes_stays_whole() -> None:
    pair = [SplitScene("june", 1344, 1344, "field"), SplitScene("august", 1340, 1350, "field")]
    planned = plan_tiles([*pair, *scenes(2, 1344, 1344)], PrepareConfig(split="block"))
    assert len({split for scene, _, split in planned if scene in ("june", "august")}) == 1
    with pytest.raises(SettingError, match=r"^1 .*block"):
        plan_tiles(pair, PrepareConfig(split="block"))


def test_a_buffer_that_leaves_no_training_tile_says_what_to_change() -> None:
    with pytest.raises(SettingError, match=r"224 .*--buffer-px"):
        plan_tiles([SplitScene("a", 900, 900, "a")], PrepareConfig(split="block", block_px=300, buffer_px=500))


def test_a_block_smaller_than_a_tile_is_refused() -> None:
    with pytest.raises(SettingError, match=r"--block-px 100 .*--tile-px 224.*--block-px 448"):
        plan_tiles(scenes(1), PrepareConfig(split="block", block_px=100))


# whole scenes, and the choice between the two


def test_whole_scenes_train_with_overlap_and_test_without() -> None:
    planned = plan_tiles(scenes(20), PrepareConfig(split="scene"))
    split_of = {scene: split for scene, _, split in planned}
    assert len({(scene, split) for scene, _, split in planned}) == 20
    assert Counter(split_of.values()) == {"train": 14, "val": 3, "test": 3}
    for scene, split in split_of.items():
        mine = [window for name, window, _ in planned if name == scene]
        assert mine == tiling(Window(0, 0, 1000, 1000), 224, 112 if split == "train" else 224)


def test_classes_of_scenes_are_counted_and_stratified() -> None:
    asked = []

    def trees(window: Window) -> tuple[int, int]:
        asked.append(window)
        return (1000, 10)

    def bare(window: Window) -> tuple[int, int]:
        asked.append(window)
        return (1010, 0)

    places = [SplitScene(f"s{i}", 500, 500, f"s{i}", trees if i < 3 else bare) for i in range(12)]
    planned = plan_tiles(places, PrepareConfig(split="scene"))
    assert asked == [Window(0, 0, 500, 500)] * 12
    assert {split for scene, _, split in planned if scene in ("s0", "s1", "s2")} == {"train", "val", "test"}


def test_auto_takes_scenes_from_six_groups_on_and_blocks_below() -> None:
    six, five = (plan_tiles(scenes(count), PrepareConfig()) for count in (6, 5))
    assert len({(scene, split) for scene, _, split in six}) == 6
    assert len({(scene, split) for scene, _, split in five}) > 5
    paired = [SplitScene(f"s{i}", 1000, 1000, f"g{i % 5}") for i in range(10)]
    assert len({(scene, split) for scene, _, split in plan_tiles(paired, PrepareConfig())}) > 10


def test_one_split_for_everything_needs_no_blocks() -> None:
    planned = plan_tiles(scenes(1), PrepareConfig(val=0, test=1))
    assert planned == [("s0", window, "test") for window in tiling(Window(0, 0, 1000, 1000), 224, 224)]


def test_fractions_above_1_are_refused() -> None:
    with pytest.raises(SettingError, match=r"--val 0\.6 .*--test 0\.5"):
        plan_tiles(scenes(9), PrepareConfig(val=0.6, test=0.5))
    assert "train" not in counts(plan_tiles(scenes(9), PrepareConfig(val=0.7, test=0.3)))


# the article's own split


def test_the_split_of_the_article_is_reproduced() -> None:
    planned = article_tiles(scenes(23, 3248, 3248))
    assert counts(planned) == {"train": 14_812, "val": 1_150}
    assert planned == plan_tiles(scenes(23, 3248, 3248), PrepareConfig(split="article", seed=99))
    found = tile_overlap(of(planned, "val"), of(planned, "train"))
    assert found.pixel_fraction == pytest.approx(0.93978, abs=5e-6)
    assert found.contained_fraction == pytest.approx(0.8165, abs=5e-5)


def test_the_split_of_the_article_needs_enough_tiles() -> None:
    with pytest.raises(SettingError, match=r"\b49\b.*\b50\b"):
        article_tiles(scenes(2, 1000, 1000))
    with pytest.raises(SettingError, match="has 0 tiles"):
        article_tiles(scenes(2, 100, 1000))


# adjacent scenes


def sheets(rows: int, cols: int, side: int, step: int) -> list[SplitScene]:
    """Return square sheets of one place, `step` pixels apart."""
    return [
        SplitScene(f"{row},{col}", side, side, f"{row},{col}", position=Position("0,0", row * step, col * step))
        for row in range(rows)
        for col in range(cols)
    ]


def on_one_grid(planned: Sequence[PlannedTile], places: Sequence[SplitScene], split: Split) -> list[SceneWindow]:
    """Return the tiles of a split as windows of one scene, the whole place."""
    moves = {scene.name: scene.position for scene in places}
    return [
        ("place", Window(window.row + move.row, window.col + move.col, window.height, window.width))
        for name, window in of(planned, split)
        if (move := moves[name]) is not None
    ]


@given(
    rows=st.integers(1, 3),
    cols=st.integers(2, 4),
    side=st.integers(110, 260),
    shift=st.integers(-90, 20),
    buffer_px=st.integers(0, 24),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=20)
def test_the_buffer_holds_across_the_edges_of_sheets(
    rows: int, cols: int, side: int, shift: int, buffer_px: int, seed: int
) -> None:
    places = sheets(rows, cols, side, side + shift)
    try:
        planned = plan_tiles(places, PrepareConfig(tile_px=32, split="block", buffer_px=buffer_px, seed=seed))
    except SettingError:
        return
    train, val, test = (on_one_grid(planned, places, split) for split in ("train", "val", "test"))
    assert train
    for held in (val, test):
        gap = smallest_gap(held, train)
        assert gap is not None
        assert gap >= buffer_px
        assert tile_overlap(held, train).shared_pixels == 0
    assert tile_overlap(test, val).shared_pixels == 0


def test_twenty_sheets_are_one_place_and_split_by_block() -> None:
    places = sheets(4, 5, 1000, 1000)
    planned = plan_tiles(places, PrepareConfig())
    assert len({(scene, split) for scene, _, split in planned}) > 20
    area = sum(counts(planned)[split] for split in ("val", "test")) * 224**2 / 20e6
    assert area == pytest.approx(0.3, abs=0.08)
    with pytest.raises(SettingError, match=r"^1 .*--split block"):
        plan_tiles(places, PrepareConfig(split="scene"))


def test_places_are_assigned_whole() -> None:
    places = [
        replace(scene, name=f"{place}{scene.name}", group=f"{place}{scene.name}", position=Position(f"{place}", 0, 0))
        for place in range(8)
        for scene in sheets(1, 3, 300, 300)
    ]
    planned = plan_tiles(places, PrepareConfig())
    assert len({(scene[0], split) for scene, _, split in planned}) == 8


def test_sheets_hardly_larger_than_a_tile_leave_room_for_training() -> None:
    places = sheets(18, 18, 72, 72)
    planned = plan_tiles(places, PrepareConfig(tile_px=64, buffer_px=8, overlap=0.0))
    train = {scene for scene, _, split in planned if split == "train"}
    assert len(train) > 0.5 * len(places)
    gap = smallest_gap(on_one_grid(planned, places, "test"), on_one_grid(planned, places, "train"))
    assert gap is not None
    assert gap >= 8


PLACES = [
    SplitScene(f"{place} {year}", 300, 300, place) for place in ("nepal", "peru", "kenya", "chile") for year in (1, 2)
]


def split_by_scene(config: PrepareConfig, scenes: list[SplitScene] = PLACES) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for scene, _, split in plan_tiles(scenes, config):
        found.setdefault(split, set()).add(scene.split(" ")[0])
    return found


@given(
    places=st.permutations(["nepal", "peru", "kenya", "chile"]),
    tests=st.integers(0, 2),
    vals=st.integers(0, 1),
    mode=st.sampled_from(["auto", "group", "scene"]),
)
def test_named_groups_are_the_split_and_others_fill_the_rest(
    places: list[str], tests: int, vals: int, mode: str
) -> None:
    named, chosen = tuple(places[:tests]), tuple(places[tests : tests + vals])
    config = PrepareConfig(tile_px=100, split=mode, test_groups=named, val_groups=chosen, val=0.25, test=0.25)
    found = split_by_scene(config)
    assert sum(map(len, found.values())) == 4
    assert not named or found["test"] == set(named)
    assert not chosen or found["val"] == set(chosen)
    assert set(found) == {"train", "val", "test"}


def test_scenes_can_be_named_and_take_their_group_with_them() -> None:
    config = PrepareConfig(tile_px=100, test_groups=("nepal 2",), test=0.0, val=0.3)
    assert split_by_scene(config)["test"] == {"nepal"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_groups": ("atlantis",)}, "atlantis.*chile, kenya, nepal, peru"),
        ({"test_groups": ("nepal 1",), "val_groups": ("nepal 2",)}, "nepal 2|nepal 1"),
        ({"test_groups": ("nepal",), "split": "block"}, "block"),
        ({"val_groups": ("nepal",), "split": "article"}, "article"),
    ],
)
def test_groups_that_cannot_be_split_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        plan_tiles(PLACES, PrepareConfig(tile_px=100, **changes))
