"""Where maps are right and wrong: in labelled scoring areas, at any threshold, and in the rasters of a review."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from pyproj import CRS

from geograft.geo.grid import Window
from geograft.geo.rasters.rasterize import last_value_at, rasterize_window, to_pixel_shapes
from geograft.geo.rasters.tags import sibling_path
from geograft.geo.vectors.label_file import Area, Label, write_label_file
from geograft.geo.webmap import Place, WebTile, plane_of
from geograft.metrics.errors import error_names
from geograft.server.layers import CORRECT, FALSE_COLOUR, MISSED_COLOUR, RIGHT_COLOUR, ShownClass, Subject, read_info
from tests.server.test_view import layer_of, middle_tile, picture
from tests.support.rasters import TENTH_METRE, UTM12, write_raster
from tests.support.serving import PIXELS, client_of, make_project, square

Colours = dict[str, tuple[int, int, int, int]]


def rgba(colour: str) -> tuple[int, ...]:
    return (*bytes.fromhex(colour[1:]), 255)


def pixels_in(layer: dict[str, Any], path: Path) -> tuple[ndarray, ndarray, ndarray]:
    """Return the row and column in a raster of each pixel of the layer's middle tile, and which lie in it."""
    grid = read_info(path).grid
    z, x, y = (int(part.removesuffix(".png")) for part in middle_tile(layer).split("/"))
    col, row = np.floor(WebTile(z, x, y).pixels_of(Place(grid, plane_of([grid])))).astype(int)
    inside = (col >= 0) & (col < grid.width) & (row >= 0) & (row < grid.height)
    return row.clip(0, grid.height - 1), col.clip(0, grid.width - 1), inside


def truth_of_project() -> tuple[ndarray, ndarray]:
    """Return where the project of `make_project` is scored, and where it has trees."""
    counted, trees = np.zeros((2, PIXELS, PIXELS), bool)
    counted[16:48, 8:40] = True
    trees[20:24, 10:14] = True
    trees[20:28, 40:48] = True
    return counted, trees


def test_errors_have_the_probability_and_the_truth_of_each_pixel(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    (_, path), *_ = subject.maps
    with client_of(subject) as client:
        layer = layer_of(client, "errors")
        assert layer["threshold"] == 0.5 and layer["class_value"] == 2 and len(layer["legend"]) == 3
        shown = picture(client, f"/api/layers/{layer['id']}/values/{middle_tile(layer)}")
        assert client.get(f"/api/layers/{layer['id']}/values/3/1/1.png").status_code == 204
    row, col, inside = pixels_in(layer, path)
    counted, trees = truth_of_project()
    with rasterio.open(sibling_path(path, "probabilities")) as raster:
        codes = raster.read(2)
    known = inside & counted[row, col] & (codes[row, col] != 255)
    assert (shown[..., 0] == np.where(known, codes[row, col], 255)).all()
    assert (shown[..., 1] == (known & trees[row, col])).all()
    assert known.sum() > 100 and shown[..., 1].any() and (shown[..., 3] == 255).all()


def test_errors_of_a_map_without_probabilities_are_those_of_its_classes(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    (_, path), *_ = subject.maps
    sibling_path(path, "probabilities").unlink()
    areas = [Area(square(8, 16, 44), "scoring", "random", labelled=True)]
    labels = [Label(square(40, 20, 8), "trees"), Label(square(10, 20, 4), "trees")]
    (tmp_path / "labels.gpkg").unlink()
    write_label_file(tmp_path / "labels.gpkg", areas, labels, CRS(UTM12))
    with client_of(subject) as client:
        layer = layer_of(client, "errors")
        assert layer["threshold"] is None
        shown = picture(client, f"/api/layers/{layer['id']}/tiles/{middle_tile(layer)}")
        assert client.get(f"/api/layers/{layer['id']}/values/{middle_tile(layer)}").status_code == 404
    row, col, inside = pixels_in(layer, path)
    trees = truth_of_project()[1][row, col]
    counted = (row >= 16) & (row < 60) & (col >= 8) & (col < 52)
    with rasterio.open(path) as raster:
        mapped = raster.read(1)[row, col]
    known = inside & counted & (mapped != 255)
    for where, colour in (
        (known & trees & (mapped == 2), rgba(RIGHT_COLOUR)),
        (known & trees & (mapped == 1), rgba(MISSED_COLOUR)),
        (known & ~trees & (mapped == 2), rgba(FALSE_COLOUR)),
        (~known | (~trees & (mapped == 1)), (0, 0, 0, 0)),
    ):
        assert (shown[where] == colour).all()
    assert (known & ~trees & (mapped == 2)).any() and (known & trees & (mapped == 1)).any()


def write_several(folder: Path) -> Subject:
    """Return a project with a map of three classes in columns, and labels of two of them in a scoring area."""
    values = np.repeat(np.array([10, 20, 30], np.uint8), (20, 20, 24))[None, None].repeat(PIXELS, axis=1)
    path = write_raster(folder / "map.tif", values, nodata=255)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(CLASS_10="other", CLASS_20="grass", CLASS_30="trees")
    areas = [Area(square(0, 0, 64), "scoring", "random", labelled=True, rank=1)]
    labels = [Label(square(10, 0, 30), "grass"), Label(square(30, 0, 30), "trees")]
    write_label_file(folder / "labels.gpkg", areas, labels, CRS(UTM12))
    classes = (ShownClass(1, "grass", "#E69F00"), ShownClass(2, "trees", "#009E73"))
    return Subject("Several", "project", classes, (), (("map", path),), folder=folder)


def test_errors_of_several_classes_are_right_or_another_class(tmp_path: Path) -> None:
    subject = write_several(tmp_path)
    with client_of(subject) as client:
        layer = layer_of(client, "errors")
        shown = picture(client, f"/api/layers/{layer['id']}/tiles/{middle_tile(layer)}")
    row, col, inside = pixels_in(layer, subject.maps[0][1])
    truth = np.full((PIXELS, PIXELS), 10)
    truth[0:30, 10:40] = 20
    truth[0:30, 30:60] = 30
    mapped = np.repeat([10, 20, 30], (20, 20, 24))
    right = truth[row, col] == mapped[col]
    assert (shown[inside & right] == rgba(RIGHT_COLOUR)).all() and (inside & right).any()
    assert (shown[inside & ~right] == rgba(FALSE_COLOUR)).all() and (inside & ~right).any()
    assert (shown[~inside] == 0).all()


def test_without_a_labelled_scoring_area_there_are_no_errors(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    areas = [Area(square(8, 16, 32), "scoring", "random"), Area(square(44, 16, 16), "training", labelled=True)]
    write_label_file(tmp_path / "other.gpkg", areas, [Label(square(40, 20, 8), "trees")], CRS(UTM12))
    (tmp_path / "other.gpkg").replace(tmp_path / "labels.gpkg")
    with client_of(subject) as client:
        kinds = [layer["kind"] for layer in client.get("/api/project").json()["layers"]]
        assert kinds == ["image", "classes", "probability"]
        assert client.get("/api/layers/errors-probability-0-1/values/1/0/0.png").status_code == 404


def test_errors_follow_the_labels_and_a_file_of_labels_that_is_damaged_hides_them(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    with client_of(subject) as client:
        before = layer_of(client, "errors")["revision"]
        write_label_file(
            tmp_path / "other.gpkg", [Area(square(8, 16, 32), "scoring", "random", labelled=True)], [], CRS(UTM12)
        )
        (tmp_path / "other.gpkg").replace(tmp_path / "labels.gpkg")
        after = layer_of(client, "errors")
        assert after["revision"] != before
        shown = picture(client, f"/api/layers/{after['id']}/values/{middle_tile(after)}")
        assert not shown[..., 1].any() and (shown[..., 0] != 255).any()
        (tmp_path / "labels.gpkg").write_bytes(b"damaged")
        assert "errors" not in [layer["kind"] for layer in client.get("/api/project").json()["layers"]]


@pytest.mark.parametrize("classes", [("other", "trees"), ("other", "grass", "trees")])
def test_error_rasters_of_a_review_are_shown(tmp_path: Path, classes: tuple[str, ...]) -> None:
    names = error_names(classes)
    assert names[0] == CORRECT
    values = np.resize(np.array([*names], np.uint8), (1, PIXELS, PIXELS))
    path = write_raster(tmp_path / "errors.tif", values, TENTH_METRE, nodata=255)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(**{f"CLASS_{value}": name for value, name in names.items()}, CLASS_999="out of range")
    subject = replace(make_project(tmp_path / "project"), folder=None, maps=(), reviews=(("scene", path),))
    with client_of(subject) as client:
        layer = layer_of(client, "errors")
        shown = picture(client, f"/api/layers/{layer['id']}/tiles/{middle_tile(layer)}")
        found = {tuple(colour) for colour in shown.reshape(-1, 4).tolist()} - {(0, 0, 0, 0)}
        binary = {rgba(MISSED_COLOUR)} if len(classes) == 2 else set()
        assert found == {rgba(RIGHT_COLOUR), rgba(FALSE_COLOUR)} | binary
        west, south, east, north = layer["bounds"]
        pixel = client.get(f"/api/layers/{layer['id']}/pixel?lng={(west + east) / 2}&lat={(south + north) / 2}").json()
        assert pixel["class"] in names.values()


@given(
    st.lists(st.tuples(st.floats(-5, 40), st.floats(-5, 40), st.floats(0.5, 30), st.integers(1, 200)), max_size=6),
    st.booleans(),
)
def test_points_have_the_value_that_rasterizing_gives_their_pixel(squares: list[Any], round_numbers: bool) -> None:
    if round_numbers:
        squares = [(round(x), round(y) + 0.5, round(side) or 1, value) for x, y, side, value in squares]
    shapes = np.array([shapely.box(x, y, x + side, y + side) for x, y, side, _ in squares], object)
    pixels = to_pixel_shapes(shapes, np.array([value for *_, value in squares], np.uint8), rasterio.Affine.identity())
    rows, cols = np.mgrid[0:32, 0:32]
    found = last_value_at(pixels, np.stack([cols.ravel() + 0.5, rows.ravel() + 0.5]), 255)
    assert (found.reshape(32, 32) == rasterize_window(pixels, Window(0, 0, 32, 32), fill=255)).all()
