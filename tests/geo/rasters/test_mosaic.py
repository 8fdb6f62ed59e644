"""A mosaic has the same pixels as a single file, for any tiling, bands, resampling and window."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.shutil
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window, WindowIndex
from geograft.geo.rasters import mosaic as module
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.raster import Image, ImageInfo
from tests.support.rasters import TENTH_METRE, textured, write_raster

ROWS, COLS = 130, 170
WINDOWS = st.builds(Window, st.integers(-30, 150), st.integers(-30, 190), st.integers(1, 120), st.integers(1, 120))


def info(path: Path) -> ImageInfo:
    with Image.open(path) as image:
        return image.info


def scene() -> ndarray:
    pixels = textured(3, ROWS, COLS)
    pixels[:, 30:50, 60:100] = 0
    return pixels


def write_sheets(folder: Path, pixels: ndarray, rows: list[int], cols: list[int], transform: Affine) -> list[Path]:
    """Split a scene at some rows and columns, and write each part as a file."""
    cuts_r, cuts_c = [0, *rows, pixels.shape[1]], [0, *cols, pixels.shape[2]]
    paths = []
    for (top, bottom), (left, right) in itertools.product(itertools.pairwise(cuts_r), itertools.pairwise(cuts_c)):
        place = transform @ Affine.translation(left, top)
        name = folder / f"{top}_{left}.tif"
        paths.append(write_raster(name, pixels[:, top:bottom, left:right], place, nodata=0))
    return paths


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("mosaic") / "whole.tif", scene(), nodata=0)


@pytest.fixture(scope="module")
def sheets(tmp_path_factory: pytest.TempPathFactory) -> list[ImageInfo]:
    paths = write_sheets(tmp_path_factory.mktemp("sheets"), scene(), [37, 90], [41, 77, 130], TENTH_METRE)
    return [info(path) for path in paths]


@pytest.mark.parametrize("resolution_m", [None, 0.037, 0.1, 0.24, 0.3])
@given(window=WINDOWS, order=st.randoms(use_true_random=False))
@settings(max_examples=12)
def test_a_mosaic_equals_the_single_file_bit_for_bit(
    whole: Path, sheets: list[ImageInfo], resolution_m: float | None, window: Window, order: object
) -> None:
    mixed = sorted(sheets, key=lambda sheet: order.random())  # type: ignore[attr-defined]
    mosaic = Mosaic(mixed, resolution_m=resolution_m)
    with Image.open(whole, resolution_m=resolution_m) as image:
        # The transform is that of the first sheet, moved: equal but for the last digits.
        assert np.allclose(mosaic.grid.transform, image.info.grid.transform, rtol=1e-12)
        assert (mosaic.grid.height, mosaic.grid.width) == (image.info.grid.height, image.info.grid.width)
        expected, known = image.read(window)
    pixels, valid = mosaic.read(window)
    mosaic.close()
    assert np.array_equal(pixels, expected)
    assert np.array_equal(valid, known)


@given(bands=st.lists(st.integers(1, 3), min_size=1, max_size=4), window=WINDOWS)
@settings(max_examples=20)
def test_bands_are_selected_in_order(whole: Path, bands: list[int], window: Window) -> None:
    mosaic = Mosaic([info(whole)], bands)
    with Image.open(whole) as image:
        expected, _ = image.read(window)
    pixels, valid = mosaic.read(window)
    mosaic.close()
    assert mosaic.bands == len(bands)
    assert np.array_equal(pixels, expected[[band - 1 for band in bands]])
    assert not pixels[:, ~valid].any()


@pytest.mark.parametrize(("band", "count"), [(4, 3), (0, 3), (2, 1)])
def test_a_missing_band_is_an_error(tmp_path: Path, band: int, count: int) -> None:
    path = write_raster(tmp_path / "a.tif", textured(count, 20, 30))
    with pytest.raises(InputError, match=rf"a\.tif.* band {band} .* 1 to {count}"):
        Mosaic([info(path)], [1, band])


def test_rasters_with_other_bands_match_when_bands_are_selected(tmp_path: Path) -> None:
    three = info(write_raster(tmp_path / "a.tif", textured(3, 20, 30)))
    five = info(write_raster(tmp_path / "b.tif", textured(5, 20, 30), TENTH_METRE @ Affine.translation(30, 0)))
    with pytest.raises(InputError, match=r"b\.tif .*a\.tif.* 5 .*uint8.* 3"):
        Mosaic([three, five])
    mosaic = Mosaic([three, five], bands=(3, 1))
    assert mosaic.read(mosaic.grid.window)[1].all()
    mosaic.close()


@pytest.mark.parametrize("resolution_m", [None, 0.21])
@given(window=WINDOWS)
@settings(max_examples=25)
def test_a_mosaic_is_empty_where_no_raster_is(
    tmp_path_factory: pytest.TempPathFactory, resolution_m: float | None, window: Window
) -> None:
    folder = tmp_path_factory.getbasetemp() / "corners"
    corners = [(0, 0), (90, 120)]
    paths = [folder / f"{row}.tif" for row, _ in corners]
    for path, (row, col) in zip(paths, corners, strict=True):
        if not path.exists():
            write_raster(path, textured(1, 40, 50), TENTH_METRE @ Affine.translation(col, row))
    mosaic = Mosaic([info(path) for path in paths], resolution_m=resolution_m)
    _, valid = mosaic.read(window)
    if resolution_m is None:
        assert mosaic.is_empty(window) != valid.any()
    assert not (mosaic.is_empty(window) and valid.any())
    assert mosaic.is_empty(Window(-5, 0, 3, 9))
    mosaic.close()


def test_resampling_leaves_no_seams_between_rasters(tmp_path: Path) -> None:
    """A pixel across the border between two rasters combines both."""
    pixels = np.zeros((1, 20, 21), np.uint8) + 10
    pixels[:, :, 11:] = 30
    paths = write_sheets(tmp_path, pixels, [], [11], TENTH_METRE)
    mosaic = Mosaic([info(path) for path in paths], resolution_m=0.2)
    found, valid = mosaic.read(mosaic.grid.window)
    mosaic.close()
    assert valid.all()
    assert found[0, 0].tolist() == [10] * 5 + [20] + [30] * 5


def test_few_files_stay_open_and_only_needed_ones_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_FILES", 3)
    paths = write_sheets(tmp_path, textured(1, 20, 200), [], list(range(20, 200, 20)), TENTH_METRE)
    mosaic, opened = Mosaic([info(path) for path in paths]), []
    original = Image.open

    def counting(path: Path, **options: Any) -> Image:
        opened.append(path.name)
        return original(path, **options)

    monkeypatch.setattr(Image, "open", counting)
    for col in range(0, 200, 10):
        mosaic.read(Window(0, col, 20, 20))
        mosaic.read(Window(0, 5, 10, 10))  # the first sheet is used all the time and stays open
        assert len(mosaic._open) <= 3
    mosaic.close()
    assert opened == [path.name for path in paths]


def test_only_rasters_under_the_window_are_queried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = info(write_raster(tmp_path / "a.tif", textured(1, 10, 10)))
    sheets = [
        replace(first, path=Path(f"{row}_{col}.tif"), grid=first.grid.crop(Window(row * 10, col * 10, 10, 10)))
        for row in range(60)
        for col in range(60)
    ]
    mosaic, asked = Mosaic(sheets), []
    monkeypatch.setattr(Mosaic, "_image", lambda self, number: asked.append(number) or _Nothing())
    assert mosaic.is_empty(Window(95, 200, 10, 10))
    assert sorted(asked) == [9 * 60 + 20, 10 * 60 + 20]


class _Nothing:
    def is_empty(self, window: Window) -> bool:
        return True


@given(windows=st.lists(WINDOWS, max_size=12), window=WINDOWS)
def test_a_window_index_returns_all_overlapping_windows_in_order(windows: list[Window], window: Window) -> None:
    near = [number for number, other in enumerate(windows) if other.intersection(window)]
    assert WindowIndex(windows).query(window) == near


def test_a_vrt_is_read_like_its_source(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a.vrt"
    rasterio.shutil.copy(whole, path, driver="VRT")
    sheets = [Mosaic([info(one)], resolution_m=0.3) for one in (whole, path)]
    found = [mosaic.read(mosaic.grid.window) for mosaic in sheets]
    for mosaic in sheets:
        mosaic.close()
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])
