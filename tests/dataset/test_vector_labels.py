"""Rasterisation of polygons as overlapping classes, and as the fraction of each pixel inside them."""

from functools import cache

import numpy as np
import pytest
import shapely
from affine import Affine
from jaxtyping import Float
from numpy import ndarray
from shapely import affinity

from geograft.dataset.vector_labels import LabelEncoding, polygon_reader
from geograft.geo.grid import Window
from geograft.geo.rasters.rasterize import PixelShapes, rasterize_window, to_pixel_shapes
from geograft.labels import MAX_CODE, decode_fractions
from geograft.legend import IGNORE, Legend

SIDE = 40
ALL = Window(0, 0, SIDE, SIDE)
PAIR = Legend(("background", "tree"))
COVERS = Legend(("background", "tree", "road"))
OVERLAPPING = Legend(("tree", "road"), overlapping=True)


@cache
def shapes(kinds: int = 2) -> PixelShapes:
    """Return 14 crowns and turned rectangles of classes 1 to `kinds`, in pixels."""
    rng = np.random.default_rng(3)
    crowns = [shapely.Point(*rng.uniform(2, 38, 2)).buffer(rng.uniform(2, 6)) for _ in range(7)]
    plots = [
        affinity.rotate(shapely.box(x, y, x + 9, y + 5), rng.uniform(0, 90)) for x, y in rng.uniform(2, 30, (7, 2))
    ]
    values = (np.arange(14) % kinds + 1).astype(np.uint8)
    return to_pixel_shapes(np.array([*crowns, *plots], object), values, Affine.identity())


def exact(parts: ndarray) -> Float[ndarray, "h w"]:
    """Return how much of each pixel the union of polygons covers, as shapely has it."""
    cols, rows = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    return shapely.area(shapely.intersection(shapely.box(cols, rows, cols + 1, rows + 1), shapely.union_all(parts)))


def test_overlapping_classes_are_rasterised_independently() -> None:
    found = polygon_reader(shapes(), None, LabelEncoding(OVERLAPPING))(ALL)
    for index, value in enumerate((1, 2)):
        alone = rasterize_window(shapes().of_class(value), ALL, fill=0) > 0
        assert np.array_equal(found[index], np.where(alone, MAX_CODE, 0))
    # Some ground is of both, some of neither.
    assert {tuple(pixel) for pixel in found.reshape(2, -1).T.tolist()} == {
        (0, 0),
        (0, MAX_CODE),
        (MAX_CODE, 0),
        (MAX_CODE, MAX_CODE),
    }


@pytest.mark.parametrize("legend", [PAIR, OVERLAPPING])
def test_fractions_are_close_to_exact_areas(legend: Legend) -> None:
    drawn = shapes(legend.outputs)
    found = decode_fractions(polygon_reader(drawn, None, LabelEncoding(legend, by_area=True))(ALL))
    for value, share in enumerate(found, start=1):
        error = np.abs(share - exact(drawn.of_class(value).parts))
        # An edge through a pixel parts 64 points about as it parts the pixel.
        assert error.max() < 0.06
        assert error[error > 1e-6].mean() < 0.01


def test_the_later_polygon_of_exclusive_classes_wins() -> None:
    drawn = shapes()
    found = polygon_reader(drawn, None, LabelEncoding(COVERS, by_area=True))(ALL)
    assert (found.sum(axis=0, dtype=int) == MAX_CODE).all()
    left = drawn.parts.copy()
    for index in range(len(left) - 1):
        left[index] = left[index].difference(shapely.union_all(drawn.parts[index + 1 :]))
    for value in (1, 2):
        assert np.abs(decode_fractions(found)[value] - exact(left[drawn.values == value])).max() < 0.06


@pytest.mark.parametrize("legend", [PAIR, COVERS, OVERLAPPING])
@pytest.mark.parametrize("fractional", [False, True])
def test_windows_agree_with_the_whole(legend: Legend, fractional: bool) -> None:
    label = polygon_reader(
        shapes(len(legend.names) - (not legend.overlapping)), None, LabelEncoding(legend, fractional)
    )
    for window in (Window(3, 5, 20, 11), Window(17, 0, 23, 40)):
        assert np.array_equal(label(window), label(ALL)[..., *window.slices])


@pytest.mark.parametrize(
    "drawing", [LabelEncoding(PAIR), LabelEncoding(PAIR, by_area=True), LabelEncoding(OVERLAPPING)]
)
def test_pixels_outside_the_area_of_interest_are_unknown(drawing: LabelEncoding) -> None:
    looked = to_pixel_shapes(np.array([shapely.box(0, 0, 20, SIDE)], object), np.ones(1, np.uint8), Affine.identity())
    drawn = shapes(drawing.legend.outputs)
    found, whole = polygon_reader(drawn, looked, drawing)(ALL), polygon_reader(drawn, None, drawing)(ALL)
    assert np.array_equal(found[..., :20], whole[..., :20])
    assert (found[..., 20:] == IGNORE).all()
