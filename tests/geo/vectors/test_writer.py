"""Tile indices and polygons are written atomically, in every format, and read back unchanged."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from affine import Affine
from pyproj import CRS
from shapely import box

from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.reader import Features, read_tiles
from geograft.geo.vectors.writer import Layer, write_polygons, write_tiles
from geograft.mapping.polygons.writer import PolygonTarget, check_target, write_polygon_file
from tests.geo.vectors.test_reader import SQUARE, UTM12, WGS84, write_layer
from tests.support.full_disk import max_file_size

METRE = Affine(1, 0, 500000, 0, -1, 4979010)
FORMATS = [".gpkg", ".geojson", ".fgb", ".parquet"]
HOLED = box(0, 0, 9, 9).difference(box(1, 1, 2, 2))


def target(path: Path, crs: CRS | None = UTM12, dstl_grid: Path | None = None) -> PolygonTarget:
    return PolygonTarget(
        path, Grid(100, 100, METRE, crs), "6010_1_2", dstl_grid, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    )


def written(path: Path, features: list[Features], crs: CRS | None = UTM12) -> int:
    folder = path.with_name("parts")
    folder.mkdir()
    try:
        return write_polygon_file(folder, target(path, crs), features)
    finally:
        folder.rmdir()


def features(count: int = 3) -> list[Features]:
    """Two batches of squares with a hole, in pixels, after an empty one."""
    none = Features([], {"class": np.array([], object), "area_m2": np.array([], float), "count": np.array([], int)})
    shapes = [shapely.affinity.translate(HOLED, 10 * i, 0) for i in range(count)]
    both = shapely.MultiPolygon([box(50, 50, 51, 51), box(51, 51, 52, 52)])
    names = np.array((["oak", "elm", "café"] * count)[:count], object)
    columns = {"class": names, "area_m2": np.full(count, 80.0), "count": np.arange(count)}
    last = {"class": np.array(["oak"], object), "area_m2": np.array([np.nan]), "count": np.array([9])}
    return [none, Features(shapes, columns), Features([both], last)]


# ------------------------------------------------------------------------------------------------------------- tiles


def test_a_tile_index_is_read_back_in_order(tmp_path: Path) -> None:
    rows = [
        ("b", Window(5, 0, 32, 32), "val", 0.25, (0.125, 0.875)),
        ("a", Window(0, 5, 32, 32), "train", 1.0, (1.0, 0.0)),
    ]
    write_tiles(tmp_path / "tiles.gpkg", rows, [SQUARE, SQUARE], ("rest", "Oak & elm"), UTM12)
    assert read_tiles(tmp_path / "tiles.gpkg") == [(*row, "") for row in rows]
    frame = geopandas.read_file(tmp_path / "tiles.gpkg")
    assert frame.crs == UTM12
    assert frame["fraction_1_Oak & elm"].tolist() == [0.875, 0.0]


def test_a_tile_index_without_crs(tmp_path: Path) -> None:
    rows = [("a", Window(0, 5, 32, 32), "train", 1.0, (1.0, 0.0))]
    write_tiles(tmp_path / "tiles.gpkg", rows, [SQUARE], ("rest", "oak"), None)
    assert read_tiles(tmp_path / "tiles.gpkg") == [(*row, "") for row in rows]


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.write_text("x"), lambda path: write_layer(path, [SQUARE])]
)
def test_a_file_that_is_not_a_tile_index_is_an_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "tiles.gpkg")
    with pytest.raises(InputError, match=r"tiles\.gpkg"):
        read_tiles(tmp_path / "tiles.gpkg")


# ---------------------------------------------------------------------------------------------------------- polygons


def opened(path: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_polygons_are_read_back_from_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    assert written(path, features()) == 4
    frame = opened(path).sort_values("count")
    assert frame.columns.tolist() == ["class", "area_m2", "count", "geometry"]
    assert frame["class"].tolist() == ["oak", "elm", "café", "oak"]
    assert frame["count"].tolist() == [0, 1, 2, 9]
    assert frame["area_m2"].isna().tolist() == [False] * 3 + [True]
    assert frame.crs == (WGS84 if suffix == ".geojson" else UTM12)
    there = frame.to_crs(UTM12).geometry
    assert np.allclose(there.area, [80, 80, 80, 2], rtol=1e-5)
    assert there.is_valid.all()
    assert np.allclose(there.bounds.iloc[0], [500000, 4979001, 500009, 4979010], atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_polygons_give_an_empty_layer_with_fields(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    assert written(path, features()[:1]) == 0
    assert len(opened(path)) == 0
    if suffix != ".geojson":
        assert opened(path).columns.tolist() == ["class", "area_m2", "count", "geometry"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_without_a_crs(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"map{suffix}"
    written(path, features(), None)
    assert np.allclose(sorted(shapely.area(opened(path).geometry)), [2, 80, 80, 80])
    # GeoJSON without a CRS is WGS 84 to its readers.
    assert suffix == ".geojson" or opened(path).crs is None


@pytest.mark.parametrize("suffix", FORMATS)
def test_equal_polygons_make_equal_files(tmp_path: Path, suffix: str) -> None:
    one, other = tmp_path / "a" / f"map{suffix}", tmp_path / "b" / f"map{suffix}"
    for path in (one, other):
        path.parent.mkdir()
        written(path, features(50))
    assert one.read_bytes() == other.read_bytes()


def test_geoparquet_has_the_metadata_of_its_standard(tmp_path: Path) -> None:
    written(tmp_path / "map.parquet", features())
    metadata = pq.read_metadata(tmp_path / "map.parquet")
    geo = json.loads(metadata.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"], metadata.num_row_groups) == ("1.1.0", "geometry", 2)
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["MultiPolygon"])
    assert CRS.from_json_dict(column["crs"]) == UTM12
    assert column["bbox"] == [500000, 4978958, 500052, 4979010]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("fraction", [0, 0.01, 0.3, 0.7, 0.99])
def test_a_full_disk_leaves_no_file(tmp_path: Path, suffix: str, fraction: float) -> None:
    path = tmp_path / f"map{suffix}"
    many = features(900)
    written(path, many)
    size = path.stat().st_size
    path.unlink()
    with max_file_size(int(size * fraction)), pytest.raises(OutputError, match=r"\.(gpkg|geojson|fgb|parquet|csv)"):
        written(path, many)
    assert not list(tmp_path.iterdir())


def test_an_unsupported_target_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"\.gpkg, \.geojson, \.json, \.fgb, \.parquet, \.csv"):
        check_target(target(tmp_path / "map.kml"))
    with pytest.raises(SettingError, match="--dstl-grid"):
        check_target(target(tmp_path / "map.csv"))
    with pytest.raises(SettingError, match="--dstl-grid"):
        check_target(target(tmp_path / "map.gpkg", dstl_grid=tmp_path / "grid_sizes.csv"))
    monkeypatch.setattr("geograft.mapping.polygons.writer.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"\.fgb.*pyarrow.*geograft\[parquet\]"):
        check_target(target(tmp_path / "map.fgb"))


def test_a_failing_source_leaves_the_existing_file(tmp_path: Path) -> None:
    def broken() -> Iterator[Features]:
        yield from features()
        raise InputError("the map is damaged")

    path = tmp_path / "map.gpkg"
    path.write_text("before")
    with pytest.raises(InputError):
        write_polygons(path, broken(), UTM12, Layer("map"))
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["map.gpkg"]
