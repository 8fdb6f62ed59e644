"""Stitched parts are their union, whatever the order of the parts."""

from collections.abc import Iterator

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy import ndarray
from rasterio.features import rasterize
from shapely import Polygon

from geograft.geo.grid import Window, block_windows
from geograft.mapping.polygons import regions
from geograft.mapping.polygons.shapes import merge_polygons, polygonize
from geograft.mapping.polygons.stitch import stitch_polygons
from tests.mapping.polygons.test_shapes import BLOCKS, CONNECTIVITY, by_blocks, class_maps

SEVERAL = settings(deadline=None, max_examples=40)


def parts_by_block(mask: ndarray, block_px: int) -> Iterator[Polygon]:
    """Yield the polygons of a mask, cut at the borders of blocks."""
    for window in block_windows(Window(0, 0, *mask.shape), block_px, block_px):
        for found in polygonize(mask[window.slices].astype(np.int32), window).values():
            yield from found


RING_THAT_TOUCHES_ITSELF = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], np.uint8)


@SEVERAL
@given(class_maps(), BLOCKS, st.randoms(use_true_random=False))
@example((RING_THAT_TOUCHES_ITSELF, RING_THAT_TOUCHES_ITSELF > 0), 2, None)
def test_stitched_parts_are_their_union(scene: tuple[ndarray, ndarray], block_px: int, random: object) -> None:
    """Of a whole mask, which may have many shells, islands in holes, and outlines that meet at corners."""
    values, kept = scene
    parts = list(parts_by_block((values == values.flat[0]) & kept, block_px))
    if not parts:
        return
    expected = shapely.normalize(shapely.union_all(parts))
    whole = expected if len(parts) == 1 else shapely.normalize(merge_polygons(list(parts)))
    if random is not None:
        random.shuffle(parts)  # type: ignore[attr-defined]
    found = stitch_polygons(parts, block_px)
    assert shapely.is_valid(found)
    assert shapely.to_wkb(found) == shapely.to_wkb(whole)
    burnt = rasterize([(found, 1)], values.shape)
    np.testing.assert_array_equal(burnt, (values == values.flat[0]) & kept)


@SEVERAL
@given(class_maps(), CONNECTIVITY, BLOCKS)
def test_regions_are_the_same_stitched_or_united(
    scene: tuple[ndarray, ndarray], connectivity: int, block_px: int
) -> None:
    united = by_blocks(*scene, connectivity, block_px)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "MAX_UNION_VERTICES", 0)
        stitched = by_blocks(*scene, connectivity, block_px)
    for found in (united, stitched):
        found[:] = [(region.value, shapely.normalize(region.shape).wkb) for region in found]  # type: ignore[misc]
    assert united == stitched
