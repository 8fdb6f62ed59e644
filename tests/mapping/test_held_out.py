"""Tiles assembled from the strips of their scenes: each once, complete, and with few of them in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.config import InferenceConfig
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.mapping.blend import BlendPlan, Strip, blend
from geograft.mapping.held_out import PartOfInterest, assemble, predict_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.windows import Lanes, TileGrid
from tests.support.blending import GRIDS, PANELS, Scene, contextual, noise
from tests.support.overlapping import LEGEND, overlapping_set
from tests.support.rasters import textured, write_raster
from tests.support.runs import ContextPredictor, make_run


@st.composite
def layouts(draw: st.DrawFn, height: int, width: int) -> list[Window]:
    """Windows of any size and place inside a raster, overlapping or not, in any order."""
    found = []
    for _ in range(draw(st.integers(1, 12))):
        row, col = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        found.append(
            Window(row, col, draw(st.integers(1, min(32, height - row))), draw(st.integers(1, min(32, width - col))))
        )
    return found


def strips_of(tiles: TileGrid, scene: Scene, windows: Sequence[Window], panel_px: int) -> Iterator[Strip]:
    part = PartOfInterest(scene, tuple(windows))
    return blend(BlendPlan(Lanes(tiles, panel_px), 1), part, contextual)


@settings(deadline=None, max_examples=40)
@given(GRIDS, PANELS, st.integers(0, 2**31), st.data())
def test_every_window_comes_once_with_the_pixels_of_the_whole_map(
    tiles: TileGrid, panel_px: int, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    valid = (rng.random((tiles.height // 12 + 1, tiles.width // 12 + 1)) < 0.7).repeat(12, 0).repeat(12, 1)
    scene = Scene(noise(1, tiles.height, tiles.width), valid[: tiles.height, : tiles.width])
    windows = data.draw(layouts(tiles.height, tiles.width))
    whole = np.zeros((1, tiles.height, tiles.width), np.uint32)
    for strip in blend(BlendPlan(Lanes(tiles, 10**9), 1), scene, contextual):
        whole[:, *strip.data.slices] = np.where(strip.mapped, strip.sums.array, 0)

    def extract(strip: Strip) -> list[ndarray]:
        return [np.where(strip.mapped, strip.sums.array, 0), strip.mapped[None]]

    found = list(assemble(strips_of(tiles, scene, windows, panel_px), windows, extract))
    assert sorted(position for position, _ in found) == list(range(len(windows)))
    for position, arrays in found:
        mapped = scene.valid[windows[position].slices]
        np.testing.assert_array_equal(arrays[1][0], mapped)
        np.testing.assert_array_equal(arrays[0], whole[:, *windows[position].slices])


def test_only_windows_that_touch_a_tile_are_predicted() -> None:
    tiles, asked = TileGrid(400, 600, 16, 0.5), Window(70, 220, 10, 10)
    scene = Scene(noise(1, 400, 600))
    predicted = sum(strip.tiles for strip in strips_of(tiles, scene, [asked], 10**9))
    reach = [top for top in tiles.tops if top < 80 and top + 16 > 70]
    assert predicted == len(reach) * len([left for left in tiles.lefts if left < 230 and left + 16 > 220])
    assert all(window.intersection(asked.pad(16 * 8)) for window in scene.reads)


@pytest.mark.parametrize("panel_px", [1, 10**9])
def test_few_windows_wait_however_high_the_raster_is(panel_px: int) -> None:
    """Those that one row of tiles touches, and those along the borders of panels."""
    height, tiles = 800, TileGrid(800, 80, 32, 0.5)
    windows = [Window(row, col, 16, 16) for row in range(0, height, 16) for col in range(0, 80, 16)]
    touched: set[int] = set()
    done: list[int] = []
    waiting: list[int] = []

    def watched() -> Iterator[Strip]:
        for strip in strips_of(tiles, Scene(noise(1, height, 80)), windows, panel_px):
            touched.update(i for i, window in enumerate(windows) if window.intersection(strip.window))
            yield strip
            waiting.append(len(touched) - len(done))

    for position, _ in assemble(watched(), windows, lambda strip: [strip.mapped[None]]):
        done.append(position)
    assert sorted(done) == list(range(len(windows)))
    assert max(waiting) <= 5 + (height // 16 if panel_px == 1 else 0)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    return make_run(tmp_path / "run", LEGEND)


@pytest.fixture
def opened(tmp_path: Path) -> TileSet:
    tile_set = TileSet.open(overlapping_set(tmp_path / "tiles", scenes=2))
    with rasterio.open(tile_set.image_path("scene0"), "r+") as raster:
        raster.nodata = 0
        pixels = raster.read()
        pixels[:, 50:70, 60:90] = 0
        raster.write(pixels)
    return tile_set


def test_the_order_of_the_tiles_and_the_others_change_no_bit(run: Path, opened: TileSet) -> None:
    model = RunModel.open(run, InferenceConfig(device="cpu", backend="torch"))
    whole = {opened.tiles[one.index]: one for one in predict_tiles(model, opened, opened.tiles, "")}
    assert len(whole) == len(opened.tiles)
    some = [opened.tiles[index] for index in np.random.default_rng(0).permutation(len(opened.tiles))[:40]]
    found = list(predict_tiles(model, opened, some, ""))
    assert sorted(one.index for one in found) == list(range(40))
    for one in found:
        expected = whole[some[one.index]]
        np.testing.assert_array_equal(one.probabilities, expected.probabilities)
        np.testing.assert_array_equal(one.classes, expected.classes)
        valid = one.probabilities > 0
        np.testing.assert_array_equal(one.classes, np.where(valid, one.probabilities >= 0.5, 255))


def test_pixels_without_data_have_no_probability(run: Path, opened: TileSet) -> None:
    model = RunModel.open(run, InferenceConfig(device="cpu", backend="torch"))
    canvas = np.zeros((2, 256, 256), np.float32)
    for one in predict_tiles(model, opened, opened.tiles, ""):
        if opened.tiles[one.index].scene == "scene0":
            canvas[:, *opened.tiles[one.index].window.slices] = one.probabilities
    expected = np.ones((256, 256), bool)
    expected[50:70, 60:90] = False
    np.testing.assert_array_equal(canvas[0] > 0, expected)


@pytest.mark.parametrize(
    ("pixels", "fact"),
    [
        (textured(3, 256, 128), "width 128"),
        (textured(3, 64, 256), "height 64"),
        (textured(4, 256, 256), "bands 4"),
        (textured(3, 256, 256).astype(np.uint16), "dtype uint16"),
    ],
)
def test_an_image_that_was_replaced_is_refused(run: Path, opened: TileSet, pixels: ndarray, fact: str) -> None:
    write_raster(opened.image_path("scene1"), pixels, photometric="minisblack", alpha="no")
    model = RunModel.open(run, InferenceConfig(device="cpu", backend="torch"))
    with pytest.raises(InputError, match=rf"scene1\.tif has {fact}"):
        list(predict_tiles(model, opened, opened.tiles, ""))
