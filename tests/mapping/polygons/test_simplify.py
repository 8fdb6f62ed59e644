"""Simplified and smoothed outlines: near the originals, valid, a coverage, and independent of the block size."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.mapping.polygons.regions import ClassMapSource, RegionMerger, finish_row
from geograft.mapping.polygons.simplify import reach_px, simplify_and_smooth
from tests.mapping.polygons.test_shapes import CONNECTIVITY, blobs, class_maps, reader

DISTANCES = st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0])


def simplify_by_blocks(
    values: ndarray, kept: ndarray, distance: float, rounds: int, connectivity: int = 4, block_px: int = 1024
) -> tuple[ndarray, ndarray, list[int]]:
    """Return the shapes before and after, and their values."""
    height, width = values.shape
    reach = reach_px(distance, rounds)
    seams, source = RegionMerger(width, connectivity, reach), ClassMapSource(height, width, reader(values, kept))
    before, after, owners = [], [], []
    for row in source.block_rows(block_px):
        for found in finish_row(source, seams, row, block_px, reach):
            shapes = np.array([region.shape for region in found.regions], object)
            before += list(shapes)
            after += list(simplify_and_smooth(shapes, found.corners, distance, rounds))
            owners += [region.value for region in found.regions]
    return np.array(before, object), np.array(after, object), owners


def vertices(shapes: ndarray) -> int:
    return int(shapely.get_num_coordinates(shapes).sum())


@settings(deadline=None, max_examples=40)
@given(class_maps(), DISTANCES, st.sampled_from([0, 1, 3]), CONNECTIVITY, st.sampled_from([5, 9]))
def test_polygons_stay_a_coverage_independent_of_the_block_size(
    scene: tuple[ndarray, ndarray], distance: float, rounds: int, connectivity: int, block_px: int
) -> None:
    values, kept = scene
    before, after, owners = simplify_by_blocks(values, kept, distance, rounds, connectivity, block_px)
    if not len(before):
        return
    assert shapely.is_valid(after).all()
    assert (shapely.area(after) > 0).all()
    whole = simplify_by_blocks(values, kept, distance, rounds, connectivity)
    assert sorted(shapely.to_wkb(shapely.normalize(after))) == sorted(shapely.to_wkb(shapely.normalize(whole[1])))
    assert shapely.area(shapely.union_all(after)) == pytest.approx(shapely.area(after).sum(), abs=1e-6)
    assert not (distance or rounds) or shapely.coverage_is_valid(after)
    assert len(owners) == len(before)
    moved = distance + (distance + 2 if rounds else 0)
    lines = [shapely.boundary(shape) for shape in after]
    for old, line in zip(before, lines, strict=True):
        assert shapely.distance(shapely.points(shapely.get_coordinates(old)), line).max() <= moved + 1e-9


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_coverage_stays_a_coverage(distance: float, rounds: int, connectivity: int) -> None:
    values = blobs(120)
    before, after, _ = simplify_by_blocks(values, np.ones_like(values, bool), distance, rounds, connectivity, 32)
    assert shapely.coverage_is_valid(after)
    assert shapely.is_valid(after).all()
    assert shapely.area(after).sum() == pytest.approx(shapely.area(shapely.union_all(after)))
    if not rounds:
        assert vertices(after) < vertices(before) * (1.1 if distance < 1 else 0.7)


def test_the_staircase_along_a_straight_edge_is_removed() -> None:
    rows, cols = np.indices((200, 200))
    values = (rows * 3 + cols < 300).astype(np.uint8)
    _, after, owners = simplify_by_blocks(values, values == 1, 1.0, 0, block_px=64)
    (triangle,) = after
    assert owners == [1]
    assert len(triangle.exterior.coords) <= 7
    assert triangle.area == pytest.approx((values == 1).sum(), rel=0.02)


def test_smoothing_makes_a_disc_rounder() -> None:
    rows, cols = np.indices((101, 101))
    disc = (((rows - 50) ** 2 + (cols - 50) ** 2) < 40**2).astype(np.uint8)
    roughness = []
    for rounds in (0, 1, 3):
        _, (shape,), _ = simplify_by_blocks(disc, disc == 1, 1.0, rounds)
        points = shapely.get_coordinates(shape)[:-1]
        turns = np.diff(np.unwrap(np.arctan2(*np.diff(points, axis=0, append=points[:1]).T)))
        roughness.append(np.abs(turns).max())
        assert shape.area == pytest.approx(disc.sum(), rel=0.03)
    assert roughness[2] < 0.5 * roughness[1] < 0.5 * roughness[0] * 1.01


def test_no_polygons_give_no_polygons() -> None:
    near = next(
        finish_row(
            ClassMapSource(1, 1, reader(np.zeros((1, 1), np.uint8), np.zeros((1, 1), bool))),
            RegionMerger(1, 4, 3),
            Window(0, 0, 1, 1),
            1,
            3,
        )
    ).corners
    assert len(simplify_and_smooth(np.array([], object), near, 1.0, 1)) == 0
