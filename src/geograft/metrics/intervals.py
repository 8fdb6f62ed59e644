"""Confidence intervals of scores by a block bootstrap over spatial units.

Errors of neighbouring pixels are correlated, so a map of a million pixels holds far fewer than a million independent
observations, and resampling pixels gives intervals that are far too narrow. Here whole units are resampled: scenes, or
blocks of a scene larger than the autocorrelation range. This is the bootstrap (Efron & Tibshirani 1993, chapter 13) on
blocks, as in Kuensch (1989, Ann. Stat. 17, 1217-1241) for time series and Lahiri (2003, Resampling Methods for
Dependent Data, chapter 12) for spatial data, with non-overlapping blocks.

The resampled quantities are counts that can be summed over units (such as a confusion matrix); the score is computed
from their sum. With few units, percentile intervals are too narrow; they are widened by the "expanded percentile
interval" of Hesterberg (2015, The American Statistician 69, 371-386), so that for a mean they match Student's t.
`python -m tests.support.correlated` prints its coverage next to that of plain percentiles, BCa and a pixel bootstrap.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.stats import norm, t

Statistic = Callable[[Float64[ndarray, "n c"]], Float64[ndarray, "n f"]]
"""Function from summed counts (draws, counts) to scores (draws, scores)."""

LEVEL = 0.95
DRAWS = 10_000
MIN_UNITS = 10
"""With fewer units the interval is too narrow: see `tests/support/correlated.py`."""
CHUNK_VALUES = 4_000_000
MAX_NAN_FRACTION = 0.5
"""Scores that are NaN in more than this fraction of the draws have no interval."""


def confidence_intervals(
    counts: ndarray, statistic: Statistic, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Float64[ndarray, "f 2"]:
    """Return the lower and upper bound of the confidence interval of each score that `statistic` computes.

    `counts` (u, c) are the counts of each unit. Each draw sums the counts of u units sampled with replacement. Bounds
    are NaN for scores that are NaN, overall or in more than half of the draws, and for a single unit, from which the
    variance cannot be estimated. The result is deterministic. 10,000 draws of 30 units and a confusion matrix of ten
    classes take a quarter of a second.
    """
    units = len(counts)
    scores = statistic(counts.sum(axis=0, dtype=np.float64)[None])[0]
    if units < 2:
        return np.full((len(scores), 2), np.nan)
    replicates = np.concatenate([statistic(sums) for sums in bootstrap_sums(counts, draws, seed)])
    tail = expanded_tail(units, level)
    bounds = _nanquantiles(replicates, (tail, 1 - tail))
    undefined = np.isnan(replicates).mean(axis=0) > MAX_NAN_FRACTION
    return np.where((undefined | np.isnan(scores))[:, None], np.nan, bounds)


def paired_confidence_intervals(
    first: ndarray, second: ndarray, statistic: Statistic, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Float64[ndarray, "f 2"]:
    """Return the confidence interval of the difference of each score between two maps, first minus second.

    Both count arrays are (u, c) with the same units in the same order. Each draw uses the same units for both, so the
    difficulty of a unit cancels out, and the interval is narrower than the two single intervals suggest.
    """
    width = first.shape[1]

    def difference(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
        return statistic(sums[:, :width]) - statistic(sums[:, width:])

    return confidence_intervals(np.hstack([first, second]), difference, draws, level, seed)


def certainty_of_gain(
    first: ndarray, second: ndarray, statistic: Statistic, draws: int = DRAWS, seed: int = 0
) -> Float64[ndarray, " f"]:
    """Return the fraction of bootstrap samples of the units in which each score is higher in the first of two maps.

    Both count arrays are (u, c), as in `paired_confidence_intervals`. A draw where a score is undefined is no gain. For
    few units, whose confidence interval always contains 0, and for a decision that must be made on them.
    """
    width, higher, total = first.shape[1], 0, 0
    for sums in bootstrap_sums(np.hstack([first, second]), draws, seed):
        gains = statistic(sums[:, :width]) > statistic(sums[:, width:])
        higher, total = higher + gains.sum(axis=0), total + len(gains)
    return np.asarray(higher / total, np.float64)


def bootstrap_sums(counts: ndarray, draws: int, seed: int) -> Iterator[Float64[ndarray, "n c"]]:
    """Yield the summed counts of `draws` bootstrap samples of the units, in chunks of draws."""
    exact = counts.astype(np.float64)
    for weights in bootstrap_weights(len(counts), draws, seed, counts.shape[1]):
        yield weights @ exact


def bootstrap_weights(units: int, draws: int, seed: int, width: int = 1) -> Iterator[Float64[ndarray, "n u"]]:
    """Yield how often each unit occurs in each draw, in chunks of draws. Rows sum to the number of units."""
    at_once = max(CHUNK_VALUES // max(units, width), 1)
    if draws <= at_once:
        yield _weights(units, draws, seed, 0)
        return
    for number, start in enumerate(range(0, draws, at_once)):
        yield _weights.__wrapped__(units, min(at_once, draws - start), seed, number)


def expanded_tail(units: int, level: float = LEVEL) -> float:
    """Return the tail probability of the expanded percentile interval: (1 - level) / 2 for many units, less for few.

    It is the normal tail beyond Student's t times sqrt(u / (u - 1)): t corrects for the estimated variance, the factor
    for the bootstrap's division by u (Hesterberg 2015).
    """
    half_width = np.sqrt(units / (units - 1)) * t.ppf((1 + level) / 2, units - 1)
    return float(norm.cdf(-half_width))


def few_units_warning(units: int) -> str:
    """Return a warning for an interval over few units; an empty string if there are enough.

    >>> few_units_warning(6)
    'With 6 units the confidence interval is too narrow: read it as a lower bound of the uncertainty.'
    """
    if units >= MIN_UNITS:
        return ""
    if units < 2:
        return "A single unit gives no confidence interval: 2 or more are needed to estimate the variance."
    return f"With {units} units the confidence interval is too narrow: read it as a lower bound of the uncertainty."


@lru_cache(maxsize=4)
def _weights(units: int, draws: int, seed: int, chunk: int) -> Float64[ndarray, "n u"]:
    rng = np.random.default_rng((seed, chunk))
    weights: Int64[ndarray, "n u"] = rng.multinomial(units, np.full(units, 1 / units), size=draws)
    return weights.astype(np.float64)


def _nanquantiles(values: Float64[ndarray, "n f"], probabilities: tuple[float, float]) -> Float64[ndarray, "f 2"]:
    """Return the quantiles of every column without its NaNs (NaN if all are), by linear interpolation."""
    ordered = np.sort(values, axis=0)
    count = (~np.isnan(ordered)).sum(axis=0)
    quantiles = []
    for probability in probabilities:
        rank = probability * np.maximum(count - 1, 0)
        below = np.floor(rank).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(count - 1, 0))
        low, high = (np.take_along_axis(ordered, rows[None], axis=0)[0] for rows in (below, above))
        quantiles.append(low + (rank - below) * (high - low))
    return np.stack(quantiles, axis=-1)
