"""Filled holes: polygons do not overlap, and no region is left inside a filled hole."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.mapping.polygons.outlines import fill_holes, first_pixels, inside_holes
from geograft.mapping.polygons.shapes import as_array
from tests.mapping.polygons.test_shapes import CONNECTIVITY, by_blocks, class_maps


def without_holes(values: ndarray, kept: ndarray, area: float, connectivity: int) -> tuple[ndarray, ndarray]:
    """Return the polygons after holes below `area` pixels are filled, and before."""
    before = as_array(region.shape for region in by_blocks(values, kept, connectivity))
    after, holes = fill_holes(before, lambda shapes: shapely.area(shapes) < area, connectivity)
    return after[~inside_holes(first_pixels(before), holes)], before


@settings(deadline=None, max_examples=100)
@given(class_maps(), CONNECTIVITY, st.sampled_from([2, 5, 20, 1000]))
def test_nothing_overlaps_and_no_small_hole_is_left(
    scene: tuple[ndarray, ndarray], connectivity: int, area: int
) -> None:
    values, kept = scene
    after, before = without_holes(values, kept, area, connectivity)
    if not len(before):
        return
    assert shapely.is_valid(after).all()
    assert shapely.area(after).sum() == shapely.area(shapely.union_all(after))
    # No covered pixel is lost.
    assert shapely.area(shapely.difference(shapely.union_all(before), shapely.union_all(after))) == 0
    if connectivity == 4:
        rings = [shapely.Polygon(hole) for shape in after for hole in shape.interiors]
        assert all(hole.area >= area for hole in rings)


def test_regions_in_a_filled_hole_are_dropped_and_in_a_large_hole_kept() -> None:
    values = np.zeros((20, 40), np.uint8)
    values[2:18, 2:18] = 1
    values[5:8, 5:8] = 2
    values[6, 6] = 3
    values[2:18, 22:38] = 1
    values[4:16, 24:36] = 0
    values[9, 30] = 2
    after, before = without_holes(values, values > 0, 20, 4)
    assert sorted(shapely.area(before)) == [1, 1, 8, 256 - 144, 256 - 9]
    assert sorted(shapely.area(after)) == [1, 256 - 144, 256]


def test_a_hole_connected_through_a_corner_is_not_filled() -> None:
    values = np.ones((6, 6), np.uint8)
    values[2, 2] = values[3, 3] = values[4, 4] = values[5, 5] = 2
    after, before = without_holes(values, values > 0, 100, 8)
    assert sorted(shapely.area(after)) == sorted(shapely.area(before)) == [4, 32]
    after, _ = without_holes(values, values > 0, 100, 4)
    assert sorted(shapely.area(after)) == pytest.approx([1, 35])


def test_the_first_pixel_is_the_first_in_row_major_order() -> None:
    shapes = as_array([shapely.box(3, 4, 6, 7), shapely.box(0, 5, 9, 6).union(shapely.box(7, 2, 8, 5))])
    assert first_pixels(shapes).tolist() == [[3, 4], [7, 2]]
    assert first_pixels(as_array([])).shape == (0, 2)
