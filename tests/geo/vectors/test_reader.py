"""Polygons are read repaired, and reprojected to the image's CRS."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod
from shapely import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box

from geograft.errors import InputError
from geograft.geo.vectors.reader import read_polygons, repair_polygons, reproject

UTM12, WGS84 = CRS.from_epsg(32612), CRS.from_epsg(4326)
BOWTIE = Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
SQUARE = box(500000, 4979000, 500100, 4979100)


def write_layer(path: Path, shapes: list[Any], crs: Any = UTM12, **columns: Any) -> Path:
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)
        frame.to_file(path)
    return path


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
def test_three_formats_in_another_crs(tmp_path: Path, suffix: str) -> None:
    there = geopandas.GeoSeries([SQUARE], crs=UTM12).to_crs(4326)[0]
    path = write_layer(tmp_path / f"a{suffix}", [there], WGS84, kind=["oak"])
    found = read_polygons(path, UTM12, "kind")
    assert found.classes == ("oak",)
    assert found.shapes[0].hausdorff_distance(SQUARE) < 0.001
    assert (found.repaired_count, found.dropped_count) == (0, 0)


def test_invalid_polygons_are_repaired_and_counted(tmp_path: Path) -> None:
    spike = Polygon([(0, 0), (1, 0), (1, 1), (1, 5), (1, 1), (0, 1)])
    found = read_polygons(write_layer(tmp_path / "a.gpkg", [BOWTIE, spike, box(5, 5, 6, 6)]), UTM12)
    assert (found.repaired_count, found.dropped_count) == (2, 0)
    assert shapely.is_valid(found.shapes).all()
    assert shapely.area(found.shapes).tolist() == [2, 1, 1]


def test_features_without_area_are_dropped_and_counted(tmp_path: Path) -> None:
    line = Polygon([(0, 0), (1, 1), (0, 0)])
    found = read_polygons(write_layer(tmp_path / "a.gpkg", [Point(0, 0), line, None, box(0, 0, 1, 1)]), UTM12)
    assert len(found.shapes) == 1
    assert found.dropped_count == 3


def test_the_class_of_a_dropped_feature_may_be_missing(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "a.gpkg", [Point(0, 0), box(0, 0, 1, 1)], kind=[None, "oak"])
    assert read_polygons(path, UTM12, "kind").classes == ("oak",)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=9))
@settings(deadline=None)
def test_repair_is_idempotent(points: list[tuple[int, int]]) -> None:
    drawn = Polygon(points)
    repaired, _ = repair_polygons(np.array([drawn], object))
    assert repaired[0].is_valid
    assert repaired[0].geom_type in ("Polygon", "MultiPolygon")
    assert repaired[0].difference(drawn.convex_hull.buffer(1e-9)).is_empty
    again, count = repair_polygons(repaired)
    assert count == 0
    assert again[0].equals(repaired[0])
    if drawn.is_valid:
        assert drawn.equals(repaired[0])


def test_only_polygonal_parts_of_collections_are_kept() -> None:
    mixed = GeometryCollection([box(0, 0, 1, 1), LineString([(0, 0), (5, 5)]), MultiPolygon([box(2, 2, 3, 3)])])
    (shape,), _ = repair_polygons(np.array([mixed], object))
    assert shape.equals(MultiPolygon([box(0, 0, 1, 1), box(2, 2, 3, 3)]))


def test_long_edges_stay_straight_in_the_source_crs() -> None:
    # A parallel of latitude is straight in degrees and bends by 200 m in UTM.
    degrees = box(-111.6, 44.0, -110.4, 44.5)
    (there,) = reproject(np.array([degrees], object), WGS84, UTM12)
    (back,) = geopandas.GeoSeries([there], crs=UTM12).to_crs(4326)
    straight = geopandas.GeoSeries([degrees], crs=4326).to_crs(UTM12)[0]
    middle = geopandas.GeoSeries([Point(-111, 44.0)], crs=4326).to_crs(UTM12)[0]
    assert there.boundary.distance(middle) < 0.01
    assert straight.boundary.distance(middle) > 100
    assert back.hausdorff_distance(degrees) < 1e-7
    area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shapely.segmentize(degrees, 0.001))
    scale = 0.9996**2
    assert math.isclose(there.area, abs(area) * scale, rel_tol=1e-3)


def test_shapes_outside_a_projection_become_empty() -> None:
    far = np.array([box(-111, 44, -110, 45), box(60, 89, 70, 90.0)], object)
    antipodal = CRS.from_proj4("+proj=gnom +lat_0=-90")
    assert shapely.is_empty(reproject(far, WGS84, antipodal)).tolist() == [True, True]


def test_a_local_crs_cannot_be_reprojected() -> None:
    local = CRS.from_wkt('LOCAL_CS["x",UNIT["metre",1]]')
    with pytest.raises(InputError, match="no transformation from the CRS x to WGS 84"):
        reproject(np.array([shapely.box(0, 0, 1, 1)], object), local, WGS84)


def test_integer_classes_have_no_decimal_point(tmp_path: Path) -> None:
    path = write_layer(tmp_path / "a.gpkg", [box(0, 0, 1, 1)] * 2, code=[1.0, 2.0])
    assert read_polygons(path, UTM12, "code").classes == ("1", "2")


@pytest.mark.parametrize(
    ("make", "field", "message"),
    [
        (lambda path: None, None, "labels.gpkg"),
        (lambda path: path.write_text("no layer"), None, "labels.gpkg"),
        (lambda path: write_layer(path, []), None, "labels.gpkg"),
        (lambda path: write_layer(path, [Point(0, 0)] * 3), None, "3 Point"),
        (lambda path: write_layer(path, [SQUARE], kind=["a"]), "species", r"'species'.*kind"),
        (lambda path: write_layer(path, [SQUARE] * 3, kind=["a", None, None]), "kind", "2 of 3.*'kind'"),
        (
            lambda path: write_layer(path, [SQUARE], None),
            None,
            r"CRS.*WGS 84 / UTM",
        ),
    ],
)
def test_a_bad_layer_is_an_error_of_one_line(
    tmp_path: Path, make: Callable[[Path], object], field: str | None, message: str
) -> None:
    make(tmp_path / "labels.gpkg")
    with pytest.raises(InputError, match=message) as caught:
        read_polygons(tmp_path / "labels.gpkg", UTM12, field)
    assert "labels.gpkg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_layers_are_listed(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(geometry=[SQUARE], crs=UTM12)
    for layer in ("oaks", "pines"):
        frame.to_file(tmp_path / "a.gpkg", layer=layer)
    with pytest.raises(InputError, match=r"2 layers.*oaks, pines"):
        read_polygons(tmp_path / "a.gpkg", UTM12)


def test_geojson_with_coordinates_beyond_degrees_has_no_crs(tmp_path: Path) -> None:
    outline = {"type": "Polygon", "coordinates": [[[900, 10], [950, 10], [950, 60], [900, 10]]]}
    feature = {"type": "Feature", "properties": {}, "geometry": outline}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert read_polygons(tmp_path / "a.geojson").crs is None
