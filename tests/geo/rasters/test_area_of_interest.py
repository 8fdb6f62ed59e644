"""An area of interest is rasterised like labels, in any CRS, and queries are cheap for any number of vertices."""

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from pyproj import CRS
from shapely import Point, Polygon, box

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters import rasterize as module
from geograft.geo.rasters.rasterize import AreaOfInterest, rasterize_window, to_pixel_shapes
from geograft.geo.vectors.reader import repair_polygons
from tests.support.rasters import TENTH_METRE, UTM12

SIZE = 300
PLACES = {
    "north up": Grid(SIZE, SIZE, TENTH_METRE, CRS.from_user_input(UTM12)),
    "south up": Grid(SIZE, SIZE, Affine(10, 0, 528000, 0, 10, 4979000), CRS.from_user_input(UTM12)),
    "turned": Grid(
        SIZE,
        SIZE,
        Affine.translation(528000, 4979000) @ Affine.rotation(33) @ Affine.scale(0.5, -0.7),
        CRS.from_user_input(UTM12),
    ),
    "pixels": Grid(SIZE, SIZE, Affine.identity(), None),
}
WINDOWS = st.builds(Window, st.integers(-40, 320), st.integers(-40, 320), st.integers(1, 150), st.integers(1, 150))


def star(corners: int, seed: int, reach: float = 180.0) -> Polygon:
    """Return a ragged polygon around the middle of the grid, in pixel coordinates."""
    radius = np.random.default_rng(seed).uniform(0.2, 1, corners) * reach
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return Polygon(np.column_stack([150.3 + radius * np.cos(angle), 149.6 + radius * np.sin(angle)]))


def in_crs(shapes: list[Polygon], grid: Grid) -> ndarray:
    a, b, c, d, e, f = grid.transform[:6]
    return shapely.transform(
        np.array(shapes, object),
        lambda xy: np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f]),
    )


@pytest.mark.parametrize("place", PLACES)
@given(corners=st.integers(3, 3000), seed=st.integers(0, 99), window=WINDOWS)
@settings(max_examples=12)
def test_a_mask_equals_labels_of_the_same_polygons(place: str, corners: int, seed: int, window: Window) -> None:
    grid = PLACES[place]
    ring = star(corners, seed).difference(Point(120, 130).buffer(25, quad_segs=200))
    shapes, _ = repair_polygons(in_crs([ring, box(250, 20, 290, 60), star(5, seed + 1, 60)], grid))
    labels = rasterize_window(to_pixel_shapes(shapes, np.ones(3, np.uint8), ~grid.transform), window, fill=0) == 1
    inside = window.intersection(grid.window)
    area, expected = AreaOfInterest(shapes, grid), np.zeros_like(labels)
    if inside:
        expected[inside.relative_to(window).slices] = labels[inside.relative_to(window).slices]
        found = area.mask(inside)
        assert np.array_equal(found, expected[inside.relative_to(window).slices])
        assert area.intersects(inside) or not found.any()


@given(seed=st.integers(0, 99), window=WINDOWS)
@settings(max_examples=30)
def test_an_area_intersects_no_disjoint_window(seed: int, window: Window) -> None:
    grid = PLACES["pixels"]
    shape = star(800, seed)
    frame = box(window.col, window.row, window.stop_col, window.stop_row)
    if shape.distance(frame) > 0.001:
        assert not AreaOfInterest(np.array([shape], object), grid).intersects(window)


def test_long_outlines_are_cut_into_pieces_of_few_vertices() -> None:
    angle = np.linspace(0, 2 * np.pi, 50_000, endpoint=False)
    radius = 10_500 + 900 * np.sin(40 * angle) + np.random.default_rng(0).uniform(-2, 2, len(angle))
    coast = Polygon(np.column_stack([10_000 + radius * np.cos(angle), 10_000 + radius * np.sin(angle)]))
    area = AreaOfInterest(np.array([coast], object), Grid(20_000, 20_000, Affine.identity(), None))
    pieces = area._pieces.parts
    assert shapely.get_num_coordinates(pieces).max() <= module.MAX_VERTICES
    assert shapely.area(pieces).sum() == pytest.approx(shapely.clip_by_rect(coast, 0, 0, 20_000, 20_000).area, rel=1e-9)
    assert len(pieces) < 2000
    assert area.mask(Window(9_000, 9_000, 200, 200)).all()


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp"])
@pytest.mark.parametrize("crs", ["EPSG:32612", "EPSG:4326", "EPSG:3857"])
def test_an_area_in_another_crs_is_reprojected(tmp_path: Path, suffix: str, crs: str) -> None:
    grid = PLACES["north up"]
    frame = geopandas.GeoDataFrame(geometry=in_crs([box(20, 30, 120, 80)], grid), crs=UTM12).to_crs(crs)
    if suffix == ".geojson" and crs != "EPSG:4326":
        frame = frame.to_crs("EPSG:4326")
    frame.to_file(tmp_path / f"aoi{suffix}")
    area = AreaOfInterest.read(tmp_path / f"aoi{suffix}", grid)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[30:80, 20:120] = True
    assert (area.mask(grid.window) != expected).sum() <= (0 if suffix != ".geojson" else 3)
    assert area.intersects(Window(0, 0, 31, 21))
    assert not area.intersects(Window(0, 0, 29, 300))
    assert not area.mask(Window(90, 0, 10, 10)).any()


def write(path: Path, shapes: list[object], crs: str | None) -> Path:
    geopandas.GeoDataFrame(geometry=shapes, crs=crs).to_file(path)
    return path


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_an_unusable_area_is_an_error_of_one_line(tmp_path: Path) -> None:
    grid, pixels = PLACES["north up"], PLACES["pixels"]
    square = in_crs([box(20, 30, 120, 80)], grid)[0]
    far = shapely.transform(square, lambda xy: xy + 5000)
    faults = [
        (write(tmp_path / "far.gpkg", [far, far], UTM12), grid, r"\b2 polygons"),
        (write(tmp_path / "point.gpkg", [Point(528001, 4978999)], UTM12), grid, "1 Point"),
        (write(tmp_path / "bare.gpkg", [square], None), grid, r"CRS.*WGS 84 / UTM"),
        (write(tmp_path / "utm.gpkg", [square], UTM12), pixels, r"CRS.*WGS 84 / UTM"),
        (tmp_path / "gone.gpkg", grid, r"gone\.gpkg"),
    ]
    for path, where, fault in faults:
        with pytest.raises(InputError, match=fault) as caught:
            AreaOfInterest.read(path, where)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_an_area_without_crs_applies_to_a_raster_without(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [box(500, 40, 600, 90), box(10, 20, 30, 50)], None)
    mask = AreaOfInterest.read(path, PLACES["pixels"]).mask(Window(0, 0, SIZE, SIZE))
    assert mask.sum() == 20 * 30
    assert mask[20:50, 10:30].all()
