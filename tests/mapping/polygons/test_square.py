"""Buildings get right angles: on rotated shapes burnt into pixels, against the shapes that were burnt."""

import numpy as np
import pytest
import shapely
from numpy import ndarray
from rasterio.features import rasterize
from shapely import Polygon, box
from shapely.affinity import rotate, translate

from geograft.mapping.polygons.simplify import iou, orthogonalize
from tests.mapping.polygons.test_shapes import by_blocks

L_SHAPE = Polygon([(0, 0), (40, 0), (40, 15), (15, 15), (15, 30), (0, 30)])
COURT = box(0, 0, 40, 36).difference(box(12, 12, 28, 24))
ANGLES = [0, 7, 23, 45, 61, 88]


def burnt(shape: Polygon) -> Polygon:
    """Return the outline of the pixels whose centres lie in a shape."""
    pixels = rasterize([(shape, 1)], out=np.zeros((80, 80), np.uint8))
    (region,) = by_blocks(pixels, pixels == 1)
    assert isinstance(region.shape, Polygon)
    return region.shape


def placed(shape: Polygon, angle: float) -> Polygon:
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
def test_a_turned_building_comes_back(shape: Polygon, corners: int, angle: float) -> None:
    drawn = placed(shape, angle)
    pixels = burnt(drawn)
    found = orthogonalize(pixels)
    assert isinstance(found, Polygon)
    assert found.is_valid
    assert np.allclose(angles(found.exterior), 90, atol=1e-6)
    assert found.area == pytest.approx(pixels.area, rel=0.02)
    assert len(found.exterior.coords) - 1 == corners
    assert len(found.interiors) == len(shape.interiors)
    assert iou(found, pixels) > 0.9
    assert iou(found, drawn) > 0.92


def test_what_is_not_square_stays_as_it_is() -> None:
    ring = shapely.Point(40, 40).buffer(30).difference(shapely.Point(40, 40).buffer(26))
    assert orthogonalize(burnt(ring)).equals(burnt(ring))


def test_a_pixel_and_a_row_of_pixels() -> None:
    for shape in (box(3, 3, 4, 4), box(3, 3, 9, 4), box(3, 3, 5, 5)):
        assert iou(orthogonalize(shape), shape) == pytest.approx(1)


def test_angles_are_right_on_the_ground_where_pixels_are_not_square() -> None:
    drawn = placed(box(0, 0, 36, 20), 30)
    # Pixels half as high as wide: 160 rows of 80.
    flat = shapely.affinity.scale(drawn, 1, 2, origin=(0, 0))
    pixels = rasterize([(flat, 1)], out=np.zeros((160, 80), np.uint8))
    (region,) = by_blocks(pixels, pixels == 1)
    found = shapely.affinity.scale(orthogonalize(region.shape, 0.5), 1, 0.5, origin=(0, 0))
    assert np.allclose(angles(found.exterior), 90, atol=1e-6)
    assert iou(found, drawn) > 0.94


def test_parts_that_would_run_into_each_other_stay_as_they_are() -> None:
    cells = np.zeros((60, 60), np.uint8)
    for at in range(0, 40, 4):
        cells[at : at + 4, at : at + 4] = 1
    (region,) = by_blocks(cells, cells == 1, 8)
    assert orthogonalize(region.shape).is_valid
    assert orthogonalize(region.shape).area == pytest.approx(region.shape.area)
