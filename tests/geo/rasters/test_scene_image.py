"""Scenes read as one image: units, grids, masks, and windows that agree to the bit."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.nodata import ValidityRule
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.resample import Resampler
from geograft.geo.rasters.scene_image import SceneImage, image_state, open_image, read_info
from geograft.geo.scene import BandChoice, Scene
from tests.support.rasters import textured, write_raster
from tests.support.scenes import (
    UTM32,
    reflectances,
    safe_xml,
    write_band,
    write_landsat,
    write_safe,
    write_stac_item,
    zip_folder,
)

NAMES = ("red", "nir", "rededge071", "coastal")


def scl_of(edge: int = 48) -> ndarray:
    """Return a scene classification without 0."""
    return np.random.default_rng(5).integers(1, 12, (edge, edge), dtype=np.uint8)


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safe(tmp_path_factory.mktemp("safe"), reflectances(), scl_of(), suffix=".tif")


def read_whole(place: Path, choice: BandChoice) -> tuple[ndarray, ndarray]:
    info = read_info(place, choice)
    with open_image(info) as image:
        return image.read(info.grid.window)


def scene_of(place: Path, choice: BandChoice) -> Scene:
    scene = read_info(place, choice).scene
    assert scene is not None
    return scene


def test_bands_of_one_resolution_are_their_reflectances(safe: Path) -> None:
    info = read_info(safe, BandChoice(("red", "B08", "blue")))
    assert (info.dtype, info.band_names, info.grid.height, info.grid.width) == (
        "uint16",
        ("red", "B08", "blue"),
        96,
        96,
    )
    assert info.tags == {"ACQUISITION_DATETIME": "2023-07-02T10:25:59.024Z"}
    pixels, valid = read_whole(safe, BandChoice(("red", "B08", "blue")))
    truth = reflectances()
    assert valid.all()
    assert (pixels == np.stack([truth["B04"], truth["B08"], truth["B02"]])).all()


def test_all_layouts_of_the_same_pixels_give_the_same_bits(safe: Path, tmp_path: Path) -> None:
    truth, scl = reflectances(), scl_of()
    choice = BandChoice(NAMES, masks=("scl:3,8-10",))
    expected, valid = read_whole(safe, choice)
    packed = write_safe(tmp_path / "packed", truth, scl)
    places = [
        packed,
        zip_folder(packed, tmp_path / "packed.zip"),
        write_safe(tmp_path / "old", truth, scl, offset=0, suffix=".tif"),
        zip_folder(safe, tmp_path / "product.zip"),
        safe / "MTD_MSIL2A.xml",
        write_stac_item(tmp_path / "stac", truth, scl),
        write_stac_item(tmp_path / "stac11", truth, scl, modern=True),
        write_stac_item(tmp_path / "stac0", truth, scl, offset=0),
    ]
    for place in places:
        pixels, same = read_whole(place, choice)
        assert (same == valid).all(), place
        assert pixels.tobytes() == expected.tobytes(), place
    assert 0 < valid.mean() < 1


def test_a_list_of_band_files_has_their_values(tmp_path: Path) -> None:
    truth = reflectances()
    files = {name: write_band(tmp_path / f"{name}.tif", truth[name], 10) for name in ("B04", "B03")}
    listed = Path(",".join(f"{name}={path}" for name, path in files.items()))
    pixels, _ = read_whole(listed, BandChoice(("green", "B04")))
    assert (pixels == np.stack([truth["B03"], truth["B04"]])).all()


@pytest.mark.parametrize("form", [".txt", ".json", ".xml"])
def test_landsat_is_brought_to_the_same_unit(tmp_path: Path, form: str) -> None:
    stored = np.random.default_rng(1).integers(7000, 44000, (30, 40)).astype(np.uint16)
    stored[0, 0] = 0
    thermal = np.full((30, 40), 43000, np.uint16)
    qa = np.full((30, 40), 0b1010_1000_0000, np.uint16)
    qa[5, 6], qa[7, 8] = 0b1000, 0b10000  # cloud, cloud shadow
    product = write_landsat(tmp_path, {"SR_B5": stored, "ST_B10": thermal}, qa, form)
    pixels, valid = read_whole(product, BandChoice(("nir", "lwir11"), masks=("qa_pixel:bits:1-4",)))
    assert sorted(zip(*np.nonzero(~valid), strict=True)) == [(0, 0), (5, 6), (7, 8)]
    reflectance = np.rint((stored * 2.75e-5 - 0.2) * 10000).clip(1, 65535)
    # Values halfway between two whole numbers may be rounded to either.
    assert np.abs(pixels[0][valid] - reflectance[valid]).max() <= 1
    assert (pixels[0][valid] == reflectance[valid]).mean() > 0.97
    assert (pixels[1][valid] == round((43000 * 0.00341802 + 149) * 100)).all()
    assert read_info(product).tags == {"ACQUISITION_DATETIME": "2023-07-02T10:09:58.1234560Z"}


@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("resolution_m", [0, 15, 20, 37.5])
def test_windows_agree_to_the_bit(safe: Path, resolution_m: float, data: st.DataObject) -> None:
    choice = BandChoice(NAMES, masks=("scl:3,8,9,10",), resolution_m=resolution_m)
    with SceneImage(scene_of(safe, choice)) as image:
        height, width = image.info.grid.height, image.info.grid.width
        pixels, valid = image.read(Window(-8, -8, height + 16, width + 16))
        assert not valid[:8].any() and not valid[-8:].any()
        row, col = data.draw(st.integers(-8, height - 1)), data.draw(st.integers(-8, width - 1))
        window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
        part, known = image.read(window)
        rows, cols = Window(row + 8, col + 8, window.height, window.width).slices
        assert part.tobytes() == pixels[:, rows, cols].tobytes()
        assert (known == valid[rows, cols]).all()


def test_a_coarse_band_is_resampled_as_elsewhere(safe: Path) -> None:
    truth = reflectances()
    pixels, _ = read_whole(safe, BandChoice(("red", "rededge071", "coastal")))
    for band, name, ratio in ((1, "B05", 2), (2, "B01", 6)):
        coarse = truth[name][None]
        grid = read_info(safe, BandChoice((name,))).grid

        def source(window: Window, coarse: ndarray = coarse) -> tuple[ndarray, ndarray]:
            rows, cols = (np.arange(a, a + n) for a, n in ((window.row, window.height), (window.col, window.width)))
            known = np.isin(rows, np.arange(coarse.shape[1]))[:, None] & np.isin(cols, np.arange(coarse.shape[2]))
            taken = coarse[:, rows.clip(0, coarse.shape[1] - 1)][:, :, cols.clip(0, coarse.shape[2] - 1)]
            return np.where(known, taken, 0), known

        expected, _ = Resampler(grid, 1 / ratio, 1 / ratio).read(source, Window(0, 0, 96, 96))
        assert (pixels[band] == expected[0]).all()
    at_20, _ = read_whole(safe, BandChoice(("red", "rededge071"), resolution_m=20))
    assert (at_20[1] == truth["B05"]).all()
    assert (at_20[0] == np.rint(truth["B04"].reshape(48, 2, 48, 2).astype(np.float32).mean(axis=(1, 3)))).all()


def test_masks_take_the_nearest_quality_pixel(safe: Path) -> None:
    scl = scl_of()
    _, valid = read_whole(safe, BandChoice(("red",), masks=("SCL:4,5",)))
    assert (valid == ~np.isin(scl.repeat(2, axis=0).repeat(2, axis=1), (4, 5))).all()
    _, coarse = read_whole(safe, BandChoice(("red",), masks=("scl:4,5",), resolution_m=60))
    assert (coarse == ~np.isin(scl[1::3, 1::3], (4, 5))).all()


def test_a_pixel_without_one_band_is_invalid_unless_all_are_needed(tmp_path: Path) -> None:
    truth = reflectances()
    truth["B04"][:, :10] = 0
    truth["B08"][:20] = 0
    safe = write_safe(tmp_path, truth, suffix=".tif")
    scene = scene_of(safe, BandChoice(("red", "nir")))
    window = Window(0, 0, 96, 96)
    with SceneImage(scene) as image, SceneImage(scene, ValidityRule("all")) as generous:
        pixels, valid = image.read(window)
        assert (valid == (truth["B04"] > 0) & (truth["B08"] > 0)).all()
        assert not pixels[:, ~valid].any()
        assert (generous.read(window)[1] == (truth["B04"] > 0) | (truth["B08"] > 0)).all()


def test_dark_pixels_are_not_nodata(tmp_path: Path) -> None:
    truth = {"B04": np.full((20, 20), 500, np.uint16)}
    safe = write_safe(tmp_path, truth, offset=0, suffix=".tif")
    # Stored 500, with the offset of a later baseline: below a reflectance of 0.
    (safe / "MTD_MSIL2A.xml").write_text(safe_xml(-1000))
    pixels, valid = read_whole(safe, BandChoice(("red",)))
    assert valid.all() and (pixels == 1).all()


@pytest.mark.parametrize(
    ("size_m", "edge", "crs", "named"),
    [(20, 48, "EPSG:32633", "CRS"), (20, 30, UTM32, "extent"), (7, 137, UTM32, None), (25, 48, UTM32, "extent")],
)
def test_bands_of_another_place_are_refused_by_name(
    tmp_path: Path, size_m: float, edge: int, crs: str, named: str | None
) -> None:
    first = write_band(tmp_path / "a.tif", np.ones((96, 96), np.uint16), 10)
    other = write_band(tmp_path / "b.tif", np.ones((edge, edge), np.uint16), size_m, crs)
    listed = Path(f"B04={first},B05={other}")
    if named is None:
        assert read_info(listed).grid.height == 137
        return
    with pytest.raises(InputError, match=rf"b\.tif .*{named}"):
        read_info(listed)


def test_bands_beside_each_other_and_of_other_dtypes_are_refused(tmp_path: Path) -> None:
    pixels = np.ones((96, 96), np.uint16)
    first, second = (
        write_band(tmp_path / "a.tif", pixels, 10),
        write_band(tmp_path / "b.tif", pixels.astype(np.uint8), 10),
    )
    with Image.open(first) as image:
        moved = image.info.grid.transform @ Affine.translation(3, 0)
    third = write_band(tmp_path / "c.tif", pixels, 10, transform=moved)
    with pytest.raises(InputError, match=r"uint16.*uint8"):
        read_info(Path(f"B04={first},B08={second}"))
    with pytest.raises(InputError, match="corner"):
        read_info(Path(f"B04={first},B08={third}"))


def test_an_ordinary_raster_can_be_masked_by_one_of_its_bands(tmp_path: Path) -> None:
    pixels = textured(5, 40, 50)
    pixels[4] = np.random.default_rng(2).integers(0, 4, (40, 50))
    path = write_raster(tmp_path / "a.tif", pixels, photometric="MINISBLACK", ALPHA="NO")
    plain = read_info(path)
    assert plain.scene is None and plain.bands == 5
    masked, valid = read_whole(path, BandChoice((3, 1), masks=("band 5:2,3",)))
    assert (valid == (pixels[4] < 2)).all()
    assert (masked == np.where(valid, pixels[[2, 0]], 0)).all()


def test_the_state_follows_files_in_use_and_how_they_are_read(tmp_path: Path) -> None:
    truth = reflectances()
    safe = write_safe(tmp_path, truth, scl_of(), suffix=".tif")
    red = BandChoice(("red",))
    before = image_state(read_info(safe, red))
    assert image_state(read_info(safe, red)) == before
    assert image_state(read_info(safe, BandChoice(("red",), masks=("scl:3",)))) != before
    path = next(safe.rglob("*_B08_10m.tif"))
    path.touch()
    assert image_state(read_info(safe, red)) == before
    (safe / "MTD_MSIL2A.xml").write_text((safe / "MTD_MSIL2A.xml").read_text().replace(">-1000<", ">-900<"))
    assert image_state(read_info(safe, red)) != before
