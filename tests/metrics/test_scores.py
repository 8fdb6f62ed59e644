import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from geograft.metrics.confusion import HEADLINE_SCORES, class_scores, kappa, overall_scores, scores

counts = st.integers(2, 5).flatmap(lambda k: arrays(np.int64, (k, k), elements=st.integers(0, 6)))


def pixels(confusion: ndarray) -> tuple[ndarray, ndarray]:
    """Return truth and prediction of as many pixels as the matrix counts."""
    truth, predicted = np.indices(confusion.shape).reshape(2, -1).repeat(confusion.ravel(), axis=1)
    return truth, predicted


@given(counts)
def test_scores_match_scikit_learn(confusion: ndarray) -> None:
    truth, predicted = pixels(confusion)
    if not len(truth):
        return
    found = scores(confusion)
    present = [k for k in range(len(confusion)) if k in truth or k in predicted]
    theirs = {"iou": jaccard_score, "f1": f1_score, "precision": precision_score, "recall": recall_score}
    for name, score in theirs.items():
        ours = getattr(found, name)
        expected = score(truth, predicted, labels=present, average=None, zero_division=0)
        np.testing.assert_allclose(ours[present], expected, atol=1e-12)
        assert np.isnan(np.delete(ours, present)).all()
        assert found.macro(name) == pytest.approx(expected.mean())
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))


@given(counts)
def test_f1_is_the_harmonic_mean_and_follows_from_iou(confusion: ndarray) -> None:
    found = scores(confusion)
    np.testing.assert_allclose(found.f1, 2 * found.iou / (1 + found.iou), atol=1e-12)
    both = found.precision + found.recall
    np.testing.assert_allclose(found.f1 * both, 2 * found.precision * found.recall, atol=1e-12)


def test_headline_is_the_positive_class_or_the_macro_mean() -> None:
    two = scores(np.array([[90, 10], [5, 15]]))
    assert two.headline() == {"iou": 0.5, "f1": pytest.approx(2 / 3), "precision": 0.6, "recall": 0.75}
    three = scores(np.array([[8, 0, 0], [0, 4, 4], [0, 0, 0]]))
    # The third class is in the prediction alone: it counts, as 0.
    assert three.headline()["iou"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_scores_without_pixels_are_nan_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scores(np.zeros((3, 3), np.int64))
    assert np.isnan(found.accuracy)
    assert all(np.isnan(found.headline()[name]) for name in HEADLINE_SCORES)


def test_score_of_summed_counts_differs_from_mean_of_scores() -> None:
    full, empty = np.array([[0, 0], [0, 100]]), np.array([[99, 1], [0, 0]])
    mean = np.mean([scores(tile).iou[1] for tile in (full, empty)])
    assert scores(full + empty).iou[1] == pytest.approx(100 / 101)
    assert mean == 0.5


@given(counts)
def test_kappa_and_weighted_means_match_scikit_learn(confusion: ndarray) -> None:
    truth, predicted = pixels(confusion)
    if len({*truth, *predicted}) < 2:
        assert np.isnan(kappa(confusion))
        return
    found = overall_scores(confusion)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(truth, predicted), abs=1e-12)
    theirs = {"iou": jaccard_score, "f1": f1_score, "precision": precision_score, "recall": recall_score}
    for name, score in theirs.items():
        expected = score(truth, predicted, average="weighted", zero_division=0)
        assert found[f"weighted_{name}"] == pytest.approx(expected, abs=1e-12)


def test_classes_only_in_the_prediction_count_in_means_as_in_torchmetrics() -> None:
    import torch
    from torchmetrics.functional import jaccard_index

    # Class 2 is invented, class 3 is nowhere.
    confusion = np.array([[8, 0, 2, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    truth, predicted = map(torch.from_numpy, pixels(confusion))
    theirs = jaccard_index(predicted, truth, task="multiclass", num_classes=3, average="macro")
    assert overall_scores(confusion)["macro_iou"] == pytest.approx(float(theirs))
    assert scores(confusion).macro("iou") == pytest.approx((0.8 + 1 + 0) / 3)


def test_kappa_matches_cohens_example() -> None:
    # Cohen (1960), table 1: two raters of 200 cases, 3 categories, kappa 0.492.
    confusion = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    assert kappa(confusion) == pytest.approx(0.492, abs=5e-4)


@given(st.lists(arrays(np.int64, (3, 3), elements=st.integers(0, 6)), min_size=1, max_size=4))
def test_batched_matrices_give_the_same_scores(matrices: list[ndarray]) -> None:
    for function in (overall_scores, class_scores):
        at_once = function(np.stack(matrices))
        for i, matrix in enumerate(matrices):
            for name, values in function(matrix).items():
                np.testing.assert_array_equal(at_once[name][i], values)
