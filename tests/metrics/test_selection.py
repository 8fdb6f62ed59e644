"""Selection of candidates: the greedy choice by brute force, and invariants of every selection."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from scipy.spatial.distance import cdist

from geograft.metrics.selection import draw_balanced_sample, select_batch

SEEDS = st.integers(0, 10**6)
Patches = tuple[ndarray, ndarray, ndarray]
"""Features, weights and owners."""


def random_patches(seed: int, n: int = 12, d: int = 3) -> Patches:
    """Return patches of n candidates with one to three each."""
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n)))
    return rng.normal(size=(len(owners), d)) * 10 ** np.arange(d), rng.uniform(0.1, 1, len(owners)), owners


def whole(features: ndarray, weights: ndarray) -> Patches:
    """Return candidates with one patch each."""
    return features, weights, np.arange(len(features))


def covered(patches: Patches, chosen: list[int]) -> float:
    """Return the fraction of the total weight that the chosen candidates cover."""
    features, weights, owners = patches
    distances = cdist(features / features.std(axis=0), features / features.std(axis=0), "sqeuclidean")
    similarity = np.exp(-distances / distances.mean())
    nearest = similarity[:, np.isin(owners, chosen)].max(axis=1, initial=0)
    return float(weights @ nearest / weights.sum())


@given(SEEDS)
def test_each_choice_covers_the_most_additional_weight(seed: int) -> None:
    patches = random_patches(seed)
    chosen: list[int] = []
    gains = []
    for _ in range(6):
        rest = [i for i in range(12) if i not in chosen]
        best = max(rest, key=lambda i: covered(patches, [*chosen, i]))
        gains.append(covered(patches, [*chosen, best]) - covered(patches, chosen))
        chosen.append(best)
    found = select_batch(*patches, 6)
    assert found.positions.tolist() == chosen
    assert found.gains == pytest.approx(gains, abs=1e-5)


@given(SEEDS, st.integers(0, 30))
def test_positions_are_unique_and_gains_decrease(seed: int, count: int) -> None:
    found = select_batch(*random_patches(seed), count)
    assert len(set(found.positions.tolist())) == len(found.positions) == min(count, 12)
    assert (np.diff(found.gains) <= 1e-6).all()
    assert (found.gains >= 0).all()
    assert found.gains.sum() <= 1 + 1e-6
    if count >= 12:
        assert found.gains.sum() == pytest.approx(1)


@given(SEEDS, st.integers(1, 11))
def test_a_smaller_selection_is_a_prefix_of_a_larger_one(seed: int, few: int) -> None:
    many, some = select_batch(*random_patches(seed), 12), select_batch(*random_patches(seed), few)
    assert many.positions[:few].tolist() == some.positions.tolist()
    assert many.gains[:few].tolist() == some.gains.tolist()


@given(SEEDS)
def test_result_does_not_depend_on_the_order_of_candidates(seed: int) -> None:
    features, weights, owners = whole(*random_patches(seed, 40)[:2])
    order = np.random.default_rng(seed + 1).permutation(len(owners))
    one = select_batch(features, weights, owners, 10)
    two = select_batch(features[order], weights[order], owners, 10)
    assert order[two.positions].tolist() == one.positions.tolist()
    assert two.gains.tolist() == one.gains.tolist()


@given(SEEDS)
def test_equal_candidates_are_ordered_by_weight(seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.1, 1, 12)
    found = select_batch(*whole(np.ones((12, 3)), weights), 12)
    assert found.positions.tolist() == np.argsort(-weights).tolist()
    assert found.gains[1:].tolist() == [0.0] * 11
    assert found.gains[0] == pytest.approx(1)


def test_every_cluster_is_selected_once_before_any_is_selected_twice() -> None:
    rng = np.random.default_rng(0)
    centres, sizes = 100 * np.eye(4), [5, 20, 10, 40]
    kind = np.repeat(np.arange(4), sizes)
    features = centres[kind] + rng.normal(size=(75, 4))
    found = select_batch(*whole(features, rng.uniform(0.9, 1, 75)), 8)
    assert kind[found.positions[:4]].tolist() == [3, 1, 2, 0]
    assert found.gains[:4].sum() > 0.95


def test_an_outlier_is_selected_after_a_common_kind() -> None:
    features = np.array([[0.0], [0.1], [0.2], [0.1], [0.0], [1000.0]])
    found = select_batch(*whole(features, np.array([0.5] * 5 + [1.0])), 2)
    # The outlier is the most distant and the most uncertain candidate.
    assert features[found.positions[0]] <= 0.2
    assert found.positions[1] == 5


def test_a_candidate_of_two_kinds_is_selected_before_candidates_of_one() -> None:
    features = np.array([[0.0], [0.0], [9.0], [9.0], [0.0], [9.0]])
    found = select_batch(features, np.ones(6), np.array([0, 0, 1, 1, 2, 2]), 3)
    assert found.positions[0] == 2
    assert found.gains.tolist() == [1, 0, 0]


@given(SEEDS)
def test_greedy_selection_reaches_the_guaranteed_fraction_of_the_optimum(seed: int) -> None:
    patches = random_patches(seed, 9, 2)
    best = max(covered(patches, list(some)) for some in combinations(range(9), 3))
    assert select_batch(*patches, 3).gains.sum() >= (1 - 1 / np.e) * best


def test_no_candidates_give_an_empty_selection() -> None:
    found = select_batch(np.zeros((0, 3)), np.zeros(0), np.zeros(0, np.int64), 5)
    assert len(found.positions) == len(found.gains) == 0


def test_candidates_without_weight_are_selected_too() -> None:
    features, weights, owners = random_patches(0)
    assert sorted(select_batch(features, 0 * weights, owners, 12).positions.tolist()) == list(range(12))


@given(SEEDS, st.integers(1, 40), st.integers(0, 45))
def test_a_balanced_sample_has_the_size_asked_for_and_no_unit_twice(seed: int, units: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sample = draw_balanced_sample(
        [rng.normal(size=(units, 3)), rng.integers(0, 2, (units, 1)).astype(float)], count, rng
    )
    assert len(sample) == len(set(sample.tolist())) == min(units, count)
    assert set(sample.tolist()) <= set(range(units))


def test_every_unit_is_drawn_with_the_same_probability_also_as_the_first() -> None:
    """13 units, of which 8 are equal, 3,000 draws: frequencies within four and a half standard errors."""
    draws, units, count = 3000, 13, 5
    features = np.concatenate([np.zeros((8, 2)), np.random.default_rng(0).normal(size=(5, 2))])
    drawn, first = np.zeros(units), np.zeros(units)
    for seed in range(draws):
        sample = draw_balanced_sample([features], count, np.random.default_rng(seed))
        drawn[sample] += 1
        first[sample[0]] += 1
    for found, chance in ((drawn, count / units), (first, 1 / units)):
        assert abs(found - draws * chance).max() < 4.5 * np.sqrt(draws * chance * (1 - chance))


def test_the_mean_of_a_balanced_sample_is_unbiased_and_varies_less_than_that_of_a_random_one() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 4))
    score = features[:, 0] + 0.3 * rng.normal(size=60) ** 2
    balanced, random = (
        np.array([score[draw(np.random.default_rng(seed))].mean() for seed in range(800)])
        for draw in (
            lambda own: draw_balanced_sample([features[:, :1], features[:, 1:]], 5, own),
            lambda own: own.choice(60, 5, replace=False),
        )
    )
    assert abs(balanced.mean() - score.mean()) < 4 * balanced.std() / np.sqrt(len(balanced))
    assert balanced.std() < 0.9 * random.std()


@given(SEEDS)
def test_a_balanced_sample_does_not_depend_on_the_units_of_the_features(seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(20, 3))
    same = [
        draw_balanced_sample([each], 4, np.random.default_rng(seed)) for each in (features, features * [2, 64, 8] + 1)
    ]
    assert same[0].tolist() == same[1].tolist()


@given(SEEDS, st.integers(0, 4), st.integers(0, 12))
def test_a_batch_begins_with_the_given_candidates_and_counts_what_they_cover(seed: int, few: int, count: int) -> None:
    patches = random_patches(seed)
    mine = np.random.default_rng(seed).permutation(12)[:few].tolist()
    found = select_batch(*patches, count, mine)
    assert found.positions.tolist()[:few] == mine[:count]
    assert len(set(found.positions.tolist())) == count
    # The whole batch covers the same, in whatever order its candidates are counted.
    again = select_batch(*patches, count, found.positions.tolist()[::-1])
    assert again.gains.sum() == pytest.approx(found.gains.sum(), rel=1e-4)
