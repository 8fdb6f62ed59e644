"""Polygonized regions: independent of the block size, and equal to the mask when rasterized."""

import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from rasterio.features import rasterize
from rasterio.features import shapes as gdal_shapes
from scipy import ndimage
from shapely.geometry import shape

from geograft.geo.grid import Window
from geograft.mapping.polygons.regions import ClassMapSource, find_regions
from geograft.mapping.polygons.shapes import Region, label_regions

SEVERAL = settings(deadline=None, max_examples=60)
BLOCKS = st.sampled_from([1, 2, 3, 5, 8, 64])
CONNECTIVITY = st.sampled_from([4, 8])


@st.composite
def class_maps(draw: st.DrawFn) -> tuple[ndarray, ndarray]:
    """Values and valid pixels: noise, or blobs with holes and islands in them."""
    height, width, classes = draw(st.integers(1, 24)), draw(st.integers(1, 24)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    smooth = draw(st.sampled_from([0.0, 0.7, 1.5]))
    noise = [ndimage.gaussian_filter(rng.normal(size=(height, width)), smooth) for _ in range(classes)]
    return np.argmax(noise, axis=0).astype(np.uint8), rng.random((height, width)) < draw(st.sampled_from([0.5, 0.9, 1]))


def reader(values: ndarray, kept: ndarray) -> Callable[[Window], tuple[ndarray, ndarray]]:
    def read(window: Window) -> tuple[ndarray, ndarray]:
        assert window.intersection(Window(0, 0, *values.shape)) == window
        return values[window.slices], kept[window.slices]

    return read


def by_blocks(values: ndarray, kept: ndarray, connectivity: int = 4, block_px: int = 1024) -> list[Region]:
    return list(find_regions(ClassMapSource(*values.shape, reader(values, kept)), connectivity, block_px))


def blobs(size: int, classes: int = 3, smooth: float = 4) -> ndarray:
    rng = np.random.default_rng(0)
    noise = [ndimage.gaussian_filter(rng.normal(size=(size, size)), smooth) for _ in range(classes)]
    return np.argmax(noise, axis=0).astype(np.uint8)


@SEVERAL
@given(class_maps(), CONNECTIVITY, BLOCKS)
def test_regions_by_blocks_equal_gdal_polygonize_of_the_whole(
    scene: tuple[ndarray, ndarray], connectivity: int, block_px: int
) -> None:
    values, kept = scene
    found = by_blocks(values, kept, connectivity, block_px)
    # GDAL's 8-connected outlines touch themselves at corners; after repair they are the same polygons.
    whole = [
        (int(value), shapely.make_valid(shape(outline)))
        for outline, value in gdal_shapes(values, mask=kept, connectivity=connectivity)
    ]
    mine = Counter((region.value, shapely.normalize(region.shape).wkt) for region in found)
    assert mine == Counter((value, shapely.normalize(outline).wkt) for value, outline in whole)


@SEVERAL
@given(class_maps(), CONNECTIVITY, BLOCKS)
def test_rasterized_polygons_equal_the_mask(scene: tuple[ndarray, ndarray], connectivity: int, block_px: int) -> None:
    values, kept = scene
    found = by_blocks(values, kept, connectivity, block_px)
    burnt = np.full(values.shape, 255, np.uint8)
    if found:
        rasterize([(region.shape, region.value) for region in found], out=burnt)
    np.testing.assert_array_equal(burnt, np.where(kept, values, 255))
    assert sum(region.shape.area for region in found) == kept.sum()
    assert all(region.shape.is_valid for region in found)


@SEVERAL
@given(class_maps(), CONNECTIVITY)
def test_labels_are_the_regions_of_each_value(scene: tuple[ndarray, ndarray], connectivity: int) -> None:
    values, kept = scene
    labels, owners = label_regions(values, kept, connectivity)
    np.testing.assert_array_equal(labels > 0, kept)
    assert set(np.unique(labels[kept])) == set(range(1, len(owners) + 1))
    np.testing.assert_array_equal(owners[labels[kept] - 1], values[kept])
    assert len(owners) == len(by_blocks(values, kept, connectivity))


def test_holes_are_kept_and_islands_in_them_are_separate_regions() -> None:
    values = np.ones((9, 9), np.uint8)
    values[2:7, 2:7] = 0
    values[4, 4] = 1
    found = by_blocks(values, values == 1, block_px=4)
    assert sorted((region.shape.area, len(region.shape.interiors)) for region in found) == [(1, 0), (56, 1)]


def test_a_spiral_through_all_blocks_is_one_polygon() -> None:
    values = np.zeros((31, 31), np.uint8)
    top, left, bottom, right = 0, 0, 30, 30
    row, col = 0, 0
    while top <= bottom and left <= right:
        values[row, col : right + 1] = 1
        values[top : bottom + 1, right] = 1
        values[bottom, left : right + 1] = 1
        values[top + 2 : bottom + 1, left] = 1
        row, col, top, left, bottom, right = row + 2, left, top + 2, left + 2, bottom - 2, right - 2
    (region,) = by_blocks(values, values == 1, block_px=5)
    assert region.shape.area == (values == 1).sum()


def test_diagonal_neighbours_are_one_valid_multipolygon() -> None:
    values = np.eye(6, dtype=np.uint8)
    assert len(by_blocks(values, values == 1, 4, 2)) == 6
    (region,) = by_blocks(values, values == 1, 8, 2)
    assert (region.shape.geom_type, len(region.shape.geoms), region.shape.is_valid) == ("MultiPolygon", 6, True)


def test_memory_does_not_grow_with_height() -> None:
    tile = blobs(128)

    def peak(height: int) -> int:
        def read(window: Window) -> tuple[ndarray, ndarray]:
            rows = np.arange(window.row, window.stop_row) % 128
            values = tile[rows][:, window.slices[1]]
            return values, (values == 1) & (rows % 50 != 0)[:, None]

        tracemalloc.start()
        assert sum(1 for _ in find_regions(ClassMapSource(height, 128, read), block_px=64)) > height / 20
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(256)
    assert peak(4096) < 2 * peak(512)
