"""The built-in scenes: they open, are complete and match their crown polygons."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy import ndarray

import geograft
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.reader import read_polygons

DATA = Path(geograft.__file__).parent / "data" / "yellowstone"
SCENES = {"training": (2472, 2299, 574), "elsewhere": (1035, 1249, 279)}


def crowns(name: str, grid: Grid) -> ndarray:
    found = read_polygons(DATA / f"{name}.gpkg", grid.crs, "class")
    assert set(found.classes) == {"tree"}
    assert (found.repaired_count, found.dropped_count) == (0, 0)
    return found.shapes


@pytest.mark.parametrize("name", SCENES)
def test_scenes_have_ten_centimetre_pixels_and_windowed_reads(name: str) -> None:
    height, width, _ = SCENES[name]
    with Image.open(DATA / f"{name}.tif") as image:
        info = image.info
        pixels, valid = image.read(Window(height - 224, width - 224, 224, 224))
    assert (info.grid.height, info.grid.width, info.bands, info.dtype) == (height, width, 3, "uint8")
    assert info.windowed
    assert info.grid.crs is not None
    assert info.grid.crs.to_epsg() == 32612
    assert resolution_m(info.grid) == pytest.approx(0.1, rel=1e-3)
    assert valid.all()
    assert pixels.std() > 20


@pytest.mark.parametrize("name", SCENES)
def test_every_crown_is_an_ellipse_within_its_scene(name: str) -> None:
    with Image.open(DATA / f"{name}.tif") as image:
        grid = image.info.grid
    shapes = crowns(name, grid)
    assert len(shapes) == SCENES[name][2]
    assert shapely.covers(grid.footprint().buffer(1e-6), shapes).all()
    left, bottom, right, top = shapely.bounds(shapes).T
    # A polygon of n vertices on an ellipse covers sin(2 pi / n) / (2 pi / n) of its area.
    covered = np.sin(2 * np.pi / 32) / (2 * np.pi / 32)
    np.testing.assert_allclose(shapely.area(shapes), covered * np.pi / 4 * (right - left) * (top - bottom), rtol=1e-4)


@pytest.mark.parametrize("name", SCENES)
def test_crowns_match_the_trees(name: str) -> None:
    # Crowns are darker than the meadow and lighter than the shadows: their centres differ from the whole scene.
    with Image.open(DATA / f"{name}.tif") as image:
        grid = image.info.grid
        pixels = image.read(grid.window)[0].astype(float)
    cols, rows = ~grid.transform @ (
        shapely.get_x(centres := shapely.centroid(crowns(name, grid))),
        shapely.get_y(centres),
    )
    blueness = pixels[2] / pixels.sum(axis=0).clip(min=1)
    at_crowns = blueness[rows.astype(int), cols.astype(int)]
    assert np.median(at_crowns) < np.median(blueness) - 0.01


def test_origin_and_licence_are_stated_with_the_data() -> None:
    readme, licence = ((DATA / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE"))
    assert licence.startswith("MIT License")
    assert "Ben Weinstein" in licence
    for name, (_, _, count) in SCENES.items():
        assert f"`{name}.tif`" in readme
        assert f"{count} tree crowns" in readme
    assert "georeference is approximate" in readme
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 6_000_000
