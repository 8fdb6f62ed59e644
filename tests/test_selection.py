"""Which candidates are taken: the greedy choice by brute force, and what any batch must keep."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from tilth.selection import batch

SEEDS = st.integers(0, 10**6)


def drawn(seed: int, n: int = 12, d: int = 3) -> tuple[ndarray, ndarray, ndarray]:
    """Return features, weights and distances to what is labelled."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.uniform(0.1, 1, n), rng.uniform(0.5, 3, n)


def left(features: ndarray, weights: ndarray, distances: ndarray, chosen: list[int]) -> float:
    """Return the doubt times distance that is left when some candidates are labelled."""
    away = distances
    for i in chosen:
        away = np.minimum(away, np.linalg.norm(features - features[i], axis=1))
    return float(weights @ away)


@given(SEEDS)
def test_each_is_the_one_that_leaves_the_least_doubt(seed: int) -> None:
    features, weights, distances = drawn(seed)
    chosen: list[int] = []
    gains = []
    whole = left(features, weights, distances, [])
    for _ in range(6):
        rest = [i for i in range(12) if i not in chosen]
        before = left(features, weights, distances, chosen)
        best = min(rest, key=lambda i: left(features, weights, distances, [*chosen, i]))
        chosen.append(best)
        gains.append((before - left(features, weights, distances, chosen)) / whole)
    found = batch(features, weights, distances, 6)
    assert found.positions.tolist() == chosen
    assert found.gains == pytest.approx(gains, abs=1e-5)


@given(SEEDS, st.integers(0, 30))
def test_a_batch_holds_nobody_twice_and_its_gains_fall(seed: int, count: int) -> None:
    found = batch(*drawn(seed), count)
    assert len(set(found.positions.tolist())) == len(found.positions) == min(count, 12)
    assert (np.diff(found.gains) <= 1e-6).all()
    assert (found.gains >= 0).all()
    assert found.gains.sum() <= 1 + 1e-6


@given(SEEDS, st.integers(1, 11))
def test_the_first_of_many_are_the_few(seed: int, few: int) -> None:
    many, some = batch(*drawn(seed), 12), batch(*drawn(seed), few)
    assert many.positions[:few].tolist() == some.positions.tolist()
    assert many.gains[:few].tolist() == some.gains.tolist()


@given(SEEDS, st.booleans())
def test_the_order_of_the_candidates_has_no_say(seed: int, known: bool) -> None:
    features, weights, distances = drawn(seed, 40)
    order = np.random.default_rng(seed + 1).permutation(40)
    one = batch(features, weights, distances if known else None, 10)
    two = batch(features[order], weights[order], distances[order] if known else None, 10)
    assert order[two.positions].tolist() == one.positions.tolist()
    assert two.gains.tolist() == one.gains.tolist()


@given(SEEDS, st.booleans())
def test_where_all_look_alike_the_most_doubtful_come_first(seed: int, known: bool) -> None:
    _, weights, _ = drawn(seed)
    found = batch(np.ones((12, 3)), weights, np.full(12, 2.0) if known else None, 12)
    assert found.positions.tolist() == np.argsort(-weights).tolist()
    assert found.gains[1:].tolist() == [0.0] * 11


def test_every_kind_of_ground_is_taken_once_the_largest_first_before_any_is_taken_twice() -> None:
    rng = np.random.default_rng(0)
    centres, sizes = 100 * np.eye(4), [5, 20, 10, 40]
    kind = np.repeat(np.arange(4), sizes)
    features = centres[kind] + rng.normal(size=(75, 4))
    weights = rng.uniform(0.9, 1, 75)
    for distances in (None, np.full(75, 100.0)):
        found = batch(features, weights, distances, 8)
        assert kind[found.positions[:4]].tolist() == [3, 1, 2, 0]
        assert found.gains[:4].sum() > 0.95


def test_a_stray_stands_behind_a_kind_that_is_common() -> None:
    features = np.array([[0.0], [0.1], [0.2], [0.1], [0.0], [1000.0]])
    found = batch(features, np.array([0.5] * 5 + [1.0]), np.full(6, 10.0), 2)
    assert found.positions[1] == 5
    # By itself it is farther from everything and more doubtful than any other.
    assert features[found.positions[0]] <= 0.2


def test_what_is_labelled_already_counts_as_covered() -> None:
    features = np.repeat([[0.0], [10.0]], [30, 3], axis=0)
    weights = np.ones(33)
    known = np.where(features[:, 0] == 0, 0.1, 10.0)
    assert batch(features, weights, known, 1).positions[0] >= 30
    assert batch(features, weights, None, 1).positions[0] < 30


@given(SEEDS)
def test_the_greedy_batch_is_worth_two_thirds_of_the_best(seed: int) -> None:
    features, weights, distances = drawn(seed, 9, 2)
    whole = left(features, weights, distances, [])
    best = max(whole - left(features, weights, distances, list(some)) for some in combinations(range(9), 3))
    assert batch(features, weights, distances, 3).gains.sum() * whole >= (1 - 1 / np.e) * best


def test_nothing_to_choose_from_is_an_empty_batch() -> None:
    found = batch(np.zeros((0, 3)), np.zeros(0), None, 5)
    assert len(found.positions) == len(found.gains) == 0


def test_candidates_without_doubt_are_taken_all_the_same() -> None:
    features, _, distances = drawn(0)
    assert sorted(batch(features, np.zeros(12), distances, 12).positions.tolist()) == list(range(12))
