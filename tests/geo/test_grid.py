"""Geometry of windows and grids."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from geograft.geo.grid import Grid, Window, tiling, window_offsets
from tests.support.rasters import TENTH_METRE

small = st.integers(0, 12)
size = st.integers(1, 12)
windows = st.builds(Window, small, small, size, size)


def painted(window: Window) -> np.ndarray:
    canvas = np.zeros((40, 40), bool)
    canvas[window.slices] = True
    return canvas


@given(windows, windows)
def test_intersection_has_the_pixels_of_both(a: Window, b: Window) -> None:
    common = painted(a) & painted(b)
    found = a.intersection(b)
    assert (found is None) == (not common.any())
    if found:
        assert (painted(found) == common).all()
        assert found == b.intersection(a)


@given(windows, windows)
def test_relative_to_subtracts_the_offset(a: Window, b: Window) -> None:
    moved = a.relative_to(b)
    assert (moved.row + b.row, moved.col + b.col, moved.height, moved.width) == (a.row, a.col, a.height, a.width)


@given(length=st.integers(1, 700), edge=st.integers(1, 300), stride=st.integers(1, 300))
def test_window_offsets_cover_every_pixel_and_stay_inside(length: int, edge: int, stride: int) -> None:
    stride = min(stride, edge)
    found = window_offsets(length, edge, stride)
    covered = np.zeros(max(length, edge), bool)
    for start in found:
        covered[start : start + edge] = True
    assert covered.all()
    assert found == sorted(set(found))
    assert found[-1] + edge == max(length, edge)


def test_window_offsets_examples() -> None:
    assert window_offsets(500, 224, 224) == [0, 224, 276]
    assert window_offsets(100, 224, 112) == [0]
    assert window_offsets(448, 224, 224) == [0, 224]


def test_tiling_is_row_by_row_and_offset_by_its_area() -> None:
    found = tiling(Window(10, 20, 64, 96), 64, 32)
    assert found == [Window(10, 20, 64, 64), Window(10, 52, 64, 64)]


@given(window=windows)
def test_a_cropped_grid_has_the_footprint_of_its_window(window: Window) -> None:
    grid = Grid(100, 100, TENTH_METRE, CRS.from_epsg(32612))
    assert grid.crop(window).footprint().equals_exact(grid.footprint(window), 1e-6)
