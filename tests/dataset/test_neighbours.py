"""Distances in metres in any CRS, and the area that two scenes share."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from pyproj import CRS, Geod

from geograft.dataset.neighbours import (
    Outlines,
    connected_components,
    find_positions,
    nearest_distances,
    nearest_distances_in_scene,
    project_to_mercator,
    shared_area,
)
from geograft.dataset.tileset import Position
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.reader import read_outlines, reproject
from geograft.geo.vectors.writer import write_tiles

UTM21S = CRS.from_epsg(32721)
boxes = st.builds(
    lambda x, y, w, h: shapely.box(x, y, x + w, y + h),
    st.integers(0, 20), st.integers(0, 20), st.integers(1, 6), st.integers(1, 6),
)  # fmt: skip


def places(shapes: list[shapely.Polygon], scenes: list[int]) -> Outlines:
    return Outlines(np.array(shapes, object), np.array(scenes, int))


@given(st.lists(boxes, min_size=1, max_size=8), st.lists(boxes, min_size=1, max_size=8))
def test_the_nearest_distance_is_the_minimum_of_all_distances(
    some: list[shapely.Polygon], others: list[shapely.Polygon]
) -> None:
    plain = shapely.distance(np.array(some)[:, None], np.array(others)[None]).min(axis=1)
    np.testing.assert_allclose(nearest_distances(np.array(some), np.array(others)), plain)


@given(st.lists(boxes, min_size=1, max_size=6), st.lists(boxes, max_size=6))
def test_the_shared_area_is_that_of_the_union(some: list[shapely.Polygon], others: list[shapely.Polygon]) -> None:
    share, pairs = shared_area(places(some, [0] * len(some)), places(others, [1] * len(others)))
    union = shapely.union_all(np.array(others, object))
    np.testing.assert_allclose(share, [shape.intersection(union).area / shape.area for shape in some], atol=1e-9)
    assert pairs.tolist() == ([[0, 1]] if share.any() else [])


def test_tiles_of_one_scene_are_not_duplicates() -> None:
    one = places([shapely.box(0, 0, 10, 10)], [4])
    assert shared_area(one, one)[0].tolist() == [0]
    beside = places([shapely.box(10, 0, 20, 10), shapely.box(9.95, 0, 20, 10)], [5, 6])
    assert shared_area(one, beside)[0].tolist() == [0]


@pytest.mark.parametrize("degrees", [CRS.from_epsg(4326), CRS.from_epsg(4674)])
def test_metres_are_metres_whether_in_utm_or_in_degrees(degrees: CRS) -> None:
    # 640 m tiles near 9.6 S, 57.5 W; the held-out one 250 m east of the training one.
    corner = np.array([[500_000 + 890 * i, 8_940_000] for i in range(2)])
    squares = np.array([shapely.box(x, y, x + 640, y + 640) for x, y in corner], object)
    for shapes, crs in ((squares, UTM21S), (reproject(squares, UTM21S, degrees), degrees)):
        moved, scale = project_to_mercator(shapes, crs)
        found = nearest_distances(moved[:1], moved[1:], scale[:1])
        # UTM's own scale is 0.9996 there.
        assert found[0] == pytest.approx(250 / 0.9996, rel=2e-3)


@pytest.mark.parametrize("latitude", [-67.0, -15.0, 0.0, 48.0])
def test_a_distance_is_the_geodesic_one_at_any_latitude(latitude: float) -> None:
    here = shapely.box(10, latitude, 10.001, latitude + 0.001)
    for there in (
        shapely.box(10.003, latitude, 10.004, latitude + 0.001),
        shapely.box(10, latitude + 0.003, 10.001, latitude + 0.004),
    ):
        moved, scale = project_to_mercator(np.array([here, there]), CRS.from_epsg(4326))
        east = there.bounds[0] > 10.001
        path = (10.001, latitude, 10.003, latitude) if east else (10, latitude + 0.001, 10, latitude + 0.003)
        plain = Geod(ellps="WGS84").inv(*path)[2]
        assert nearest_distances(moved[:1], moved[1:], scale[:1])[0] == pytest.approx(plain, rel=1e-3)


def test_distances_in_pixels_are_within_one_scene() -> None:
    mine = [("a", Window(0, 0, 10, 10)), ("b", Window(0, 0, 10, 10)), ("c", Window(5, 5, 2, 2))]
    theirs = [("a", Window(14, 13, 10, 10)), ("a", Window(0, 90, 10, 10)), ("c", Window(0, 0, 20, 20))]
    assert nearest_distances_in_scene(mine, theirs).tolist() == [5.0, np.inf, 0.0]


def test_outlines_round_trip_through_the_index(tmp_path: Path) -> None:
    shapes = [shapely.box(0, 0, 2, 2), shapely.box(2, 0, 4, 2)]
    rows = [("a", Window(0, 2 * i, 2, 2), "train", 1.0, (1.0,)) for i in range(2)]
    for crs in (UTM21S, None):
        write_tiles(tmp_path / "tiles.gpkg", rows, shapes, ("tree",), crs)
        found, its = read_outlines(tmp_path / "tiles.gpkg")
        assert its == crs
        assert all(a.equals(b) for a, b in zip(found, shapes, strict=True))
    with pytest.raises(InputError, match=r"\.gpkg"):
        read_outlines(tmp_path / "missing.gpkg")


def test_no_tiles_have_no_distances() -> None:
    none: ndarray = np.zeros(0, object)
    one = np.array([shapely.box(0, 0, 1, 1)])
    assert nearest_distances(one, none).tolist() == [np.inf]
    assert nearest_distances(none, one).tolist() == []
    share, pairs = shared_area(Outlines(one, np.array([0])), Outlines(none, np.zeros(0, int)))
    assert (share.tolist(), len(pairs)) == ([0.0], 0)


def grid(col: float, row: float, side: int = 100, pixel: float = 0.5, crs: str | None = "EPSG:32612") -> Grid:
    transform = Affine(pixel, 0, 500_000 + 0.5 * col, 0, -pixel, 4_979_000 - 0.5 * row)
    return Grid(side, side, transform, CRS.from_user_input(crs) if crs else None)


def test_sheets_that_touch_overlap_or_are_near_are_one_place() -> None:
    grids = {"a": grid(0, 0), "b": grid(100, 0), "c": grid(80, 90), "d": grid(208, 0), "far": grid(1000, 0)}
    near = {name: (spot.place, spot.row, spot.col) for name, spot in find_positions(grids, 10).items()}
    assert near == {"a": ("a", 0, 0), "b": ("a", 0, 100), "c": ("a", 90, 80), "d": ("a", 0, 208)}
    assert find_positions(grids, 5).keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    "other",
    [grid(100, 0, pixel=0.51), grid(100, 0, crs="EPSG:32613"), grid(100, 0, crs=None), grid(120, 0)],
    ids=["pixel size", "CRS", "no CRS", "distance"],
)
def test_others_are_not_one_place(other: Grid) -> None:
    assert find_positions({"a": grid(0, 0), "b": other}, 10) == {}


def test_an_offset_of_less_than_a_pixel_is_rounded() -> None:
    assert find_positions({"a": grid(0, 0), "b": grid(100.3, -0.4)}, 1)["b"] == Position("a", 0, 100)


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_connected_components_are_those_of_the_pairs(count: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(i % count, j % count) for i, j in pairs]
    found = connected_components(count, pairs)
    expected = list(range(count))
    for _ in range(count):
        for i, j in pairs:
            expected[i] = expected[j] = min(expected[i], expected[j])
    assert found == expected
