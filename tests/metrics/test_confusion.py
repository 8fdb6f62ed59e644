import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from sklearn.metrics import (
    cohen_kappa_score,
    f1_score,
    hamming_loss,
    jaccard_score,
    precision_score,
    recall_score,
)

from geograft.legend import IGNORE, Legend
from geograft.metrics.confusion import (
    HEADLINE_SCORES,
    ConfusionScheme,
    class_scores,
    known_mask,
    overall_scores,
    scores,
)

pairs = st.integers(2, 4).flatmap(lambda k: arrays(np.uint8, (2, k, 4, 5), elements=st.sampled_from([0, 1, 255])))
THEIRS = {"iou": jaccard_score, "f1": f1_score, "precision": precision_score, "recall": recall_score}


def all_known(k: int, seed: int) -> tuple[ndarray, ndarray]:
    """Return truth and map of `k` overlapping classes, each present in both."""
    rng = np.random.default_rng(seed)
    truth, mapped = rng.integers(0, 2, (2, k, 7, 5), dtype=np.uint8)
    truth[:, 0, 0] = mapped[:, 0, 0] = 1
    return truth, mapped


@given(k=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_counts_and_scores_of_overlapping_classes_match_scikit_learn(k: int, seed: int) -> None:
    truth, mapped = all_known(k, seed)
    rows, theirs = truth.reshape(k, -1).T, mapped.reshape(k, -1).T
    scheme = ConfusionScheme(k, overlapping=True)
    counts = scheme.confusion(truth, mapped)
    np.testing.assert_array_equal(counts, sklearn.metrics.multilabel_confusion_matrix(rows, theirs))
    by_class, overall = scheme.by_class(counts), scheme.overall(counts)
    for name, score in THEIRS.items():
        np.testing.assert_allclose(by_class[name], score(rows, theirs, average=None), atol=1e-12)
        assert overall[name] == overall[f"macro_{name}"] == pytest.approx(score(rows, theirs, average="macro"))
        assert overall[f"weighted_{name}"] == pytest.approx(score(rows, theirs, average="weighted"))
    assert overall["accuracy"] == pytest.approx(1 - hamming_loss(rows, theirs))
    kappas = [cohen_kappa_score(a, b) for a, b in zip(rows.T, theirs.T, strict=True)]
    assert overall["kappa"] == pytest.approx(np.nanmean(kappas))
    np.testing.assert_array_equal(scheme.support(counts), rows.sum(axis=0))
    assert scheme.total(counts) == rows.size


@given(pairs)
def test_unknown_pixels_are_ignored_per_class(pair: ndarray) -> None:
    truth, mapped = pair
    scheme = ConfusionScheme(len(truth), overlapping=True)
    counts = scheme.confusion(truth, mapped)
    for index, table in enumerate(counts):
        known = (truth[index] != IGNORE) & (mapped[index] != IGNORE)
        assert table.sum() == known.sum()
        assert table[1, 1] == ((truth[index] == 1) & (mapped[index] == 1)).sum()


@given(pairs)
def test_counts_can_be_summed_and_scored_in_batches(pair: ndarray) -> None:
    truth, mapped = pair
    scheme = ConfusionScheme(len(truth), overlapping=True)
    parts = np.stack([scheme.confusion(truth[:, :2], mapped[:, :2]), scheme.confusion(truth[:, 2:], mapped[:, 2:])])
    np.testing.assert_array_equal(parts.sum(axis=0), scheme.confusion(truth, mapped))
    for name, values in scheme.overall(parts).items():
        np.testing.assert_array_equal(values, [scheme.overall(part)[name] for part in parts])


@given(st.integers(2, 4).flatmap(lambda k: arrays(np.int64, (3, k, k), elements=st.integers(0, 9))))
def test_scores_of_exclusive_classes_equal_the_plain_functions(confusion: ndarray) -> None:
    scheme = ConfusionScheme(confusion.shape[-1])
    for ours, theirs in (
        (scheme.overall(confusion), overall_scores(confusion)),
        (scheme.by_class(confusion), class_scores(confusion)),
    ):
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
    for each in confusion:
        np.testing.assert_equal(scheme.headline(each), scores(each).headline())


def test_overlapping_classes_are_scored_independently() -> None:
    scheme = ConfusionScheme.from_legend(Legend(("roads", "trees"), overlapping=True))
    truth = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]]], np.uint8)
    mapped = np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]]], np.uint8)
    counts = scheme.confusion(truth, mapped)
    assert counts.shape == scheme.shape == (2, 2, 2)
    assert scheme.headline(counts) == {
        "iou": pytest.approx((1 + 1 / 3) / 2),
        "f1": 0.75,
        "precision": 0.75,
        "recall": 0.75,
    }


def test_fractional_labels_become_the_class_with_the_largest_fraction() -> None:
    nan = np.nan
    one = np.array([[[0.49, 0.5, 1, nan]]], np.float32)
    assert ConfusionScheme(2).to_classes(one).tolist() == [[0, 1, 1, 255]]
    three = np.array([[[0.2, 0.4, nan]], [[0.5, 0.3, 0.5]], [[0.3, 0.3, 0.5]]], np.float32)
    assert ConfusionScheme(3).to_classes(three).tolist() == [[1, 0, 255]]
    both = np.array([[[0.6, 0.4, nan]], [[0.5, 0.0, 1.0]]], np.float32)
    classed = ConfusionScheme(2, overlapping=True).to_classes(both)
    assert classed.tolist() == [[[1, 0, 255]], [[1, 0, 1]]]
    assert known_mask(classed).tolist() == [[True, True, True]]
    assert ConfusionScheme(3).to_classes(label := np.array([[2, 255]], np.uint8)) is label


def test_each_overlapping_class_has_its_own_threshold() -> None:
    seen = np.array([[[0.3, 0.2]], [[0.7, 0.8]]], np.float32)
    assert ConfusionScheme(2).apply_thresholds(seen, (0.75,)).tolist() == [[0, 1]]
    assert ConfusionScheme(2, overlapping=True).apply_thresholds(seen, (0.3, 0.75)).tolist() == [
        [[1, 0]],
        [[0, 1]],
    ]
    assert ConfusionScheme(2, overlapping=True).apply_thresholds(seen[None], (0.5, 0.5)).shape == (1, 2, 1, 2)
    more = np.stack([seen[0], seen[1], 1 - seen[1]])
    assert ConfusionScheme(3).apply_thresholds(more, (0.5,)).tolist() == [[1, 1]]


def test_headline_has_the_headline_scores() -> None:
    assert tuple(ConfusionScheme(3).headline(ConfusionScheme(3).zeros())) == HEADLINE_SCORES
