"""Calibration metrics: parity with scikit-learn and torchmetrics, and recovery of a known temperature."""

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, log_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from geograft.metrics import calibration
from geograft.metrics.calibration import (
    EDGES,
    average_precision,
    best_temperature,
    brier_sum,
    choose_threshold,
    expected_calibration_error,
    precision_recall_curve,
    probability_counts,
    reliability_counts,
    reliability_diagram,
)

PIXELS = 4000
floats = st.floats(0, 1, width=32)


def two_classes(seed: int = 0, hot: float = 1.0) -> tuple[ndarray, ndarray]:
    """Return logits (n, 1) scaled by `hot`, and labels sampled from the unscaled probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (PIXELS, 1))
    label = rng.random(PIXELS) < expit(logits[:, 0])
    return (hot * logits).astype(np.float32), label.astype(np.uint8)


def four_classes(seed: int = 0, hot: float = 1.0) -> tuple[ndarray, ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (PIXELS, 4))
    label = (rng.random((PIXELS, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return (hot * logits).astype(np.float32), label.clip(0, 3).astype(np.uint8)


@given(arrays(np.float32, 30, elements=floats | st.sampled_from(EDGES.tolist())), st.integers(0, 1000))
def test_counts_are_exact_at_every_threshold(probability: ndarray, step: int) -> None:
    true = np.arange(30) % 3 == 0
    counts = probability_counts(probability, true)
    at_least = probability >= EDGES[step]
    assert counts[1, step:].sum() == (at_least & true).sum()
    assert counts[0, step:].sum() == (at_least & ~true).sum()


def test_average_precision_and_curve_match_scikit_learn() -> None:
    logits, label = two_classes()
    # With probabilities rounded to 1 / 1000 both use the same thresholds.
    probability = (np.floor(expit(logits[:, 0]) * 1000) / 1000).astype(np.float32)
    counts = probability_counts(probability, label == 1)
    assert average_precision(counts) == pytest.approx(average_precision_score(label, probability), abs=1e-9)
    assert average_precision(counts) == pytest.approx(average_precision_score(label, logits[:, 0]), abs=1e-3)
    precision, recall, thresholds = sklearn.metrics.precision_recall_curve(label, probability)
    steps = np.rint(thresholds * 1000).astype(int)
    for ours, theirs in zip(precision_recall_curve(counts), (precision, recall), strict=True):
        np.testing.assert_allclose(ours[steps], theirs[:-1], atol=1e-12)


def test_average_precision_is_nan_without_positive_pixels() -> None:
    counts = probability_counts(np.array([0.2, 0.7], np.float32), np.array([False, False]))
    assert np.isnan(average_precision(counts))
    assert choose_threshold(counts[None], 0.5, 0.001, 0.999).threshold == 0.5


def test_best_threshold_has_the_highest_f1() -> None:
    logits, label = two_classes(1)
    probability = expit(logits[:, 0]).astype(np.float32)
    chosen = choose_threshold(probability_counts(probability, label == 1)[None], 0.5, 0.001, 0.999).best
    found = {float(t): f1_score(label, probability >= t) for t in EDGES[10:991:10]}
    assert f1_score(label, probability >= np.float32(chosen)) >= max(found.values())
    assert 0 < chosen < 0.5


def test_ties_of_thresholds_are_resolved_by_the_middle() -> None:
    probability, true = np.array([0.1, 0.2, 0.8, 0.9], np.float32), np.array([False, False, True, True])
    assert choose_threshold(probability_counts(probability, true)[None], 0.3, 0.001, 0.999).best == pytest.approx(
        0.5, abs=2e-3
    )


@pytest.mark.parametrize("hot", [1.0, 3.0])
def test_binary_calibration_error_matches_torchmetrics(hot: float) -> None:
    logits, label = two_classes(2, hot)
    probability = expit(logits[:, 0]).astype(np.float32)
    probability = probability[inside := probability < 1]
    ours = expected_calibration_error(reliability_counts(probability, label[inside] == 1))
    theirs = binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(label[inside]), n_bins=15)
    assert ours == pytest.approx(float(theirs), abs=1e-5)
    assert (ours < 0.03) == (hot == 1)


@pytest.mark.parametrize("hot", [1.0, 3.0])
def test_multiclass_calibration_error_matches_torchmetrics(hot: float) -> None:
    logits, label = four_classes(3, hot)
    probability = softmax(logits, axis=1)
    inside = probability.max(axis=1) < 1
    probability, label = probability[inside], label[inside]
    confidence = probability.max(axis=1)
    ours = expected_calibration_error(reliability_counts(confidence, probability.argmax(axis=1) == label))
    theirs = multiclass_calibration_error(torch.from_numpy(probability), torch.from_numpy(label).long(), 4, n_bins=15)
    assert ours == pytest.approx(float(theirs), abs=1e-5)


def test_reliability_diagram_counts_every_pixel() -> None:
    confidence = np.array([0, 0.05, 0.5, 1], np.float32)
    rows = reliability_diagram(reliability_counts(confidence, np.array([False, True, True, True])))
    assert [row["pixels"] for row in rows] == [2, *[0] * 6, 1, *[0] * 6, 1]
    assert rows[0]["observed_frequency"] == 0.5
    assert rows[0]["confidence"] == pytest.approx(0.025)
    assert rows[1]["observed_frequency"] is None
    assert (rows[0]["from"], rows[-1]["to"]) == (0, 1)


def test_brier_score_matches_scikit_learn() -> None:
    logits, label = two_classes(4)
    p = expit(logits[:, 0])
    ours = brier_sum(np.stack([1 - p, p]), label) / PIXELS
    assert ours == pytest.approx(brier_score_loss(label, p), abs=1e-6)
    logits, label = four_classes(4)
    p = softmax(logits, axis=1)
    ours = brier_sum(np.ascontiguousarray(p.T), label) / PIXELS
    assert ours == pytest.approx(brier_score_loss(label, p, labels=range(4), scale_by_half=False), abs=1e-6)


def test_log_loss_matches_scikit_learn() -> None:
    logits, label = two_classes(5)
    assert calibration.log_loss(logits, label, 2.0) == pytest.approx(log_loss(label, expit(logits[:, 0] / 2)), abs=1e-5)
    logits, label = four_classes(5)
    expected = log_loss(label, softmax(logits.astype(np.float64) / 2, axis=1), labels=range(4))
    assert calibration.log_loss(logits, label, 2.0) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("make", [two_classes, four_classes])
def test_best_temperature_recovers_the_true_one_and_minimises_the_loss(make: type) -> None:
    logits, label = make(6, 2.5)
    found = best_temperature(logits, label)
    assert found == pytest.approx(2.5, rel=0.1)
    best = minimize_scalar(lambda t: calibration.log_loss(logits, label, t), bounds=(0.1, 10), method="bounded").x
    assert found == pytest.approx(best, rel=1e-3)


def test_temperature_is_clipped() -> None:
    logits, label = two_classes(7)
    assert best_temperature(np.where(label == 1, 1, -1)[:, None].astype(np.float32), label) == 1 / 20
    assert best_temperature(-logits, label) == 20
