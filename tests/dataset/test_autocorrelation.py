"""The variogram estimator against a loop over all pairs, and the ranges of simulated fields."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy import ndarray

from geograft.dataset.autocorrelation import LagSums, fit_variogram, lag_edges, pool_variogram, window_lag_sums

EDGES = lag_edges(8)


def all_pairs(fields: list[ndarray], known: ndarray, edges: ndarray, step: int = 1) -> LagSums:
    """Count every pair by itself."""
    spots = np.argwhere(known)
    sums = np.zeros((3, len(edges) - 1))
    for i, one in enumerate(spots):
        for other in spots[:i]:
            apart = np.abs(one - other)
            distance = float(np.hypot(*apart)) * step
            place = np.searchsorted(edges, distance, side="right") - 1
            reach = [side // 2 for side in known.shape]
            if (apart <= reach).all() and distance <= min(reach) * step and 0 <= place < len(edges) - 1:
                half = sum(0.5 * (field[tuple(one)] - field[tuple(other)]) ** 2 for field in fields)
                sums[:, place] += (1, half, distance)
    return LagSums(edges, *sums)


def exponential(distance: ndarray, reach: float) -> ndarray:
    return np.exp(-3 * distance / reach)


def spherical(distance: ndarray, reach: float) -> ndarray:
    share = np.minimum(distance / reach, 1)
    return 1 - 1.5 * share + 0.5 * share**3


def gaussian(distance: ndarray, reach: float) -> ndarray:
    return np.exp(-3 * (distance / reach) ** 2)


def random_field(side: int, reach: float, seed: int, covariance: Callable[[ndarray, float], ndarray]) -> ndarray:
    """A Gaussian field with that covariance on a torus, of which a quarter is used (circulant embedding)."""
    rng, whole = np.random.default_rng(seed), 2 * side
    apart = np.minimum(np.arange(whole), whole - np.arange(whole))
    spectrum = np.fft.fft2(covariance(np.hypot(apart[:, None], apart[None]), reach)).real.clip(min=0)
    noise = rng.normal(size=(whole, whole)) + 1j * rng.normal(size=(whole, whole))
    return (np.fft.ifft2(np.sqrt(spectrum) * noise).real * whole)[:side, :side]


@pytest.mark.parametrize("step", [1, 4])
def test_fft_sums_equal_those_over_all_pairs(step: int) -> None:
    rng = np.random.default_rng(0)
    fields, known = [rng.normal(1000, 3, (13, 11)), rng.normal(size=(13, 11))], rng.random((13, 11)) > 0.3
    edges = lag_edges(8 * step)
    found, plain = window_lag_sums(fields, known, edges, step), all_pairs(fields, known, edges, step)
    np.testing.assert_allclose(found.pairs, plain.pairs)
    np.testing.assert_allclose(found.half_squares, plain.half_squares, atol=1e-8)
    np.testing.assert_allclose(found.distances, plain.distances, atol=1e-8)


def test_the_variogram_of_class_indicators_is_the_probability_of_different_classes() -> None:
    labels = np.random.default_rng(1).integers(0, 3, (40, 40))
    found = window_lag_sums([(labels == k).astype(float) for k in range(3)], np.ones((40, 40), bool), EDGES)
    neighbours = np.concatenate([(labels[1:] != labels[:-1]).ravel(), (labels[:, 1:] != labels[:, :-1]).ravel()])
    assert found.half_squares[0] / found.pairs[0] == pytest.approx(neighbours.mean())


def test_lag_sums_of_windows_add_up_and_an_empty_window_adds_nothing() -> None:
    rng = np.random.default_rng(2)
    known = np.ones((30, 30), bool)
    one, two = (window_lag_sums([rng.normal(size=(30, 30))], known, EDGES) for _ in range(2))
    empty = window_lag_sums([np.zeros((30, 30))], ~known, EDGES)
    both = pool_variogram([one, empty, two])
    there = (one + two).pairs > 0
    np.testing.assert_allclose(both.gamma, (one + two).half_squares[there] / (one + two).pairs[there], atol=1e-9)


@pytest.mark.parametrize("covariance", [exponential, spherical, gaussian])
@pytest.mark.parametrize("reach", [12.0, 50.0])
def test_the_range_of_a_simulated_field_is_found(covariance: Callable[[ndarray, float], ndarray], reach: float) -> None:
    known, edges = np.ones((256, 256), bool), lag_edges(128)
    windows = [window_lag_sums([random_field(256, reach, seed, covariance)], known, edges) for seed in range(6)]
    found = pool_variogram(windows)
    assert found.model == covariance.__name__
    assert found.resolved
    assert found.range == pytest.approx(reach, rel=0.2)
    assert found.sill == pytest.approx(1, rel=0.15)


def test_noise_is_the_nugget_and_subsampling_does_not_change_the_range() -> None:
    rng, edges = np.random.default_rng(3), lag_edges(128)
    fields = [random_field(256, 60, seed, exponential) + rng.normal(size=(256, 256)) for seed in range(6)]
    thin = [window_lag_sums([field[::2, ::2]], np.ones((128, 128), bool), edges, 2) for field in fields]
    fine = [window_lag_sums([field[:96, :96]], np.ones((96, 96), bool), edges) for field in fields]
    found = pool_variogram([*thin, *fine])
    assert found.range == pytest.approx(60, rel=0.25)
    assert found.nugget == pytest.approx(1, rel=0.15)
    assert found.sill == pytest.approx(2, rel=0.15)


def test_a_trend_across_the_window_has_no_range_within_it() -> None:
    slope = np.linspace(0, 1, 200)[None] * np.ones((200, 1))
    found = pool_variogram([window_lag_sums([slope], np.ones((200, 200), bool), lag_edges(100))])
    assert found.model is not None
    assert not found.resolved


def test_constant_or_small_fields_have_no_model() -> None:
    flat = pool_variogram([window_lag_sums([np.full((64, 64), 7.0)], np.ones((64, 64), bool), EDGES)])
    assert flat.model is None
    assert not flat.resolved
    assert fit_variogram(np.arange(1.0, 4), np.arange(1.0, 4), np.full(3, 500.0)).model is None


def test_an_exact_model_is_fitted_exactly_and_scales_with_its_unit() -> None:
    lag = np.geomspace(1, 200, 30)
    gamma = 0.2 + 0.7 * (1 - spherical(lag, 80))
    found = fit_variogram(lag, gamma, np.full(30, 1e4))
    assert (found.model, found.range, found.nugget) == ("spherical", pytest.approx(80), pytest.approx(0.2))
    assert found.sill == pytest.approx(0.9)
    np.testing.assert_allclose(found.evaluate(lag), gamma, atol=1e-6)
    metres = found.rescale(0.5)
    assert metres.range == pytest.approx(40)
    np.testing.assert_allclose(metres.evaluate(lag * 0.5), gamma, atol=1e-6)
