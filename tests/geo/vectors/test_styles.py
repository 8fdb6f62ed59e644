"""Every GeoPackage shows in QGIS what it is: classes, splits and ranks by name, with fields in words."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pyproj import CRS
from shapely import box

from geograft.commands.suggest import write_suggestions
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.points import write_points
from geograft.geo.vectors.reader import Features
from geograft.geo.vectors.styles import FieldForm, ranked_style
from geograft.geo.vectors.writer import write_tiles
from geograft.mapping.polygons.writer import PolygonTarget, write_polygon_file
from geograft.mapping.pool import Suggestion
from tests.support.gis import PYTHON, qgis_layers, require_qgis, run_qgis
from tests.support.rasters import TENTH_METRE, UTM12

GRID = Grid(320, 320, TENTH_METRE, CRS.from_user_input(UTM12))
WINDOWS = [Window(32 * (i // 4), 32 * (i % 4), 32, 32) for i in range(8)]
CLASSES = ("oak", "elm & <ash>")


def write_all(folder: Path) -> dict[str, Path]:
    """Write one GeoPackage of each kind, and return their paths with the layer to open."""
    folder.mkdir()
    outlines = [GRID.footprint(window) for window in WINDOWS]
    splits = ("train", "val", "test", "train")
    rows = [("a", window, splits[i % 4], 1.0, (0.5, 0.5)) for i, window in enumerate(WINDOWS)]
    write_tiles(folder / "tiles.gpkg", rows, outlines, CLASSES, GRID.crs)
    suggestions = [Suggestion(i + 1, 0, window, 0.1, 0.5, None) for i, window in enumerate(WINDOWS)]
    write_suggestions(folder / "next.gpkg", suggestions, [(Path("scene.tif"), GRID)])
    strata = {"class": list(CLASSES), "pixels": np.array([50, 60])}
    centres = np.array([outline.centroid.coords[0] for outline in outlines])
    write_points(folder / "sample.gpkg", centres, strata, GRID.crs)
    colours = dict(zip(CLASSES, ("#009E73", "#E69F00"), strict=True))
    target = PolygonTarget(folder / "map.gpkg", GRID, "map", None, datetime(2026, 1, 1, tzinfo=UTC), colours)
    shapes = [box(window.col, window.row, window.col + 30, window.row + 30) for window in WINDOWS]
    names = np.array([CLASSES[i % 2] for i in range(8)], object)
    (folder / "scratch").mkdir()
    columns = {"class": names, "value": np.arange(8), "area_m2": np.ones(8)}
    write_polygon_file(folder / "scratch", target, [Features(shapes, columns)])
    return {name: folder / f"{name}.gpkg" for name in ("tiles", "next", "sample", "map")}


def test_equal_content_gives_equal_files(tmp_path: Path) -> None:
    for one, other in zip(write_all(tmp_path / "a").values(), write_all(tmp_path / "b").values(), strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_qgis_shows_splits_ranks_classes_and_points_to_label(tmp_path: Path) -> None:
    files = write_all(tmp_path / "layers")
    tiles, suggestions, sample, polygons = qgis_layers(
        files["tiles"], files["next"], f"{files['sample']}|layername=points", files["map"]
    )
    assert (tiles["renderer"], tiles["legend"]) == ("categorizedSymbol", ["train", "val", "test"])
    assert (suggestions["renderer"], suggestions["labels"]) == ("graduatedSymbol", True)
    assert suggestions["legend"] == ["1 to 2", "3 to 4", "5 to 6", "7 to 8"]
    assert sample["legend"] == ["without a reference", "with a reference"]
    assert sample["widgets"]["reference"] == "ValueMap"
    assert (polygons["renderer"], polygons["legend"]) == ("categorizedSymbol", list(CLASSES))
    assert polygons["aliases"]["area_m2"] == "Area in square metres"
    assert [layer["title"] for layer in (tiles, suggestions, sample)] == [
        "Tiles by split",
        "Tiles to label next",
        "Points to label",
    ]
    for layer in (tiles, suggestions, sample, polygons):
        assert layer["abstract"]
        assert layer["drawn"] == layer["features"] == 8


def test_gdal_of_debian_opens_them_without_a_warning(tmp_path: Path) -> None:
    require_qgis()
    files = write_all(tmp_path / "layers")
    script = """
import sys
from osgeo import gdal
gdal.UseExceptions()
gdal.PushErrorHandler(lambda kind, number, text: sys.stdout.write(text + "\\n"))
for path in sys.argv[1:]:
    dataset = gdal.OpenEx(path)
    for i in range(dataset.GetLayerCount()):
        for feature in dataset.GetLayer(i):
            feature.ExportToJson()
"""
    assert not run_qgis([PYTHON, "-c", script, *map(str, files.values())])


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_each_rank_has_one_step(count: int) -> None:
    style = ranked_style("rank", count, FieldForm())
    steps = [line.split('"') for line in style.split("<range ")[1:]]
    bounds = [(float(step[1]), float(step[3])) for step in steps]
    assert [sum(low < rank <= high for low, high in bounds) for rank in range(1, count + 1)] == [1] * count
