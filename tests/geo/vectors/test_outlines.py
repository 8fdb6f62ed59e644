"""Tile outlines lie where a GIS draws the images."""

import numpy as np
from affine import Affine
from pyproj import CRS
from shapely import box

from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.writer import common_crs, tile_outlines
from tests.support.rasters import TENTH_METRE

UTM12, UTM11, WGS84 = CRS.from_epsg(32612), CRS.from_epsg(32611), CRS.from_epsg(4326)
HERE = Grid(60, 80, TENTH_METRE, UTM12)
NEXT_ZONE = Grid(60, 80, TENTH_METRE, UTM11)
PICTURE = Grid(60, 80, Affine.identity(), None)


def test_a_common_crs_is_kept() -> None:
    shapes, crs = tile_outlines([("a", Window(0, 0, 10, 20)), ("a", Window(10, 0, 10, 20))], {"a": HERE})
    assert crs == UTM12
    assert shapes[1].equals(HERE.footprint(Window(10, 0, 10, 20)))


def test_different_crs_become_wgs84() -> None:
    window = Window(0, 0, 60, 80)
    shapes, crs = tile_outlines([("a", window), ("b", window)], {"a": HERE, "b": NEXT_ZONE})
    assert crs == WGS84
    west, east = (np.array(shape.bounds) for shape in (shapes[1], shapes[0]))
    assert np.allclose(east - west, [6, 0, 6, 0], atol=1e-9)


def test_outlines_without_crs_have_negative_y() -> None:
    shapes, crs = tile_outlines([("a", Window(10, 20, 30, 40))], {"a": PICTURE})
    assert crs is None
    assert shapes[0].equals(box(20, -40, 60, -10))


def test_one_scene_without_crs_leaves_all_without_crs() -> None:
    assert common_crs([HERE, PICTURE]) is None
    assert common_crs([HERE, HERE]) == UTM12
