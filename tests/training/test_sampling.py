"""Which tiles an epoch holds, and which give pixels of a rare class to others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.training.sampling import choose_donor, class_balanced_weights, weighted_order


def shares_of(seed: int, tiles: int = 12, k: int = 3) -> ndarray:
    """Return shares of a common class, a rarer one, and one that a few tiles hold."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([8, 1, 0.2][:k] + [1] * (k - 3), tiles)
    shares[shares < 0.05] = 0
    return shares


@given(seed=st.integers(0, 1000))
def test_each_class_is_sought_alike(seed: int) -> None:
    shares = shares_of(seed)
    there = shares.sum(axis=0) > 0
    # Of the draws that seek a class, each tile has its part by its pixels: summed up, an equal part for each class.
    by_class = np.array([shares[:, c] / shares[:, c].sum() for c in np.flatnonzero(there)])
    rates = class_balanced_weights(shares)
    np.testing.assert_allclose(rates, by_class.mean(axis=0))
    np.testing.assert_allclose(rates.sum(), 1)


def test_a_tile_of_which_nothing_is_known_is_not_forgotten() -> None:
    rates = class_balanced_weights(np.array([[0.5, 0.5], [0.9, 0.1], [0.0, 0.0]]))
    np.testing.assert_allclose(rates[2], rates.mean() * 0.75)
    np.testing.assert_allclose(class_balanced_weights(np.zeros((4, 2))), 0.25)


@given(seed=st.integers(0, 1000), tiles=st.integers(1, 40))
def test_an_epoch_holds_each_tile_as_often_as_its_rate_says(seed: int, tiles: int) -> None:
    rates = class_balanced_weights(shares_of(seed, tiles))
    order = weighted_order(rates, np.random.default_rng(seed))
    counts = np.bincount(order, minlength=tiles)
    assert len(order) == tiles
    assert (np.abs(counts - tiles * rates) < 1 + 1e-9).all()


def test_the_order_is_random() -> None:
    rates = class_balanced_weights(shares_of(0, 30))
    orders = {tuple(weighted_order(rates, np.random.default_rng(seed))) for seed in range(20)}
    assert len(orders) == 20
    assert all(list(order) != sorted(order) for order in orders)


def test_donors_hold_the_class_and_rare_classes_give_more() -> None:
    shares = shares_of(3, 40)
    shares = np.insert(shares, 1, 0, axis=1)
    rng = np.random.default_rng(0)
    drawn = [choose_donor(shares, rng) for _ in range(3000)]
    assert all(shares[tile, index] > 0 for tile, index in drawn)
    total = shares.sum(axis=0)
    there = total > 0
    wanted = np.where(there, 1 / np.where(there, total, 1), 0)
    np.testing.assert_allclose(
        np.bincount([index for _, index in drawn], minlength=4) / 3000, wanted / wanted.sum(), atol=0.03
    )
