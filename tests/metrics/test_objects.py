"""Object matching: worked examples and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

from geograft.metrics.objects import match_objects, object_counts

MAPS = arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 1, 255]))
IOUS = st.sampled_from([0.5, 0.6, 0.75])
LINKS = st.sampled_from([4, 8])


def components(labels: ndarray, link: int) -> list[set[tuple[int, int]]]:
    """Connected pixels of class 1, by flooding."""
    left = {(int(r), int(c)) for r, c in np.argwhere(labels == 1)}
    steps = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if abs(a) + abs(b) <= (1 if link == 4 else 2)]
    found = []
    while left:
        pixels, front = set(), {min(left)}
        while front:
            pixels |= front
            left -= front
            front = {(r + a, c + b) for r, c in front for a, b in steps} & left
        found.append(pixels)
    return found


def brute(truth: ndarray, predicted: ndarray, iou: float, link: int) -> list[int]:
    unknown = {(int(r), int(c)) for r, c in np.argwhere((truth == 255) | (predicted == 255))}
    true, found = components(truth, link), components(predicted, link)
    pairs = [
        (i, j)
        for i, t in enumerate(true)
        for j, p in enumerate(found)
        if (t & p) - unknown and len((t & p) - unknown) / len((t | p) - unknown) > iou
    ]
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs), "a match is unique"
    left = [
        [i for i, o in enumerate(some) if i not in done and len(o & unknown) / len(o) <= iou]
        for some, done in ((found, {j for _, j in pairs}), (true, {i for i, _ in pairs}))
    ]
    return [len(pairs), len(pairs) + len(left[0]), len(pairs) + len(left[1])]


@given(MAPS, MAPS, IOUS, LINKS)
def test_counts_match_brute_force(truth: ndarray, predicted: ndarray, iou: float, link: int) -> None:
    assert object_counts(truth, predicted, 1, iou, link).tolist() == brute(truth, predicted, iou, link)


@given(MAPS, MAPS, LINKS)
def test_swapped_maps_swap_the_counts(truth: ndarray, predicted: ndarray, link: int) -> None:
    matched, found, true = object_counts(truth, predicted, 1, 0.5, link)
    assert object_counts(predicted, truth, 1, 0.5, link).tolist() == [matched, true, found]


@given(MAPS, LINKS)
def test_identical_maps_match_completely(truth: ndarray, link: int) -> None:
    here, there = match_objects(truth, truth, 1, 0.5, link)
    assert here.matched.all()
    assert len(here.matched) == len(components(truth, link))
    assert np.array_equal(here.centres, there.centres)


def label_map(*boxes: tuple[slice, slice]) -> ndarray:
    labels = np.zeros((20, 20), np.uint8)
    for box in boxes:
        labels[box] = 3
    return labels


def test_matched_missed_merged_and_false_objects() -> None:
    """One crown found with IoU 12 / 16, one missed, one joined to its neighbour, one invented."""
    truth = label_map(np.s_[0:4, 0:4], np.s_[0:4, 10:14], np.s_[10:14, 0:4], np.s_[10:14, 5:8])
    predicted = label_map(np.s_[0:4, 0:3], np.s_[10:14, 0:8], np.s_[17:19, 17:19])
    true, found = match_objects(truth, predicted, 3)
    assert true.matched.tolist() == [True, False, False, False]
    assert found.matched.tolist() == [True, False, False]
    assert true.centres.tolist() == [[1.5, 1.5], [1.5, 11.5], [11.5, 1.5], [11.5, 6]]
    assert object_counts(truth, predicted, 3).tolist() == [1, 3, 4]


def test_iou_of_exactly_one_half_is_no_match() -> None:
    """At exactly 0.5 a pair of pixels would match each of two objects that are one of them."""
    pair = label_map(np.s_[0, 0:2])
    assert object_counts(label_map(np.s_[0, 0:1]), pair, 3).tolist() == [0, 1, 1]
    assert object_counts(label_map(np.s_[0, 0:3]), pair, 3).tolist() == [1, 1, 1]


def test_diagonal_pixels_are_connected_with_8_connectivity_only() -> None:
    steps = label_map(np.s_[0, 0], np.s_[1, 1], np.s_[2, 2])
    assert object_counts(steps, steps, 3).tolist() == [1, 1, 1]
    assert object_counts(steps, steps, 3, connectivity=4).tolist() == [3, 3, 3]


def test_mostly_unknown_objects_are_ignored() -> None:
    truth = label_map(np.s_[0:2, 0:4])
    truth[10:16] = 255
    assert object_counts(truth, label_map(np.s_[0:2, 0:4], np.s_[9:16, 5:7]), 3).tolist() == [1, 1, 1]
    assert object_counts(truth, label_map(np.s_[0:2, 0:4], np.s_[4:12, 5:7]), 3).tolist() == [1, 2, 1]


def test_maps_without_objects() -> None:
    empty = label_map()
    assert object_counts(empty, empty, 3).tolist() == [0, 0, 0]
    assert match_objects(empty, empty, 3)[0].centres.shape == (0, 2)


@pytest.mark.parametrize("iou", [0.3, 1.0])
def test_iou_outside_its_range_raises_value_error(iou: float) -> None:
    with pytest.raises(ValueError, match=f"iou is {iou}"):
        object_counts(label_map(), label_map(), 3, iou)
