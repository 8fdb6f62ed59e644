"""The commands of the how-tos and the quickstart run in order, on small synthetic rasters and with short trainings."""

from collections.abc import Callable, Sequence
from pathlib import Path

import geopandas
import numpy as np
import pytest
from numpy import ndarray
from shapely import LineString, box

from geograft.cli import app
from tests.support.docs import ROOT, code_blocks, commands_of, expand_globs
from tests.support.rasters import TENTH_METRE, UTM12, write_raster

pytestmark = pytest.mark.usefixtures("only_torch")

SIZE, SIDE = 256, 32
SHORT_TRAINING = ("--architecture", "unet", "--batch-size", "8", "--device", "cpu", "--normalise", "data")
SMALL_TILES = ("--tile-px", "32", "--val", "0.2", "--test", "0.2")
SMALL_BLOCKS = ("--block-px", "64", "--buffer-px", "4")
SENTINEL_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")


def corners() -> list[tuple[int, int]]:
    """Return row and column of the upper left corners of the objects, 16 squares."""
    return [(16 + 64 * row, 16 + 64 * col) for row in range(4) for col in range(4)]


def pixels_of(bands: int, dtype: str = "uint8", seed: int = 0) -> ndarray:
    """Return noise that is brighter in the objects."""
    pixels = np.random.default_rng(seed).integers(1, 90, (bands, SIZE, SIZE)).astype(dtype)
    for row, col in corners():
        pixels[:, row : row + SIDE, col : col + SIDE] += 150
    return pixels


def write_objects(path: Path, shift_px: int = 0, **columns: Sequence[str]) -> None:
    """Write the objects as polygons; `shift_px` is the column of the scene's left edge."""
    squares = [
        box(*(TENTH_METRE @ (col + shift_px, row + SIDE)), *(TENTH_METRE @ (col + shift_px + SIDE, row)))
        for row, col in corners()
    ]
    known = {name: list(values) for name, values in columns.items()} or {"id": list(range(16))}
    geopandas.GeoDataFrame(known, geometry=squares, crs=UTM12).to_file(path)


def write_area(path: Path) -> None:
    """Write the left three quarters of the scene as labelled area."""
    part = box(*(TENTH_METRE @ (0, SIZE)), *(TENTH_METRE @ (SIZE * 3 // 4, 0)))
    geopandas.GeoDataFrame({"id": [1]}, geometry=[part], crs=UTM12).to_file(path)


def quickstart(folder: Path) -> None:
    """An image, another one, and crowns."""
    write_raster(folder / "scene.tif", pixels_of(3))
    write_raster(folder / "region.tif", pixels_of(3, seed=1))
    write_objects(folder / "crowns.gpkg")


def qgis_labels(folder: Path) -> None:
    """An image, polygons with a class, and the labelled area."""
    write_raster(folder / "scene.tif", pixels_of(3))
    write_objects(folder / "labels.gpkg", **{"class": ["tree", "shrub"] * 8})
    write_area(folder / "area.gpkg")


def sentinel2(folder: Path) -> None:
    """Six scenes of ten named bands, side by side with gaps, and fields on all of them."""
    frames = []
    for number in range(6):
        shift = 2 * SIZE * number
        transform = TENTH_METRE @ TENTH_METRE.translation(shift, 0)
        path = write_raster(folder / "scenes" / f"{number}.tif", pixels_of(10, "uint16", number), transform, nodata=0)
        name_bands(path, SENTINEL_BANDS)
        write_objects(folder / "part.gpkg", shift, crop=["maize", "wheat"] * 8)
        frames.append(geopandas.read_file(folder / "part.gpkg"))
    geopandas.pd.concat(frames).to_file(folder / "fields.gpkg")
    name_bands(write_raster(folder / "new-date.tif", pixels_of(10, "uint16", 9), nodata=0), SENTINEL_BANDS)


def name_bands(path: Path, names: Sequence[str]) -> None:
    """Give the bands of a raster their names."""
    import rasterio

    with rasterio.open(path, "r+") as raster:
        raster.descriptions = names


def drone(folder: Path) -> None:
    """Two flights with an alpha band, the second with larger pixels."""
    pixels = pixels_of(4)
    pixels[3] = 255
    pixels[3, :, :8] = 0
    write_raster(folder / "ortho.tif", pixels, photometric="rgb", alpha="yes")
    coarser = TENTH_METRE @ TENTH_METRE.scale(1.5)
    write_raster(folder / "other-flight.tif", pixels, coarser, photometric="rgb", alpha="yes")
    write_objects(folder / "weeds.gpkg")
    write_area(folder / "labelled.gpkg")


def touching_sheets(folder: Path) -> None:
    """A scene in two sheets that touch."""
    pixels = pixels_of(3)
    for name, left in (("a1", 0), ("a2", SIZE // 2)):
        half = pixels[:, :, left : left + SIZE // 2]
        write_raster(folder / "sheets" / f"{name}.tif", half, TENTH_METRE @ TENTH_METRE.translation(left, 0))
    write_objects(folder / "crowns.gpkg")


def near_infrared(folder: Path) -> None:
    """Two images whose fourth band is tagged alpha, but is a spectral band."""
    for name, seed in (("scene", 0), ("region", 1)):
        write_raster(folder / f"{name}.tif", pixels_of(4, seed=seed), photometric="rgb", alpha="yes")
    write_objects(folder / "trees.gpkg")


def roads(folder: Path) -> None:
    """Centre lines with a width, and an image that is brighter along them."""
    pixels = np.random.default_rng(0).integers(1, 90, (3, SIZE, SIZE), dtype=np.uint8)
    lines = []
    for row in range(20, SIZE, 48):
        pixels[:, row - 10 : row + 10] += 150
        lines.append(LineString([TENTH_METRE @ (0, row), TENTH_METRE @ (SIZE, row)]))
    write_raster(folder / "scene.tif", pixels)
    frame = geopandas.GeoDataFrame({"width_m": [2.0] * len(lines)}, geometry=lines, crs=UTM12)
    frame.to_file(folder / "centre-lines.gpkg")


def buildings(folder: Path) -> None:
    """Two images and the footprints of the first."""
    quickstart(folder)
    write_objects(folder / "buildings.gpkg")


RUN_PAGES: dict[str, Callable[[Path], None]] = {
    "docs/quickstart.md": quickstart,
    "docs/howto/qgis-labels.md": qgis_labels,
    "docs/howto/sentinel2.md": sentinel2,
    "docs/howto/drone.md": drone,
    "docs/howto/touching-sheets.md": touching_sheets,
    "docs/howto/near-infrared.md": near_infrared,
    "docs/howto/roads.md": roads,
    "docs/howto/buildings.md": buildings,
}


def shortened(arguments: Sequence[str]) -> list[str]:
    """Return a command with small tiles or one short epoch, and its own options otherwise."""
    words = list(arguments)
    if words[0] == "train":
        if "--epochs" in words:
            del words[(place := words.index("--epochs")) : place + 2]
        return [*words, "--epochs", "1", *(() if "--start" in words else SHORT_TRAINING)]
    if words[0] == "prepare":
        return [*words, *SMALL_TILES, *(() if "scene" in words else SMALL_BLOCKS)]
    return words


@pytest.mark.parametrize("name", RUN_PAGES, ids=lambda name: Path(name).stem)
def test_the_commands_of_a_page_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RUN_PAGES[name](tmp_path)
    for block in code_blocks(ROOT / name, "python") if "howto" in name else ():
        exec(compile(block, name, "exec"), {})
    before = set(tmp_path.rglob("*"))
    for command in commands_of(ROOT / name):
        words = expand_globs(shortened(command.arguments), tmp_path)
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if "--out" in words and "--dry-run" not in words:
            assert (tmp_path / words[words.index("--out") + 1]).exists(), command.place
    assert set(tmp_path.rglob("*")) > before
