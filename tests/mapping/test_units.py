"""Units of a map: computed apart, in any size and order, they are the whole map, to the bit."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.card import FEATURES_FILE
from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.errors import InputError
from geograft.geo.rasters.tags import sibling_path
from geograft.geo.rasters.writer import BLOCK_PX
from geograft.inference.embedding import CellEncoder
from geograft.legend import Legend
from geograft.mapping.applicability import ApplicabilityMapper
from geograft.mapping.blend import BlendPlan, blend
from geograft.mapping.held_out import PartOfInterest
from geograft.mapping.map_units import MapUnitWriter
from geograft.mapping.plan import MapTask, map_card, map_sources, origin
from geograft.mapping.unit_ledger import ENTRY
from geograft.mapping.units import SceneUnits, UnitGrid, UnitResult, halo_cost, plan_units, unit_plan
from geograft.mapping.windows import Lanes, TileGrid
from geograft.metrics.applicability import fit_applicability
from tests.support.blending import GRIDS, PANELS, Scene, assemble, blend_strips, contextual, noise
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, TREES, USES, BandPredictor, ContextPredictor, MeanEmbedder, make_run


def unit_sums(tiles: TileGrid, scene: Scene, units: UnitGrid, order: Sequence[int], **plan: Any) -> list[ndarray]:
    """Return the sums and the mask of a map whose units are computed in this order; a unit may come twice."""
    sums, mapped = np.zeros((2, 1, tiles.height, tiles.width), np.uint32)
    whole = BlendPlan(Lanes(tiles, plan.pop("panel_px")), 1, **plan)
    for index in order:
        unit = units.window(index)
        own = list(blend(unit_plan(whole, unit), PartOfInterest(scene, (unit,)), contextual))
        found, there = assemble(tiles, own)
        inside = np.zeros(there.shape, bool)
        inside[unit.slices] = True
        assert not there[~inside].any()
        for target, value in ((sums, found), (mapped, there)):
            again = target[..., *unit.slices]
            assert not again.any() or np.array_equal(again, value[None, ...][..., *unit.slices].reshape(again.shape))
            target[..., *unit.slices] = value[..., *unit.slices]
    return [sums, mapped[0].astype(bool)]


@settings(max_examples=30)
@given(GRIDS, st.integers(5, 80), PANELS, st.integers(1, 9), st.integers(0, 2**31), st.randoms())
@example(TileGrid(27, 36, 16, 0.1), 11, 1, 1, 48, random.Random(0))
def test_units_of_any_size_in_any_order_are_the_whole_map(
    tiles: TileGrid, unit_px: int, panel_px: int, batch_size: int, seed: int, chance: Any
) -> None:
    known = np.random.default_rng(seed).random((tiles.height // 12 + 1, tiles.width // 12 + 1)) < 0.6
    valid = np.kron(known, np.ones((12, 12), bool))[: tiles.height, : tiles.width]
    scene = Scene(noise(1, tiles.height, tiles.width, seed=seed), valid)
    expected = assemble(tiles, blend_strips(tiles, scene, contextual, batch_size=1))
    units = UnitGrid(tiles.height, tiles.width, unit_px)
    order = [*range(len(units)), *chance.choices(range(len(units)), k=2)]
    chance.shuffle(order)
    found = unit_sums(tiles, scene, units, order, panel_px=panel_px, batch_size=batch_size)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


@given(GRIDS, st.integers(1, 80))
def test_a_unit_has_the_windows_that_share_a_pixel_with_it(tiles: TileGrid, unit_px: int) -> None:
    units = UnitGrid(tiles.height, tiles.width, unit_px)
    covered = np.zeros((tiles.height, tiles.width), int)
    for unit in units:
        lanes = Lanes(tiles, 10**9, unit)
        touching = [
            (row, column)
            for row, top in enumerate(tiles.tops)
            for column, left in enumerate(tiles.lefts)
            if top < unit.stop_row
            and top + tiles.tile_px > unit.row
            and left < unit.stop_col
            and left + tiles.tile_px > unit.col
        ]
        assert [(row, column) for row in lanes.rows for column in lanes.columns] == touching
        covered[unit.slices] += 1
    assert (covered == 1).all()


def test_the_halo_is_as_computed() -> None:
    tiles = TileGrid(65536, 65536, 224, 0.5)
    units = plan_units(tiles)
    parts = [Lanes(tiles, 10**9, unit) for unit in units]
    assert units.unit_px == 8192
    measured = sum(len(lanes.rows) * len(lanes.columns) for lanes in parts) / (len(tiles.tops) * len(tiles.lefts)) - 1
    assert measured == pytest.approx(halo_cost(224, 8192), abs=0.01)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([160, 224, 320, 640, 4096]), st.integers(1, 64))
def test_units_are_whole_blocks_and_cells(height: int, width: int, tile_px: int, cell_px: int) -> None:
    units = plan_units(TileGrid(height, width, tile_px, 0.5), cell_px)
    assert units.unit_px % BLOCK_PX == units.unit_px % cell_px == 0
    assert units.window(len(units) - 1).stop_row == height
    assert units.window(len(units) - 1).stop_col == width
    assert len({units.name(index) for index in range(min(len(units), 500))}) == min(len(units), 500)


@given(st.lists(st.integers(0, 4), max_size=6))
def test_units_of_scenes_are_in_order_and_have_names_of_the_ledger(counts: list[int]) -> None:
    units = SceneUnits(tuple(counts))
    places = [units.place(index) for index in range(len(units))]
    assert places == [(scene, number) for scene, count in enumerate(counts) for number in range(count)]
    names = [units.name(index) for index in range(len(units))]
    assert all(ENTRY.fullmatch(f"{name}.done.json") for name in names)
    assert names == sorted(set(names))


# ----------------------------------------------------------------------------------------------------- files of units


class Embedder(MeanEmbedder, CellEncoder):
    """The means of cells, of the type that the mapper asks for."""

    def __init__(self) -> None:
        pass


def plan_task(folder: Path, config: PredictConfig) -> MapTask:
    """Return the task of a map, as `predict` plans it."""
    run, scene = folder / "run", folder / "scene.tif"
    card = map_card([run], config)
    (source,) = map_sources(card, (scene,), folder / "map.tif", config, None)
    task = MapTask(source, (run,), card, config)
    return MapTask(source, (run,), card, config, origin(task, "torch"))


def write_units(task: MapTask, unit_px: int, model: Any, folder: Path) -> dict[int, UnitResult]:
    """Write the units of a map, last one first."""
    cells = ApplicabilityMapper(task, Embedder(), known_features()) if task.settings.applicability else None
    units = UnitGrid(task.source.grid.height, task.source.grid.width, unit_px)
    writer = MapUnitWriter(task, model, units, tuple(task.origin["rasters"]), cells)
    return {index: writer.write(index, folder, lambda _: None) for index in reversed(range(len(units)))}


def known_features() -> Any:
    return fit_applicability(np.random.default_rng(0).normal(128, 30, (40, 3)))


def mosaic(folder: Path, shape: tuple[int, int], unit_px: int, what: str = "") -> ndarray:
    """Return the pixels of all units, put together."""
    units, pixels = UnitGrid(*shape, unit_px), None
    for index, unit in enumerate(units):
        path = folder / f"{units.name(index)}.tif"
        path = sibling_path(path, what) if what else path
        if not path.exists():
            continue
        with rasterio.open(path) as raster:
            found = raster.read()
            if pixels is None:
                pixels = np.full((len(found), *shape), raster.nodata, found.dtype)
            pixels[:, *unit.slices] = found
    assert pixels is not None
    return pixels


KINDS: dict[str, tuple[Legend, Any, Any]] = {
    "binary": (TREES, ContextPredictor, "uint8"),
    "classes": (COVERS, ContextPredictor, "float16"),
    "overlapping": (USES, BandPredictor, "uint8"),
}


@pytest.mark.parametrize(("legend", "network", "dtype"), KINDS.values(), ids=KINDS)
def test_files_of_units_are_those_of_the_whole_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legend: Legend, network: Any, dtype: Any
) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", network)
    monkeypatch.setattr("geograft.mapping.applicability.load_cell_encoder", lambda *_: Embedder())
    monkeypatch.setattr("geograft.mapping.plan.panel_width", lambda *_: 60)
    make_run(tmp_path / "run", legend)
    known_features().write(tmp_path / "run" / FEATURES_FILE)
    pixels = textured(3, 110, 150)
    pixels[:, :80, 55:132] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    config = PredictConfig(probabilities=dtype, uncertainty=True, applicability=True)
    whole = predict(tmp_path / "run", tmp_path / "scene.tif", tmp_path / "map.tif", config).maps[0]
    task = plan_task(tmp_path, config)
    model = network(task.card, window_px=task.window[0])
    found = write_units(task, 64, model, tmp_path / "units")
    # One unit lies in nodata alone.
    assert sum(not result.pixels for result in found.values()) == 1
    assert sum(one.pixels for one in found.values()) == whole.mapped_px
    for name, count in whole.pixels.items():
        assert sum(one.classes.get(name, 0) for one in found.values()) == count
    for what in ("", "probabilities", "uncertainty"):
        with rasterio.open(sibling_path(tmp_path / "map.tif", what) if what else tmp_path / "map.tif") as raster:
            np.testing.assert_array_equal(mosaic(tmp_path / "units", (110, 150), 64, what), raster.read())
    with rasterio.open(tmp_path / "map.applicability.tif") as raster:
        expected = raster.read()
    np.testing.assert_array_equal(mosaic(tmp_path / "units", expected.shape[1:], 4, "applicability"), expected)
    cells = [one.applicability for one in found.values() if one.applicability]
    total = sum(outside for _, outside in cells) / sum(indexed for indexed, _ in cells)
    assert total == whole.outside_fraction
    assert not list((tmp_path / "units").glob(".*"))


def test_a_raster_that_changes_meanwhile_gives_no_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", ContextPredictor)
    make_run(tmp_path / "run")
    write_raster(tmp_path / "scene.tif", textured(3, 60, 60))
    task = plan_task(tmp_path, PredictConfig())
    write_raster(tmp_path / "scene.tif", textured(3, 60, 60, seed=1))
    with pytest.raises(InputError, match=r"scene\.tif changed"):
        write_units(task, 64, ContextPredictor(task.card, window_px=task.window[0]), tmp_path / "units")
    assert not list((tmp_path / "units").iterdir())
