"""Accuracies and areas estimated from a stratified sample of reference points, with standard errors.

All equations are those of Olofsson et al. (2014), "Good practices for estimating area and assessing accuracy of land
change", Remote Sensing of Environment 148, 42-57 (doi:10.1016/j.rse.2014.02.015). Strata are the map's classes.

Pixels may differ in size: every point carries the area of its pixel, and proportions of a stratum are ratios of areas
(the separate ratio estimator; Cochran 1977, "Sampling techniques", section 6.10). For pixels of equal size this reduces
to the proportions of points and the equations of the paper.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer
from numpy import ndarray

from geograft.metrics.intervals import confidence_intervals

Z95 = 1.96
"""Half-width of a 95 % confidence interval in standard errors, as in the paper."""
MIN_POINTS = 2
"""Minimum number of points of a stratum for a standard error."""

Proportions = Float64[ndarray, "k k"]


@dataclass(frozen=True)
class ErrorMatrix:
    """The sample's error matrix: map classes in rows, reference classes in columns."""

    points: Int64[ndarray, "k k"]
    """Number of points."""
    areas: Float64[ndarray, "k k"]
    """Sum of the areas of their pixels, in any unit."""
    squared_areas: Float64[ndarray, "k k"]
    """Sum of the squared areas of their pixels."""

    @classmethod
    def from_points(
        cls,
        mapped: Integer[ndarray, " n"],
        reference: Integer[ndarray, " n"],
        areas: Float64[ndarray, " n"],
        k: int,
    ) -> "ErrorMatrix":
        """Return the error matrix of points from their class indices and the areas of their pixels."""
        cell = mapped.astype(np.intp) * k + reference
        points, area, squared_area = (np.bincount(cell, w, k * k).reshape(k, k) for w in (None, areas, areas**2))
        return cls(points.astype(np.int64), area.astype(np.float64), squared_area.astype(np.float64))


@dataclass(frozen=True)
class Estimate:
    """Estimates with standard errors; NaN where the sample does not determine them."""

    value: Float64[ndarray, " k"]
    standard_error: Float64[ndarray, " k"]

    @property
    def margin(self) -> Float64[ndarray, " k"]:
        """Half-width of the 95 % confidence interval."""
        return Z95 * self.standard_error


@dataclass(frozen=True)
class AccuracyEstimates:
    """Accuracies (0 to 1) and areas (in the unit of the mapped areas) per class."""

    overall: Estimate
    """Overall accuracy, the correctly mapped proportion of the area; of length 1."""
    users: Estimate
    """User's accuracy: proportion of the mapped area of a class that is correct; NaN for a class that is not mapped."""
    producers: Estimate
    """Producer's accuracy: proportion of the true area of a class that is mapped as it; NaN for a class without
    reference points."""
    area: Estimate
    """True area. For a class without reference points it is 0 and the standard error NaN."""
    proportions: Proportions
    """The error matrix as estimated proportions of the total area (eq. 4)."""


def estimate_accuracy(
    matrix: ErrorMatrix, mapped: Float64[ndarray, " k"], complete: Bool[ndarray, " k"] | None = None
) -> AccuracyEstimates:
    """Return accuracies and areas from a sample's error matrix and the mapped area of each class.

    `complete` marks strata whose pixels are all in the sample: they contribute no sampling error.

    Raises:
        ValueError: when a mapped class has fewer than two points and is not complete; see `undersampled_strata`.
    """
    if undersampled_strata(matrix, mapped, complete).any():
        raise ValueError(f"every mapped class needs at least {MIN_POINTS} points, got {matrix.points.sum(axis=1)}")
    weights = mapped / mapped.sum()
    within, variance = _within(matrix, np.zeros(len(mapped), bool) if complete is None else complete)
    proportions = weights[:, None] * within  # eq. 4
    weighted_variance = weights[:, None] ** 2 * variance
    correct, true = proportions.diagonal(), proportions.sum(axis=0)  # eq. 9
    sampled = matrix.points.sum(axis=0) > 0
    overall_variance = weighted_variance.diagonal().sum(keepdims=True)
    overall = Estimate(correct.sum(keepdims=True), np.sqrt(overall_variance))  # eqs. 1 and 5
    users = Estimate(*(np.where(mapped > 0, x, np.nan) for x in (within.diagonal(), np.sqrt(variance.diagonal()))))
    area_error = np.sqrt(weighted_variance.sum(axis=0)) * mapped.sum()
    area = Estimate(true * mapped.sum(), np.where(sampled, area_error, np.nan))
    producers = _producers_accuracy(correct, true, weighted_variance, sampled)
    return AccuracyEstimates(overall, users, producers, area, proportions)


def estimate_class_areas(units: Int64[ndarray, "u k k"], mapped: Float64[ndarray, " k"]) -> Float64[ndarray, "k 3"]:
    """Return the area of each class with its 95 % confidence interval, from the pixels of sampled areas.

    `units` are the confusion matrices of areas at random places, all of whose pixels are labelled: labels in rows, the
    map in columns. The estimate is that of eq. 9, with these pixels as the sample. Pixels of one area are alike, so the
    interval is a bootstrap over the areas, as that of scores, in place of eq. 10. NaN where the sample does not
    determine it: for all classes if a class is mapped somewhere, but in none of the areas.
    """
    k = len(mapped)

    def areas(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n k"]:
        counts = sums.reshape(-1, k, k)
        sampled = counts.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            within = np.where((sampled > 0) | (mapped > 0), counts / sampled, 0)
        found: Float64[ndarray, "n k"] = within @ mapped
        return found

    flat = units.reshape(len(units), -1)
    value = areas(flat.sum(axis=0, dtype=np.float64)[None])[0]
    return np.column_stack([value, confidence_intervals(flat, areas)])


def undersampled_strata(
    matrix: ErrorMatrix, mapped: Float64[ndarray, " k"], complete: Bool[ndarray, " k"] | None = None
) -> Bool[ndarray, " k"]:
    """Return a mask of mapped classes with too few points for a standard error."""
    points = matrix.points.sum(axis=1)
    enough = points >= MIN_POINTS
    if complete is not None:
        enough |= complete & (points > 0)
    lacking: Bool[ndarray, " k"] = (mapped > 0) & ~enough
    return lacking


def sample_size(
    weights: Float64[ndarray, " k"], accuracy: Float64[ndarray, " k"], standard_error: float, pixels: int
) -> int:
    """Return the sample size for a standard error of overall accuracy, by eq. 13 (Cochran 1977, eq. 5.25).

    `weights` are the strata's proportions of the area, `accuracy` their expected user's accuracies.
    """
    std = np.sqrt(accuracy * (1 - accuracy))
    return int(np.ceil((weights @ std) ** 2 / (standard_error**2 + (weights @ std**2) / pixels)))


def allocate_points(
    weights: Float64[ndarray, " k"], pixels: Int64[ndarray, " k"], points: int, min_points: int
) -> Int64[ndarray, " k"]:
    """Return the number of points per stratum: proportional to `weights`, at least `min_points` (section 5.1.1).

    Rare strata get `min_points`; the remaining points are distributed among the others. No stratum gets more points
    than it has pixels. The sum is `points`, unless the minimums require more or the map has fewer pixels.
    """
    floor = np.minimum(min_points, pixels)
    sizes = floor.astype(np.float64)
    free = pixels > 0
    while free.any():
        # Fix strata whose proportional size is below the minimum or above their pixels, then distribute the rest.
        proportional = max(points - sizes[~free].sum(), 0) * weights / weights[free].sum()
        low, high = free & (proportional < floor), free & (proportional > pixels)
        bound = low if low.any() else high
        if not bound.any():
            sizes[free] = proportional[free]
            break
        sizes[bound] = floor[bound] if low.any() else pixels[bound]
        free &= ~bound
    return _round_preserving_sum(sizes)


def _within(matrix: ErrorMatrix, complete: Bool[ndarray, " k"]) -> tuple[Proportions, Proportions]:
    """Return the proportion of each class in each stratum and its variance (eq. 6, for all classes)."""
    points, areas = matrix.points.sum(axis=1, keepdims=True), matrix.areas.sum(axis=1, keepdims=True)
    proportion = matrix.areas / np.where(areas > 0, areas, 1)
    others = matrix.squared_areas.sum(axis=1, keepdims=True) - matrix.squared_areas
    # For pixels of equal size: n p (1 - p)^2 + n (1 - p) p^2 = n p (1 - p).
    residual = matrix.squared_areas * (1 - proportion) ** 2 + others * proportion**2
    scale = points / np.maximum(points - 1, 1) / np.where(areas > 0, areas, 1) ** 2
    return proportion, np.where(complete[:, None], 0, residual * scale)


def _producers_accuracy(
    correct: Float64[ndarray, " k"],
    true: Float64[ndarray, " k"],
    weighted_variance: Proportions,
    sampled: Bool[ndarray, " k"],
) -> Estimate:
    """Return producer's accuracies and their standard errors (eqs. 3 and 7)."""
    total = np.where(sampled, true, np.nan)
    value = correct / total
    own = weighted_variance.diagonal()
    variance = ((1 - value) ** 2 * own + value**2 * (weighted_variance.sum(axis=0) - own)) / total**2
    return Estimate(value, np.sqrt(variance))


def _round_preserving_sum(sizes: Float64[ndarray, " k"]) -> Int64[ndarray, " k"]:
    """Return integers with the rounded sum, by the largest remainder method."""
    whole = np.floor(sizes + 1e-9).astype(np.int64)
    missing = round(float(sizes.sum())) - int(whole.sum())
    whole[np.argsort(whole - sizes, kind="stable")[:missing]] += 1
    return whole
