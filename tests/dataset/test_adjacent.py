"""Adjacent scenes whose pixels differ: kept in one split where possible, and said where no buffer is kept."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.warp import transform

from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.sources import MaskSource
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster


def row_of_sheets(folder: Path, sizes: Sequence[float], gap_m: float = 0.0) -> MaskSource:
    """Write sheets side by side with these pixel sizes in tenths of a metre, each 12.8 m wide."""
    for number, size in enumerate(sizes):
        there = TENTH_METRE @ Affine.translation((128 + 10 * gap_m) * number, 0) @ Affine.scale(size)
        side = round(128 / size)
        pixels = textured(3, side, side, seed=number)
        write_raster(folder / "images" / f"{number}.tif", pixels, there)
        write_raster(folder / "masks" / f"{number}.tif", pixels[:1] % 2, there)
    return MaskSource(folder / "images", folder / "masks", {1: "a", 0: "b"})


def test_touching_sheets_of_other_pixel_sizes_stay_in_one_split(tmp_path: Path) -> None:
    """Pairs of sheets of two pixel sizes, a kilometre from each other."""
    for pair in range(8):
        for number, size in enumerate((1.0, 0.8)):
            there = TENTH_METRE @ Affine.translation(1e4 * pair + 128 * number, 0) @ Affine.scale(size)
            pixels = textured(3, round(128 / size), round(128 / size), seed=2 * pair + number)
            write_raster(tmp_path / "images" / f"{pair}{number}.tif", pixels, there)
            write_raster(tmp_path / "masks" / f"{pair}{number}.tif", pixels[:1] % 2, there)
    source = MaskSource(tmp_path / "images", tmp_path / "masks", {1: "a", 0: "b"})
    tiles = prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32))
    note = tiles.meta.source["adjacent scenes with other pixels"]
    assert note.startswith("00 (0.1 m) and 01 (0.08 m)")
    assert "5 more" in note
    split_of = {tile.scene: tile.split for tile in tiles.tiles}
    assert len({(tile.scene, tile.split) for tile in tiles.tiles}) == 16
    assert all(split_of[f"{pair}0"] == split_of[f"{pair}1"] for pair in range(8))
    assert len({scene.group for scene in tiles.meta.scenes}) == 8


@pytest.mark.parametrize(
    ("sizes", "gap_m", "noted"),
    [((1.0, 0.8), 0.0, True), ((1.0, 0.8), 0.5, True), ((1.0, 0.8), 2.0, False), ((1.0, 1.0), 0.0, False)],
)
def test_no_buffer_between_sheets_of_other_pixel_sizes_is_noted(
    tmp_path: Path, sizes: tuple[float, ...], gap_m: float, noted: bool
) -> None:
    source = row_of_sheets(tmp_path, sizes, gap_m)
    tiles = prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=16, buffer_px=8))
    note = tiles.meta.source.get("adjacent scenes with other pixels", "")
    assert bool(note) == noted
    assert all(part in note for part in ("0.1 m", "0.08 m", "--split scene") if noted)
    assert {scene.group for scene in tiles.meta.scenes} == {"0", "1"}


def test_touching_sheets_of_two_utm_zones_are_noted(tmp_path: Path) -> None:
    source = row_of_sheets(tmp_path, (1.0, 1.0))
    with rasterio.open(tmp_path / "images" / "1.tif", "r+") as raster:
        corner = transform(UTM12, CRS.from_epsg(32613), [raster.transform.c], [raster.transform.f])
        raster.crs = CRS.from_epsg(32613)
        raster.transform = Affine(0.1, 0, corner[0][0], 0, -0.1, corner[1][0])
    with rasterio.open(tmp_path / "masks" / "1.tif", "r+") as raster:
        raster.crs, raster.transform = CRS.from_epsg(32613), Affine(0.1, 0, corner[0][0], 0, -0.1, corner[1][0])
    tiles = prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32, buffer_px=8))
    note = tiles.meta.source["adjacent scenes with other pixels"]
    assert "zone 12N" in note
    assert "zone 13N" in note
