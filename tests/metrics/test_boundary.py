"""Boundary counts: worked examples, brute force, and sums over blocks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

from geograft.geo.grid import Window, block_windows
from geograft.metrics.objects import boundary_counts, margin_px

MAPS = arrays(np.uint8, (9, 11), elements=st.sampled_from([0, 1, 2, 255]))
TOLERANCES = st.sampled_from([0.0, 1.0, math.sqrt(2), 2.0, 3.5])


def brute(truth: ndarray, predicted: ndarray, k: int, tolerance: float) -> list[list[int]]:
    """The definition, pixel by pixel."""

    def boundary(labels: ndarray, c: int) -> list[tuple[int, int]]:
        found = []
        for r, q in np.argwhere(labels == c):
            for row, col in ((r - 1, q), (r + 1, q), (r, q - 1), (r, q + 1)):
                inside = 0 <= row < truth.shape[0] and 0 <= col < truth.shape[1]
                if inside and labels[row, col] not in (c, 255):
                    found.append((int(r), int(q)))
                    break
        return found

    unknown = (truth == 255) | (predicted == 255)
    truth, predicted = np.where(unknown, 255, truth), np.where(unknown, 255, predicted)
    counts = []
    for c in range(k):
        true, found = boundary(truth, c), boundary(predicted, c)
        near = [sum(any(math.dist(p, q) <= tolerance for q in b) for p in a) for a, b in ((found, true), (true, found))]
        counts.append([near[0], len(found), near[1], len(true)])
    return counts


@given(MAPS, MAPS, TOLERANCES)
def test_counts_match_brute_force(truth: ndarray, predicted: ndarray, tolerance: float) -> None:
    assert boundary_counts(truth, predicted, 3, tolerance).tolist() == brute(truth, predicted, 3, tolerance)


@given(MAPS, MAPS, TOLERANCES)
def test_swapped_maps_swap_the_counts(truth: ndarray, predicted: ndarray, tolerance: float) -> None:
    there = boundary_counts(predicted, truth, 3, tolerance)
    assert (boundary_counts(truth, predicted, 3, tolerance) == there[:, [2, 3, 0, 1]]).all()


@given(MAPS, MAPS, TOLERANCES, st.integers(1, 6))
def test_counts_of_blocks_with_margin_sum_to_the_scene(
    truth: ndarray, predicted: ndarray, tolerance: float, size: int
) -> None:
    total = np.zeros((3, 4), np.int64)
    whole = Window(0, 0, *truth.shape)
    for block in block_windows(whole, size, size):
        shown = block.pad(margin_px(tolerance)).intersection(whole)
        assert shown is not None
        core = block.relative_to(shown)
        total += boundary_counts(truth[shown.slices], predicted[shown.slices], 3, tolerance, core)
    assert (total == boundary_counts(truth, predicted, 3, tolerance)).all()


def square(row: int, col: int, size: int = 4) -> ndarray:
    labels = np.zeros((16, 16), np.uint8)
    labels[row : row + size, col : col + size] = 1
    return labels


def test_a_square_moved_by_one_pixel() -> None:
    """Of twelve boundary pixels each, three in the top row, three in the bottom row and none between coincide."""
    truth, moved = square(5, 5), square(5, 6)
    assert boundary_counts(truth, truth, 2, 0)[1].tolist() == [12, 12, 12, 12]
    assert boundary_counts(truth, moved, 2, 0)[1].tolist() == [6, 12, 6, 12]
    assert boundary_counts(truth, moved, 2, 1)[1].tolist() == [12, 12, 12, 12]


def test_the_tolerance_is_a_distance_along_the_diagonal() -> None:
    truth, moved = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    truth[2, 2], moved[4, 4] = 1, 1
    assert boundary_counts(truth, moved, 2, 2.8)[1].tolist() == [0, 1, 0, 1]
    assert boundary_counts(truth, moved, 2, math.sqrt(8))[1].tolist() == [1, 1, 1, 1]


def test_tolerance_is_robust_to_rounding_of_metres_to_pixels() -> None:
    truth, moved = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    truth[2, 2], moved[2, 5] = 1, 1
    tolerance = 0.3 / 0.1
    assert tolerance < 3
    assert boundary_counts(truth, moved, 2, tolerance)[1].tolist() == [1, 1, 1, 1]


def test_array_border_and_unknown_pixels_create_no_boundary() -> None:
    half = np.ones((6, 6), np.uint8)
    half[:, 3:] = 255
    assert not boundary_counts(half, np.ones((6, 6), np.uint8), 2, 1).any()
    full = np.zeros((6, 6), np.uint8)
    full[:, 4] = 1
    # What the map shows under unknown truth does not count either.
    assert not boundary_counts(half, np.where(half == 1, half, full), 2, 1).any()


@pytest.mark.parametrize(("tolerance", "margin"), [(0, 1), (1, 2), (1.5, 3)])
def test_margin_px(tolerance: float, margin: int) -> None:
    assert margin_px(tolerance) == margin
