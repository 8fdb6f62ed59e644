import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray
from sklearn.metrics import (
    cohen_kappa_score,
    f1_score,
    hamming_loss,
    jaccard_score,
    multilabel_confusion_matrix,
    precision_score,
    recall_score,
)

from geograft.legend import IGNORE, Legend
from geograft.metrics.confusion import Counting, known_in
from geograft.metrics.scores import HEADLINES, class_scores, overall_scores, scores

pairs = st.integers(2, 4).flatmap(lambda k: arrays(np.uint8, (2, k, 4, 5), elements=st.sampled_from([0, 1, 255])))
THEIRS = {"iou": jaccard_score, "f1": f1_score, "precision": precision_score, "recall": recall_score}


def all_known(k: int, seed: int) -> tuple[ndarray, ndarray]:
    """Return truth and map of `k` overlapping classes, each of which is somewhere in both."""
    rng = np.random.default_rng(seed)
    truth, mapped = rng.integers(0, 2, (2, k, 7, 5), dtype=np.uint8)
    truth[:, 0, 0] = mapped[:, 0, 0] = 1
    return truth, mapped


@given(k=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_overlapping_classes_are_counted_and_scored_as_scikit_learn_does(k: int, seed: int) -> None:
    truth, mapped = all_known(k, seed)
    rows, theirs = truth.reshape(k, -1).T, mapped.reshape(k, -1).T
    counting = Counting(k, overlapping=True)
    counts = counting.counts(truth, mapped)
    np.testing.assert_array_equal(counts, multilabel_confusion_matrix(rows, theirs))
    by_class, overall = counting.by_class(counts), counting.overall(counts)
    for name, score in THEIRS.items():
        np.testing.assert_allclose(by_class[name], score(rows, theirs, average=None), atol=1e-12)
        assert overall[name] == overall[f"macro_{name}"] == pytest.approx(score(rows, theirs, average="macro"))
        assert overall[f"weighted_{name}"] == pytest.approx(score(rows, theirs, average="weighted"))
    assert overall["accuracy"] == pytest.approx(1 - hamming_loss(rows, theirs))
    kappas = [cohen_kappa_score(a, b) for a, b in zip(rows.T, theirs.T, strict=True)]
    assert overall["kappa"] == pytest.approx(np.nanmean(kappas))
    np.testing.assert_array_equal(counting.labelled(counts), rows.sum(axis=0))
    assert counting.total(counts) == rows.size


@given(pairs)
def test_what_is_not_known_of_a_class_is_left_out_of_that_class_alone(pair: ndarray) -> None:
    truth, mapped = pair
    counting = Counting(len(truth), overlapping=True)
    counts = counting.counts(truth, mapped)
    for index, table in enumerate(counts):
        known = (truth[index] != IGNORE) & (mapped[index] != IGNORE)
        assert table.sum() == known.sum()
        assert table[1, 1] == ((truth[index] == 1) & (mapped[index] == 1)).sum()


@given(pairs)
def test_counts_of_parts_add_up_and_many_are_scored_as_one(pair: ndarray) -> None:
    truth, mapped = pair
    counting = Counting(len(truth), overlapping=True)
    parts = np.stack([counting.counts(truth[:, :2], mapped[:, :2]), counting.counts(truth[:, 2:], mapped[:, 2:])])
    np.testing.assert_array_equal(parts.sum(axis=0), counting.counts(truth, mapped))
    for name, values in counting.overall(parts).items():
        np.testing.assert_array_equal(values, [counting.overall(part)[name] for part in parts])


@given(st.integers(2, 4).flatmap(lambda k: arrays(np.int64, (3, k, k), elements=st.integers(0, 9))))
def test_classes_that_exclude_each_other_are_scored_as_ever(confusion: ndarray) -> None:
    counting = Counting(confusion.shape[-1])
    for ours, theirs in (
        (counting.overall(confusion), overall_scores(confusion)),
        (counting.by_class(confusion), class_scores(confusion)),
    ):
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
    for each in confusion:
        np.testing.assert_equal(counting.headline(each), scores(each).headline())


def test_a_class_of_two_that_overlap_has_no_part_in_the_other() -> None:
    counting = Counting.of(Legend(("roads", "trees"), overlapping=True))
    truth = np.array([[[1, 1, 0, 0]], [[1, 0, 1, 0]]], np.uint8)
    mapped = np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]]], np.uint8)
    counts = counting.counts(truth, mapped)
    assert counts.shape == counting.shape == (2, 2, 2)
    assert counting.headline(counts) == {
        "iou": pytest.approx((1 + 1 / 3) / 2),
        "f1": 0.75,
        "precision": 0.75,
        "recall": 0.75,
    }


def test_shares_are_of_the_class_that_has_most() -> None:
    nan = np.nan
    one = np.array([[[0.49, 0.5, 1, nan]]], np.float32)
    assert Counting(2).classed(one).tolist() == [[0, 1, 1, 255]]
    three = np.array([[[0.2, 0.4, nan]], [[0.5, 0.3, 0.5]], [[0.3, 0.3, 0.5]]], np.float32)
    assert Counting(3).classed(three).tolist() == [[1, 0, 255]]
    both = np.array([[[0.6, 0.4, nan]], [[0.5, 0.0, 1.0]]], np.float32)
    classed = Counting(2, overlapping=True).classed(both)
    assert classed.tolist() == [[[1, 0, 255]], [[1, 0, 1]]]
    assert known_in(classed).tolist() == [[True, True, True]]
    assert Counting(3).classed(label := np.array([[2, 255]], np.uint8)) is label


def test_a_map_shows_a_class_from_its_own_threshold_on() -> None:
    seen = np.array([[[0.3, 0.2]], [[0.7, 0.8]]], np.float32)
    assert Counting(2).decided(seen, (0.75,)).tolist() == [[0, 1]]
    assert Counting(2, overlapping=True).decided(seen, (0.3, 0.75)).tolist() == [
        [[1, 0]],
        [[0, 1]],
    ]
    assert Counting(2, overlapping=True).decided(seen[None], (0.5, 0.5)).shape == (1, 2, 1, 2)
    more = np.stack([seen[0], seen[1], 1 - seen[1]])
    assert Counting(3).decided(more, (0.5,)).tolist() == [[1, 1]]


def test_headlines_are_those_of_scores() -> None:
    assert tuple(Counting(3).headline(Counting(3).none())) == HEADLINES
