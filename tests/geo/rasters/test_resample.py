"""A resampled raster is the same in every window, keeps position and means, and ignores invalid pixels."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import central_pixel_size_m, resolution_m
from geograft.geo.rasters import resample
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.resample import Resampler, filter_taps, make_resampler
from tests.support.rasters import TENTH_METRE, textured, write_raster

ROWS, COLS = 61, 83
STEPS = st.sampled_from([0.25, 1 / 3, 0.618, 0.93, 1.0, 1.07, 2.0, 2.5, math.pi, 7.0, 40.3])
WINDOWS = st.builds(Window, st.integers(-9, 90), st.integers(-9, 90), st.integers(1, 70), st.integers(1, 70))
UTM12 = CRS.from_epsg(32612)


def scene(dtype: str = "uint8", holes: bool = True) -> tuple[ndarray, ndarray]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 255, (2, ROWS, COLS)).astype(dtype)
    valid = rng.random((ROWS, COLS)) > 0.2
    valid[10:30, 20:50] = False
    valid |= not holes
    return pixels * valid, valid


def source(pixels: ndarray, valid: ndarray) -> resample.WindowReader:
    def read(window: Window) -> tuple[ndarray, ndarray]:
        found = np.zeros((len(pixels), window.height, window.width), pixels.dtype)
        known = np.zeros((window.height, window.width), bool)
        inside = window.intersection(Window(0, 0, *valid.shape))
        if inside:
            found[(slice(None), *inside.relative_to(window).slices)] = pixels[(slice(None), *inside.slices)]
            known[inside.relative_to(window).slices] = valid[inside.slices]
        return found, known

    return read


def slow(row: int, step: float, length: int, finer: bool) -> list[tuple[int, float]]:
    """Return which old pixels a new one takes, and how much of each, from their geometry."""
    if finer and step < 1:
        centre = (row + 0.5) * step - 0.5
        pairs = [(i, 1 - abs(i - centre)) for i in range(-1, length + 1)]
    else:
        pairs = [(i, min(i + 1, (row + 1) * step) - max(i, row * step)) for i in range(length)]
    return [(i, weight) for i, weight in pairs if weight > 0 and 0 <= i < length]


@given(rows=STEPS, cols=STEPS, window=WINDOWS, dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]))
@settings(max_examples=60)
def test_every_window_is_a_crop_of_the_whole_bit_for_bit(rows: float, cols: float, window: Window, dtype: str) -> None:
    scaling, read = Resampler(Grid(ROWS, COLS, TENTH_METRE, UTM12), rows, cols), source(*scene(dtype))
    frame = Window(-9, -9, 190, 190)
    whole, whole_valid = scaling.read(read, frame)
    pixels, valid = scaling.read(read, window)
    at = window.relative_to(frame).slices
    assert np.array_equal(pixels, whole[:, at[0], at[1]])
    assert np.array_equal(valid, whole_valid[at])
    assert pixels.dtype == dtype


@given(rows=STEPS, cols=STEPS, small=st.integers(3000, 30000))
@settings(max_examples=12)
def test_the_result_does_not_depend_on_the_chunk_size(rows: float, cols: float, small: int) -> None:
    scaling, read = Resampler(Grid(ROWS, COLS, TENTH_METRE, UTM12), rows, cols), source(*scene("float32"))
    whole = scaling.read(read, scaling.grid.window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "MAX_CHUNK_PX", small)
        pieces = scaling.read(read, scaling.grid.window)
    assert np.array_equal(whole[0], pieces[0])
    assert np.array_equal(whole[1], pieces[1])


@given(rows=STEPS, cols=STEPS, at=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), holes=st.booleans())
@settings(max_examples=100)
def test_a_pixel_is_the_weighted_mean_of_valid_pixels(
    rows: float, cols: float, at: tuple[float, float], holes: bool
) -> None:
    pixels, valid = scene("float64", holes)
    scaling = Resampler(Grid(ROWS, COLS, TENTH_METRE, UTM12), rows, cols)
    row, col = int(at[0] * scaling.grid.height), int(at[1] * scaling.grid.width)
    found, known = scaling.read(source(pixels, valid), Window(row, col, 1, 1))
    area = {(i, j): a * b for i, a in slow(row, rows, ROWS, finer=False) for j, b in slow(col, cols, COLS, finer=False)}
    weights = {
        (i, j): a * b for i, a in slow(row, rows, ROWS, finer=True) for j, b in slow(col, cols, COLS, finer=True)
    }
    share = sum(w for place, w in area.items() if valid[place]) / sum(area.values())
    assert known[0, 0] == (share >= 0.5 - 1e-6)
    if known[0, 0]:
        weights = {place: w for place, w in weights.items() if valid[place]}
        for band in range(2):
            mean = sum(pixels[(band, *place)] * w for place, w in weights.items()) / sum(weights.values())
            assert found[band, 0, 0] == pytest.approx(mean, rel=1e-9)
    else:
        assert (found == 0).all()


@given(rows=STEPS, cols=STEPS, window=WINDOWS, level=st.sampled_from([0, 7, 65535]))
@settings(max_examples=30)
def test_a_constant_stays_constant_beside_invalid_pixels(rows: float, cols: float, window: Window, level: int) -> None:
    _, valid = scene()
    read = source(np.full((1, ROWS, COLS), level, np.uint16) * valid, valid)
    pixels, known = Resampler(Grid(ROWS, COLS, TENTH_METRE, UTM12), rows, cols).read(read, window)
    assert (pixels[0] == np.where(known, level, 0)).all()


def test_a_raster_without_holes_stays_valid_to_its_edges() -> None:
    for rows, cols in [(0.3, 0.3), (1.7, 2.9), (50.0, 200.0), (0.5, 3.0)]:
        scaling = Resampler(Grid(ROWS, COLS, TENTH_METRE, UTM12), rows, cols)
        assert scaling.read(source(*scene(holes=False)), scaling.grid.window)[1].all()


@pytest.mark.parametrize(
    ("step", "method"), [(2.3, Resampling.average), (3.0, Resampling.average), (0.7, Resampling.bilinear)]
)
def test_agrees_with_gdal_inside_the_image(tmp_path: Path, step: float, method: Resampling) -> None:
    path = write_raster(tmp_path / "a.tif", textured(2, 120, 150))
    with Image.open(path, resolution_m=0.1 * step) as image, rasterio.open(path) as raster:
        found, _ = image.read(image.info.grid.window)
        options: dict[str, Any] = {"transform": image.info.grid.transform, "resampling": method}
        with WarpedVRT(raster, crs=raster.crs, height=found.shape[1], width=found.shape[2], **options) as warped:
            theirs = warped.read()
    inner = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(found[inner].astype(int) - theirs[inner]).max() <= 1


@given(step=STEPS, start=st.integers(-5, 200), count=st.integers(1, 50), length=st.integers(1, 99))
def test_weights_sum_to_one_and_depend_on_position_alone(step: float, start: int, count: int, length: int) -> None:
    many, one = filter_taps(start, count, step, length), filter_taps(start + count - 1, 1, step, length)
    assert np.allclose(many.weights.sum(1), 1)
    assert (many.weights >= 0).all()
    assert np.array_equal(many.weights[-1:], one.weights)
    assert np.array_equal(many.first[-1:], one.first)


# --- The grid ----------------------------------------------------------------------------------------------------

PLACES = {
    "north up": Grid(400, 300, TENTH_METRE, UTM12),
    "south up": Grid(400, 300, Affine(0.1, 0, 528000, 0, 0.1, 4979000), UTM12),
    "turned": Grid(
        400, 300, Affine.translation(528000, 4979000) @ Affine.rotation(33) @ Affine.scale(0.5, -0.7), UTM12
    ),
    "feet": Grid(400, 300, Affine(1, 0, 6_000_000, 0, -1, 2_000_000), CRS.from_epsg(2225)),
    "web mercator": Grid(400, 300, Affine(0.1, 0, -1.23e7, 0, -0.1, 5.6e6), CRS.from_epsg(3857)),
    "degrees": Grid(400, 300, Affine(1e-5, 0, -110, 0, -1e-5, 44.6), CRS.from_epsg(4326)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("resolution_m", [0.07, 0.5, 2.0])
def test_pixels_are_square_with_the_resolution_at_the_centre(place: str, resolution_m: float) -> None:
    old = PLACES[place]
    scaling = make_resampler(old, resolution_m, "a.tif")
    assert scaling is not None
    new = scaling.grid
    assert central_pixel_size_m(new) == pytest.approx((resolution_m, resolution_m), rel=2e-3)
    assert (new.crs, new.transform.c, new.transform.f) == (old.crs, old.transform.c, old.transform.f)
    assert new.transform @ (1, 0) != new.transform @ (0, 0)
    # The old raster's far corner is within half a pixel of the new one's.
    col, row = ~new.transform @ (old.transform @ (old.width, old.height))
    assert abs(col - new.width) <= 0.5 + 1e-9
    assert abs(row - new.height) <= 0.5 + 1e-9


def test_the_native_resolution_needs_no_resampling() -> None:
    assert make_resampler(PLACES["north up"], 0.10001, "a.tif") is None
    third = make_resampler(PLACES["north up"], 0.29999, "a.tif")
    assert third is not None
    assert (third.rows, third.cols) == (3, 3)


@pytest.mark.parametrize("place", PLACES)
def test_objects_keep_their_position(tmp_path: Path, place: str) -> None:
    grid = PLACES[place]
    pixels = np.zeros((1, grid.height, grid.width), np.uint8)
    pixels[0, 100:200, 120:180] = 200
    path = write_raster(tmp_path / "a.tif", pixels, grid.transform, grid.crs.to_wkt() if grid.crs else None)
    resolution = resolution_m(grid)
    assert resolution is not None
    with Image.open(path, resolution_m=2 * resolution) as image:
        found, _ = image.read(image.info.grid.window)
        rows, cols = np.nonzero(found[0] >= 100)
        centre = image.info.grid.transform @ (cols.mean() + 0.5, rows.mean() + 0.5)
        area = image.info.grid.transform.determinant * len(rows)
    there = ~grid.transform @ centre
    assert np.allclose(there, (150, 150), atol=0.75)
    assert area == pytest.approx(grid.transform.determinant * 100 * 60, rel=0.03)


@pytest.mark.parametrize(
    ("grid", "fault"),
    [
        (Grid(9, 9, Affine.identity(), None), r"a\.tif.*CRS"),
        (Grid(9, 9, Affine(0.001, 0, 528000, 0, -0.001, 4979000), UTM12), r"0\.001 x 0\.001 m.*0\.5 m"),
        (Grid(9, 9, Affine(500, 0, 528000, 0, -500, 4979000), UTM12), r"500 x 500 m.*0\.5 m"),
        (Grid(9, 9, Affine(1e-5, 0, 0, 0, -1e-5, 90), CRS.from_epsg(4326)), r"a\.tif.*0\.5 m"),
    ],
)
def test_a_raster_that_cannot_be_resampled_is_an_error(grid: Grid, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        make_resampler(grid, 0.5, "a.tif")


# --- Files -------------------------------------------------------------------------------------------------------


@given(window=WINDOWS, resolution=st.sampled_from([0.037, 0.1, 0.23, 0.3]))
@settings(max_examples=30)
def test_windows_of_a_file_agree(tmp_path_factory: pytest.TempPathFactory, window: Window, resolution: float) -> None:
    path = tmp_path_factory.getbasetemp() / "resampled.tif"
    if not path.exists():
        pixels = textured(3, 150, 250)
        pixels[:, 40:90, 30:70] = 0
        write_raster(path, pixels, nodata=0)
    with Image.open(path, resolution_m=resolution) as image:
        whole, whole_valid = image.read(image.info.grid.window)
    inside = window.intersection(Window(0, 0, *whole_valid.shape))
    with Image.open(path, resolution_m=resolution) as image:
        part, valid = image.read(window)
    expected = np.zeros((window.height, window.width), bool)
    if inside:
        expected[inside.relative_to(window).slices] = whole_valid[inside.slices]
        rows, cols = inside.relative_to(window).slices
        assert np.array_equal(part[:, rows, cols], whole[(slice(None), *inside.slices)])
    assert np.array_equal(valid, expected)


@pytest.mark.parametrize("step", [0.4, 2.5])
def test_invalid_pixels_do_not_bleed(tmp_path: Path, step: float) -> None:
    found = []
    for hidden in (0, 255):
        pixels = textured(4, 90, 90) // 2 + 1
        pixels[3] = 255
        pixels[3, 20:50, 30:60] = 0
        pixels[:3, 20:50, 30:60] = hidden
        path = write_raster(tmp_path / f"{hidden}.tif", pixels, photometric="RGB", alpha="yes")
        with Image.open(path, resolution_m=0.1 * step) as image:
            found.append(image.read(image.info.grid.window))
    assert np.array_equal(found[0][0], found[1][0])
    assert not found[0][1].all()
    assert found[0][0].max() <= 128


def test_a_resampled_image_cannot_be_read_raw(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 20, 30))
    with Image.open(path, resolution_m=0.2) as image, pytest.raises(ValueError, match="resampled"):
        image.read_raw(Window(0, 0, 2, 2))
