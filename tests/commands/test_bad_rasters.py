"""Rasters as they come: without a place, turned, cut short, full of holes, tiny. Read rightly, or refused."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy import ndarray
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import rasterize_window, to_pixel_shapes
from geograft.geo.vectors.reader import read_polygons
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.runs import PixelwisePredictor, make_run

SHAPE = (24, 30)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Mosaic]:
    with Image.open(path) as image:
        mosaic = Mosaic([image.info], **options)
    yield mosaic
    mosaic.close()


def refused(run: Path, path: Path, fault: str) -> None:
    """Assert that a raster is refused in one line and that nothing is left behind."""
    before = set(path.parent.iterdir())
    with pytest.raises(InputError, match=fault) as caught:
        predict(run, (path,), path.parent / "map.tif")
    assert "\n" not in str(caught.value)
    assert set(path.parent.iterdir()) == before


# ------------------------------------------------------------------------------------------------- unlike the training


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (textured(5, *SHAPE), r"has 5 bands; the run was trained on 3 \(red, green, blue\)\. .*--bands"),
        (textured(1, *SHAPE), r"has 1 bands; the run was trained on 3"),
        (textured(3, *SHAPE).astype(np.uint16), r"holds uint16; the run was trained on uint8\."),
        (np.full((3, *SHAPE), 7, np.uint8), r"a\.tif .*nodata"),
    ],
    ids=["five bands", "one band", "uint16", "all nodata"],
)
def test_a_raster_that_does_not_fit_the_run_is_refused(tmp_path: Path, run: Path, pixels: ndarray, fault: str) -> None:
    refused(run, write_raster(tmp_path / "a.tif", pixels, nodata=7), fault)


# ------------------------------------------------------------------------------------------------ place on the ground


def test_a_raster_without_crs_is_read_but_not_resampled(tmp_path: Path) -> None:
    pixels = textured(3, *SHAPE)
    for place in (TENTH_METRE, Affine.identity()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            path = write_raster(tmp_path / "a.tif", pixels, place, crs=None)
        with opened(path) as mosaic:
            assert np.array_equal(mosaic.read(mosaic.grid.window)[0], pixels)
            assert mosaic.grid.transform == place
            assert mosaic.grid.crs is None
        with pytest.raises(InputError, match=r"a\.tif.* CRS"):
            Image.open(path, resolution_m=1)
        with pytest.raises(InputError, match="no CRS"), opened(path, resolution_m=1):
            pass


@given(angle=st.floats(-180, 180), wide=st.sampled_from([0.5, -0.5]), high=st.sampled_from([0.7, -0.7]))
@settings(max_examples=8, phases=[Phase.generate])  # shrinking angles tells nothing
def test_polygons_of_a_turned_map_cover_the_ground_of_their_class(
    tmp_path_factory: pytest.TempPathFactory, angle: float, wide: float, high: float
) -> None:
    folder = tmp_path_factory.mktemp("turned")
    place = Affine.translation(528000, 4979000) @ Affine.rotation(angle) @ Affine.scale(wide, high)
    pixels = np.repeat(np.repeat(textured(3, 12, 15), 4, axis=1), 4, axis=2)
    scene = write_raster(folder / "a.tif", pixels, place)
    predict(make_run(folder / "run"), (scene,), folder / "map.tif")
    polygons(folder / "map.tif", folder / "map.gpkg")
    with Image.open(folder / "map.tif") as image:
        grid, classes = image.info.grid, image.read_raw(image.info.grid.window)[0]
    assert grid.transform.almost_equals(place, 1e-9)
    assert np.array_equal(classes == 2, pixels[0] >= 128)
    found = read_polygons(folder / "map.gpkg", grid.crs)
    trees = to_pixel_shapes(found.shapes, np.ones(len(found.shapes), np.uint8), ~place)
    assert np.array_equal(rasterize_window(trees, grid.window, fill=0) == 1, classes == 2)


# --------------------------------------------------------------------------------------------------------- cut short


@pytest.mark.parametrize("options", [{}, {"resolution_m": 0.21}], ids=["as it is", "resampled"])
def test_a_file_that_ends_in_block_300_names_the_rows_and_columns(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 21 * 64, 21 * 64), compress="deflate")
    row, col = divmod(300, 21)
    with rasterio.open(path) as raster:
        end = int(raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=1)) + 50
    path.write_bytes(path.read_bytes()[:end])
    scale = 2.1 if options else 1
    with opened(path, **options) as mosaic:
        for number in (0, 299 - 21, 299):
            at = [int(64 * place / scale) + 2 for place in divmod(number, 21)]
            assert mosaic.read(Window(*at, 10, 10))[1].all()
        window = Window(int(row * 64 / scale) + 3, int(col * 64 / scale) + 3, 20, 20)
        with pytest.raises(InputError, match=r"a\.tif: rows \d+ to \d+, columns \d+ to \d+") as caught:
            mosaic.read(window)
    said = re.search(r"rows (\d+) to (\d+), columns (\d+) to (\d+)", str(caught.value))
    assert said
    first, last, left, right = map(int, said.groups())
    assert row * 64 <= first < last <= (row + 1) * 64
    assert col * 64 <= left < right <= (col + 1) * 64


# --------------------------------------------------------------------------------------------------------------- tiny


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (7, 3)])
def test_a_raster_smaller_than_a_tile_is_read_resampled_and_mapped(
    tmp_path: Path, run: Path, shape: tuple[int, int]
) -> None:
    path = write_raster(tmp_path / "a.tif", textured(3, *shape))
    for resolution_m in (None, 0.03, 0.1, 0.5, 20):
        with opened(path, resolution_m=resolution_m) as mosaic:
            pixels, valid = mosaic.read(mosaic.grid.window)
            assert valid.all()
            assert pixels.all()
            assert not mosaic.read(Window(-9, -9, 5, 5))[1].any()
    predict(run, (path,), tmp_path / "map.tif")
    with Image.open(tmp_path / "map.tif") as image:
        assert (image.info.grid.height, image.info.grid.width) == shape
        assert np.array_equal(image.read_raw(image.info.grid.window)[0] == 2, textured(3, *shape)[0] >= 128)


# ------------------------------------------------------------------------------------------------- what is not valid

HOLE = Window(5, 6, 9, 12)
BAND = '<VRTRasterBand dataType="{kind}" band="{number}">{nodata}<SimpleSource><SourceFilename '
BAND += 'relativeToVRT="1">{file}</SourceFilename><SourceBand>{number}</SourceBand></SimpleSource></VRTRasterBand>'


def write_vrt(path: Path, source: Path, nodata: list[str]) -> Path:
    """Write a VRT of a raster with one nodata value a band, empty for none."""
    with rasterio.open(source) as raster:
        kind = {"uint8": "Byte", "float32": "Float32"}[raster.dtypes[0]]
    values = [f"<NoDataValue>{value}</NoDataValue>" if value else "" for value in nodata]
    bands = [
        BAND.format(kind=kind, number=number, nodata=value, file=source.name)
        for number, value in enumerate(values, start=1)
    ]
    place = "<GeoTransform>528000, 0.1, 0, 4979000, 0, -0.1</GeoTransform>"
    size = f'rasterXSize="{SHAPE[1]}" rasterYSize="{SHAPE[0]}"'
    path.write_text(f"<VRTDataset {size}><SRS>{UTM12}</SRS>{place}{''.join(bands)}</VRTDataset>")
    return path


def holed(tmp_path: Path, kind: str) -> Path:
    """Write a raster of three bands of which the pixels in HOLE are not valid, in one of many ways."""
    path, pixels = tmp_path / "a.tif", textured(3, *SHAPE)
    inside = (slice(None), *HOLE.slices)
    if kind in ("NaN", "inf", "-inf"):
        pixels = pixels.astype(np.float32)
        pixels[1][HOLE.slices] = float(kind)
        return write_raster(path, pixels, nodata=-9999)
    if kind == "NaN as nodata":
        pixels = pixels.astype(np.float32)
        pixels[inside] = np.nan
        return write_raster(path, pixels, nodata=np.nan)
    if kind == "nodata":
        pixels[inside] = 0
        return write_raster(path, pixels, nodata=0)
    if kind == "nodata of each band":
        pixels[inside] = np.array([255, 0, 255])[:, None, None]
        return write_vrt(tmp_path / "a.vrt", write_raster(path, pixels), ["255", "0", "255"])
    if kind == "mask":
        write_raster(path, pixels)
        mask = np.full(SHAPE, 255, np.uint8)
        mask[HOLE.slices] = 0
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as raster:
            raster.write_mask(mask)
        return path
    assert kind == "alpha"
    pixels = np.concatenate([pixels, np.full((1, *SHAPE), 255, np.uint8)])
    pixels[3][HOLE.slices] = 0
    write_raster(path, pixels, photometric="RGB", alpha="yes")
    with rasterio.open(path) as raster:
        assert raster.colorinterp[3] == ColorInterp.alpha
    return path


KINDS = ("NaN", "inf", "-inf", "NaN as nodata", "nodata", "nodata of each band", "mask", "alpha")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hole_is_a_hole_however_it_is_told(tmp_path: Path, kind: str) -> None:
    expected = np.ones(SHAPE, bool)
    expected[HOLE.slices] = False
    with opened(holed(tmp_path, kind)) as mosaic:
        pixels, valid = mosaic.read(mosaic.grid.window)
    assert np.array_equal(valid, expected)
    assert np.array_equal(pixels, np.where(expected, textured(3, *SHAPE), 0))


@pytest.mark.parametrize("resolution_m", [0.025, 0.2, 0.3])
def test_and_is_the_same_hole_resampled(tmp_path: Path, resolution_m: float) -> None:
    found = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        with opened(holed(tmp_path / kind, kind), resolution_m=resolution_m) as mosaic:
            found.append(mosaic.read(mosaic.grid.window))
    exact = [pixels for pixels, _ in found if pixels.dtype == np.float32]
    whole = [pixels for pixels, _ in found if pixels.dtype == np.uint8]
    assert (len(exact), len(whole)) == (4, 4)
    assert all(np.array_equal(valid, found[0][1]) for _, valid in found)
    assert all(np.array_equal(pixels, exact[0]) for pixels in exact)
    assert all(np.array_equal(pixels, np.rint(exact[0])) for pixels in whole)


@pytest.mark.parametrize("nodata", ["-9999", "256", "0.5", "1e40"])
def test_nodata_that_the_number_format_cannot_hold_hides_nothing(tmp_path: Path, nodata: str) -> None:
    source = write_raster(tmp_path / "a.tif", textured(3, *SHAPE))
    with opened(write_vrt(tmp_path / "a.vrt", source, [nodata] * 3)) as mosaic:
        pixels, valid = mosaic.read(mosaic.grid.window)
        assert not mosaic.is_empty(mosaic.grid.window)
    assert valid.all()
    assert np.array_equal(pixels, textured(3, *SHAPE))


def test_nodata_of_some_bands_hides_pixels_where_these_are_read(tmp_path: Path) -> None:
    pixels = textured(3, *SHAPE)
    pixels[(slice(None), *HOLE.slices)] = 9
    source = write_raster(tmp_path / "a.tif", pixels)
    path = write_vrt(tmp_path / "a.vrt", source, ["9", "", "9"])
    hidden = (pixels[[0, 2]] == 9).any(axis=0)
    for bands, expected in (((), hidden), ((1, 3), hidden), ((2,), np.zeros(SHAPE, bool))):
        with opened(path, bands=bands) as mosaic:
            assert np.array_equal(~mosaic.read(mosaic.grid.window)[1], expected)
