"""Area of applicability: hand calculation, brute force, and the file round trip."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.card import FEATURES_FILE
from geograft.errors import InputError
from geograft.metrics import applicability
from geograft.metrics.applicability import Applicability, fit_applicability


def cloud(seed: int, n: int = 40, d: int = 3) -> ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * [1, 10, 0.1][:d] + [0, 5, -3][:d]


def brute(train: ndarray, folds: ndarray, weights: ndarray, new: ndarray) -> tuple[list[float], float]:
    """Return the dissimilarity index of new points and the threshold, pair by pair."""
    mean, std = train.mean(axis=0), train.std(axis=0, ddof=1)
    known, asked = ((some - mean) / std * weights for some in (train, new))
    pairs = [math.dist(p, q) for i, p in enumerate(known) for j, q in enumerate(known) if i != j]
    average = sum(pairs) / len(pairs)
    own = [
        min(math.dist(p, q) for q, g in zip(known, folds, strict=True) if g != f)
        for p, f in zip(known, folds, strict=True)
    ]
    ranked = np.array(sorted(own)) / average
    lower, upper = (np.interp(q * (len(ranked) - 1), range(len(ranked)), ranked) for q in (0.25, 0.75))
    threshold = min(upper + 1.5 * (upper - lower), ranked[-1])
    return [min(math.dist(p, q) for q in known) / average for p in asked], threshold


@given(st.integers(0, 10**6))
def test_index_and_threshold_match_brute_force(seed: int) -> None:
    train, new = cloud(seed), cloud(seed + 1, 7) * 2
    rng = np.random.default_rng(seed)
    folds, weights = rng.permutation(np.arange(40) % 4), rng.uniform(0.1, 2, 3)
    found = fit_applicability(train, folds, weights)
    index, threshold = brute(train, folds, weights, new)
    assert found.dissimilarity_index(new) == pytest.approx(index)
    assert found.threshold == pytest.approx(threshold)


def test_four_points_match_a_hand_calculation() -> None:
    """0, 1, 2 and 9 on a line: distances 1, 2, 9, 1, 8, 7, their mean 14/3; each to its nearest: 1, 1, 1, 7.

    Their quartiles over 14/3 are 1 and 2.5 over 14/3, and 2.5 + 1.5 x 1.5 = 4.75 is below the largest, 7.
    """
    found = fit_applicability(np.array([[0.0], [1], [2], [9]]))
    assert found.dissimilarity_index(np.array([[0.0], [3], [-5], [9]])) == pytest.approx([0, 3 / 14, 15 / 14, 0])
    assert found.threshold == pytest.approx(4.75 * 3 / 14)


def test_threshold_is_at_most_the_largest_training_index() -> None:
    """With two pairs of points, 1 and 2 apart, quartiles 1 and 2 would allow 3.5."""
    found = fit_applicability(np.array([[0.0], [1], [100], [102]]))
    assert found.threshold * found.mean_distance == pytest.approx(2 / np.std([0, 1, 100, 102], ddof=1))


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-100, 100))
def test_result_does_not_depend_on_units(seed: int, factor: float, shift: float) -> None:
    train, new = cloud(seed), cloud(seed + 1, 5)
    one, two = fit_applicability(train), fit_applicability(train * factor + shift)
    assert two.dissimilarity_index(new * factor + shift) == pytest.approx(one.dissimilarity_index(new), rel=1e-6)
    assert two.threshold == pytest.approx(one.threshold, rel=1e-6)


def test_training_points_are_inside_and_distant_points_outside() -> None:
    train = cloud(0, 300)
    found = fit_applicability(train, np.arange(300) // 60)
    assert found.dissimilarity_index(train) == pytest.approx(np.zeros(300), abs=1e-12)
    assert (found.dissimilarity_index(cloud(1, 200)) <= found.threshold).mean() > 0.9
    assert (found.dissimilarity_index(cloud(2, 200) + np.array([10, 0, 0])) > found.threshold).all()


def test_folds_of_similar_points_raise_the_threshold() -> None:
    """Ten places with ten nearly equal points each: without folds every point has a near duplicate."""
    places = np.repeat(cloud(0, 10), 10, axis=0) + 1e-3 * cloud(1, 100)
    assert fit_applicability(places, np.repeat(np.arange(10), 10)).threshold > 50 * fit_applicability(places).threshold


def test_constant_features_are_dropped() -> None:
    train = np.column_stack([cloud(0), np.full(40, 7.0)])
    new = np.column_stack([cloud(1, 5), np.arange(5.0)])
    assert fit_applicability(train).dissimilarity_index(new) == pytest.approx(
        fit_applicability(train[:, :3]).dissimilarity_index(new[:, :3])
    )


def test_features_with_weight_zero_are_dropped() -> None:
    train, new = cloud(0), cloud(1, 5)
    assert fit_applicability(train, weights=np.array([1.0, 1, 0])).dissimilarity_index(new) == pytest.approx(
        fit_applicability(train[:, :2]).dissimilarity_index(new[:, :2])
    )


def test_large_sets_are_subsampled_deterministically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applicability, "MAX_POINTS", 100)
    train = cloud(0, 1000)
    one, two = fit_applicability(train, np.arange(1000) % 7), fit_applicability(train, np.arange(1000) % 7)
    assert one.points.shape == (100, 3)
    assert np.array_equal(one.points, two.points)
    assert one.threshold == two.threshold
    assert (one.dissimilarity_index(cloud(1, 300)) <= one.threshold).mean() > 0.9


def test_write_then_read_returns_the_same_values(tmp_path: Path) -> None:
    found = fit_applicability(cloud(0), np.arange(40) % 3)
    found.write(tmp_path / FEATURES_FILE)
    again = Applicability.read(tmp_path / FEATURES_FILE)
    assert np.array_equal(again.dissimilarity_index(cloud(1)), found.dissimilarity_index(cloud(1)))
    assert again.threshold == found.threshold
    assert [path.name for path in tmp_path.iterdir()] == [FEATURES_FILE]


def test_damaged_files_raise_input_error(tmp_path: Path) -> None:
    path = tmp_path / FEATURES_FILE
    fit_applicability(cloud(0)).write(path)
    whole = path.read_bytes()
    for content in (whole[:50], b"", b"none", whole.replace(b'"scale"', b'"scales"')):
        path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(path))):
            Applicability.read(path)
    with pytest.raises(InputError, match=r"none\.safetensors"):
        Applicability.read(tmp_path / "none.safetensors")


def test_too_few_folds_or_equal_points_raise_value_error() -> None:
    with pytest.raises(ValueError, match="2 folds"):
        fit_applicability(cloud(0), np.zeros(40, int))
    with pytest.raises(ValueError, match="2 folds"):
        fit_applicability(cloud(0, 1))
    with pytest.raises(ValueError, match="5 points"):
        fit_applicability(np.ones((5, 2)))
