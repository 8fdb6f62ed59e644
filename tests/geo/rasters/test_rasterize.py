"""A pixel belongs to the polygon that contains its centre, in every window, grid and CRS."""

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from pyproj import CRS
from shapely import MultiPolygon, Point, Polygon, box

from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.rasters.rasterize import rasterize_window, to_pixel_shapes
from geograft.geo.vectors.reader import repair_polygons, reproject

SIZE = 60
UTM12, WGS84, MERCATOR = CRS.from_epsg(32612), CRS.from_epsg(4326), CRS.from_epsg(3857)
PLACES = {
    "north up": Affine(0.1, 0, 528000, 0, -0.1, 4979000),
    "south up": Affine(10, 0, 528000, 0, 10, 4979000),
    "turned": Affine.translation(528000, 4979000) @ Affine.rotation(33) @ Affine.scale(0.5, -0.7),
    "pixels": Affine.identity(),
}

rectangles = st.builds(
    Window,
    *(st.integers(-10, SIZE + 5), st.integers(-10, SIZE + 5), st.integers(1, 40), st.integers(1, 40)),
)
outlines = st.lists(st.tuples(st.integers(-20, 160), st.integers(-20, 160)), min_size=3, max_size=9).map(
    lambda points: repair_polygons(np.array([Polygon(np.array(points) / 2)], object))[0][0]
)


def ones(count: int) -> ndarray:
    return np.ones(count, np.uint8)


def painted(windows: list[Window]) -> ndarray:
    labels = np.zeros((SIZE, SIZE), np.uint8)
    for value, window in enumerate(windows, start=1):
        part = window.intersection(Window(0, 0, SIZE, SIZE))
        if part is not None:
            labels[part.slices] = value
    return labels


@pytest.mark.parametrize("place", PLACES)
@given(windows=st.lists(rectangles, max_size=4))
@settings(deadline=None, max_examples=25)
def test_pixel_rectangles_rasterise_to_their_pixels(place: str, windows: list[Window]) -> None:
    grid = Grid(SIZE, SIZE, PLACES[place], None)
    shapes = np.array([grid.footprint(window) for window in windows], object)
    values = np.arange(1, len(windows) + 1, dtype=np.uint8)
    assert np.array_equal(
        rasterize_window(to_pixel_shapes(shapes, values, ~grid.transform), grid.window, fill=0), painted(windows)
    )


@pytest.mark.parametrize("crs", [WGS84, MERCATOR], ids=["degrees", "mercator"])
@given(windows=st.lists(rectangles, min_size=1, max_size=3))
@settings(deadline=None, max_examples=25)
def test_pixel_rectangles_in_another_crs_rasterise_to_their_pixels(crs: CRS, windows: list[Window]) -> None:
    grid = Grid(SIZE, SIZE, PLACES["north up"], UTM12)
    there = geopandas.GeoSeries([grid.footprint(window) for window in windows], crs=UTM12).to_crs(crs)
    shapes = reproject(there.to_numpy(), crs, UTM12)
    values = np.arange(1, len(windows) + 1, dtype=np.uint8)
    assert np.array_equal(
        rasterize_window(to_pixel_shapes(shapes, values, ~grid.transform), grid.window, fill=0), painted(windows)
    )


@given(shapes=st.lists(outlines, min_size=1, max_size=4), height=st.integers(9, 70), width=st.integers(9, 70))
@settings(deadline=None, max_examples=40)
def test_windows_agree_with_the_whole(shapes: list[Polygon], height: int, width: int) -> None:
    pixel = to_pixel_shapes(np.array(shapes, object), np.arange(len(shapes), dtype=np.uint8), Affine.identity())
    whole = rasterize_window(pixel, Window(0, 0, SIZE, SIZE), fill=9)
    for window in block_windows(Window(0, 0, SIZE, SIZE), height, width):
        assert np.array_equal(rasterize_window(pixel, window, fill=9), whole[window.slices])


@given(shape=outlines)
@settings(deadline=None, max_examples=40)
def test_a_pixel_belongs_to_the_polygon_with_its_centre(shape: Polygon) -> None:
    # Away from centres, where inside and outside would depend on a rule for ties.
    moved = shapely.affinity.translate(shape, 0.137, 0.071)
    labels = rasterize_window(
        to_pixel_shapes(np.array([moved], object), ones(1), Affine.identity()), Window(0, 0, SIZE, SIZE), fill=0
    )
    rows, cols = np.mgrid[:SIZE, :SIZE] + 0.5
    assert np.array_equal(labels == 1, shapely.contains_xy(moved, cols, rows))


@given(split=st.floats(0, SIZE))
@settings(deadline=None)
def test_adjacent_polygons_partition_the_pixels(split: float) -> None:
    halves = np.array([box(0, 0, split, SIZE), box(split, 0, SIZE, SIZE)], object)
    window = Window(0, 0, SIZE, SIZE)
    alone = [rasterize_window(to_pixel_shapes(halves[[i]], ones(1), Affine.identity()), window, fill=0) for i in (0, 1)]
    assert (alone[0] + alone[1] == 1).all()


def test_holes_and_multipolygons() -> None:
    ring = box(5, 5, 25, 25).difference(box(10, 10, 20, 20))
    shapes = np.array([MultiPolygon([ring, box(40, 40, 50, 50)]), box(12, 12, 14, 14)], object)
    labels = rasterize_window(
        to_pixel_shapes(shapes, np.array([1, 2], np.uint8), Affine.identity()), Window(0, 0, SIZE, SIZE), fill=0
    )
    assert np.bincount(labels.ravel())[1:].tolist() == [400 - 100 + 100, 4]
    assert labels[13, 13] == 2
    assert labels[11, 11] == 0


def test_the_later_polygon_wins() -> None:
    shapes = np.array([box(0, 0, 10, 10), box(5, 5, 15, 15)], object)
    both = rasterize_window(
        to_pixel_shapes(shapes, np.array([2, 1], np.uint8), Affine.identity()), Window(0, 0, 20, 20), fill=0
    )
    assert both[7, 7] == 1
    assert both[2, 2] == 2


def test_a_window_without_polygons_has_the_fill_value() -> None:
    shapes = to_pixel_shapes(np.array([Point(5, 5).buffer(2)], object), ones(1), Affine.identity())
    assert (rasterize_window(shapes, Window(30, 30, 4, 5), fill=7) == 7).all()
    assert (
        rasterize_window(to_pixel_shapes(np.array([], object), ones(0), Affine.identity()), Window(0, 0, 4, 5), 3) == 3
    ).all()


def test_far_windows_of_a_huge_scene_are_exact() -> None:
    grid = Grid(2_000_000, 3_000_000, PLACES["north up"], None)
    window = Window(1_999_000, 2_999_000, 40, 50)
    shapes = np.array([grid.footprint(window)], object)
    labels = rasterize_window(to_pixel_shapes(shapes, ones(1), ~grid.transform), window.pad(2), fill=0)
    assert labels.sum() == 40 * 50
    assert labels[2:-2, 2:-2].all()
