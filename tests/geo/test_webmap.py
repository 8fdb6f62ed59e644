"""Tiles of rasters on the web map: the nearest pixel at every place, in every CRS."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer

from geograft.geo.grid import Grid
from geograft.geo.rasters.raster import Image
from geograft.geo.webmap import (
    MAX_LATITUDE,
    Place,
    Plane,
    WebTile,
    lonlat_to_mercator,
    mercator_to_lonlat,
    needs_reduction,
    plane_of,
    read_tile,
    write_reduced,
)
from tests.support.rasters import TENTH_METRE, textured, write_raster

UTM = CRS.from_epsg(32612)
ROTATED = TENTH_METRE @ Affine.rotation(30)
SOUTH_UP = Affine(0.1, 0, 528000, 0, 0.1, 4978990)


def place_of(image: Image) -> Place:
    return Place(image.info.grid, plane_of([image.info.grid]))


def tile_at(place: Place, z: int) -> WebTile:
    """Return the tile over the middle of a raster."""
    middle = place.to_lonlat(np.array([[place.grid.width / 2, place.grid.height / 2]]))
    u, v = lonlat_to_mercator(middle)
    return WebTile(z, int(u[0] * 2**z), int(v[0] * 2**z))


@given(st.floats(-180, 180), st.floats(-MAX_LATITUDE, MAX_LATITUDE))
def test_mercator_is_that_of_proj(lon: float, lat: float) -> None:
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    u, v = lonlat_to_mercator(np.array([[lon, lat]]))
    side = 2 * np.pi * 6378137
    assert u[0] == pytest.approx(x / side + 0.5, abs=1e-12)
    assert v[0] == pytest.approx(0.5 - y / side, abs=1e-9)
    assert mercator_to_lonlat(u, v)[0] == pytest.approx((lon, lat), abs=1e-9)


@pytest.mark.parametrize("transform", [TENTH_METRE, ROTATED, SOUTH_UP], ids=["north-up", "rotated", "south-up"])
@pytest.mark.parametrize("crs", ["EPSG:32612", None])
def test_a_tile_shows_the_nearest_pixel_at_every_place(tmp_path: Path, transform: Affine, crs: str | None) -> None:
    pixels = textured(1, 90, 70)
    with Image.open(write_raster(tmp_path / "a.tif", pixels, transform, crs)) as image:
        place = place_of(image)
        tile = tile_at(place, place.zooms[1])
        found = read_tile(image, place, tile)
        assert found is not None
        tile_pixels, valid = found
    rows, cols = np.mgrid[:256, :256]
    lonlat = mercator_to_lonlat(
        *((np.array([tile.x, tile.y])[:, None] + (np.stack([cols, rows]).reshape(2, -1) + 0.5) / 256) / 2**tile.z)
    )
    exact = place.to_pixels(lonlat)
    inside = ((exact >= 0) & (exact < (70, 90))).all(axis=1)
    # Interpolated coordinates may differ from exact ones by a hundredth of a pixel, at a border.
    clear = (np.abs(exact - exact.round()) > 0.02).all(axis=1)
    assert (valid.ravel() == inside)[clear].all()
    at = np.floor(exact[inside & clear]).astype(int)
    assert (tile_pixels[0].ravel()[inside & clear] == pixels[0, at[:, 1], at[:, 0]]).all()


def test_coordinates_between_the_computed_ones_are_exact_enough() -> None:
    place = Place(Grid(10_000, 10_000, Affine(10, 0, 500_000, 0, -10, 5_000_000), UTM), Plane(UTM))
    for z in (5, 9, 14):
        tile = tile_at(place, z)
        corner = np.stack(np.meshgrid(np.arange(256) + 0.5, np.arange(256) + 0.5), axis=0).reshape(2, -1) / 256
        u, v = (np.array([[tile.x], [tile.y]]) + corner) / 2**z
        exact = place.to_pixels(mercator_to_lonlat(u, v)).T.reshape(2, 256, 256)
        step = np.linalg.norm(exact[:, 128, 129] - exact[:, 128, 128])
        assert np.abs(tile.pixels_of(place) - exact).max() < 0.02 * step


def test_a_low_zoom_reads_the_overviews_and_no_more_than_it_shows(tmp_path: Path) -> None:
    with Image.open(write_raster(tmp_path / "a.tif", textured(1, 600, 500))) as image:
        place = place_of(image)
        found = read_tile(image, place, tile_at(place, place.zooms[0]))
    assert found is not None and 0 < found[1].sum() < 256 * 256


def test_nodata_and_the_outside_are_not_valid(tmp_path: Path) -> None:
    pixels = textured(1, 64, 64)
    pixels[:, :32] = 0
    with Image.open(write_raster(tmp_path / "a.tif", pixels, nodata=0)) as image:
        place = place_of(image)
        found = read_tile(image, place, tile_at(place, place.zooms[1]))
        far = read_tile(image, place, WebTile(place.zooms[1], 0, 0))
    assert found is not None and far is None
    assert (found[0][0][found[1]] > 0).all() and (found[0][0][~found[1]] == 0).all()


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(-1e5, 1e5))
def test_a_raster_without_crs_fits_and_a_pixel_is_one_of_a_tile(height: int, width: int, x: float) -> None:
    grid = Grid(height, width, Affine(2, 0, x, 0, -2, 7), None)
    place = Place(grid, plane_of([grid]))
    west, south, east, north = place.bounds
    assert -180 < west < 0 < east < 180 and -MAX_LATITUDE < south < 0 < north < MAX_LATITUDE
    u, _ = lonlat_to_mercator(place.to_lonlat(np.array([[0.0, 0.0], [1.0, 0.0]])))
    assert (u[1] - u[0]) * 256 * 2 ** place.zooms[1] == pytest.approx(1)
    back = place.to_pixels(place.to_lonlat(np.array([[3.25, 4.5]])))
    assert back[0] == pytest.approx((3.25, 4.5), abs=1e-6)


def test_shapes_return_to_where_they_were() -> None:
    from shapely import box

    plane = Plane(UTM)
    shape = box(500_000, 4_979_000, 500_010, 4_979_020)
    assert plane.shape_from_lonlat(plane.shape_to_lonlat(shape)).hausdorff_distance(shape) < 1e-3


def test_a_reduced_copy_shows_the_means_at_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.repeat(np.repeat(textured(3, 80, 60), 8, axis=1), 8, axis=2)
    pixels[:, :64, :64] = 0
    path = write_raster(tmp_path / "a.tif", pixels, ROTATED, nodata=0)
    assert not needs_reduction(path)
    monkeypatch.setattr("geograft.geo.webmap.LARGE_PX", 10_000)
    assert needs_reduction(path)
    write_reduced(path, tmp_path / "reduced.tif")
    assert not needs_reduction(tmp_path / "reduced.tif")
    with Image.open(path) as image, Image.open(tmp_path / "reduced.tif") as reduced:
        place = place_of(image)
        small = Place(reduced.info.grid, place.plane)
        assert small.bounds == pytest.approx(place.bounds, abs=1e-9)
        tile = tile_at(place, place.zooms[1] - 1)
        found, other = read_tile(image, place, tile), read_tile(reduced, small, tile)
    assert found is not None and other is not None
    # The squares of 8 pixels are of one value, except where the larger image is sampled across an edge.
    assert (found[1] == other[1]).mean() > 0.95 and (found[0] == other[0]).mean() > 0.8
