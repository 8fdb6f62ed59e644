"""What a stratified sample of reference points says of a map: accuracies and areas, with their standard errors.

All equations are those of Olofsson et al. (2014), "Good practices for estimating area and assessing accuracy of land
change", Remote Sensing of Environment 148, 42-57 (doi:10.1016/j.rse.2014.02.015). Strata are the map's classes.

Pixels need not be of one size: every point carries the area of its pixel, and shares of a stratum are ratios of areas
(the separate ratio estimator; Cochran 1977, "Sampling techniques", section 6.10). Where all pixels are of one size,
these are the shares of points and the equations of the paper.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer
from numpy import ndarray

Z95 = 1.96
"""Standard errors to either side that a 95 % interval reaches, as in the paper."""
LEAST_POINTS = 2
"""In a stratum, for there to be a standard error."""

Shares = Float64[ndarray, "k k"]


@dataclass(frozen=True)
class Tally:
    """The sample's error matrix: map classes in rows, reference classes in columns."""

    points: Int64[ndarray, "k k"]
    """Number of points."""
    areas: Float64[ndarray, "k k"]
    """Sum of the areas of their pixels, in any unit."""
    squares: Float64[ndarray, "k k"]
    """Sum of the squares of those areas."""

    @classmethod
    def of(
        cls,
        mapped: Integer[ndarray, " n"],
        reference: Integer[ndarray, " n"],
        areas: Float64[ndarray, " n"],
        k: int,
    ) -> "Tally":
        """Return the error matrix of points with the indices of their classes and the areas of their pixels."""
        cell = mapped.astype(np.intp) * k + reference
        points, area, square = (np.bincount(cell, w, k * k).reshape(k, k) for w in (None, areas, areas**2))
        return cls(points.astype(np.int64), area.astype(np.float64), square.astype(np.float64))

    @classmethod
    def of_equal(cls, points: Int64[ndarray, "k k"]) -> "Tally":
        """Return the error matrix of pixels that are all of one size."""
        return cls(points, points.astype(np.float64), points.astype(np.float64))


@dataclass(frozen=True)
class Figures:
    """Estimates with their standard errors; NaN where the sample says nothing of them."""

    value: Float64[ndarray, " k"]
    error: Float64[ndarray, " k"]

    @property
    def margin(self) -> Float64[ndarray, " k"]:
        """What a 95 % interval reaches to either side."""
        return Z95 * self.error


@dataclass(frozen=True)
class Estimates:
    """Accuracies (0 to 1) and areas (in the unit of the mapped areas), by class."""

    overall: Figures
    """The share of the area that is mapped right; of length 1."""
    users: Figures
    """The share of a class's mapped area that is that class on the ground; NaN for a class that is not mapped."""
    producers: Figures
    """The share of a class's area on the ground that is mapped as it; NaN for a class that no point has."""
    area: Figures
    """Area on the ground. For a class that no point has: 0, and the error is NaN."""
    shares: Shares
    """The error matrix of estimated shares of the whole area (eq. 4)."""


def estimates(tally: Tally, mapped: Float64[ndarray, " k"], complete: Bool[ndarray, " k"] | None = None) -> Estimates:
    """Return accuracies and areas from a sample's error matrix and the mapped area of each class.

    `complete` marks the strata every pixel of which is in the sample: they bring no error.

    Raises:
        ValueError: when a class that is mapped has fewer than two points and is not complete; see `short`.
    """
    if short(tally, mapped, complete).any():
        raise ValueError("every mapped class needs at least two points")
    weights = mapped / mapped.sum()
    within, variance = _within(tally, np.zeros(len(mapped), bool) if complete is None else complete)
    shares = weights[:, None] * within  # eq. 4
    spread = weights[:, None] ** 2 * variance
    right, ground = shares.diagonal(), shares.sum(axis=0)  # eq. 9
    seen = tally.points.sum(axis=0) > 0
    overall = Figures(right.sum(keepdims=True), np.sqrt(spread.diagonal().sum(keepdims=True)))  # eqs. 1 and 5
    users = Figures(*(np.where(mapped > 0, x, np.nan) for x in (within.diagonal(), np.sqrt(variance.diagonal()))))
    area = Figures(ground * mapped.sum(), np.where(seen, np.sqrt(spread.sum(axis=0)) * mapped.sum(), np.nan))
    return Estimates(overall, users, _producers(right, ground, spread, seen), area, shares)


def short(
    tally: Tally, mapped: Float64[ndarray, " k"], complete: Bool[ndarray, " k"] | None = None
) -> Bool[ndarray, " k"]:
    """Return which mapped classes have too few points for an estimate with a standard error."""
    points = tally.points.sum(axis=1)
    enough = points >= LEAST_POINTS
    if complete is not None:
        enough |= complete & (points > 0)
    lacking: Bool[ndarray, " k"] = (mapped > 0) & ~enough
    return lacking


def sample_size(
    weights: Float64[ndarray, " k"], accuracy: Float64[ndarray, " k"], standard_error: float, pixels: int
) -> int:
    """Return how many points give overall accuracy that standard error, by eq. 13 (Cochran 1977, eq. 5.25).

    `weights` are the strata's shares of the area, `accuracy` the user's accuracies that are expected of them.
    """
    deviation = np.sqrt(accuracy * (1 - accuracy))
    needed = (weights @ deviation) ** 2 / (standard_error**2 + (weights @ deviation**2) / pixels)
    return int(np.ceil(needed))


def allocation(
    weights: Float64[ndarray, " k"], pixels: Int64[ndarray, " k"], points: int, least: int
) -> Int64[ndarray, " k"]:
    """Return the number of points by stratum: in proportion to `weights`, but at least `least` (section 5.1.1).

    Rare strata get `least` and the others share what remains. No stratum gets more points than it has pixels. The sum
    is `points`, or more where the least of all strata asks for it, or fewer where there are not so many pixels.
    """
    floor = np.minimum(least, pixels)
    sizes = floor.astype(np.float64)
    free = pixels > 0
    while free.any():
        # Whoever's share of the rest is below its floor or above its pixels is settled there; then the rest is shared.
        share = max(points - sizes[~free].sum(), 0) * weights / weights[free].sum()
        low, high = free & (share < floor), free & (share > pixels)
        bound = low if low.any() else high
        if not bound.any():
            sizes[free] = share[free]
            break
        sizes[bound] = floor[bound] if low.any() else pixels[bound]
        free &= ~bound
    return _whole(sizes)


def _within(tally: Tally, complete: Bool[ndarray, " k"]) -> tuple[Shares, Shares]:
    """Return each class's share of each stratum and its variance: eq. 6 with the share of any class for U."""
    points, areas = tally.points.sum(axis=1, keepdims=True), tally.areas.sum(axis=1, keepdims=True)
    share = tally.areas / np.where(areas > 0, areas, 1)
    others = tally.squares.sum(axis=1, keepdims=True) - tally.squares
    # With pixels of one size: n p (1 - p)^2 + n (1 - p) p^2 = n p (1 - p).
    residual = tally.squares * (1 - share) ** 2 + others * share**2
    scale = points / np.maximum(points - 1, 1) / np.where(areas > 0, areas, 1) ** 2
    return share, np.where(complete[:, None], 0, residual * scale)


def _producers(
    right: Float64[ndarray, " k"], ground: Float64[ndarray, " k"], spread: Shares, seen: Bool[ndarray, " k"]
) -> Figures:
    """Return producer's accuracies and their standard errors (eqs. 3 and 7)."""
    whole = np.where(seen, ground, np.nan)
    value = right / whole
    own = spread.diagonal()
    variance = ((1 - value) ** 2 * own + value**2 * (spread.sum(axis=0) - own)) / whole**2
    return Figures(value, np.sqrt(variance))


def _whole(sizes: Float64[ndarray, " k"]) -> Int64[ndarray, " k"]:
    """Return whole numbers with the rounded sum, by largest remainders."""
    whole = np.floor(sizes + 1e-9).astype(np.int64)
    missing = round(float(sizes.sum())) - int(whole.sum())
    whole[np.argsort(whole - sizes, kind="stable")[:missing]] += 1
    return whole
