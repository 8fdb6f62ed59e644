"""Confidence intervals by resampling units: nominal coverage under correlated errors, unlike resampling of pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray
from scipy.stats import bootstrap, t

from geograft.metrics.intervals import (
    bootstrap_weights,
    confidence_intervals,
    expanded_tail,
    few_units_warning,
    paired_confidence_intervals,
)
from tests.support.correlated import coverage, iou, pixel_interval, simulate_counts


def mean(sums: ndarray) -> ndarray:
    """Return means from columns of sums and counts."""
    means: ndarray = sums[:, :1] / sums[:, 1:]
    return means


def with_count(values: ndarray) -> ndarray:
    return np.column_stack([values, np.ones(len(values))])


def test_coverage_under_correlated_errors_is_nominal_and_far_lower_for_pixels() -> None:
    counts, truth = simulate_counts(units=30, trials=1000, seed=1)
    by_unit = np.array([confidence_intervals(each, iou, draws=1000)[0] for each in counts])
    by_pixel = np.array([pixel_interval(each, 300, seed) for seed, each in enumerate(counts[:300])])
    assert 0.92 <= coverage(by_unit, truth) <= 0.98
    assert coverage(by_pixel, truth) < 0.8


def test_few_units_give_too_narrow_intervals_and_a_warning() -> None:
    counts, truth = simulate_counts(units=4, trials=600, seed=2)
    assert coverage(np.array([confidence_intervals(each, iou, draws=1000)[0] for each in counts]), truth) < 0.92
    assert "too narrow" in few_units_warning(4)
    assert "no confidence interval" in few_units_warning(1)
    assert few_units_warning(30) == ""


def test_interval_of_a_mean_is_close_to_students_t() -> None:
    values = np.random.default_rng(3).normal(5, 2, 12)
    low, high = confidence_intervals(with_count(values), mean)[0]
    reach = t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.12 * reach)


def test_unexpanded_interval_matches_scipy_percentile_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.metrics.intervals.expanded_tail", lambda units, level: 0.025)
    values = np.random.default_rng(4).gamma(2, 1, 40)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=5).confidence_interval
    assert confidence_intervals(with_count(values), mean)[0] == pytest.approx(theirs, abs=0.02)


@given(units=st.integers(2, 40), draws=st.integers(1, 50), seed=st.integers(0, 9))
def test_bootstrap_weights_sum_to_the_number_of_units(units: int, draws: int, seed: int) -> None:
    weights = np.concatenate(list(bootstrap_weights(units, draws, seed)))
    assert weights.shape == (draws, units)
    assert (weights.sum(axis=1) == units).all()


def test_chunked_draws_give_equivalent_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    values = with_count(np.random.default_rng(6).normal(0, 1, 25))
    whole = confidence_intervals(values, mean)
    monkeypatch.setattr("geograft.metrics.intervals.CHUNK_VALUES", 25 * 700)
    parts = list(bootstrap_weights(25, 10_000, 0))
    assert [len(part) for part in parts] == [700] * 14 + [200]
    assert not (parts[0] == parts[1]).all()
    np.testing.assert_allclose(confidence_intervals(values, mean), whole, atol=0.02)


def test_intervals_are_deterministic_and_stable_over_seeds() -> None:
    values = with_count(np.random.default_rng(7).normal(0, 1, 25))
    assert (confidence_intervals(values, mean) == confidence_intervals(values, mean)).all()
    other = confidence_intervals(values, mean, seed=1)
    assert not (other == confidence_intervals(values, mean)).all()
    np.testing.assert_allclose(other, confidence_intervals(values, mean), atol=0.02)


def test_paired_interval_is_narrower_than_single_ones() -> None:
    rng = np.random.default_rng(8)
    hard = rng.normal(0, 1, 30)
    first, second = with_count(hard + 0.2 + rng.normal(0, 0.1, 30)), with_count(hard)
    low, high = paired_confidence_intervals(first, second, mean)[0]
    assert 0.1 < low < 0.2 < high < 0.3
    alone = confidence_intervals(first, mean)[0]
    assert high - low < (alone[1] - alone[0]) / 4
    np.testing.assert_allclose(paired_confidence_intervals(second, first, mean)[0], [-high, -low])


def test_undefined_scores_have_no_interval() -> None:
    rare = with_count(np.zeros(20))
    rare[0] = 1

    def over_hits(sums: ndarray) -> ndarray:
        share: ndarray = np.where(sums[:, :1] > 0, 1.0, np.nan)
        return share

    assert (confidence_intervals(rare, over_hits)[0] == [1, 1]).all()
    assert np.isnan(confidence_intervals(rare * 0, over_hits)).all()
    assert np.isnan(confidence_intervals(rare[:1], over_hits)).all()


def test_expanded_tail_approaches_the_nominal_tail_with_many_units() -> None:
    tails = [expanded_tail(units) for units in (2, 5, 10, 30, 10_000)]
    assert tails == sorted(tails)
    assert tails[-1] == pytest.approx(0.025, abs=1e-4)
    # Value of Hesterberg (2015) for n = 10.
    assert tails[2] == pytest.approx(0.0086, abs=1e-4)
