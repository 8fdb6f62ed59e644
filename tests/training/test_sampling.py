"""Class-balanced sampling and the donors of copy-paste."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.training.sampling import choose_donor, class_balanced_weights, weighted_order


def fractions_of(seed: int, tiles: int = 12, k: int = 3) -> ndarray:
    """Return fractions of a common class, a rarer one, and one that few tiles contain."""
    rng = np.random.default_rng(seed)
    fractions = rng.dirichlet([8, 1, 0.2][:k] + [1] * (k - 3), tiles)
    fractions[fractions < 0.05] = 0
    return fractions


@given(seed=st.integers(0, 1000))
def test_classes_are_equally_likely(seed: int) -> None:
    fractions = fractions_of(seed)
    present = fractions.sum(axis=0) > 0
    # Given the class, tiles are chosen in proportion to their pixels of it; classes have equal weights.
    by_class = np.array([fractions[:, c] / fractions[:, c].sum() for c in np.flatnonzero(present)])
    weights = class_balanced_weights(fractions)
    np.testing.assert_allclose(weights, by_class.mean(axis=0))
    np.testing.assert_allclose(weights.sum(), 1)


def test_unlabelled_tiles_have_the_average_weight() -> None:
    weights = class_balanced_weights(np.array([[0.5, 0.5], [0.9, 0.1], [0.0, 0.0]]))
    np.testing.assert_allclose(weights[2], weights.mean() * 0.75)
    np.testing.assert_allclose(class_balanced_weights(np.zeros((4, 2))), 0.25)


@given(seed=st.integers(0, 1000), tiles=st.integers(1, 40))
def test_an_epoch_contains_each_tile_as_often_as_its_weight(seed: int, tiles: int) -> None:
    weights = class_balanced_weights(fractions_of(seed, tiles))
    order = weighted_order(weights, np.random.default_rng(seed))
    counts = np.bincount(order, minlength=tiles)
    assert len(order) == tiles
    assert (np.abs(counts - tiles * weights) < 1 + 1e-9).all()


def test_the_order_is_random() -> None:
    weights = class_balanced_weights(fractions_of(0, 30))
    orders = {tuple(weighted_order(weights, np.random.default_rng(seed))) for seed in range(20)}
    assert len(orders) == 20
    assert all(list(order) != sorted(order) for order in orders)


def test_donors_contain_the_class_and_rare_classes_are_chosen_more_often() -> None:
    fractions = fractions_of(3, 40)
    fractions = np.insert(fractions, 1, 0, axis=1)
    rng = np.random.default_rng(0)
    chosen = [choose_donor(fractions, rng) for _ in range(3000)]
    assert all(fractions[tile, index] > 0 for tile, index in chosen)
    total = fractions.sum(axis=0)
    present = total > 0
    expected = np.where(present, 1 / np.where(present, total, 1), 0)
    np.testing.assert_allclose(
        np.bincount([index for _, index in chosen], minlength=4) / 3000, expected / expected.sum(), atol=0.03
    )
