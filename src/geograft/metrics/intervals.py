"""Confidence intervals of scores, by resampling whole pieces of ground.

Neighbouring pixels are right or wrong together, so a map of a million pixels holds far fewer than a million
observations, and an interval that resamples pixels is far too narrow. Here whole units are resampled: scenes, or
blocks of a scene larger than the reach of that likeness. This is the bootstrap (Efron & Tibshirani 1993, chapter 13)
on blocks, as Kuensch (1989, Ann. Stat. 17, 1217-1241) does it for series and Lahiri (2003, Resampling Methods for
Dependent Data, chapter 12) for maps, there with blocks that do not overlap.

What is resampled are counts that add up over units (a confusion matrix, say), and the score is taken of their sum.
With few units the percentiles of the draws lie too close together; they are spread as Hesterberg (2015, The American
Statistician 69, 371-386, "expanded percentile interval") proposes, so that for a mean they match Student's t.
`python -m tests.support.correlated` prints what that gains over plain percentiles, BCa and the bootstrap of pixels.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.stats import norm, t

Statistic = Callable[[Float64[ndarray, "n c"]], Float64[ndarray, "n f"]]
"""Takes sums of counts, a row a draw, to figures, a row a draw."""

LEVEL = 0.95
DRAWS = 10_000
ENOUGH_UNITS = 10
"""With fewer units the interval is too narrow: see `tests/support/correlated.py`."""
NUMBERS_AT_ONCE = 4_000_000
MOST_MISSING = 0.5
"""A figure that does not exist in more than this share of the draws has no interval."""


def intervals(
    counts: ndarray, statistic: Statistic, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Float64[ndarray, "f 2"]:
    """Return the lower and upper end of the confidence interval of each figure that `statistic` takes of the counts.

    `counts` is (u, c): the counts of each unit. In each draw u units are taken with replacement and their counts
    summed. NaN for a figure that does not exist, or not in half of the draws; and everywhere with a single unit, which
    says nothing of what other ground would give. Equal arguments give equal intervals, to the bit. 10,000 draws of 30
    units and a confusion matrix of ten classes take a quarter of a second.
    """
    units = len(counts)
    figures = statistic(counts.sum(axis=0, dtype=np.float64)[None])[0]
    if units < 2:
        return np.full((len(figures), 2), np.nan)
    drawn = np.concatenate([statistic(sums) for sums in resampled(counts, draws, seed)])
    tail = spread_tail(units, level)
    ends = _quantiles(drawn, (tail, 1 - tail))
    lost = np.isnan(drawn).mean(axis=0) > MOST_MISSING
    return np.where((lost | np.isnan(figures))[:, None], np.nan, ends)


def paired_intervals(
    first: ndarray, second: ndarray, statistic: Statistic, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Float64[ndarray, "f 2"]:
    """Return the interval of the difference of each figure between two maps of the same units, first less second.

    Both count arrays are (u, c) with the same units in the same order. Each draw takes the same units for both, so
    what makes a unit hard for both cancels out, and the interval is narrower than those of the two maps suggest.
    """
    width = first.shape[1]

    def difference(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
        return statistic(sums[:, :width]) - statistic(sums[:, width:])

    return intervals(np.hstack([first, second]), difference, draws, level, seed)


def resampled(counts: ndarray, draws: int, seed: int) -> Iterator[Float64[ndarray, "n c"]]:
    """Yield the summed counts of `draws` bootstrap samples of the units, a few thousand draws at a time."""
    exact = counts.astype(np.float64)
    for weights in drawn_units(len(counts), draws, seed, counts.shape[1]):
        yield weights @ exact


def drawn_units(units: int, draws: int, seed: int, width: int = 1) -> Iterator[Float64[ndarray, "n u"]]:
    """Yield how often every unit is in each draw, a few thousand draws at a time: rows sum to the number of units."""
    at_once = max(NUMBERS_AT_ONCE // max(units, width), 1)
    if draws <= at_once:
        yield _weights(units, draws, seed, 0)
        return
    for number, start in enumerate(range(0, draws, at_once)):
        yield _weights.__wrapped__(units, min(at_once, draws - start), seed, number)


def spread_tail(units: int, level: float = LEVEL) -> float:
    """Return the share of draws to cut off at each end: (1 - level) / 2 for many units, less for few.

    The tail of the normal distribution beyond Student's t times sqrt(u / (u - 1)): the first makes up for a spread
    that is estimated, the second for the bootstrap's dividing by u (Hesterberg 2015).
    """
    reach = np.sqrt(units / (units - 1)) * t.ppf((1 + level) / 2, units - 1)
    return float(norm.cdf(-reach))


def caveat(units: int) -> str:
    """Return in words what is wrong with an interval over so few units; nothing when there are enough.

    >>> caveat(6)
    'With 6 units the interval is too narrow: take it as the least that the figure may be off.'
    """
    if units >= ENOUGH_UNITS:
        return ""
    if units < 2:
        return "One unit gives no interval: nothing says how much other ground would differ."
    return f"With {units} units the interval is too narrow: take it as the least that the figure may be off."


@lru_cache(maxsize=4)
def _weights(units: int, draws: int, seed: int, part: int) -> Float64[ndarray, "n u"]:
    rng = np.random.default_rng((seed, part))
    weights: Int64[ndarray, "n u"] = rng.multinomial(units, np.full(units, 1 / units), size=draws)
    return weights.astype(np.float64)


def _quantiles(drawn: Float64[ndarray, "n f"], shares: tuple[float, float]) -> Float64[ndarray, "f 2"]:
    """Return the quantiles of every column without its NaNs (NaN where nothing else is), by linear interpolation."""
    ordered = np.sort(drawn, axis=0)
    there = (~np.isnan(ordered)).sum(axis=0)
    ends = []
    for share in shares:
        place = share * np.maximum(there - 1, 0)
        below = np.floor(place).astype(np.int64)
        above = np.minimum(below + 1, np.maximum(there - 1, 0))
        low, high = (np.take_along_axis(ordered, rows[None], axis=0)[0] for rows in (below, above))
        ends.append(low + (place - below) * (high - low))
    return np.stack(ends, axis=-1)
