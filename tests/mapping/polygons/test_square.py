"""Orthogonalized outlines: rotated shapes are rasterized, polygonized, orthogonalized and compared to the originals."""

import numpy as np
import pytest
import shapely
from numpy import ndarray
from rasterio.features import rasterize
from shapely import Polygon, box
from shapely.affinity import rotate, translate

from geograft.mapping.polygons.simplify import (
    LEFT,
    RECTANGLE,
    SQUARED,
    iou,
    orthogonalize,
    orthogonalize_simplest,
)
from tests.mapping.polygons.test_shapes import by_blocks

L_SHAPE = Polygon([(0, 0), (40, 0), (40, 15), (15, 15), (15, 30), (0, 30)])
COURT = box(0, 0, 40, 36).difference(box(12, 12, 28, 24))
ANGLES = [0, 7, 23, 45, 61, 88]


def pixel_outline(shape: Polygon) -> Polygon:
    """Return the outline of the pixels whose centres lie in a shape."""
    pixels = rasterize([(shape, 1)], out=np.zeros((80, 80), np.uint8))
    (region,) = by_blocks(pixels, pixels == 1)
    assert isinstance(region.shape, Polygon)
    return region.shape


def rotate_and_center(shape: Polygon, angle: float) -> Polygon:
    turned = rotate(shape, angle)
    return translate(turned, 40 - turned.centroid.x, 40 - turned.centroid.y)


def angles(ring: shapely.LinearRing) -> ndarray:
    """Return the angles at all vertices, in degrees."""
    points = shapely.get_coordinates(ring)[:-1]
    sides = np.diff(points, axis=0, append=points[:1])
    turns = np.diff(np.unwrap(np.arctan2(sides[:, 1], sides[:, 0])), append=0)[:-1]
    return np.abs(np.degrees(turns)) % 180


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize(("shape", "corners"), [(L_SHAPE, 6), (box(0, 0, 30, 18), 4), (COURT, 4)])
def test_a_rotated_building_is_recovered(shape: Polygon, corners: int, angle: float) -> None:
    original = rotate_and_center(shape, angle)
    pixels = pixel_outline(original)
    found = orthogonalize(pixels)
    assert isinstance(found, Polygon)
    assert found.is_valid
    assert np.allclose(angles(found.exterior), 90, atol=1e-6)
    assert found.area == pytest.approx(pixels.area, rel=0.02)
    assert len(found.exterior.coords) - 1 == corners
    assert len(found.interiors) == len(shape.interiors)
    assert iou(found, pixels) > 0.9
    assert iou(found, original) > 0.92


def test_a_shape_without_right_angles_is_unchanged() -> None:
    ring = shapely.Point(40, 40).buffer(30).difference(shapely.Point(40, 40).buffer(26))
    assert orthogonalize(pixel_outline(ring)).equals(pixel_outline(ring))


def test_a_pixel_and_a_row_of_pixels_are_unchanged() -> None:
    for shape in (box(3, 3, 4, 4), box(3, 3, 9, 4), box(3, 3, 5, 5)):
        assert iou(orthogonalize(shape), shape) == pytest.approx(1)


def test_angles_are_right_in_metres_for_pixels_that_are_not_square() -> None:
    original = rotate_and_center(box(0, 0, 36, 20), 30)
    # Pixels half as high as wide: 160 rows of 80.
    flat = shapely.affinity.scale(original, 1, 2, origin=(0, 0))
    pixels = rasterize([(flat, 1)], out=np.zeros((160, 80), np.uint8))
    (region,) = by_blocks(pixels, pixels == 1)
    found = shapely.affinity.scale(orthogonalize(region.shape, 0.5), 1, 0.5, origin=(0, 0))
    assert np.allclose(angles(found.exterior), 90, atol=1e-6)
    assert iou(found, original) > 0.94


def test_parts_that_would_overlap_are_unchanged() -> None:
    cells = np.zeros((60, 60), np.uint8)
    for at in range(0, 40, 4):
        cells[at : at + 4, at : at + 4] = 1
    (region,) = by_blocks(cells, cells == 1, 8)
    assert orthogonalize(region.shape).is_valid
    assert orthogonalize(region.shape).area == pytest.approx(region.shape.area)


@pytest.mark.parametrize(("shape", "form"), [(L_SHAPE, SQUARED), (box(0, 0, 30, 18), RECTANGLE), (COURT, SQUARED)])
def test_the_form_is_that_of_the_result(shape: Polygon, form: int) -> None:
    outline = pixel_outline(rotate_and_center(shape, 23))
    assert orthogonalize_simplest(outline, outline.simplify(2), 1.0)[1] == form


def test_what_cannot_be_squared_is_simplified() -> None:
    ring = pixel_outline(shapely.Point(40, 40).buffer(30).difference(shapely.Point(40, 40).buffer(26)))
    simplified = ring.simplify(1)
    assert orthogonalize_simplest(ring, simplified, 1.0) == (simplified, LEFT)


def test_a_small_exact_outline_is_not_worsened_by_its_simplification() -> None:
    house, triangle = box(10, 10, 13, 13), Polygon([(10, 10), (13, 10), (13, 13)])
    found, form = orthogonalize_simplest(house, triangle, 1.0)
    assert (found.equals(house), form) == (True, RECTANGLE)
