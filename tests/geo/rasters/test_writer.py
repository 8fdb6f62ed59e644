"""Rasters are written atomically, with georeference, colours and overviews."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from PIL import Image as Picture
from pyproj import CRS

from geograft.errors import InputError, OutputError
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.rasters.raster import Image, read_mask
from geograft.geo.rasters.writer import MapLayout, WrittenBlocks, copy_tiled, create_labels, create_map
from geograft.legend import IGNORE, Legend
from tests.support.full_disk import max_file_size
from tests.support.rasters import TENTH_METRE, UTM12, read_labels, textured, write_raster

GRID = Grid(700, 900, TENTH_METRE, CRS.from_user_input(UTM12))
LEGEND = Legend(("background", "trees"))
OVERLAPPING = Legend(("trees", "roofs", "roads"), overlapping=True)
CLASSES = MapLayout(nodata=255, colours={0: "#D9D9D9", 1: "#009E73"}, tags={"CLASS_1": "trees"}, band_names=("class",))


def write_map(path: Path, pixels: ndarray, layout: MapLayout) -> None:
    grid = Grid(*pixels.shape[1:], GRID.transform, GRID.crs)
    with create_map(path, grid, layout) as writer:
        for window in block_windows(grid.window, 512, 300):
            writer.write(pixels[:, *window.slices], window)


def test_a_map_of_classes(tmp_path: Path) -> None:
    pixels = textured(1, 700, 900) % 2
    write_map(tmp_path / "maps" / "map.tif", pixels, CLASSES)
    with rasterio.open(tmp_path / "maps" / "map.tif") as raster:
        assert np.array_equal(raster.read(), pixels)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.overviews(1) == [2]
        assert raster.nodata == 255
        assert raster.transform == GRID.transform
        assert raster.crs.to_epsg() == 32612
        assert raster.colormap(1)[1] == (0, 158, 115, 255)
        assert raster.tags()["CLASS_1"] == "trees"
        assert raster.descriptions == ("class",)
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["map.tif"]


def test_overviews_of_classes_hold_classes_only(tmp_path: Path) -> None:
    pixels = (textured(1, 700, 900) % 2) * 7
    write_map(tmp_path / "map.tif", pixels, CLASSES)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as raster:
        assert set(np.unique(raster.read())) == {0, 7}


def test_overviews_of_probabilities_are_means_of_valid_pixels(tmp_path: Path) -> None:
    pixels = np.full((2, 1024, 1024), 100, np.uint8)
    pixels[:, ::2, ::2] = 255
    pixels[1] = np.where(pixels[1] == 255, 255, 50)
    write_map(tmp_path / "p.tif", pixels, MapLayout(2, nodata=255, overviews="average", band_names=("a", "b")))
    with rasterio.open(tmp_path / "p.tif", overview_level=0) as raster:
        assert [np.unique(band).tolist() for band in raster.read()] == [[100], [50]]


@pytest.mark.parametrize("bands", [1, 3, 4, 6])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_bands_stay_bands(tmp_path: Path, bands: int, dtype: str) -> None:
    pixels = textured(bands, 600, 520).astype(dtype)
    write_map(tmp_path / "p.tif", pixels, MapLayout(bands, dtype, overviews="average"))
    with Image.open(tmp_path / "p.tif") as image:
        found, valid = image.read(image.info.grid.window)
        assert image.info.bands == bands
    assert np.array_equal(found, pixels)
    assert valid.all()


def halves(bands: int, height: int, width: int) -> ndarray:
    values: ndarray = np.random.default_rng(0).random((bands, height, width)).astype(np.float16).astype(np.float32)
    values[:, 20:60] = np.nan
    return values


@pytest.mark.parametrize(("height", "width", "levels"), [(110, 130, []), (700, 520, [2]), (100, 1030, [2, 4])])
def test_half_floats_are_written_as_cloud_optimised_geotiff(
    tmp_path: Path, height: int, width: int, levels: list[int]
) -> None:
    pixels = halves(3, height, width)
    layout = MapLayout(3, "float16", float("nan"), overviews="average", band_names=("a", "b", "c"))
    for name in ("one", "other"):
        write_map(tmp_path / f"{name}.tif", pixels, layout)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "other.tif").read_bytes()
    with rasterio.open(tmp_path / "one.tif") as raster:
        np.testing.assert_array_equal(raster.read(), pixels)
        assert raster.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"
        assert raster.overviews(1) == levels
        assert np.isnan(raster.nodata)
        assert raster.descriptions == ("a", "b", "c")
        assert raster.profile["interleave"] == "band"
        # Cloud-optimised: all directories come first, then the overviews, smallest first, then the map.
        data = [int(raster.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))]
        data += [int(raster.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1, ovr=i)) for i in range(len(levels))]
        directories = [int(raster.get_tag_item("IFD_OFFSET", "TIFF", bidx=1))]
        directories += [int(raster.get_tag_item("IFD_OFFSET", "TIFF", bidx=1, ovr=i)) for i in range(len(levels))]
    assert directories == sorted(directories)
    assert data == sorted(data, reverse=True)
    assert max(directories) < min(data)


def test_blocks_of_nodata_are_omitted_from_the_file(tmp_path: Path) -> None:
    grid = Grid(3000, 4000, GRID.transform, GRID.crs)
    for dtype, nodata in (("uint8", 255), ("float16", float("nan"))):
        path = tmp_path / f"{dtype}.tif"
        with create_map(path, grid, MapLayout(2, dtype, nodata, overviews="average")) as writer:
            window = Window(1030, 2060, 300, 400)
            pixels = np.full((2, 300, 400), 7, np.uint8 if dtype == "uint8" else np.float32)
            writer.write(pixels, window)
        with rasterio.open(path) as raster:
            there = [raster.get_tag_item(f"BLOCK_OFFSET_{c}_{r}", "TIFF", bidx=1) for r in range(6) for c in range(8)]
        # GDAL copies whole rows of blocks, and recognises blocks of nodata by their bytes, except for NaN.
        assert sum(offset is not None for offset in there) == (1 if dtype == "uint8" else 8)
        with Image.open(path) as image:
            found, valid = image.read(grid.window)
        assert valid.sum() == 300 * 400
        assert (found[:, *window.slices] == 7).all()


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_a_block_missing_from_the_file_is_detected(tmp_path: Path, dtype: str) -> None:
    grid, layout = Grid(1200, 1200, GRID.transform, GRID.crs), MapLayout(1, dtype, 255)
    with (
        pytest.raises(OutputError, match=r"map\.tif.* 1 blocks"),
        create_map(tmp_path / "map.tif", grid, layout) as writer,
    ):
        writer.write(np.full((1, 600, 300), 7, np.float32 if dtype == "float16" else np.uint8), Window(0, 0, 600, 300))
        # Pretend that another block was written.
        assert writer.blocks
        writer.blocks.nonempty[0, 2, 2] = True
    assert not list(tmp_path.iterdir())


@given(st.integers(0, 2**31), st.sampled_from([255.0, float("nan"), None]))
def test_nonempty_blocks_are_tracked(seed: int, nodata: float | None) -> None:
    rng = np.random.default_rng(seed)
    blank = 0 if nodata is None else nodata
    pixels = np.where(rng.random((2, 40, 50)) < 0.01, 3.0, blank)
    blocks = WrittenBlocks(Grid(40, 50, GRID.transform, GRID.crs), 2, 16, nodata)
    for window in block_windows(Window(0, 0, 40, 50), *rng.integers(1, 40, 2).tolist()):
        blocks.mark(pixels[:, *window.slices], window)
    for band, row, col in np.ndindex(*blocks.nonempty.shape):
        nonempty = pixels[band, 16 * row : 16 * row + 16, 16 * col : 16 * col + 16] == 3
        assert blocks.nonempty[band, row, col] == nonempty.any()


def test_pixels_never_written_are_nodata(tmp_path: Path) -> None:
    with create_map(tmp_path / "map.tif", GRID, CLASSES) as writer:
        writer.write(np.ones((1, 512, 512), np.uint8), Window(0, 0, 512, 512))
    with Image.open(tmp_path / "map.tif") as image:
        valid = image.read(GRID.window)[1]
    assert valid[:512, :512].all()
    assert valid.sum() == 512 * 512


def test_a_map_without_georeference(tmp_path: Path) -> None:
    with create_map(tmp_path / "map.tif", Grid(20, 30, Affine.identity(), None), CLASSES) as writer:
        writer.write(np.ones((1, 20, 30), np.uint8), Window(0, 0, 20, 30))
    with Image.open(tmp_path / "map.tif") as image:
        assert image.info.grid == Grid(20, 30, Affine.identity(), None)


def test_a_failure_leaves_the_existing_map(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_text("before")
    with pytest.raises(RuntimeError), create_map(path, GRID, CLASSES) as writer:
        writer.write(np.ones((1, 512, 512), np.uint8), Window(0, 0, 512, 512))
        raise RuntimeError
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["map.tif"]


def test_labels_have_names_and_colours(tmp_path: Path) -> None:
    labels = textured(1, 512, 900) % 2
    with create_labels(tmp_path / "mask.tif", GRID, LEGEND) as writer:
        writer.write(labels, Window(0, 0, 512, 900))
    found = read_labels(tmp_path / "mask.tif", GRID.window)
    assert np.array_equal(found[:512], labels[0])
    assert (found[512:] == IGNORE).all()
    with Image.open(tmp_path / "mask.tif") as image:
        assert image.info.windowed
        assert image.info.palette
        assert image.info.tags["CLASS_1"] == "trees"


def test_a_mask_of_fractions_names_its_bands(tmp_path: Path) -> None:
    for legend, names in ((LEGEND, LEGEND.names[-LEGEND.outputs :]), (OVERLAPPING, OVERLAPPING.names)):
        with create_labels(tmp_path / "fractions.tif", GRID, legend, fractional=True):
            pass
        with rasterio.open(tmp_path / "fractions.tif") as raster:
            assert raster.descriptions == names
            assert raster.tags()["FRACTION_SCALE"] == "250"
        assert (read_mask(tmp_path / "fractions.tif", GRID.window) == IGNORE).all()


def put_map(folder: Path) -> None:
    write_map(folder / "map.tif", textured(1, 700, 900), MapLayout(overviews="average"))


def put_labels(folder: Path) -> None:
    with create_labels(folder / "mask.tif", GRID, LEGEND) as writer:
        writer.write(textured(1, 700, 900), GRID.window)


def put_copy(folder: Path) -> None:
    copy_tiled(folder.parent / "source.tif", folder / "copy.tif")


@pytest.mark.parametrize("put", [put_map, put_labels, put_copy])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_full_disk_is_an_error_and_leaves_no_file(
    tmp_path: Path, put: Callable[[Path], None], fraction: float
) -> None:
    write_raster(tmp_path / "source.tif", textured(3, 500, 500))
    folder = tmp_path / "out"
    folder.mkdir()
    put(folder)
    (written,) = folder.glob("*.tif")
    size = written.stat().st_size
    for path in folder.iterdir():
        path.unlink()
    with (
        max_file_size(int(size * fraction)),
        pytest.raises(OutputError, match=rf"{written.name}.*--out"),
    ):
        put(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_copied_picture_holds_the_same_pixels(tmp_path: Path, suffix: str, mode: str) -> None:
    pixels = textured(3, 300, 400)
    Picture.fromarray(np.moveaxis(pixels, 0, 2)).convert(mode).save(tmp_path / f"a{suffix}")
    assert_same_after_copy(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
def test_a_copied_raster_keeps_georeference_and_nodata(tmp_path: Path, dtype: str) -> None:
    pixels = textured(2, 300, 400).astype(dtype)
    pixels[:, 9, 9] = 0
    assert_same_after_copy(write_raster(tmp_path / "a.tif", pixels, nodata=0))


def test_a_copy_keeps_alpha(tmp_path: Path) -> None:
    pixels = np.moveaxis(textured(4, 300, 400), 0, 2)
    pixels[5, 6, 3] = 0
    Picture.fromarray(pixels).save(tmp_path / "a.png")
    assert_same_after_copy(tmp_path / "a.png")


def test_a_copy_has_an_internal_mask(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", textured(3, 300, 400))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as raster:
        raster.write_mask(np.eye(300, 400, dtype=np.uint8) * 255)
    assert_same_after_copy(path)
    assert not (tmp_path / "copy" / "a.tif.msk").exists()


def test_a_copy_of_a_1_bit_image_has_whole_bytes(tmp_path: Path) -> None:
    Picture.fromarray(textured(1, 300, 400)[0] > 99).save(tmp_path / "a.png")
    assert_same_after_copy(tmp_path / "a.png")


def test_a_truncated_source_is_an_input_error(tmp_path: Path) -> None:
    Picture.fromarray(np.moveaxis(textured(3, 300, 400), 0, 2)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200_000])
    with pytest.raises(InputError, match=r"cut\.png: rows 0 to 300"):
        copy_tiled(tmp_path / "cut.png", tmp_path / "copy.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.png"]


def assert_same_after_copy(path: Path) -> None:
    copy = path.parent / "copy" / f"{path.stem}.tif"
    copy_tiled(path, copy)
    with Image.open(path) as before, Image.open(copy) as after:
        assert after.info.windowed
        assert after.info.bands == before.info.bands
        assert after.info.grid == before.info.grid
        for mine, theirs in zip(before.read(GRID.window), after.read(GRID.window), strict=True):
            assert np.array_equal(mine, theirs)
    assert [found.name for found in copy.parent.iterdir()] == [copy.name]
