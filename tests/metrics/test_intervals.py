"""Intervals by resampling whole units: they cover what they promise where pixels err together, and pixels do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from scipy.stats import bootstrap, t

from geograft.metrics.intervals import caveat, drawn_units, intervals, paired_intervals, spread_tail
from tests.support.correlated import covered, iou, pixel_ends, simulated


def mean(sums: ndarray) -> ndarray:
    """Return the mean of a sum and a count."""
    shares: ndarray = sums[:, :1] / sums[:, 1:]
    return shares


def with_count(values: ndarray) -> ndarray:
    return np.column_stack([values, np.ones(len(values))])


def test_nominal_95_percent_cover_92_to_98_where_errors_are_correlated_and_pixels_cover_far_less() -> None:
    counts, truth = simulated(units=30, trials=1000, seed=1)
    by_unit = np.array([intervals(each, iou, draws=1000)[0] for each in counts])
    by_pixel = np.array([pixel_ends(each, 300, seed) for seed, each in enumerate(counts[:300])])
    assert 0.92 <= covered(by_unit, truth) <= 0.98
    assert covered(by_pixel, truth) < 0.8


def test_with_few_units_the_interval_is_too_narrow_and_that_is_said() -> None:
    counts, truth = simulated(units=4, trials=600, seed=2)
    assert covered(np.array([intervals(each, iou, draws=1000)[0] for each in counts]), truth) < 0.92
    assert "too narrow" in caveat(4)
    assert "no interval" in caveat(1)
    assert caveat(30) == ""


def test_the_interval_of_a_mean_is_nearly_students() -> None:
    values = np.random.default_rng(3).normal(5, 2, 12)
    low, high = intervals(with_count(values), mean)[0]
    reach = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.12 * reach)


def test_without_the_spread_it_is_the_percentile_interval_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.metrics.intervals.spread_tail", lambda units, level: 0.025)
    values = np.random.default_rng(4).gamma(2, 1, 40)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=5).confidence_interval
    assert intervals(with_count(values), mean)[0] == pytest.approx(theirs, abs=0.02)


@given(units=st.integers(2, 40), draws=st.integers(1, 50), seed=st.integers(0, 9))
def test_every_draw_holds_as_many_units_as_there_are(units: int, draws: int, seed: int) -> None:
    weights = np.concatenate(list(drawn_units(units, draws, seed)))
    assert weights.shape == (draws, units)
    assert (weights.sum(axis=1) == units).all()


def test_draws_in_parts_are_as_many_and_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    values = with_count(np.random.default_rng(6).normal(0, 1, 25))
    whole = intervals(values, mean)
    monkeypatch.setattr("geograft.metrics.intervals.NUMBERS_AT_ONCE", 25 * 700)
    parts = list(drawn_units(25, 10_000, 0))
    assert [len(part) for part in parts] == [700] * 14 + [200]
    assert not (parts[0] == parts[1]).all()
    np.testing.assert_allclose(intervals(values, mean), whole, atol=0.02)


def test_equal_arguments_give_equal_intervals_and_another_seed_nearly_so() -> None:
    values = with_count(np.random.default_rng(7).normal(0, 1, 25))
    assert (intervals(values, mean) == intervals(values, mean)).all()
    other = intervals(values, mean, seed=1)
    assert not (other == intervals(values, mean)).all()
    np.testing.assert_allclose(other, intervals(values, mean), atol=0.02)


def test_the_difference_of_two_maps_is_surer_than_either() -> None:
    rng = np.random.default_rng(8)
    hard = rng.normal(0, 1, 30)
    first, second = with_count(hard + 0.2 + rng.normal(0, 0.1, 30)), with_count(hard)
    low, high = paired_intervals(first, second, mean)[0]
    assert 0.1 < low < 0.2 < high < 0.3
    alone = intervals(first, mean)[0]
    assert high - low < (alone[1] - alone[0]) / 4
    np.testing.assert_allclose(paired_intervals(second, first, mean)[0], [-high, -low])


def test_what_does_not_exist_has_no_interval() -> None:
    rare = with_count(np.zeros(20))
    rare[0] = 1

    def over_hits(sums: ndarray) -> ndarray:
        share: ndarray = np.where(sums[:, :1] > 0, 1.0, np.nan)
        return share

    assert (intervals(rare, over_hits)[0] == [1, 1]).all()
    assert np.isnan(intervals(rare * 0, over_hits)).all()
    assert np.isnan(intervals(rare[:1], over_hits)).all()


def test_few_units_are_spread_and_many_are_not() -> None:
    tails = [spread_tail(units) for units in (2, 5, 10, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)
    # As Hesterberg (2015) gives it for n = 10.
    assert tails[2] == pytest.approx(0.0086, abs=1e-4)
