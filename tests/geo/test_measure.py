"""Pixel sizes in metres, in any CRS."""

import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from geograft.geo.grid import Grid
from geograft.geo.measure import central_pixel_size_m, measurement_method, resolution_m
from tests.support.rasters import TENTH_METRE

METRE = Affine(1, 0, 500_000, 0, -1, 4_900_000)


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        (None, METRE, "pixels"),
        ("EPSG:32612", METRE, "planar"),
        ("EPSG:2229", Affine(1, 0, 6_500_000, 0, -1, 1_900_000), "planar"),
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 50), "geodesic"),
        ("EPSG:3857", Affine(1, 0, 1e6, 0, -1, 6e6), "geodesic"),
        ("EPSG:3857", Affine(1, 0, 1e6, 0, -1, 1e4), "planar"),
        ("EPSG:3035", Affine(1, 0, 4321000, 0, -1, 3210000), "planar"),
    ],
)
def test_the_measurement_method_depends_on_the_crs(crs: str | None, transform: Affine, expected: str) -> None:
    grid = Grid(100, 100, transform, CRS.from_user_input(crs) if crs else None)
    assert measurement_method(grid) == expected


def test_resolution_is_in_metres() -> None:
    assert resolution_m(Grid(10, 10, TENTH_METRE, None)) is None
    assert resolution_m(Grid(10, 10, TENTH_METRE, CRS.from_epsg(32612))) == pytest.approx(0.1)
    feet = Grid(10, 10, TENTH_METRE, CRS.from_epsg(2225))
    assert resolution_m(feet) == pytest.approx(0.03048, rel=1e-4)
    # One degree along the equator is 111.3195 km, along a meridian there 110.574 km (WGS 84).
    degrees = Grid(2, 2, Affine(0.001, 0, -0.001, 0, -0.001, 0.001), CRS.from_epsg(4326))
    assert resolution_m(degrees) == pytest.approx((111.3195 * 110.574) ** 0.5, rel=1e-4)


def test_pixel_size() -> None:
    utm, degrees = CRS.from_epsg(32612), CRS.from_epsg(4326)
    assert central_pixel_size_m(Grid(9, 9, TENTH_METRE @ Affine.scale(1, 3), utm)) == pytest.approx((0.1, 0.3))
    assert central_pixel_size_m(Grid(9, 9, TENTH_METRE @ Affine.rotation(30), utm)) == pytest.approx((0.1, 0.1))
    assert central_pixel_size_m(Grid(9, 9, TENTH_METRE, None)) == (1, 1)
    far_north = Grid(2, 2, Affine(1e-5, 0, 20, 0, -1e-5, 60), degrees)
    assert central_pixel_size_m(far_north) == pytest.approx((0.558, 1.114), rel=1e-3)


@given(lon=st.floats(-179, 179), lat=st.floats(-80, 80), side=st.floats(0.05, 100))
def test_pixel_size_in_web_mercator_agrees_with_utm(lon: float, lat: float, side: float) -> None:
    mercator, degrees = CRS.from_epsg(3857), CRS.from_epsg(4326)
    x, y = Transformer.from_crs(degrees, mercator, always_xy=True).transform(lon, lat)
    across, down = central_pixel_size_m(Grid(2, 2, Affine(side, 0, x - side, 0, -side, y + side), mercator))
    # UTM errs by 0.1 % at most inside its zone. Near the equator the plane of Web Mercator does for lengths, by 1.2 %.
    utm = CRS.from_dict({"proj": "utm", "zone": int((lon + 180) // 6) + 1, "south": lat < 0})
    there = Transformer.from_crs(mercator, utm, always_xy=True)
    (e0, n0), (e1, n1), (e2, n2) = (there.transform(*at) for at in ((x, y), (x + side, y), (x, y - side)))
    assert across == pytest.approx(((e1 - e0) ** 2 + (n1 - n0) ** 2) ** 0.5, rel=1.2e-2)
    assert down == pytest.approx(((e2 - e0) ** 2 + (n2 - n0) ** 2) ** 0.5, rel=1.2e-2)
