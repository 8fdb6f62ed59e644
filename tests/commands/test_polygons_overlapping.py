"""Polygons of overlapping classes: each class is polygonized by itself, from its band."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from numpy import ndarray

from geograft.commands.area import area
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.commands.sample import sample
from geograft.config import PolygonConfig, PredictConfig, SampleConfig
from geograft.errors import InputError
from geograft.geo.rasters.raster import Image
from geograft.legend import Legend
from geograft.mapping.polygons.ledger import PolygonLedger
from geograft.mapping.strata import read_strata
from tests.commands.test_polygons import write_map
from tests.support.rasters import TENTH_METRE, write_raster
from tests.support.runs import USES, BandPredictor, make_run

SETTINGS = PolygonConfig(fill_holes_m2=0.5, min_area_m2=0.1, simplify_m=0.2)


@pytest.fixture
def pixels(request: pytest.FixtureRequest) -> ndarray:
    """Three bands of squares with holes; the parameter is the number of rows of squares."""
    rng, rows = np.random.default_rng(0), getattr(request, "param", 12)
    squares = rng.integers(0, 2, (3, rows, 10)).repeat(8, 1).repeat(8, 2)
    holes = rng.random((3, 8 * rows, 80)) < 0.02
    found = np.where(squares & ~holes, 230, 20).astype(np.uint8)
    found[:, :5, :7] = 0
    return found


@pytest.fixture
def map_path(tmp_path: Path, pixels: ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", BandPredictor)
    run = make_run(tmp_path / "run", USES, tile_px=64)
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8"))
    return tmp_path / "map.tif"


@pytest.mark.parametrize("settings", [PolygonConfig(), SETTINGS])
def test_each_class_has_the_same_polygons_as_alone(tmp_path: Path, map_path: Path, settings: PolygonConfig) -> None:
    summary = polygons(map_path, tmp_path / "all.gpkg", settings)
    found = geopandas.read_file(tmp_path / "all.gpkg")
    with rasterio.open(map_path) as raster:
        bands = raster.read()
    for value, (name, band) in enumerate(zip(USES.names, bands, strict=True)):
        alone = write_map(tmp_path / f"{name}.tif", band, Legend(("rest", name)), TENTH_METRE)
        polygons(alone, tmp_path / f"{name}.gpkg", settings)
        expected = geopandas.read_file(tmp_path / f"{name}.gpkg")
        mine = found[found["class"] == name]
        assert set(mine["value"]) == {value}
        assert sorted(shapely.to_wkb(mine.geometry)) == sorted(shapely.to_wkb(expected.geometry))
        assert summary.classes[name].polygons == len(expected) > 0
        assert (mine["mean_probability"] > 0.8).all()
    assert tuple(summary.classes) == USES.names
    # The classes do overlap.
    union = found.union_all().area
    assert found.area.sum() > 1.2 * union


# Two rows of blocks per class.
@pytest.mark.parametrize("pixels", [130], indirect=True)
def test_a_job_interrupted_in_the_second_class_resumes_to_the_same_bytes(
    tmp_path: Path, map_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    polygons(map_path, tmp_path / "whole" / "all.geojson", SETTINGS)
    add, left = PolygonLedger.add, [3]

    def failing(self: PolygonLedger, *rest: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise InputError("the cable is out")
        add(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"2064 of 3120 rows"):
        patch.setattr(PolygonLedger, "add", failing)
        polygons(map_path, tmp_path / "all.geojson", SETTINGS)
    polygons(map_path, tmp_path / "all.geojson", SETTINGS)
    assert (tmp_path / "all.geojson").read_bytes() == (tmp_path / "whole" / "all.geojson").read_bytes()


def test_a_band_extracted_from_the_map_is_a_binary_map(tmp_path: Path, map_path: Path) -> None:
    with rasterio.open(map_path) as raster:
        tags, band, profile = raster.tags(), raster.read(2), raster.profile
    with rasterio.open(tmp_path / "trees.tif", "w", **{**profile, "count": 1}) as raster:
        raster.update_tags(**tags)
        raster.set_band_description(1, "trees")
        raster.write(band, 1)
    with Image.open(tmp_path / "trees.tif") as image:
        strata = read_strata(image)
    assert strata.names == ("no trees", "trees")
    assert strata.pixels.tolist() == [(band == 0).sum(), (band == 1).sum()]
    summary = polygons(tmp_path / "trees.tif", tmp_path / "trees.gpkg")
    assert tuple(summary.classes) == ("trees",)


def test_a_sample_and_its_areas_are_of_one_class(tmp_path: Path, map_path: Path) -> None:
    with pytest.raises(InputError, match=r"map\.tif .*--band: crops, trees, roads"):
        sample(map_path, tmp_path / "points.gpkg")
    with pytest.raises(InputError, match="'oaks'"):
        sample(map_path, tmp_path / "points.gpkg", SampleConfig(band="oaks"))
    summary = sample(map_path, tmp_path / "points.gpkg", SampleConfig(points=60, min_points=20, band="trees"))
    with rasterio.open(map_path) as raster:
        band, transform = raster.read(2), raster.transform
    assert summary.strata.pixels.tolist() == [(band == 0).sum(), (band == 1).sum()]
    points = geopandas.read_file(tmp_path / "points.gpkg", layer="points")
    rows, cols = rasterio.transform.rowcol(transform, points.geometry.x, points.geometry.y)
    # As if the map were correct everywhere.
    points["reference"] = np.where(band[rows, cols] == 1, "trees", "no trees")
    points.to_file(tmp_path / "points.gpkg", layer="points")
    found = area(map_path, tmp_path / "points.gpkg")
    assert found.strata.names == ("no trees", "trees")
    assert found.strata.band == 2
    assert found.error_matrix.points.tolist() == [
        [(band[rows, cols] == 0).sum(), 0],
        [0, (band[rows, cols] == 1).sum()],
    ]
