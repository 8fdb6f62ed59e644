"""The area of applicability: the formulas by hand and by brute force, and what the file keeps."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.errors import InputError
from geograft.metrics import applicability
from geograft.metrics.applicability import Applicability, fit


def cloud(seed: int, n: int = 40, d: int = 3) -> ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * [1, 10, 0.1][:d] + [0, 5, -3][:d]


def brute(train: ndarray, folds: ndarray, weights: ndarray, new: ndarray) -> tuple[list[float], float]:
    """Index of new points and the threshold, pair by pair."""
    mean, deviation = train.mean(axis=0), train.std(axis=0, ddof=1)
    known, asked = ((some - mean) / deviation * weights for some in (train, new))
    pairs = [math.dist(p, q) for i, p in enumerate(known) for j, q in enumerate(known) if i != j]
    average = sum(pairs) / len(pairs)
    own = [
        min(math.dist(p, q) for q, g in zip(known, folds, strict=True) if g != f)
        for p, f in zip(known, folds, strict=True)
    ]
    ranked = np.array(sorted(own)) / average
    lower, upper = (np.interp(share * (len(ranked) - 1), range(len(ranked)), ranked) for share in (0.25, 0.75))
    threshold = min(upper + 1.5 * (upper - lower), ranked[-1])
    return [min(math.dist(p, q) for q in known) / average for p in asked], threshold


@given(st.integers(0, 10**6))
def test_index_and_threshold_are_those_of_the_definition(seed: int) -> None:
    train, new = cloud(seed), cloud(seed + 1, 7) * 2
    rng = np.random.default_rng(seed)
    folds, weights = rng.permutation(np.arange(40) % 4), rng.uniform(0.1, 2, 3)
    found = fit(train, folds, weights)
    index, threshold = brute(train, folds, weights, new)
    assert found.index(new) == pytest.approx(index)
    assert found.threshold == pytest.approx(threshold)


def test_four_points_by_hand() -> None:
    """0, 1, 2 and 9 on a line: distances 1, 2, 9, 1, 8, 7, their mean 14/3; each to its nearest: 1, 1, 1, 7.

    Their quartiles over 14/3 are 1 and 2.5 over 14/3, and 2.5 + 1.5 x 1.5 = 4.75 is below the largest, 7.
    """
    found = fit(np.array([[0.0], [1], [2], [9]]))
    assert found.index(np.array([[0.0], [3], [-5], [9]])) == pytest.approx([0, 3 / 14, 15 / 14, 0])
    assert found.threshold == pytest.approx(4.75 * 3 / 14)


def test_the_threshold_is_no_larger_than_any_training_point() -> None:
    """With two pairs of points, 1 and 2 apart, quartiles 1 and 2 would allow 3.5."""
    found = fit(np.array([[0.0], [1], [100], [102]]))
    assert found.threshold * found.mean_distance == pytest.approx(2 / np.std([0, 1, 100, 102], ddof=1))


@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-100, 100))
def test_units_have_no_say(seed: int, factor: float, shift: float) -> None:
    train, new = cloud(seed), cloud(seed + 1, 5)
    one, two = fit(train), fit(train * factor + shift)
    assert two.index(new * factor + shift) == pytest.approx(one.index(new), rel=1e-6)
    assert two.threshold == pytest.approx(one.threshold, rel=1e-6)


def test_what_was_trained_on_is_known_and_what_is_far_is_not() -> None:
    train = cloud(0, 300)
    found = fit(train, np.arange(300) // 60)
    assert found.index(train) == pytest.approx(np.zeros(300), abs=1e-12)
    assert (found.index(cloud(1, 200)) <= found.threshold).mean() > 0.9
    assert (found.index(cloud(2, 200) + np.array([10, 0, 0])) > found.threshold).all()


def test_folds_of_like_points_ask_for_more_distance() -> None:
    """Ten places with ten points each that are all but equal: without folds every point has a twin."""
    places = np.repeat(cloud(0, 10), 10, axis=0) + 1e-3 * cloud(1, 100)
    assert fit(places, np.repeat(np.arange(10), 10)).threshold > 50 * fit(places).threshold


def test_a_feature_that_never_varies_is_left_out() -> None:
    train = np.column_stack([cloud(0), np.full(40, 7.0)])
    new = np.column_stack([cloud(1, 5), np.arange(5.0)])
    assert fit(train).index(new) == pytest.approx(fit(train[:, :3]).index(new[:, :3]))


def test_a_weight_of_zero_leaves_a_feature_out() -> None:
    train, new = cloud(0), cloud(1, 5)
    assert fit(train, weights=np.array([1.0, 1, 0])).index(new) == pytest.approx(fit(train[:, :2]).index(new[:, :2]))


def test_of_many_points_the_same_choice_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applicability, "MOST_POINTS", 100)
    train = cloud(0, 1000)
    one, two = fit(train, np.arange(1000) % 7), fit(train, np.arange(1000) % 7)
    assert one.points.shape == (100, 3)
    assert np.array_equal(one.points, two.points)
    assert one.threshold == two.threshold
    assert (one.index(cloud(1, 300)) <= one.threshold).mean() > 0.9


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    found = fit(cloud(0), np.arange(40) % 3)
    found.write(tmp_path / "known.safetensors")
    again = Applicability.read(tmp_path / "known.safetensors")
    assert np.array_equal(again.index(cloud(1)), found.index(cloud(1)))
    assert again.threshold == found.threshold
    assert [path.name for path in tmp_path.iterdir()] == ["known.safetensors"]


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "known.safetensors"
    fit(cloud(0)).write(path)
    whole = path.read_bytes()
    for content in (whole[:50], b"", b"none", whole.replace(b'"scale"', b'"scales"')):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"known.safetensors cannot be read as what a model knows"):
            Applicability.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        Applicability.read(tmp_path / "none.safetensors")


def test_nothing_to_compare_with_is_an_error() -> None:
    with pytest.raises(ValueError, match="two folds"):
        fit(cloud(0), np.zeros(40, int))
    with pytest.raises(ValueError, match="two folds"):
        fit(cloud(0, 1))
    with pytest.raises(ValueError, match="alike"):
        fit(np.ones((5, 2)))
