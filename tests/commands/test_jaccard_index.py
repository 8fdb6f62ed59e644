"""The competition's score of polygons: hand calculation, and its real labels."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from shapely import box

from geograft.commands.jaccard import area_counts, jaccard_index
from geograft.dataset import dstl
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.rasterize import PixelShapes, rasterize_window, to_pixel_shapes
from geograft.metrics.confusion import scores

GRID = Grid(3348, 3403, Affine.identity(), None)
CORNER = Window(0, 0, 900, 900)
FRAME = box(0, 0, 900, 900)


def test_index_is_computed_from_areas_summed_over_scenes() -> None:
    true = {"a": {1: [box(0, 0, 4, 1)], 2: [box(0, 0, 1, 1)]}, "b": {1: [box(0, 0, 2, 1)]}}
    predicted = {"a": {1: [box(2, 0, 4, 1), box(3, 0, 5, 1)]}}
    counts = area_counts(predicted, true, (1, 2))
    np.testing.assert_allclose(counts, [[[2, 1, 2], [0, 0, 1]], [[0, 0, 2], [0, 0, 0]]])
    assert jaccard_index(counts.sum(axis=0)) == pytest.approx((2 / 7, 0))
    # The mean over scenes differs.
    assert np.nanmean(jaccard_index(counts)[:, 0]) == pytest.approx((2 / 5 + 0) / 2)


def test_absent_classes_are_left_out_and_unlabelled_scenes_raise() -> None:
    true = {"a": {1: [box(0, 0, 2, 1)]}}
    present, absent = jaccard_index(area_counts(true, true, (1, 2)).sum(axis=0))
    assert present == 1 and np.isnan(absent)
    with pytest.raises(InputError, match=r"scenes b\b"):
        area_counts({"b": {}}, true, (1,))


def whole(shapes: np.ndarray) -> PixelShapes:
    return to_pixel_shapes(shapes, np.ones(len(shapes), np.uint8), Affine.identity())


def test_polygon_and_pixel_scores_of_real_trees_agree(shared: Path) -> None:
    labels, extents = dstl.read_dstl_labels(shared / "data/dstl", (5,)), dstl.read_extents(shared / "data/dstl")
    true, predicted = {}, {}
    confusion = np.zeros((2, 2), np.int64)
    for scene in ("6010_1_2", "6040_1_3"):
        pixels = labels.in_pixels(scene, extents[scene], GRID)
        drawn = shapely.intersection(pixels.parts[pixels.tree.query(FRAME)], FRAME)
        moved = shapely.intersection(shapely.transform(shapely.buffer(drawn, 2), lambda xy: np.add(xy, (6, -4))), FRAME)
        true[scene], predicted[scene] = {5: list(drawn)}, {5: list(moved)}
        seen, found = (rasterize_window(whole(shapes), CORNER, fill=0) for shapes in (drawn, moved))
        confusion += np.bincount((seen.astype(np.int64) * 2 + found).ravel(), minlength=4).reshape(2, 2)
    (index,) = jaccard_index(area_counts(predicted, true, (5,)).sum(axis=0))
    assert 0.3 < index < 0.9
    assert index == pytest.approx(scores(confusion).iou[1], rel=0.01)
