"""Polygon files from class maps: fields, figures, formats, and what is refused."""

import json
import warnings
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy import ndarray
from pyproj import CRS, Geod
from rasterio.errors import NotGeoreferencedWarning
from rasterio.features import rasterize

from geograft.commands.polygons import polygons
from geograft.config import PolygonConfig
from geograft.errors import InputError, OutputError
from geograft.geo.grid import Grid
from geograft.geo.measure import areas_and_perimeters
from geograft.legend import Legend
from tests.support.rasters import UTM12, write_raster
from tests.support.runs import COVERS, TREES, PixelwisePredictor, make_run

METRE = Affine(1, 0, 500000, 0, -1, 5000000)


def write_map(
    path: Path, values: ndarray, legend: Legend | None = TREES, transform: Affine = METRE, crs: str | None = UTM12
) -> Path:
    """Write a class map, with its classes stated as `geograft predict` states them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        write_raster(path, values[None].astype(np.uint8), transform, crs, nodata=255)
        if legend:
            with rasterio.open(path, "r+") as raster:
                raster.update_tags(
                    **{f"CLASS_{value}": name for value, name in zip(legend.values, legend.names, strict=True)}
                )
    return path


def covers(size: int = 90) -> ndarray:
    """A map of four classes with unknown pixels."""
    rng = np.random.default_rng(0)
    values = np.array(COVERS.values)[np.kron(rng.integers(0, 4, (size // 6, size // 6)), np.ones((6, 6), int))]
    values[rng.random(values.shape) < 0.05] = 255
    return values.astype(np.uint8)


def trees() -> ndarray:
    """Two trees in a clearing: one of 12 pixels with a hole, one of 3."""
    values = np.ones((20, 30), np.uint8)
    values[2:6, 3:7] = 2
    values[3:5, 4:6] = 1
    values[10, 20:23] = 2
    values[15:] = 255
    return values


@pytest.fixture
def grove(tmp_path: Path) -> Path:
    return write_map(tmp_path / "map.tif", trees())


# ---------------------------------------------------------------------------------------------------- what is written


def test_each_tree_is_a_polygon_with_area_and_perimeter(grove: Path, tmp_path: Path) -> None:
    summary = polygons(grove, tmp_path / "trees.gpkg")
    frame = geopandas.read_file(tmp_path / "trees.gpkg").sort_values("area_m2")
    assert list(frame.columns) == ["class", "value", "area_m2", "perimeter_m", "geometry"]
    assert frame["class"].tolist() == ["trees", "trees"]
    assert frame["value"].tolist() == [2, 2]
    assert frame["area_m2"].tolist() == [3, 12]
    assert frame["perimeter_m"].tolist() == [8, 16 + 8]
    assert frame.crs == UTM12
    assert frame.geometry.iloc[0].bounds == (500020, 4999989, 500023, 4999990)
    assert summary.lines()[1].split() == ["trees", "2", "15.0", "m2"]


def test_a_predicted_map_becomes_polygons_of_its_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geograft.commands.predict import predict

    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)
    pixels = np.full((3, 40, 50), 10, np.uint8)
    pixels[:, 5:15, 10:30] = 200
    pixels[:, 20:, 40:] = 0
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(make_run(tmp_path / "run", COVERS), (scene,), tmp_path / "map.tif")
    summary = polygons(tmp_path / "map.tif", tmp_path / "map.gpkg")
    found = {name: (total.polygons, round(total.area, 6)) for name, total in summary.classes.items()}
    assert found == {"water": (1, 16.0), "trees": (1, 2.0)}


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_rasterized_polygons_equal_the_map(tmp_path: Path, suffix: str, connectivity: Any) -> None:
    values = covers()
    path = write_map(tmp_path / "map.tif", values, COVERS)
    out = tmp_path / f"map{suffix}"
    summary = polygons(path, out, PolygonConfig(connectivity=connectivity))
    frame = geopandas.read_file(out).to_crs(UTM12)
    burnt = rasterize(zip(frame.geometry, frame["value"], strict=True), values.shape, fill=255, transform=METRE)
    np.testing.assert_array_equal(burnt, values)
    assert sum(total.area for total in summary.classes.values()) == pytest.approx((values != 255).sum())
    assert len(frame) == sum(total.polygons for total in summary.classes.values())
    assert dict(zip(frame["value"], frame["class"], strict=True)) == dict(zip(COVERS.values, COVERS.names, strict=True))


def test_geojson_conforms_to_rfc_7946(grove: Path, tmp_path: Path) -> None:
    """WGS 84 without a crs member, outer rings anticlockwise, holes clockwise."""
    polygons(grove, tmp_path / "trees.geojson")
    content = json.loads((tmp_path / "trees.geojson").read_text())
    assert "crs" not in content
    assert len(content["features"]) == 2
    for feature in content["features"]:
        (left, bottom, _, _) = shapely.geometry.shape(feature["geometry"]).bounds
        assert (round(left), round(bottom)) == (-111, 45)
        shell, *holes = feature["geometry"]["coordinates"]
        assert shapely.LinearRing(shell).is_ccw
        assert not any(shapely.LinearRing(hole).is_ccw for hole in holes)


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_map_without_objects_gives_an_empty_file_that_opens(tmp_path: Path, suffix: str) -> None:
    path = write_map(tmp_path / "map.tif", np.ones((9, 9)))
    out = tmp_path / f"none{suffix}"
    summary = polygons(path, out)
    assert summary.lines()[0] == f"{out}: no polygons"
    assert len(summary.lines()) == 2
    assert len(geopandas.read_file(out)) == 0
    if suffix == ".gpkg":
        assert list(geopandas.read_file(out).columns) == ["class", "value", "area_m2", "perimeter_m", "geometry"]


# ------------------------------------------------------------------------------------------------------- the settings


def test_the_background_of_a_binary_map_is_written_on_request(grove: Path, tmp_path: Path) -> None:
    summary = polygons(grove, tmp_path / "all.gpkg", PolygonConfig(background=True))
    assert {name: total.area for name, total in summary.classes.items()} == {"other": 15 * 30 - 15, "trees": 15}


def test_the_minimum_area_applies_to_complete_polygons(grove: Path, tmp_path: Path) -> None:
    summary = polygons(grove, tmp_path / "large.gpkg", PolygonConfig(min_area_m2=4))
    assert geopandas.read_file(tmp_path / "large.gpkg")["area_m2"].tolist() == [12]
    assert summary.lines()[0] == f"{tmp_path}/large.gpkg: 1 polygons, 12.0 m2; 1 smaller ones left out"
    none = polygons(grove, tmp_path / "none.gpkg", PolygonConfig(min_area_m2=13))
    assert none.lines()[0] == f"{tmp_path}/none.gpkg: no polygons; 2 smaller ones left out"


def test_simplified_neighbours_still_share_their_edges(tmp_path: Path) -> None:
    rows, cols = np.indices((60, 60))
    values = np.where(rows + cols < 50, 10, np.where(rows > cols, 20, 30))
    path = write_map(tmp_path / "map.tif", values, COVERS, METRE @ Affine.scale(2))
    polygons(path, tmp_path / "fine.gpkg")
    polygons(path, tmp_path / "plain.gpkg", PolygonConfig(simplify_m=4))
    fine, plain = (geopandas.read_file(tmp_path / f"{name}.gpkg") for name in ("fine", "plain"))
    assert shapely.get_num_coordinates(plain.geometry).sum() < 0.2 * shapely.get_num_coordinates(fine.geometry).sum()
    assert plain.geometry.area.sum() == pytest.approx(120 * 120)
    assert shapely.area(shapely.union_all(plain.geometry)) == pytest.approx(120 * 120)
    np.testing.assert_allclose(plain["area_m2"], plain.geometry.area)
    moved = shapely.hausdorff_distance(shapely.boundary(fine.geometry), shapely.boundary(plain.geometry))
    assert moved.max() <= 4


# ------------------------------------------------------------------------------------------------------ areas, lengths


def test_without_a_crs_figures_are_in_pixels(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", trees(), transform=Affine.identity(), crs=None)
    summary = polygons(path, tmp_path / "trees.gpkg", PolygonConfig(min_area_m2=4))
    frame = geopandas.read_file(tmp_path / "trees.gpkg")
    assert frame["area_px"].tolist() == [12]
    assert frame["perimeter_px"].tolist() == [24]
    assert frame.crs is None
    # Where a GIS draws an image that is not georeferenced.
    assert frame.geometry.iloc[0].bounds == (3, -6, 7, -2)
    assert "map.tif has no CRS" in summary.lines()[-1]


def test_planar_measurements_are_in_metres_for_any_unit_of_the_crs(tmp_path: Path) -> None:
    foot = 1200 / 3937
    transform = Affine(10, 0, 6_000_000, 0, -10, 2_000_000)
    path = write_map(tmp_path / "map.tif", trees(), crs="EPSG:2229", transform=transform)
    polygons(path, tmp_path / "trees.gpkg", PolygonConfig(min_area_m2=4 * (10 * foot) ** 2))
    frame = geopandas.read_file(tmp_path / "trees.gpkg")
    assert frame["area_m2"].tolist() == pytest.approx([12 * (10 * foot) ** 2])
    assert frame["perimeter_m"].tolist() == pytest.approx([24 * 10 * foot])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_measurements_are_geodesic_for_crs_that_distort_areas(tmp_path: Path, crs: str) -> None:
    """Squares of 30 m at 60 degrees north, in degrees and in Web Mercator, whose areas are four times too large."""
    geod, (lon, lat) = Geod(ellps="WGS84"), (25.0, 60.0)
    if crs == "EPSG:4326":
        transform = Affine(3e-4, 0, lon, 0, -3e-4, lat)
        across, down = geod.inv(lon, lat, lon + 3e-4, lat)[2], geod.inv(lon, lat, lon, lat - 3e-4)[2]
    else:
        transform = Affine(60, 0, 2782987.27, 0, -60, 8399737.89)
        across = down = 30.0
    path = write_map(tmp_path / "map.tif", trees(), crs=crs, transform=transform)
    summary = polygons(path, tmp_path / "trees.gpkg", PolygonConfig(min_area_m2=4 * across * down))
    frame = geopandas.read_file(tmp_path / "trees.gpkg")
    assert frame["area_m2"].tolist() == pytest.approx([12 * across * down], rel=6e-3)
    assert frame["perimeter_m"].tolist() == pytest.approx([12 * (across + down)], rel=6e-3)
    assert "ellipsoid" in summary.lines()[-1]


def test_geodesic_and_planar_measurements_agree() -> None:
    """The same square kilometre in UTM and, by its corners, on the ellipsoid."""
    utm = CRS.from_epsg(32612)
    shapes = np.array([shapely.box(0, 0, 1000, 1000)], object)
    grid = Grid(1000, 1000, METRE, utm)
    area, perimeter = areas_and_perimeters(shapes, grid)
    lonlat = geopandas.GeoSeries([grid.footprint()], crs=utm).to_crs(4326)[0]
    geodesic, length = Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(lonlat))
    assert (area[0], perimeter[0]) == (1e6, 4000)
    assert geodesic == pytest.approx(area[0], rel=1e-3)
    assert length == pytest.approx(perimeter[0], rel=1e-3)


# --------------------------------------------------------------------------------------------------- what is refused


def test_classes_without_names_are_named_by_their_values(tmp_path: Path) -> None:
    values = np.zeros((9, 9), np.uint8)
    values[1:3, 1:3] = 4
    path = write_map(tmp_path / "map.tif", values, legend=None)
    summary = polygons(path, tmp_path / "found.gpkg")
    assert geopandas.read_file(tmp_path / "found.gpkg")["class"].tolist() == ["4"]
    assert "map.tif has no class names" in summary.lines()[-1]
    assert "value 0" in summary.lines()[-1]
    both = polygons(path, tmp_path / "both.gpkg", PolygonConfig(background=True))
    assert {name: total.polygons for name, total in both.classes.items()} == {"0": 1, "4": 1}


@pytest.mark.parametrize(
    ("pixels", "bands"),
    [(np.ones((3, 9, 9), np.uint8), "3 bands of uint8"), (np.ones((1, 9, 9), np.float32), "1 bands of float32")],
)
def test_an_image_is_not_a_class_map(tmp_path: Path, pixels: ndarray, bands: str) -> None:
    path = write_raster(tmp_path / "image.tif", pixels)
    with pytest.raises(InputError, match=rf"image\.tif .*{bands}"):
        polygons(path, tmp_path / "out.gpkg")
    assert not (tmp_path / "out.gpkg").exists()


def test_an_output_that_cannot_be_written_is_refused(grove: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.gpkg").write_text("mine")
    with pytest.raises(OutputError, match=r"mine\.gpkg exists"):
        polygons(grove, tmp_path / "mine.gpkg")
    with pytest.raises(OutputError, match=r"\.gpkg, \.geojson, \.json, \.fgb, \.parquet, \.csv"):
        polygons(grove, tmp_path / "trees.shp")
    with pytest.raises(OutputError, match=r"mine\.gpkg"):
        polygons(grove, tmp_path / "mine.gpkg" / "trees.gpkg")
    assert {path.name for path in tmp_path.iterdir()} == {"map.tif", "mine.gpkg"}


def test_the_error_names_a_truncated_map_and_nothing_is_left(tmp_path: Path) -> None:
    path = write_map(tmp_path / "map.tif", np.random.default_rng(0).integers(1, 3, (300, 300)), legend=None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"map\.tif: rows \d+"):
        polygons(path, tmp_path / "out.gpkg")
    assert {path.name for path in tmp_path.iterdir()} == {"map.tif"}
