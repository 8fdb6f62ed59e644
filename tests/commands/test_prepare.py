"""Images and labels become a tile set: whole, the same every time, and honest about what is in it."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from affine import Affine
from numpy import ndarray
from PIL import Image as Picture
from pyproj import CRS

from geograft.commands.audit import audit_tile_set
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.folds import plan_folds
from geograft.dataset.scenes import LabelSource
from geograft.dataset.sources import DstlSource, MaskSource, VectorSource
from geograft.dataset.splits import SplitScene
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import units_of
from geograft.errors import GeograftError, InputError, OutputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image
from geograft.legend import IGNORE
from tests.support.full_disk import max_file_size
from tests.support.rasters import TENTH_METRE, UTM12, read_labels, textured, write_raster

GRID = Grid(256, 256, TENTH_METRE, CRS.from_user_input(UTM12))
SQUARES = [Window(16 + 64 * row, 16 + 64 * col, 32, 32) for row in range(4) for col in range(4)]
BLOCKS = PrepareConfig(tile_px=32, overlap=0.5, split="block", block_px=64, buffer_px=8, val=0.2, test=0.2)
EVERYTHING_TRAINS = PrepareConfig(tile_px=32, overlap=0.0, split="scene", val=0, test=0, min_valid=0)


def squares(folder: Path, windows: list[Window] | None = None, kinds: list[str] | None = None) -> Path:
    shapes = [GRID.footprint(window) for window in windows or SQUARES]
    geopandas.GeoDataFrame({"kind": kinds or ["field"] * len(shapes)}, geometry=shapes, crs=UTM12).to_file(
        folder / "a.gpkg"
    )
    return folder / "a.gpkg"


def scene(folder: Path, pixels: ndarray | None = None, name: str = "scene.tif", **options: object) -> Path:
    return write_raster(folder / name, textured(3, 256, 256) if pixels is None else pixels, **options)


def vector(folder: Path) -> VectorSource:
    return VectorSource((scene(folder),), squares(folder))


def pictures(folder: Path, count: int = 8, size: int = 64) -> MaskSource:
    """Return `count` PNGs with masks of which one half is 1 and the other 2."""
    for side in ("images", "masks"):
        (folder / side).mkdir()
    for number in range(count):
        pixels = np.moveaxis(textured(3, size, size, seed=number), 0, 2)
        Picture.fromarray(pixels).save(folder / "images" / f"p{number}.png")
        half = np.repeat([[1, 2]], size // 2, axis=1).astype(np.uint8)
        Picture.fromarray(np.tile(half, (size, 1))).save(folder / "masks" / f"p{number}.png")
    return MaskSource(folder / "images", folder / "masks", {1: "forest", 2: "other"})


def expected_labels() -> ndarray:
    labels = np.zeros((256, 256), np.uint8)
    for window in SQUARES:
        labels[window.slices] = 1
    return labels


def test_tiles_have_the_class_fractions_of_their_labels(tmp_path: Path) -> None:
    tiles = prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS)
    labels = expected_labels()
    assert np.array_equal(read_labels(tiles.mask_path("scene"), GRID.window), labels)
    assert {tile.split for tile in tiles.tiles} == {"train", "val", "test"}
    for tile in tiles.tiles:
        share = labels[tile.window.slices].mean()
        assert tile.valid == 1
        assert tile.class_fractions == pytest.approx((1 - share, share))
    assert tiles == TileSet.open(tmp_path / "tiles")


def test_the_index_opens_in_a_gis(tmp_path: Path) -> None:
    tiles = prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS)
    frame = geopandas.read_file(tmp_path / "tiles" / "tiles.gpkg")
    assert frame.crs == UTM12
    assert len(frame) == len(tiles.tiles)
    assert list(frame.columns) == [
        *("scene", "split", "row", "col", "height", "width", "valid"),
        *("fraction_0_background", "fraction_1_a", "geometry"),
    ]
    assert np.allclose(frame.area, (32 * 0.1) ** 2)
    assert frame.geometry[0].equals(GRID.footprint(tiles.tiles[0].window)) or frame.geometry[0].area > 0


def test_statistics_are_of_training_pixels_each_once(tmp_path: Path) -> None:
    pixels = textured(3, 256, 256)
    tiles = prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS)
    trains = np.zeros((256, 256), bool)
    for tile in tiles.split("train"):
        trains[tile.window.slices] = True
    assert 0 < trains.sum() < trains.size
    assert tiles.meta.mean == pytest.approx(pixels[:, trains].mean(axis=1))
    assert tiles.meta.std == pytest.approx(pixels[:, trains].std(axis=1))


def test_images_that_can_be_read_by_windows_are_not_copied(tmp_path: Path) -> None:
    tiles = prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS)
    assert sorted(path.name for path in (tmp_path / "tiles").iterdir()) == ["masks", "tiles.gpkg", "tileset.json"]
    assert tiles.image_path("scene") == (tmp_path / "scene.tif").resolve()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gpkg", "scene.tif", "tiles"]


def test_pictures_are_copied_once_and_read_by_windows(tmp_path: Path) -> None:
    tiles = prepare(pictures(tmp_path), tmp_path / "tiles", PrepareConfig(tile_px=32))
    assert tiles.meta.scenes[0].image == "images/p0.tif"
    assert len(list((tmp_path / "tiles" / "images").iterdir())) == 8
    for name in tiles.scenes:
        with Image.open(tiles.image_path(name)) as image:
            assert image.info.windowed
    (tmp_path / "tiles").rename(tmp_path / "moved")
    pixels, label = TileSet.open(tmp_path / "moved").samples("train")[0]
    assert pixels.shape == (3, 32, 32)
    assert set(np.unique(label)) <= {0, 1}


def test_the_same_input_has_the_same_fingerprint(tmp_path: Path) -> None:
    source = vector(tmp_path)
    first, again = (prepare(source, tmp_path / name, BLOCKS).meta for name in ("one", "two"))
    assert first.fingerprint == again.fingerprint
    other_split = prepare(source, tmp_path / "three", replace(BLOCKS, seed=1)).meta
    squares(tmp_path, [*SQUARES, Window(0, 0, 1, 1)])
    other_label = prepare(source, tmp_path / "four", BLOCKS).meta
    scene(tmp_path, textured(3, 256, 256, seed=5))
    other_image = prepare(source, tmp_path / "five", BLOCKS).meta
    found = {meta.fingerprint for meta in (first, other_split, other_label, other_image)}
    assert len(found) == 4


def test_nodata_and_nan_are_neither_labelled_nor_counted(tmp_path: Path) -> None:
    pixels = textured(2, 256, 256).astype(np.float32)
    pixels[:, :64] = -9999
    pixels[1, 64:128, 64:128] = np.nan
    valid = np.isfinite(pixels).all(axis=0) & (pixels[0] != -9999)
    source = VectorSource((scene(tmp_path, pixels, nodata=-9999),), squares(tmp_path))
    tiles = prepare(source, tmp_path / "tiles", EVERYTHING_TRAINS)
    assert np.array_equal(
        read_labels(tiles.mask_path("scene"), GRID.window), np.where(valid, expected_labels(), IGNORE)
    )
    assert tiles.meta.mean == pytest.approx(pixels[:, valid].mean(axis=1, dtype=float))
    assert tiles.meta.std == pytest.approx(pixels[:, valid].std(axis=1, dtype=float))
    assert tiles.meta.scale is None
    for pixels, label in (tiles.samples("train")[i] for i in range(len(tiles.tiles))):
        assert np.isfinite(pixels).all()
        assert (label != IGNORE).any()


def test_tiles_with_too_few_valid_pixels_are_skipped(tmp_path: Path) -> None:
    pixels = textured(3, 256, 256)
    pixels[:, :, :100] = 0
    source = VectorSource((scene(tmp_path, pixels, nodata=0),), squares(tmp_path))
    config = PrepareConfig(tile_px=32, overlap=0, split="scene", val=0, test=0, min_valid=0.5)
    tiles = prepare(source, tmp_path / "tiles", config)
    assert {tile.window.col for tile in tiles.tiles} == {96, 128, 160, 192, 224}
    assert min(tile.valid for tile in tiles.tiles) == pytest.approx(28 / 32)


def test_samples_can_be_pickled(tmp_path: Path) -> None:
    samples = prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS).samples("val")
    here = samples[0]
    there = pickle.loads(pickle.dumps(samples))[0]
    for mine, theirs in zip(here, there, strict=True):
        assert np.array_equal(mine, theirs)
    assert here[0].dtype == np.float32


def test_groups_stay_whole(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    groups = {f"p{number}": f"place {number % 4}" for number in range(8)}
    grouped = MaskSource(source.images, source.masks, source.classes, groups=groups)
    tiles = prepare(grouped, tmp_path / "tiles", PrepareConfig(tile_px=32, split="group"))
    splits = {(tiles.scenes[tile.scene].group, tile.split) for tile in tiles.tiles}
    assert len(splits) == 4
    assert tiles.scenes["p5"].group == "place 1"


def test_a_test_set_may_lack_a_class_and_training_tiles(tmp_path: Path) -> None:
    source = VectorSource((scene(tmp_path),), squares(tmp_path, SQUARES[:2], ["field", "pond"]), "kind")
    config = PrepareConfig(tile_px=32, overlap=0, split="scene", val=0, test=1)
    tiles = prepare(source, tmp_path / "tiles", config)
    assert {tile.split for tile in tiles.tiles} == {"test"}
    assert tiles.meta.mean == pytest.approx(textured(3, 256, 256).mean(axis=(1, 2)))


def test_polygons_that_leave_no_background_are_fine(tmp_path: Path) -> None:
    halves = [Window(0, 0, 256, 128), Window(0, 128, 256, 128)]
    source = VectorSource((scene(tmp_path),), squares(tmp_path, halves, ["field", "pond"]), "kind")
    assert prepare(source, tmp_path / "tiles", EVERYTHING_TRAINS).meta.legend.names == ("background", "field", "pond")


@pytest.mark.parametrize(("tile_px", "fits"), [(257, False), (256, True)])
def test_a_tile_larger_than_the_image(tmp_path: Path, tile_px: int, fits: bool) -> None:
    config = PrepareConfig(tile_px=tile_px, split="scene", val=0, test=0)
    if fits:
        assert len(prepare(vector(tmp_path), tmp_path / "tiles", config).tiles) == 1
        return
    with pytest.raises(InputError, match=r"257 pixels .*scene\.tif, .* 256 x 256.* --tile-px 256"):
        prepare(vector(tmp_path), tmp_path / "tiles", config)


def no_pixel_of_a_class(folder: Path) -> LabelSource:
    source = pictures(folder)
    return MaskSource(source.images, source.masks, {1: "forest", 2: "other", 3: "water"})


def undeclared(folder: Path) -> LabelSource:
    source = pictures(folder)
    return MaskSource(source.images, source.masks, {1: "forest", 3: "other"})


def nothing_valid(folder: Path) -> LabelSource:
    return VectorSource((scene(folder, np.zeros((3, 256, 256), np.uint8), nodata=0),), squares(folder))


def truncated(folder: Path) -> LabelSource:
    path = scene(folder, compress="deflate")
    path.write_bytes(path.read_bytes()[:100_000])
    return VectorSource((path,), squares(folder))


def truncated_picture(folder: Path) -> LabelSource:
    source = pictures(folder)
    path = source.images / "p3.png"
    path.write_bytes(path.read_bytes()[:5000])
    return source


def truncated_mask(folder: Path) -> LabelSource:
    source = pictures(folder, size=256)
    noise = np.random.default_rng(0).integers(1, 3, (256, 256), dtype=np.uint8)
    Picture.fromarray(noise).save(source.masks / "p3.png")
    (source.masks / "p3.png").write_bytes((source.masks / "p3.png").read_bytes()[:4000])
    return source


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_pixel_of_a_class, "class water"),
        (undeclared, r"p0\.png .*values 2 "),
        (nothing_valid, "labelled"),
        (truncated, r"scene\.tif: rows 0 to 256, columns 0 to 256, cannot be read"),
        (truncated_picture, r"p3\.png: rows 0 to 64"),
        (truncated_mask, r"p3\.png: rows 0 to 256"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], LabelSource], message: str
) -> None:
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GeograftError, match=message) as caught:
        prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32))
    assert isinstance(caught.value, InputError | SettingError)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_class_without_training_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ["field"] * 16 + ["pond"]
    source = VectorSource((scene(tmp_path),), squares(tmp_path, [*SQUARES, Window(0, 0, 8, 8)], kinds), "kind")
    planned = [("scene", Window(0, 0, 32, 32), "val"), ("scene", Window(16, 80, 32, 32), "train")]
    monkeypatch.setattr("geograft.commands.prepare.plan_tiles", lambda places, config: planned)
    with pytest.raises(InputError, match=r"pond.* --seed"):
        prepare(source, tmp_path / "tiles", replace(BLOCKS, test=0))


def test_a_split_without_labelled_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "geograft.commands.prepare.plan_tiles", lambda places, config: [("scene", Window(0, 0, 32, 32), "val")]
    )
    with pytest.raises(InputError, match=r"train.*test.*10%"):
        prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "mine").write_text("x")
    with pytest.raises(OutputError, match="exists already"):
        prepare(vector(tmp_path), tmp_path / "tiles", BLOCKS)
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["mine"]


@pytest.mark.parametrize("size", [0, 300, 3000, 30_000, 100_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, size: int) -> None:
    source = pictures(tmp_path, count=3, size=256)
    before = sorted(tmp_path.rglob("*"))
    with max_file_size(size), pytest.raises(OutputError, match="tiles"):
        prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32))
    assert sorted(tmp_path.rglob("*")) == before


def test_the_amazon_scenes(tmp_path: Path, shared: Path) -> None:
    amazon = shared / "data" / "amazon"
    source = MaskSource(amazon / "images", amazon / "masks", {1: "forest", 2: "other"}, skip_mismatched=True)
    tiles = prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=256, val=0.2, test=0))
    assert len(tiles.meta.scenes) == 29
    assert "Amazon_181.tiff_34" not in tiles.scenes
    assert tiles.meta.legend.names == ("other", "forest")
    assert tiles.meta.scale == 255
    assert tiles.meta.band_names == ("band 1", "band 2", "band 3")
    assert len({tile.scene for tile in tiles.split("val")}) == 6
    for name in tiles.scenes:
        with Image.open(amazon / "masks" / f"{name}.png") as mask:
            values = mask.read_raw(mask.info.grid.window)[0]
        labels = read_labels(tiles.mask_path(name), Window(0, 0, 512, 512))
        assert np.array_equal(labels == 1, values == 1)
        assert np.array_equal(labels == 0, values == 2)


def test_dstl_from_its_zip_files(tmp_path: Path, shared: Path) -> None:
    dstl, folder = shared / "data" / "dstl", tmp_path / "dstl"
    folder.mkdir()
    (folder / "train_wkt.csv.gz").symlink_to(dstl / "train_wkt.csv.gz")
    with zipfile.ZipFile(folder / "grid_sizes.csv.zip", "w") as archive:
        archive.write(dstl / "grid_sizes.csv", "grid_sizes.csv")
    names = ["6010_1_2", "6010_4_4", "6060_2_3", "6110_1_2", "6140_1_2", "6170_2_4", "6160_2_1"]
    with zipfile.ZipFile(folder / "three_band.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(dstl / "sixteen_band" / f"{name}_A.tif", f"three_band/{name}.tif")
    tiles = prepare(DstlSource(folder, (5,)), tmp_path / "tiles", PrepareConfig(tile_px=64))
    assert sorted(tiles.scenes) == sorted(names)
    assert tiles.meta.scale == 16384
    assert tiles.meta.scenes[0].image == "images/6010_1_2.tif"
    assert len({tile.split for tile in tiles.tiles if tile.scene in ("6110_1_2", "6140_1_2")}) == 1
    with (
        Image.open(dstl / "sixteen_band" / "6010_1_2_A.tif") as before,
        Image.open(tiles.image_path("6010_1_2")) as after,
    ):
        assert np.array_equal(before.read(before.info.grid.window)[0], after.read(after.info.grid.window)[0])


MEASURE = """
import re, sys
from pathlib import Path
from geograft.config import PrepareConfig
from geograft.dataset.sources import VectorSource
from geograft.commands.prepare import prepare
folder = Path(sys.argv[1])
source = VectorSource((folder / "scene.tif",), folder / "a.gpkg")
prepare(source, folder / "tiles", PrepareConfig(tile_px=256, overlap=0))
print(re.search("VmHWM:[^0-9]*([0-9]+) kB", Path("/proc/self/status").read_text()).group(1))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's peak memory")
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    peaks = []
    for size in (1024, 10240):
        folder = tmp_path / str(size)
        pixels = np.broadcast_to(textured(1, 1, size), (3, size, size))
        scene(folder, pixels, blockxsize=256, blockysize=256, compress="deflate")
        squares(folder)
        command = [sys.executable, "-c", MEASURE, str(folder)]
        small_cache = {**os.environ, "GDAL_CACHEMAX": "32"}
        done = subprocess.run(command, env=small_cache, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    # A hundred times the pixels, 300 MB of them.
    assert peaks[1] - peaks[0] < 100


def test_touching_sheets_are_one_place(tmp_path: Path) -> None:
    for side in ("images", "masks"):
        for row in range(2):
            for col in range(4):
                there = TENTH_METRE @ Affine.translation(128 * col, 128 * row)
                pixels = textured(3 if side == "images" else 1, 128, 128, seed=4 * row + col)
                write_raster(tmp_path / side / f"{row}{col}.tif", pixels if side == "images" else pixels % 2, there)
    source = MaskSource(tmp_path / "images", tmp_path / "masks", {1: "a", 0: "b"})
    tiles = prepare(source, tmp_path / "tiles", PrepareConfig(tile_px=32, buffer_px=8))
    assert tiles.meta.source["adjacent scenes"].startswith("8 in 1 place")
    assert "duplicate scenes" not in tiles.meta.source
    assert {scene.position.place for scene in tiles.meta.scenes if scene.position} == {"00"}
    assert len({(tile.scene, tile.split) for tile in tiles.tiles}) > 8
    found = audit_tile_set(tiles)
    assert not found.leaks
    # UTM's scale at its central meridian is 0.9996.
    assert min(held.distances.min() for held in found.held_out) >= 0.8 * 0.999
    assert units_of(tiles, "test").kind == "block"
    folds = plan_folds([SplitScene.of(scene) for scene in tiles.meta.scenes], tiles.meta.settings, 2)
    assert all({split for _, _, split in planned} == {"train", "val", "test"} for planned in folds)


@pytest.mark.parametrize(
    "options",
    [{"buffer_px": 64}, {"block_px": 128}, {"split": "scene", "buffer_px": 64}, {"split": "article", "block_px": 128}],
)
def test_an_option_without_effect_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    (name, value) = list(options.items())[-1]
    with pytest.raises(SettingError, match=f"--{name.replace('_', '-')} {value} "):
        prepare(pictures(tmp_path), tmp_path / "tiles", PrepareConfig(tile_px=16, **options))
    assert not (tmp_path / "tiles").exists()
