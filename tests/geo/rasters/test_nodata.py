"""Regions reported as empty have no valid pixel, and regions with a valid pixel are never reported as empty."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geograft.errors import InputError
from geograft.geo.grid import Window, block_windows
from geograft.geo.rasters.raster import Image
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster

ROWS, COLS, BLOCK = 200, 300, 64
WINDOWS = st.builds(Window, st.integers(-70, 260), st.integers(-70, 360), st.integers(1, 150), st.integers(1, 200))
HELD = Window(64, 128, 64, 64)
"""The one block that the sparse files hold."""


def write_sparse(path: Path, bands: int = 3, mask: bool = False, **options: Any) -> Path:
    """Write a GeoTIFF of which only the block HELD is on disk."""
    profile = {"driver": "GTiff", "count": bands, "height": ROWS, "width": COLS, "dtype": "uint8", "crs": UTM12}
    profile |= {"transform": TENTH_METRE, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "sparse_ok": True}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile | options) as raster:
        pixels = textured(bands, BLOCK, BLOCK).astype(raster.dtypes[0])
        raster.write(pixels, window=HELD.to_rasterio())
        if mask:
            visible = np.zeros((ROWS, COLS), np.uint8)
            visible[HELD.slices] = 255
            raster.write_mask(visible)
    return path


KINDS: dict[str, dict[str, Any]] = {
    "nodata 0": {"nodata": 0},
    "nodata 255": {"nodata": 255},
    "nodata, bands apart": {"nodata": 0, "interleave": "band"},
    "nodata and deflate": {"nodata": 0, "compress": "deflate"},
    "NaN": {"nodata": np.nan, "dtype": "float32"},
    "float": {"nodata": -9999, "dtype": "float32"},
    "alpha": {"bands": 4, "photometric": "RGB", "alpha": "yes"},
    "alpha, bands apart": {"bands": 4, "photometric": "RGB", "alpha": "yes", "interleave": "band"},
    "alpha and nodata": {"bands": 4, "photometric": "RGB", "alpha": "yes", "nodata": 0},
    "mask": {"mask": True},
    "mask and deflate": {"mask": True, "compress": "deflate", "interleave": "band"},
}


@pytest.fixture(scope="module", params=KINDS)
def sparse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse(tmp_path_factory.mktemp("sparse") / "a.tif", **KINDS[request.param])


@given(window=WINDOWS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_window_is_empty_when_all_its_blocks_are_missing(sparse: Path, window: Window) -> None:
    with Image.open(sparse) as image:
        assert image.is_empty(window) == (window.intersection(HELD) is None)
        if image.is_empty(window):
            pixels, valid = image.read(window)
            assert not valid.any()
            assert not pixels.any()


@given(window=WINDOWS, resolution=st.sampled_from([0.03, 0.25, 0.7]))
@settings(max_examples=25)
def test_nothing_resampled_from_an_empty_window_is_valid(
    tmp_path_factory: pytest.TempPathFactory, window: Window, resolution: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "sparse.tif"
    if not path.exists():
        write_sparse(path, nodata=0)
    with Image.open(path, resolution_m=resolution) as image:
        assert not (image.is_empty(window) and image.read(window)[1].any())
        assert image.is_empty(Window(0, 0, 2, 2)) or resolution == 0.7
        assert not image.is_empty(image.info.grid.window)


@pytest.mark.parametrize("options", [{}, {"dtype": "int16", "nodata": None}, {"bands": 4, "photometric": "RGB"}])
def test_missing_blocks_of_pixels_that_would_be_valid_are_not_empty(tmp_path: Path, options: dict[str, Any]) -> None:
    with Image.open(write_sparse(tmp_path / "a.tif", **options)) as image:
        assert not image.is_empty(Window(0, 0, 10, 10))
        assert image.read(Window(0, 0, 10, 10))[1].all()
        assert image.is_empty(Window(-10, 0, 10, 10))
        assert image.is_empty(Window(0, COLS, 10, 10))


def test_a_dense_file_and_a_picture_have_no_empty_window(tmp_path: Path) -> None:
    paths = [write_raster(tmp_path / "a.tif", textured(1, 90, 90), nodata=0)]
    paths.append(write_raster(tmp_path / "a.png", textured(1, 90, 90), driver="PNG", nodata=0))
    for path in paths:
        with Image.open(path) as image:
            assert not any(image.is_empty(cell) for cell in block_windows(Window(0, 0, 90, 90), 30, 30))


@pytest.mark.parametrize("driver", ["GTiff", "COG"])
def test_a_truncated_file_is_an_error_or_empty(tmp_path: Path, driver: str) -> None:
    """Wherever it is truncated, also in its table of blocks, no part of it is read as complete."""
    pixels = textured(1, ROWS, COLS)
    options = {"GTiff": {}, "COG": {"blocksize": 128, "tiled": None, "blockxsize": None, "blockysize": None}}[driver]
    path = write_raster(tmp_path / "a.tif", pixels, driver=driver, nodata=0, compress="deflate", **options)
    content, whole, nothing = path.read_bytes(), Window(0, 0, ROWS, COLS), 0
    for size in (*range(64, 2000, 97), *range(2000, len(content) - 5000, 2999)):
        path.write_bytes(content[:size])
        try:
            with Image.open(path) as image:
                parts = [cell for cell in block_windows(whole, BLOCK, BLOCK) if not image.is_empty(cell)]
                assert sum(image.read(part)[1].sum() for part in parts) == 0
                nothing += 1
        except InputError:
            continue
    assert nothing < 25


def test_empty_windows_are_known_in_a_forked_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(write_sparse(tmp_path / "a.tif", nodata=0)) as image:
        monkeypatch.setattr("geograft.geo.rasters.opening.os.getpid", lambda: -1)
        assert image.is_empty(Window(0, 0, 20, 20))
        assert not image.is_empty(HELD)


# --- VRT ---------------------------------------------------------------------------------------------------------

SOURCE = """<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{band}</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="50" ySize="40"/><DstRect xOff="{col}" yOff="{row}" xSize="50" ySize="40"/>
</SimpleSource>"""
PLACES = ((10, 20), (10, 70), (150, 240))
"""Where the VRT's sources lie."""


def write_vrt(folder: Path, nodata: str = "<NoDataValue>0</NoDataValue>", band: str = "", mask: bool = False) -> Path:
    """Write a VRT of three single-band rasters, optionally with a mask that is set where they are."""
    parts = []
    for number, (row, col) in enumerate(PLACES):
        write_raster(folder / f"{number}.tif", textured(1, 40, 50, seed=number))
        parts.append(SOURCE.format(file=f"{number}.tif", band=1, row=row, col=col))
    masks = "".join(part.replace("<SourceBand>1", "<SourceBand>mask,1") for part in parts)
    hidden = f'<MaskBand><VRTRasterBand dataType="Byte">{masks}</VRTRasterBand></MaskBand>' if mask else ""
    path = folder / "sheets.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{COLS}" rasterYSize="{ROWS}"><SRS>{UTM12}</SRS>'
        "<GeoTransform>528000, 0.1, 0, 4979000, 0, -0.1</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1" {band}>{nodata}{"".join(parts)}</VRTRasterBand>{hidden}</VRTDataset>'
    )
    return path


@pytest.mark.parametrize("options", [{}, {"nodata": "", "mask": True}], ids=["nodata", "mask"])
@given(window=WINDOWS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_vrt_is_empty_between_its_sources(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], window: Window
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"vrt {len(options)}"
    folder.mkdir(exist_ok=True)
    path = folder / "sheets.vrt" if (folder / "sheets.vrt").exists() else write_vrt(folder, **options)
    sheets = [Window(row, col, 40, 50) for row, col in PLACES]
    with Image.open(path) as image:
        assert image.is_empty(window) == all(window.intersection(sheet) is None for sheet in sheets)
        assert image.read(window)[1].any() != image.is_empty(window)


def test_a_vrt_without_nodata_is_not_empty(tmp_path: Path) -> None:
    with Image.open(write_vrt(tmp_path, nodata="")) as image:
        assert not image.is_empty(Window(60, 60, 10, 10))


def test_a_vrt_whose_sources_have_no_rectangle_is_not_empty(tmp_path: Path) -> None:
    path = write_vrt(tmp_path)
    path.write_text(re.sub("<DstRect[^>]*>", "", path.read_text()))
    with Image.open(path) as image:
        assert not image.is_empty(Window(60, 60, 10, 10))
