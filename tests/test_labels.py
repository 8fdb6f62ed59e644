"""Label arrays and the encoding of fractions as uint8."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

from geograft.labels import (
    MAX_CODE,
    class_fractions,
    decode_fractions,
    encode_exclusive_fractions,
    encode_fractions,
    labelled_mask,
    missing_value,
)
from geograft.legend import IGNORE, Legend
from geograft.losses.segmentation import Targets

PAIR = Legend(("rest", "tree"))
COVERS = Legend(("background", "tree", "road"))
OVERLAPPING = Legend(("tree", "road"), overlapping=True)

fractions = st.floats(0, 1) | st.just(np.nan)
weights = arrays(np.float64, st.tuples(st.integers(2, 7), st.just(3), st.just(4)), elements=st.floats(0.001, 1))


@given(arrays(np.float64, (3, 4), elements=fractions))
def test_decoding_an_encoded_fraction_is_accurate_to_half_a_step(values: ndarray) -> None:
    back = decode_fractions(encode_fractions(values))
    assert np.array_equal(np.isnan(back), np.isnan(values))
    assert np.nanmax(np.abs(back - values), initial=0) <= 0.5 / MAX_CODE + 1e-6


def test_encoding_a_decoded_code_returns_it() -> None:
    codes = np.r_[: MAX_CODE + 1, IGNORE].astype(np.uint8)
    assert np.array_equal(encode_fractions(decode_fractions(codes)), codes)


@given(weights)
def test_fractions_of_exclusive_classes_sum_to_one(values: ndarray) -> None:
    values = values / values.sum(axis=0)
    codes = encode_exclusive_fractions(values)
    assert (codes.sum(axis=0, dtype=int) == MAX_CODE).all()
    assert np.abs(decode_fractions(codes) - values).max() <= 1 / MAX_CODE + 1e-6


@given(weights)
def test_a_pixel_with_one_unknown_fraction_is_unlabelled(values: ndarray) -> None:
    values = values / values.sum(axis=0)
    values[1, 0, 2] = np.nan
    unseen = (encode_exclusive_fractions(values) == IGNORE).all(axis=0)
    assert list(zip(*np.nonzero(unseen), strict=True)) == [(0, 2)]
    assert np.array_equal(encode_exclusive_fractions(values) == IGNORE, np.broadcast_to(unseen, values.shape))


@pytest.mark.parametrize("legend", [PAIR, COVERS, OVERLAPPING])
def test_class_indices_and_their_fractions_agree(legend: Legend) -> None:
    index = np.random.default_rng(0).integers(0, len(legend.names), (5, 6)).astype(np.uint8)
    index[1, 1] = IGNORE
    truth = Targets.from_label(torch.from_numpy(index)[None], legend.outputs, legend.overlapping)
    known = truth.valid[0].expand(truth.fraction[0].shape)
    label = truth.fraction[0].masked_fill(~known, torch.nan).numpy()
    assert np.array_equal(class_fractions(label, legend), class_fractions(index, legend), equal_nan=True)
    assert np.array_equal(labelled_mask(label), labelled_mask(index))


def test_a_pixel_is_labelled_if_one_of_its_classes_is_known() -> None:
    label = np.array([[[0.5, np.nan]], [[np.nan, np.nan]]], np.float32)
    assert labelled_mask(label).tolist() == [[True, False]]


def test_missing_values_are_255_in_indices_and_nan_in_fractions() -> None:
    assert missing_value(np.zeros((2, 2), np.uint8)) == IGNORE
    assert np.isnan(missing_value(np.zeros((1, 2, 2), np.float32)))
