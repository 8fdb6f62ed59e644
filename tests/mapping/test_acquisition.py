"""Acquisition functions of active learning: values by hand, and their range."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.legend import Legend
from geograft.mapping.blend import Strip
from geograft.mapping.classmap import class_entropy, class_margin, ensemble_std
from geograft.mapping.pool import ACQUISITIONS, mean_over_mask
from geograft.mapping.sums import PROBABILITY_STEPS, WEIGHT_SUM, ArraySums
from tests.support.runs import TREES, USES

THREE = Legend(("a", "b", "c"))


def strip_of(layers: ndarray) -> Strip:
    """Return a strip with (n, h, w) layers."""
    sums = np.rint(layers * PROBABILITY_STEPS).astype(np.uint32) * np.uint32(WEIGHT_SUM**2)
    window = Window(0, 0, *layers.shape[1:])
    return Strip(0, window, 1, window, ArraySums(sums), np.ones(layers.shape[1:], bool), None)


def pixel(*layers: float) -> Strip:
    return strip_of(np.array(layers)[:, None, None])


def test_values_by_hand() -> None:
    assert [float(class_entropy(pixel(p), TREES)[0, 0, 0]) for p in (1.0, 0.5)] == pytest.approx([0, 1], abs=1e-4)
    assert [float(class_margin(pixel(p), TREES)[0, 0, 0]) for p in (1.0, 0.5, 0.8)] == pytest.approx(
        [0, 1, 0.4], abs=1e-5
    )
    three = pixel(0.5, 0.25, 0.25)
    assert float(class_entropy(three, THREE)[0, 0, 0]) == pytest.approx(1.5 * math.log(2) / math.log(3), abs=1e-4)
    assert float(class_margin(three, THREE)[0, 0, 0]) == pytest.approx(0.75, abs=1e-5)
    assert float(ensemble_std(pixel(0.3, 0.1))[0, 0, 0]) == pytest.approx(0.2, abs=1e-5)


def test_overlapping_classes_have_the_mean_of_binary_values() -> None:
    p = np.array([0.9, 0.5, 0.2])
    entropies = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert float(class_entropy(pixel(*p), USES)[0, 0, 0]) == pytest.approx(entropies.mean(), abs=1e-4)
    assert float(class_margin(pixel(*p), USES)[0, 0, 0]) == pytest.approx((1 - abs(2 * p - 1)).mean(), abs=1e-5)


@given(st.integers(0, 10**6), st.integers(2, 12), st.booleans())
def test_a_pixel_has_the_same_bits_in_every_strip(seed: int, classes: int, overlapping: bool) -> None:
    legend = Legend(tuple("abcdefghijkl"[:classes]), overlapping=overlapping)
    rng = np.random.default_rng(seed)
    raw = rng.gamma(0.3, size=(classes, 3, 5)) + 1e-9
    layers = np.concatenate([(raw / raw.sum(axis=0))[-legend.outputs :], 0.5 * rng.random((1, 3, 5))])
    row, col = rng.integers(3), rng.integers(5)
    for measure in ACQUISITIONS.values():
        whole = measure(strip_of(layers), legend)[:, row:, col:]
        assert whole.tobytes() == measure(strip_of(layers[:, row:, col:]), legend).tobytes()


@given(st.integers(0, 10**6), st.sampled_from([TREES, THREE, USES]))
def test_acquisition_functions_lie_between_0_and_1(seed: int, legend: Legend) -> None:
    raw = np.random.default_rng(seed).gamma(0.3, size=(3, 3, 3)) + 1e-9
    p = raw / raw.sum(axis=0, keepdims=True)
    strip = strip_of(np.concatenate([p[: legend.outputs], 0.5 * p[:1]]))
    for measure in ACQUISITIONS.values():
        found = measure(strip, legend)
        assert found.shape == (1, 3, 3)
        assert found.min() >= 0
        assert found.max() <= 1


def test_the_mean_is_over_the_mask() -> None:
    uncertainty = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    mask = np.array([[[True, False], [False, True]], [[False, False], [False, False]]])
    assert mean_over_mask(uncertainty, mask).tolist() == [1.5, 0]
