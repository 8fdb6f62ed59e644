"""Resampling units of intervals: those of the split, never pixels; no area is in two units."""

from pathlib import Path

import numpy as np
import pytest

from geograft.config import PrepareConfig
from geograft.dataset.tileset import Scene, Tile, TileSet, TileSetMeta
from geograft.dataset.units import units_of
from geograft.geo.grid import Window
from geograft.legend import Legend
from tests.support.rasters import textured, write_raster

SIZE = 128


def tile_set(
    scenes: dict[str, str],
    config: PrepareConfig,
    tiles: list[Tile],
    sizes: dict[str, int] | None = None,
    resolution_m: float | None = 1.0,
) -> TileSet:
    """Return a tile set of scenes (name -> group) without files."""
    meta = TileSetMeta(
        legend=Legend(("rest", "tree")),
        band_names=("grey",),
        dtype="uint8",
        scale=255,
        mean=(0.0,),
        std=(1.0,),
        scenes=tuple(
            Scene(name, f"{name}.tif", "", (sizes or {}).get(name, SIZE), SIZE, resolution_m, group)
            for name, group in scenes.items()
        ),
        settings=config,
        source={},
        fingerprint="",
    )
    return TileSet(Path("none"), meta, tuple(tiles))


def grid_of(scene: str, size: int = SIZE) -> list[Tile]:
    return [Tile(scene, Window(r, c, 32, 32), "test") for r in range(0, size, 32) for c in range(0, SIZE, 32)]


def test_scenes_are_units_if_there_are_enough() -> None:
    names = {f"s{i}": f"s{i}" for i in range(6)}
    found = units_of(
        tile_set(names, PrepareConfig(tile_px=32), [tile for name in names for tile in grid_of(name)]), "test"
    )
    assert (found.kind, found.names, found.description) == ("scene", tuple(names), "6 scenes")
    assert found.caveat == ""
    assert found.cell_of.tolist() == np.repeat(np.arange(6), 16).tolist()


def test_two_dates_of_one_area_are_one_unit() -> None:
    names = {f"s{i}": f"g{i // 2}" for i in range(12)}
    found = units_of(
        tile_set(names, PrepareConfig(tile_px=32), [tile for name in names for tile in grid_of(name)]), "test"
    )
    assert (found.kind, found.description, len(found.cells)) == ("group", "6 groups", 12)
    summed = found.sum_by_unit(np.eye(12, dtype=np.int64))
    assert summed.sum(axis=1).tolist() == [2] * 6
    assert summed[0].tolist() == [1, 1] + [0] * 10
    assert len(found.sum_by_scene(np.ones((12, 2, 2), np.int64))) == 12


def test_the_blocks_of_a_split_are_its_units() -> None:
    config = PrepareConfig(tile_px=32, split="block", block_px=64, buffer_px=0)
    found = units_of(tile_set({"a": "a"}, config, grid_of("a")), "test")
    assert (found.kind, found.description) == ("block", "4 blocks of 1 scene")
    assert [cell.window for cell in found.cells] == [Window(r, c, 64, 64) for r in (0, 64) for c in (0, 64)]
    assert np.bincount(found.cell_of).tolist() == [4] * 4
    assert "1 scene" in found.caveat


def test_few_scenes_are_cut_into_blocks_shared_within_a_group() -> None:
    config = PrepareConfig(tile_px=32, val=0, test=1)
    found = units_of(tile_set({"a": "g", "b": "g"}, config, grid_of("a") + grid_of("b")), "test")
    assert found.kind == "block"
    assert len(found.cells) == 2 * len(found.names)
    assert {cell.unit for cell in found.cells if cell.scene == "a"} == {
        cell.unit for cell in found.cells if cell.scene == "b"
    }


def test_scenes_of_one_group_with_different_sizes_stay_whole() -> None:
    config = PrepareConfig(tile_px=32, split="block", block_px=64, buffer_px=0)
    tiles = grid_of("a") + grid_of("b", 96)
    found = units_of(tile_set({"a": "g", "b": "g"}, config, tiles, {"b": 96}), "test")
    assert found.names == ("g",)


def test_a_split_as_prepare_makes_it(tmp_path: Path) -> None:
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import MaskSource

    for i in range(3):
        write_raster(tmp_path / "images" / f"s{i}.tif", textured(1, 256, 256, i))
        write_raster(tmp_path / "masks" / f"s{i}.tif", textured(1, 256, 256, 9 + i) % 2 + 1)
    source = MaskSource(images=tmp_path / "images", masks=tmp_path / "masks", classes={1: "a", 2: "b"})
    made = prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32, buffer_px=8))
    found = units_of(made, "test")
    assert found.kind == "block"
    for tile, cell in zip(made.split("test"), found.cell_of.tolist(), strict=True):
        block = found.cells[cell]
        assert block.scene == tile.scene
        assert block.window.intersection(tile.window) == tile.window


@pytest.mark.parametrize("count, words", [(1, "1 block of 1 scene"), (2, "2 blocks of 1 scene")])
def test_description(count: int, words: str) -> None:
    config = PrepareConfig(tile_px=32, split="block", block_px=64, buffer_px=0)
    assert units_of(tile_set({"a": "a"}, config, grid_of("a")[: 2 * count]), "test").description == words
