"""Random crops lie in the training area: they contain no held-out and no buffer pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.commands.prepare import prepare
from geograft.commands.train import training_data
from geograft.config import PrepareConfig, Recipe
from geograft.dataset.sources import MaskSource
from geograft.dataset.splits import PlannedTile, SplitScene, plan_tiles
from geograft.dataset.tileset import TileSet
from geograft.geo.coverage import TrainingArea
from geograft.geo.grid import Window
from geograft.training.loader import Scaling
from tests.support.rasters import write_raster


def crops_of(
    planned: list[PlannedTile], scenes: dict[str, tuple[int, int]]
) -> tuple[TrainingArea, list[tuple[str, Window]]]:
    train = [(scene, window) for scene, window, split in planned if split == "train"]
    held = [(scene, window) for scene, window, split in planned if split != "train"]
    return TrainingArea.from_tiles(scenes, train, held), train


def painted(planned: list[PlannedTile], size: tuple[int, int], train: bool) -> ndarray:
    ground = np.zeros(size, bool)
    for _, window, split in planned:
        if (split == "train") == train:
            ground[window.slices] = True
    return ground


@given(st.integers(150, 400), st.integers(150, 400), st.sampled_from([0, 7, 20]), st.integers(0, 50), st.booleans())
@settings(max_examples=40)
def test_crops_keep_the_buffer_like_tiles(height: int, width: int, buffer: int, seed: int, lap: bool) -> None:
    config = PrepareConfig(tile_px=32, split="block", buffer_px=buffer, seed=seed, overlap=0.5 * lap)
    planned = plan_tiles([SplitScene("a", height, width, "a")], config)
    crops, train = crops_of(planned, {"a": (height, width)})
    mine, others = (painted(planned, (height, width), of_training) for of_training in (True, False))
    near_others = np.zeros_like(others)
    for row, col in zip(*np.nonzero(others), strict=True):
        near_others[max(row - buffer, 0) : row + buffer + 1, max(col - buffer, 0) : col + buffer + 1] = True
    rng, moved = np.random.default_rng(seed), 0
    for scene, window in train[:30]:
        found = crops.random_window(scene, window, rng)
        assert (found.height, found.width) == (32, 32)
        assert mine[found.slices].shape == (32, 32)
        assert mine[found.slices].all()
        assert not near_others[found.slices].any()
        assert abs(found.row - window.row) <= 16
        assert abs(found.col - window.col) <= 16
        moved += found != window
    assert moved or len(train) < 4


def test_crops_do_not_increase_the_leak_of_a_split() -> None:
    planned = plan_tiles([SplitScene("a", 400, 400, "a")], PrepareConfig(tile_px=32, split="article"))
    crops, train = crops_of(planned, {"a": (400, 400)})
    others = painted(planned, (400, 400), train=False)
    rng = np.random.default_rng(0)
    for scene, window in train * 3:
        found = crops.random_window(scene, window, rng)
        assert found == window or not others[found.slices].any()


def test_a_training_scene_gives_crops_from_edge_to_edge() -> None:
    config = PrepareConfig(tile_px=32, split="scene", val=0.5, test=0.0)
    planned = plan_tiles([SplitScene(name, 100, 80, name) for name in "abcd"], config)
    crops, train = crops_of(planned, dict.fromkeys("abcd", (100, 80)))
    rng = np.random.default_rng(0)
    seen: dict[str, ndarray] = {scene: np.zeros((100, 80), int) for scene, _ in train}
    corners = set()
    for _ in range(200):
        for scene, window in train:
            found = crops.random_window(scene, window, rng)
            seen[scene][found.slices] += 1
            corners.add((found.row, found.col))
    assert len(seen) == 2
    # In a corner one tile in four of one place alone.
    assert all(count.min() > 40 for count in seen.values())
    assert len(corners) > 1500


def test_crops_depend_only_on_the_generator() -> None:
    crops, train = crops_of([("a", Window(0, 0, 8, 8), "train"), ("a", Window(0, 8, 8, 8), "train")], {"a": (8, 16)})
    drawn = [
        [crops.random_window("a", train[0][1], np.random.default_rng(seed)) for seed in range(9)] for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 2


def numbered(folder: Path) -> TileSet:
    """Return a tile set of one scene whose pixels say where they lie: their row, their column, and 9."""
    rows, cols = np.indices((256, 256))
    pixels = np.stack([rows % 256, cols % 256, rows * 0 + 9]).astype(np.uint8)
    label = np.where(rows + cols < 200, 1, 2).astype(np.uint8)
    for name, content in (("images", pixels), ("masks", label[None])):
        (folder / name).mkdir(parents=True)
        write_raster(folder / name / "place.tif", content)
    config = PrepareConfig(tile_px=32, split="block", block_px=64, buffer_px=8, val=0.2, test=0.2)
    source = MaskSource(images=folder / "images", masks=folder / "masks", classes={1: "near", 2: "far"})
    return prepare(source, folder / "tiles", config)


def test_no_held_out_pixel_is_ever_trained_on(tmp_path: Path) -> None:
    tile_set = numbered(tmp_path)
    held = np.zeros((256, 256), bool)
    for tile in (*tile_set.split("val"), *tile_set.split("test")):
        held[tile.window.pad(8).intersection(Window(0, 0, 256, 256)).slices] = True  # type: ignore[union-attr]
    recipe = Recipe().with_settings(train={"crops": True})
    data = training_data(tile_set, recipe, Scaling((0.0,) * 3, (1.0,) * 3))
    train, places = data.train, set()
    for index in range(len(train)):
        for seed in range(12):
            image, label = train.random_crop(index, np.random.default_rng(seed))  # type: ignore[attr-defined]
            assert image.shape == (3, 32, 32)
            rows, cols = image[0].astype(int), image[1].astype(int)
            assert not held[rows, cols].any()
            assert np.array_equal(label, rows + cols < 200)
            places.add((rows[0, 0], cols[0, 0]))
    assert len(places) > 3 * len(train)
    plain = training_data(tile_set, replace(recipe, train=replace(recipe.train, crops=False)), data.scaling).train
    assert np.array_equal(plain[3][0], train[3][0])
