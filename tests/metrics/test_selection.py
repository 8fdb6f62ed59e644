"""Which candidates are taken: the greedy choice by brute force, and what any batch must keep."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from scipy.spatial.distance import cdist

from geograft.metrics.selection import batch

SEEDS = st.integers(0, 10**6)
Pieces = tuple[ndarray, ndarray, ndarray]
"""Features, weights and owners."""


def drawn(seed: int, n: int = 12, d: int = 3) -> Pieces:
    """Return pieces of n candidates that have one to three each."""
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n)))
    return rng.normal(size=(len(owners), d)) * 10 ** np.arange(d), rng.uniform(0.1, 1, len(owners)), owners


def whole(features: ndarray, weights: ndarray) -> Pieces:
    """Return candidates of one piece each."""
    return features, weights, np.arange(len(features))


def covered(pieces: Pieces, chosen: list[int]) -> float:
    """Return the share of the doubt that is covered when some candidates are labelled."""
    features, weights, owners = pieces
    distances = cdist(features / features.std(axis=0), features / features.std(axis=0), "sqeuclidean")
    likeness = np.exp(-distances / distances.mean())
    nearest = likeness[:, np.isin(owners, chosen)].max(axis=1, initial=0)
    return float(weights @ nearest / weights.sum())


@given(SEEDS)
def test_each_is_the_one_that_covers_the_most_doubt(seed: int) -> None:
    pieces = drawn(seed)
    chosen: list[int] = []
    gains = []
    for _ in range(6):
        rest = [i for i in range(12) if i not in chosen]
        best = max(rest, key=lambda i: covered(pieces, [*chosen, i]))
        gains.append(covered(pieces, [*chosen, best]) - covered(pieces, chosen))
        chosen.append(best)
    found = batch(*pieces, 6)
    assert found.positions.tolist() == chosen
    assert found.gains == pytest.approx(gains, abs=1e-5)


@given(SEEDS, st.integers(0, 30))
def test_a_batch_holds_nobody_twice_and_its_gains_fall(seed: int, count: int) -> None:
    found = batch(*drawn(seed), count)
    assert len(set(found.positions.tolist())) == len(found.positions) == min(count, 12)
    assert (np.diff(found.gains) <= 1e-6).all()
    assert (found.gains >= 0).all()
    assert found.gains.sum() <= 1 + 1e-6
    if count >= 12:
        assert found.gains.sum() == pytest.approx(1)


@given(SEEDS, st.integers(1, 11))
def test_the_first_of_many_are_the_few(seed: int, few: int) -> None:
    many, some = batch(*drawn(seed), 12), batch(*drawn(seed), few)
    assert many.positions[:few].tolist() == some.positions.tolist()
    assert many.gains[:few].tolist() == some.gains.tolist()


@given(SEEDS)
def test_the_order_of_the_candidates_has_no_say(seed: int) -> None:
    features, weights, owners = whole(*drawn(seed, 40)[:2])
    order = np.random.default_rng(seed + 1).permutation(len(owners))
    one = batch(features, weights, owners, 10)
    two = batch(features[order], weights[order], owners, 10)
    assert order[two.positions].tolist() == one.positions.tolist()
    assert two.gains.tolist() == one.gains.tolist()


@given(SEEDS)
def test_where_all_look_alike_the_most_doubtful_come_first(seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 1, 12)
    found = batch(*whole(np.ones((12, 3)), weights), 12)
    assert found.positions.tolist() == np.argsort(-weights).tolist()
    assert found.gains[1:].tolist() == [0.0] * 11
    assert found.gains[0] == pytest.approx(1)


def test_every_kind_of_ground_is_taken_once_the_largest_first_before_any_is_taken_twice() -> None:
    rng = np.random.default_rng(0)
    centres, sizes = 100 * np.eye(4), [5, 20, 10, 40]
    kind = np.repeat(np.arange(4), sizes)
    features = centres[kind] + rng.normal(size=(75, 4))
    found = batch(*whole(features, rng.uniform(0.9, 1, 75)), 8)
    assert kind[found.positions[:4]].tolist() == [3, 1, 2, 0]
    assert found.gains[:4].sum() > 0.95


def test_a_stray_stands_behind_a_kind_that_is_common() -> None:
    features = np.array([[0.0], [0.1], [0.2], [0.1], [0.0], [1000.0]])
    found = batch(*whole(features, np.array([0.5] * 5 + [1.0])), 2)
    # By itself it is farther from everything and more doubtful than any other.
    assert features[found.positions[0]] <= 0.2
    assert found.positions[1] == 5


def test_a_tile_of_two_kinds_is_worth_more_than_one_of_either() -> None:
    features = np.array([[0.0], [0.0], [9.0], [9.0], [0.0], [9.0]])
    found = batch(features, np.ones(6), np.array([0, 0, 1, 1, 2, 2]), 3)
    assert found.positions[0] == 2
    assert found.gains.tolist() == [1, 0, 0]


@given(SEEDS)
def test_the_greedy_batch_is_worth_two_thirds_of_the_best(seed: int) -> None:
    pieces = drawn(seed, 9, 2)
    best = max(covered(pieces, list(some)) for some in combinations(range(9), 3))
    assert batch(*pieces, 3).gains.sum() >= (1 - 1 / np.e) * best


def test_nothing_to_choose_from_is_an_empty_batch() -> None:
    found = batch(np.zeros((0, 3)), np.zeros(0), np.zeros(0, np.int64), 5)
    assert len(found.positions) == len(found.gains) == 0


def test_candidates_without_doubt_are_taken_all_the_same() -> None:
    features, weights, owners = drawn(0)
    assert sorted(batch(features, 0 * weights, owners, 12).positions.tolist()) == list(range(12))
