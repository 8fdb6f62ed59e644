"""Pixel areas equal the areas of the pixels' outlines."""

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import CRS

from geograft.geo.grid import Grid, Window
from geograft.geo.measure import areas_and_perimeters, pixel_areas

GRIDS = {
    "degrees": ("EPSG:4326", Affine(3e-4, 0, 25, 0, -3e-4, 60)),
    "the south in degrees, rows upwards": ("EPSG:4326", Affine(1e-3, 0, 25, 0, 1e-3, -30)),
    "turned degrees": ("EPSG:4326", Affine(3e-4, 1e-5, 25, 1e-5, -3e-4, 60)),
    "web mercator": ("EPSG:3857", Affine(60, 0, 2782987, 0, -60, 8399737)),
    "polar stereographic": ("EPSG:3413", Affine(500, 0, -2500000, 0, -500, -1500000)),
    "around the north pole": ("EPSG:3413", Affine(500, 0, -40000, 0, -500, 60000)),
    "across the date line": ("EPSG:3832", Affine(60, 0, 3335000, 0, -60, 8399737)),
    "utm": ("EPSG:32612", Affine(10, 0, 500000, 0, -10, 5000000)),
    "feet": ("EPSG:2229", Affine(10, 0, 6_500_000, 0, -10, 1_900_000)),
    "no crs": (None, Affine(2, 0, 0, 0, -2, 0)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_pixel_areas_equal_areas_of_outlines(name: str) -> None:
    crs, transform = GRIDS[name]
    grid = Grid(300, 200, transform, CRS.from_user_input(crs) if crs else None)
    window = Window(37, 21, 150, 83)
    found = pixel_areas(grid, window)
    for row, col in [(0, 0), (149, 82), (70, 41), (16, 15), (3, 80)]:
        pixel = shapely.box(21 + col, 37 + row, 22 + col, 38 + row)
        area, _ = areas_and_perimeters(np.array([pixel], object), grid)
        assert found[row, col] == pytest.approx(area[0], rel=2e-6)


@pytest.mark.parametrize("name", ["web mercator", "polar stereographic", "turned degrees"])
def test_windows_agree_with_the_whole(name: str) -> None:
    crs, transform = GRIDS[name]
    grid = Grid(300, 200, transform, CRS.from_user_input(crs))
    whole = pixel_areas(grid, grid.window)
    for window in (Window(0, 0, 1, 1), Window(100, 33, 7, 40), Window(299, 199, 1, 1)):
        assert pixel_areas(grid, window) == pytest.approx(whole[window.slices], rel=1e-6)


def test_pixel_areas_sum_to_the_area_of_the_earth() -> None:
    """Pixels of a quarter of a degree add up to the ellipsoid of GRS 80: Moritz (2000), the radius of
    the sphere of the same surface is 6,371,007.1810 m."""
    grid = Grid(720, 1440, Affine(0.25, 0, -180, 0, -0.25, 90), CRS.from_epsg(4326))
    assert pixel_areas(grid, grid.window).sum() / 1e6 == pytest.approx(4 * np.pi * 6371.007181**2, rel=1e-5)
