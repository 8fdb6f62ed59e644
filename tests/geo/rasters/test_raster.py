"""Windowed reading of images and labels, and the rule for valid pixels."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image as Picture
from rasterio.enums import ColorInterp

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.nodata import NodataRule, ValidityRule, valid_pixels
from geograft.geo.rasters.raster import MAX_OPEN_FILES, Image, close_labels
from geograft.legend import IGNORE
from tests.support.rasters import read_labels, textured, write_raster

ALL = Window(0, 0, 20, 30)
WINDOWS = st.builds(Window, st.integers(-40, 160), st.integers(-40, 260), st.integers(1, 90), st.integers(1, 90))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("raster") / "scene.tif", textured(3, 150, 250))


@given(window=WINDOWS)
@settings(deadline=None, max_examples=50)
def test_a_window_is_a_crop_of_the_padded_image(scene: Path, window: Window) -> None:
    padded = np.pad(textured(3, 150, 250), ((0, 0), (50, 350), (50, 350)))
    rows, cols = Window(window.row + 50, window.col + 50, window.height, window.width).slices
    with Image.open(scene) as image:
        pixels, valid = image.read(window)
    assert np.array_equal(pixels, padded[:, rows, cols])
    assert np.array_equal(valid, padded[0, rows, cols] > 0)  # the texture is never 0
    assert pixels.dtype == np.uint8


def test_metadata(scene: Path) -> None:
    with Image.open(scene) as image:
        info = image.info
    assert (info.grid.height, info.grid.width, info.bands, info.dtype) == (150, 250, 3, "uint8")
    assert info.band_names == ("red", "green", "blue")
    assert info.grid.crs is not None
    assert info.grid.crs.to_epsg() == 32612
    assert info.windowed
    assert not info.palette


def test_bands_are_counted_from_one(scene: Path) -> None:
    with Image.open(scene) as image:
        both, _ = image.read(ALL, bands=[3, 1])
        every, _ = image.read(ALL)
    assert np.array_equal(both, every[[2, 0]])


BOTH, WHOLE = [[0, 0], [5, 5]], [[0, 0]]
"""Invalid pixels where any band must be nodata, or all."""


@pytest.mark.parametrize(
    ("dtype", "nodata", "rule", "invalid"),
    [
        ("uint8", 0, "auto", WHOLE),
        ("uint8", 255, "auto", WHOLE),
        ("uint16", 65535, "auto", WHOLE),
        ("int16", 32767, "auto", WHOLE),
        ("int16", -32768, "auto", BOTH),
        ("int16", -9999, "auto", BOTH),
        ("uint8", 7, "auto", BOTH),
        ("float32", -9999, "auto", BOTH),
        ("float32", 0, "auto", BOTH),
        ("uint8", 0, "any", BOTH),
        ("float32", -9999, "all", WHOLE),
    ],
)
def test_nodata_in_some_bands(tmp_path: Path, dtype: str, nodata: float, rule: NodataRule, invalid: object) -> None:
    pixels = textured(3, 20, 30).astype(dtype)
    pixels[pixels == nodata] = 9
    pixels[:, 0, 0] = nodata
    pixels[1, 5, 5] = nodata
    path = write_raster(tmp_path / "a.tif", pixels, nodata=nodata)
    with Image.open(path, validity=ValidityRule(rule)) as image:
        found, valid, partial = image.read_counted(ALL)
        assert np.array_equal(image.read(ALL)[1], valid)
    assert np.argwhere(~valid).tolist() == invalid
    assert np.argwhere(partial).tolist() == [[5, 5]]
    assert np.array_equal(found[:, valid], pixels[:, valid])
    assert (found[:, ~valid] == 0).all()
    with Image.open(path, validity=ValidityRule(rule), bands=(1, 3)) as image:  # only bands in use count
        assert np.argwhere(~image.read(ALL)[1]).tolist() == WHOLE
    with Image.open(path, validity=ValidityRule(rule)) as image:
        mosaic = Mosaic([image.info])
    assert np.argwhere(~mosaic.read(ALL)[1]).tolist() == invalid


@given(data=st.data())
@settings(max_examples=40)
def test_any_is_at_most_as_valid_as_all(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 4)), 3, 4)
    pixels = data.draw(arrays(np.int16, shape, elements=st.sampled_from([-9999, 0, 1])))
    nodata = data.draw(st.lists(st.sampled_from([None, -9999, 0]), min_size=shape[0], max_size=shape[0]))
    for_any, missing = valid_pixels(pixels, nodata, "any")
    for_all, _ = valid_pixels(pixels, nodata, "all")
    assert np.array_equal(for_any, missing == 0)
    assert np.array_equal(for_all, missing < shape[0])
    assert not (for_any & ~for_all).any()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("float32", -9999), ("float64", 0.1), ("float32", -3.4028234663852886e38), ("int16", -1)]
)
def test_nodata_of_other_dtypes(tmp_path: Path, dtype: str, nodata: float) -> None:
    pixels = textured(2, 20, 30).astype(dtype)
    pixels[:, 3, 4] = nodata
    with Image.open(write_raster(tmp_path / "a.tif", pixels, nodata=nodata)) as image:
        found, valid = image.read(ALL)
    assert np.argwhere(~valid).tolist() == [[3, 4]]
    assert (found[:, 3, 4] == 0).all()
    assert np.array_equal(found[:, valid], pixels[:, valid])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_not_finite_in_one_band_is_not_valid(tmp_path: Path, bad: float) -> None:
    pixels = textured(3, 20, 30).astype(np.float32)
    pixels[1, 7, 8] = bad
    with Image.open(write_raster(tmp_path / "a.tif", pixels)) as image:
        found, valid = image.read(ALL)
    assert np.argwhere(~valid).tolist() == [[7, 8]]
    assert (found[:, 7, 8] == 0).all()


def test_a_nan_nodata_value_masks_no_finite_pixel(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.vrt.tif", textured(1, 20, 30).astype(np.float32), nodata=np.nan)
    with Image.open(path) as image:
        assert image.read(ALL)[1].all()


def test_alpha_masks_pixels_and_is_not_a_band(tmp_path: Path) -> None:
    pixels = textured(4, 20, 30)
    pixels[3] = 255
    pixels[3, 2, 3] = 0
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", alpha="unspecified")
    with rasterio.open(path, "r+") as raster:
        raster.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    with Image.open(path) as image:
        found, valid = image.read(ALL)
        assert image.info.bands == 3
    assert np.argwhere(~valid).tolist() == [[2, 3]]
    assert np.array_equal(found[:, valid], pixels[:3, valid])


def test_a_band_tagged_alpha_can_be_a_band(tmp_path: Path) -> None:
    pixels = textured(4, 20, 30)
    pixels[3, 2, 3] = 0
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", alpha="yes")
    with Image.open(path) as image:
        assert (image.info.bands, image.info.alpha) == (3, 4)
        assert np.array_equal(image.read_alpha(ALL), pixels[3])
    rule = ValidityRule(alpha=False)
    with Image.open(path, validity=rule) as image:
        found, valid = image.read(ALL)
        assert (image.info.bands, image.info.alpha, image.info.band_names[3]) == (4, 0, "band 4")
        mosaic = Mosaic([image.info], bands=(4, 1))
    assert valid.all()
    assert np.array_equal(found, pixels)
    assert np.array_equal(mosaic.read(ALL)[0], pixels[[3, 0]])


@pytest.mark.parametrize("internal", [True, False])
def test_a_mask_band_masks_pixels(tmp_path: Path, internal: bool) -> None:
    path = write_raster(tmp_path / "a.tif", textured(3, 20, 30))
    mask = np.full((20, 30), 255, np.uint8)
    mask[4:6, 9] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as raster:
        raster.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists() is not internal
    with Image.open(path) as image:
        assert np.array_equal(image.read(ALL)[1], mask > 0)


def test_read_raw_ignores_nodata(tmp_path: Path) -> None:
    pixels = textured(1, 20, 30)
    with Image.open(write_raster(tmp_path / "a.tif", pixels, nodata=int(pixels[0, 0, 0]))) as image:
        assert np.array_equal(image.read_raw(ALL), pixels)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_pictures_do_not_support_windowed_reading(tmp_path: Path, suffix: str) -> None:
    Picture.fromarray(np.moveaxis(textured(3, 20, 30), 0, 2)).save(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert not image.info.windowed
        assert image.info.grid.crs is None
        assert image.info.grid.transform == Affine.identity()


@pytest.mark.parametrize(
    ("options", "windowed"),
    [
        ({"tiled": True, "blockxsize": 512, "blockysize": 512}, True),
        ({"tiled": True, "blockxsize": 2048, "blockysize": 2048}, False),
        ({"tiled": False, "blockysize": 8}, True),
        ({"tiled": False, "blockysize": 2000, "compress": "deflate"}, False),
    ],
)
def test_large_blocks_do_not_support_windowed_reading(tmp_path: Path, options: dict[str, Any], windowed: bool) -> None:
    path = write_raster(tmp_path / "a.tif", np.zeros((1, 2000, 2100), np.uint8), **{"blockxsize": 16, **options})
    with Image.open(path) as image:
        assert image.info.windowed is windowed


@pytest.mark.parametrize("content", [None, b"", b"this is no image", b"II*\0" + bytes(50)])
def test_a_file_that_is_not_an_image_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scene.tif"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"scene\.tif"):
        Image.open(path)


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=tmp_path.name):
        Image.open(tmp_path)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="complex64"):
        Image.open(write_raster(tmp_path / "radar.tif", np.ones((1, 20, 30), np.complex64)))


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
@pytest.mark.parametrize("tiled", [True, False])
def test_the_error_for_a_truncated_file_names_file_and_window(tmp_path: Path, compress: str, tiled: bool) -> None:
    size = {"blockxsize": 64, "blockysize": 64} if tiled else {"blockxsize": 16, "blockysize": 16}
    path = write_raster(tmp_path / "cut.tif", textured(3, 400, 400), compress=compress, tiled=tiled, **size)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with Image.open(path) as image:
        assert image.read(Window(0, 0, 50, 50))[1].all()
        with pytest.raises(InputError, match=r"cut\.tif: rows 350 to 400, columns 10 to 60"):
            image.read(Window(350, 10, 50, 50))


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw", "zstd"])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_several_threads_decode_the_same_pixels_and_refuse_a_truncated_file(
    tmp_path: Path, compress: str, interleave: str
) -> None:
    path = write_raster(tmp_path / "cut.tif", textured(3, 400, 400), compress=compress, interleave=interleave)
    with Image.open(path, threads=4) as image:
        for window in (Window(0, 0, 400, 400), Window(30, 70, 200, 300)):
            np.testing.assert_array_equal(image.read(window)[0], textured(3, 400, 400)[:, *window.slices])
        mosaic = Mosaic((image.info,), (3, 1), threads=4)
    np.testing.assert_array_equal(mosaic.read(Window(0, 0, 400, 400))[0], textured(3, 400, 400)[[2, 0]])
    mosaic.close()
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with Image.open(path, threads=4) as image, pytest.raises(InputError, match=r"cut\.tif: rows 0 to 400"):
        image.read(Window(0, 0, 400, 400))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_truncated_picture_is_not_filled_with_grey(tmp_path: Path, suffix: str, bands: int) -> None:
    path = tmp_path / f"cut{suffix}"
    Picture.fromarray(np.moveaxis(textured(bands, 400, 400), 0, 2).squeeze()).save(path)
    path.write_bytes(path.read_bytes()[:20000])
    with Image.open(path) as image, pytest.raises(InputError, match=r"cut\.\w+: rows 0 to 400"):
        image.read(Window(0, 0, 400, 400))


def test_a_forked_process_opens_the_file_again(scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(scene) as image:
        before, opened = image.read(ALL), image._file.dataset
        monkeypatch.setattr("geograft.geo.rasters.opening.os.getpid", lambda: -1)
        after = image.read(ALL)
        assert image._file.dataset is not opened
        opened.close()
    assert np.array_equal(before[0], after[0])


def test_labels_outside_the_file_are_ignored(tmp_path: Path) -> None:
    labels = textured(1, 20, 30) % 3
    path = write_raster(tmp_path / "mask.tif", labels, nodata=IGNORE)
    found = read_labels(path, Window(-5, -5, 30, 40))
    assert np.array_equal(found[5:25, 5:35], labels[0])
    found[5:25, 5:35] = IGNORE
    assert (found == IGNORE).all()
    assert (read_labels(path, Window(100, 100, 5, 5)) == IGNORE).all()


def test_rewritten_labels_are_reopened(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "mask.tif", np.zeros((1, 20, 30), np.uint8))
    assert (read_labels(path, ALL) == 0).all()
    write_raster(path, np.ones((1, 20, 31), np.uint8))
    assert (read_labels(path, ALL) == 1).all()


def test_more_masks_than_open_files(tmp_path: Path) -> None:
    masks = [np.full((1, 20, 30), n, np.uint8) for n in range(MAX_OPEN_FILES + 3)]
    paths = [write_raster(tmp_path / f"{n}.tif", mask) for n, mask in enumerate(masks)]
    for _ in range(2):
        assert [int(read_labels(path, ALL)[0, 0]) for path in paths] == list(range(len(paths)))
    close_labels()
    assert (read_labels(paths[0], ALL) == 0).all()


def test_threads_read_labels_at_the_same_time(tmp_path: Path) -> None:
    labels = textured(1, 600, 600)
    path = write_raster(tmp_path / "mask.tif", labels, compress="deflate")
    windows = [Window(row, col, 100, 100) for row in range(0, 500, 20) for col in range(0, 500, 50)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda window: read_labels(path, window), windows))
    assert all(np.array_equal(part, labels[0][window.slices]) for part, window in zip(found, windows, strict=True))


def test_a_missing_mask_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.tif"):
        read_labels(tmp_path / "gone.tif", ALL)
