"""Labels as arrays, and shares in whole bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

from geograft.labels import FULL, class_shares, coded, coded_together, decoded, labelled, unknown
from geograft.legend import IGNORE, Legend
from geograft.losses.targets import Truth

PAIR = Legend(("rest", "tree"))
COVERS = Legend(("background", "tree", "road"))
OVERLAPPING = Legend(("tree", "road"), overlapping=True)

shares = st.floats(0, 1) | st.just(np.nan)
weights = arrays(np.float64, st.tuples(st.integers(2, 7), st.just(3), st.just(4)), elements=st.floats(0.001, 1))


@given(arrays(np.float64, (3, 4), elements=shares))
def test_a_share_comes_back_to_half_a_step(values: ndarray) -> None:
    back = decoded(coded(values))
    assert np.array_equal(np.isnan(back), np.isnan(values))
    assert np.nanmax(np.abs(back - values), initial=0) <= 0.5 / FULL + 1e-6


def test_a_byte_comes_back_whole() -> None:
    codes = np.r_[: FULL + 1, IGNORE].astype(np.uint8)
    assert np.array_equal(coded(decoded(codes)), codes)


@given(weights)
def test_shares_of_classes_that_exclude_each_other_sum_to_one(values: ndarray) -> None:
    values = values / values.sum(axis=0)
    codes = coded_together(values)
    assert (codes.sum(axis=0, dtype=int) == FULL).all()
    assert np.abs(decoded(codes) - values).max() <= 1 / FULL + 1e-6


@given(weights)
def test_a_pixel_with_one_unknown_share_is_not_known(values: ndarray) -> None:
    values = values / values.sum(axis=0)
    values[1, 0, 2] = np.nan
    unseen = (coded_together(values) == IGNORE).all(axis=0)
    assert list(zip(*np.nonzero(unseen), strict=True)) == [(0, 2)]
    assert np.array_equal(coded_together(values) == IGNORE, np.broadcast_to(unseen, values.shape))


@pytest.mark.parametrize("legend", [PAIR, COVERS, OVERLAPPING])
def test_shares_of_whole_pixels_are_those_of_their_classes(legend: Legend) -> None:
    index = np.random.default_rng(0).integers(0, len(legend.names), (5, 6)).astype(np.uint8)
    index[1, 1] = IGNORE
    truth = Truth.of(torch.from_numpy(index)[None], legend.outputs, legend.overlapping)
    known = truth.valid[0].expand(truth.share[0].shape)
    label = truth.share[0].masked_fill(~known, torch.nan).numpy()
    assert np.array_equal(class_shares(label, legend), class_shares(index, legend), equal_nan=True)
    assert np.array_equal(labelled(label), labelled(index))


def test_a_pixel_is_labelled_when_one_of_its_classes_is_known() -> None:
    label = np.array([[[0.5, np.nan]], [[np.nan, np.nan]]], np.float32)
    assert labelled(label).tolist() == [[True, False]]


def test_what_is_unknown_depends_on_the_form() -> None:
    assert unknown(np.zeros((2, 2), np.uint8)) == IGNORE
    assert np.isnan(unknown(np.zeros((1, 2, 2), np.float32)))
