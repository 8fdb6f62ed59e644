"""`geograft sample`: sampling probabilities, the written layers, and invalid input."""

import sqlite3
from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
from affine import Affine
from numpy import ndarray
from rasterio.shutil import copy

from geograft.commands.sample import sample
from geograft.config import SampleConfig
from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.measure import areas_and_perimeters
from geograft.geo.rasters.raster import Image
from geograft.mapping import strata as strata_module
from geograft.mapping.strata import PixelIndices, draw_pixels, pixel_centres, pixels_at, read_strata, stratum_at
from tests.support.full_disk import max_file_size
from tests.support.rasters import UTM12, write_raster
from tests.support.runs import COVERS

GRID = Affine(10, 0, 500000, 0, -10, 5000000)
DEGREES = Affine(0.05, 0, 10, 0, -0.05, 60)


def write_map(
    path: Path, values: ndarray, crs: str | None = UTM12, transform: Affine = GRID, **options: object
) -> Path:
    """Write a class map of COVERS' classes; 255 is nodata."""
    import rasterio

    write_raster(path, values[None].astype(np.uint8), transform, crs, nodata=255, **options)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(**{f"CLASS_{v}": name for v, name in zip(COVERS.values, COVERS.names, strict=True)})
    return path


def covers(height: int = 120, width: int = 90, seed: int = 0) -> ndarray:
    """Four classes in patches, grass the most and trees the least, with a part that has none."""
    rng = np.random.default_rng(seed)
    values = rng.choice([10, 20, 30, 7], (height // 6, width // 6), p=[0.2, 0.5, 0.25, 0.05])
    values = np.kron(values, np.ones((6, 6), int))
    values[-8:] = 255
    return values


@pytest.fixture(scope="module")
def cover_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_map(tmp_path_factory.mktemp("covers") / "map.tif", covers())


# --------------------------------------------------------------------------------------------------------- who is drawn


def test_strata_have_pixels_and_areas(cover_map: Path) -> None:
    values = covers()
    with Image.open(cover_map) as image:
        strata = read_strata(image)
    assert strata.names == ("trees", "water", "grass", "crops")
    assert strata.values == (7, 10, 20, 30)
    assert strata.pixels.tolist() == [int((values == v).sum()) for v in strata.values]
    assert strata.areas.tolist() == (strata.pixels * 100.0).tolist()
    assert strata.unknown == 8 * 90


def test_areas_of_geographic_maps_are_summed_per_pixel(tmp_path: Path) -> None:
    """Six degrees of latitude: pixels in the south are 17 % larger."""
    values = covers()
    with Image.open(write_map(tmp_path / "map.tif", values, "EPSG:4326", DEGREES)) as image:
        strata, grid = read_strata(image), image.info.grid
    import shapely

    one = np.array([shapely.box(0, row, 1, row + 1) for row in range(grid.height)], object)
    by_row, _ = areas_and_perimeters(one, grid)
    expected = [(values == v).sum(axis=1) @ by_row for v in strata.values]
    assert strata.areas == pytest.approx(expected, rel=1e-5)


def test_all_pixels_of_a_class_are_equally_likely(tmp_path: Path) -> None:
    """1,000 draws of 5 of 40 pixels: each pixel's count is binomial, and so are the counts of pairs."""
    values = np.full((10, 8), 20)
    values[::2] = 10
    counts, pairs = np.zeros((10, 8)), 0
    with Image.open(write_map(tmp_path / "map.tif", values)) as image:
        strata = read_strata(image)
        for seed in range(1000):
            places, index = draw_pixels(image, strata, np.array([0, 5, 0, 0]), np.random.default_rng(seed))
            assert (index == 1).all()
            counts[places.rows, places.cols] += 1
            pairs += {(0, 0), (8, 7)} <= set(zip(places.rows.tolist(), places.cols.tolist(), strict=True))
    assert counts[1::2].sum() == 0
    assert counts.sum() == 5_000
    expected, std = 1000 * 5 / 40, (1000 * 5 / 40 * 35 / 40) ** 0.5
    assert np.abs(counts[::2] - expected).max() < 4 * std
    both = 1000 * 5 / 40 * 4 / 39
    assert abs(pairs - both) < 4 * both**0.5


@pytest.mark.parametrize(("strip_px", "rows"), [(90, 1), (90 * 7, 512), (2**22, 13)])
def test_sample_does_not_depend_on_strips_or_file_layout(
    cover_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strip_px: int, rows: int
) -> None:
    sample(cover_map, tmp_path / "one.gpkg", SampleConfig(points=200, min_points=20, seed=3))
    monkeypatch.setattr(strata_module, "STRIP_PX", strip_px)
    monkeypatch.setattr(strata_module, "MAX_ROWS", rows)
    striped = tmp_path / "striped.tif"
    copy(cover_map, striped, driver="GTiff", tiled=False, blockysize=3)
    sample(striped, tmp_path / "two.gpkg", SampleConfig(points=200, min_points=20, seed=3))
    one, two = (geopandas.read_file(tmp_path / name, layer="points") for name in ("one.gpkg", "two.gpkg"))
    assert one.geometry.geom_equals(two.geometry).all()


def test_points_are_drawn_without_replacement_per_class(cover_map: Path, tmp_path: Path) -> None:
    summary = sample(cover_map, tmp_path / "points.gpkg", SampleConfig(points=300, min_points=40))
    frame = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    values = covers()
    with Image.open(cover_map) as image:
        places = pixels_at(image.info.grid, np.stack([frame.geometry.x, frame.geometry.y], axis=1))
        index = stratum_at(image, summary.strata, places)
    assert len(set(zip(places.rows.tolist(), places.cols.tolist(), strict=True))) == len(frame) == 300
    assert np.bincount(index, minlength=4).tolist() == summary.points.tolist()
    assert (np.array(summary.strata.values)[index] == values[places.rows, places.cols]).all()
    assert summary.points.min() == 40
    proportions = summary.strata.areas[1:] / summary.strata.areas[1:].sum()
    assert summary.points[1:] == pytest.approx(260 * proportions, abs=1)
    # In random order: the classes of the first half are about those of the whole.
    assert np.abs(np.bincount(index[:150], minlength=4) * 2 - summary.points).max() < 40


def test_another_seed_draws_others(cover_map: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        sample(cover_map, tmp_path / f"{seed}.gpkg", SampleConfig(points=100, min_points=2, seed=seed))
    one, two = (geopandas.read_file(tmp_path / f"{seed}.gpkg", layer="points") for seed in (0, 1))
    assert not one.geometry.geom_equals(two.geometry).any()


def test_a_class_of_few_pixels_is_drawn_whole(tmp_path: Path) -> None:
    values = np.full((20, 20), 20)
    values[3, 4:7] = 7
    summary = sample(
        write_map(tmp_path / "map.tif", values), tmp_path / "points.gpkg", SampleConfig(points=60, min_points=10)
    )
    assert summary.points.tolist() == [3, 0, 57, 0]


# ------------------------------------------------------------------------------------------------------ what is written


def test_file_has_empty_references_and_no_class_of_the_map(cover_map: Path, tmp_path: Path) -> None:
    summary = sample(cover_map, tmp_path / "points.gpkg", SampleConfig(points=250))
    frame = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    assert list(frame.columns) == ["id", "reference", "geometry"]
    assert frame["id"].tolist() == list(range(1, 251))
    assert frame["reference"].isna().all()
    assert frame.crs == UTM12
    assert set(frame.geometry.x % 10) == {5.0}
    strata = pyogrio.read_dataframe(tmp_path / "points.gpkg", layer="strata")
    assert list(strata.columns) == ["class", "value", "pixels", "area_m2", "points"]
    assert strata["points"].tolist() == summary.points.tolist()
    assert "250 points in random order" in summary.lines()[0]
    assert summary.lines()[2].split() == ["trees", "756", "7.50%", "50"]


def test_layer_style_offers_the_classes_as_a_list(cover_map: Path, tmp_path: Path) -> None:
    sample(cover_map, tmp_path / "points.gpkg", SampleConfig(points=60))
    with sqlite3.connect(tmp_path / "points.gpkg") as base:
        styles = base.execute("select f_table_name, f_geometry_column, useAsDefault, styleQML from layer_styles")
        (layer, column, default, form) = styles.fetchone()
        columns = base.execute("select table_name, column_name from gpkg_geometry_columns").fetchall()
    assert (layer, column) in columns
    assert default == 1
    for name in COVERS.names:
        assert f'name="{name}" value="{name}"' in form


def test_number_of_points_follows_from_the_standard_error(cover_map: Path, tmp_path: Path) -> None:
    """Cochran's formula for 10,080 pixels: 0.09 / (0.02 squared + 0.09 / 10,080) = 220.1."""
    summary = sample(cover_map, tmp_path / "points.gpkg", SampleConfig(standard_error=0.02, min_points=2))
    assert summary.points.sum() == 221


@pytest.mark.parametrize("config", [SampleConfig(points=10**12), SampleConfig(min_points=10**12)])
def test_a_sample_that_does_not_fit_in_memory_is_refused(cover_map: Path, tmp_path: Path, config: SampleConfig) -> None:
    with pytest.raises(SettingError, match="1,000,000,000,000"):
        sample(cover_map, tmp_path / "points.gpkg", config)


@pytest.mark.parametrize("transform", [GRID, Affine(10, 2, 5, -3, -10, 7), Affine.identity()])
def test_pixel_centres_and_pixels_at_are_inverse(tmp_path: Path, transform: Affine) -> None:
    from geograft.geo.grid import Grid

    grid = Grid(50, 40, transform, None)
    places = PixelIndices(np.array([0, 49, 7]), np.array([39, 0, 11]))
    again = pixels_at(grid, pixel_centres(grid, places))
    assert (again.rows == places.rows).all()
    assert (again.cols == places.cols).all()


def test_map_without_crs_has_points_with_negative_y(tmp_path: Path) -> None:
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        path = write_map(tmp_path / "map.tif", covers(), None, Affine.identity())
    sample(path, tmp_path / "points.gpkg", SampleConfig(points=50, min_points=5))
    frame = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    assert frame.crs is None
    assert frame.geometry.y.between(-112, 0).all()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_invalid_maps_and_outputs_raise(cover_map: Path, tmp_path: Path) -> None:
    image = write_raster(tmp_path / "image.tif", np.ones((3, 9, 9), np.uint8))
    wide = write_raster(tmp_path / "wide.tif", np.full((1, 9, 9), 700, np.uint16))
    empty = write_map(tmp_path / "empty.tif", np.full((9, 9), 255))
    for path, message in (
        (image, r"image\.tif .*3 bands of uint8"),
        (wide, r"wide\.tif .*0 to 255"),
        (empty, r"empty\.tif"),
        (tmp_path / "none.tif", r"none\.tif"),
    ):
        with pytest.raises(InputError, match=message):
            sample(path, tmp_path / "points.gpkg")
    with pytest.raises(OutputError, match=r"\.gpkg"):
        sample(cover_map, tmp_path / "points.shp")
    (tmp_path / "mine.gpkg").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.gpkg"):
        sample(cover_map, tmp_path / "mine.gpkg")
    assert {path.suffix for path in tmp_path.iterdir()} == {".tif", ".gpkg"}
    assert not (tmp_path / "points.gpkg").exists()


def test_full_disk_raises_and_leaves_no_file(cover_map: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"points\.gpkg") as caught, max_file_size(2000):
        sample(cover_map, tmp_path / "points.gpkg", SampleConfig(points=60))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
