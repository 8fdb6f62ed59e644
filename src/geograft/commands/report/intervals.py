"""Confidence intervals of a network's IoU and of the difference between two networks, and their wording."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.commands.report.scores import FoldScores, Interval, ScoreTable
from geograft.commands.report.sources import NetworkRuns, Subject, mean
from geograft.commands.report.text import NBSP, format_number
from geograft.mapping.scoring import BootstrapEstimator
from geograft.metrics.confusion import ConfusionScheme, nanmean
from geograft.metrics.intervals import Statistic

CI_TEXT = f"95{NBSP}% confidence interval"
MIN_DIFFERENCE = 0.005
"""Smaller differences round to 0.00."""


@dataclass(frozen=True)
class ScoreEstimate:
    """A value with the bounds of its 95 % confidence interval; NaN if there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        """Whether there is a confidence interval."""
        return not math.isnan(self.low)


def score_tables_of(variant: NetworkRuns, measure: str) -> list[ScoreTable]:
    """Return the scores named `measure` of every run of a network that has them."""
    return [table for run in variant.runs if (table := run.score(measure))]


def seed_mean_iou(variant: NetworkRuns, measure: str) -> ScoreEstimate | None:
    """Return the IoU of a network, mean over its seeds, with the bootstrap interval over the scored units.

    None if a seed has no counts by unit, or the seeds were scored on different units.
    """
    tables = score_tables_of(variant, measure)
    counts = _stacked(tables)
    if counts is None or len(variant.runs) != counts.shape[1]:
        return None
    return _estimate(counts, partial(mean_iou_over_seeds, scheme=tables[0].scheme))


def iou_difference(first: NetworkRuns, second: NetworkRuns, measure: str) -> ScoreEstimate | None:
    """Return the IoU of the first network minus that of the second, means over the seeds.

    The interval is paired: both networks are scored on the same units in every bootstrap sample. It does not include
    the variance over seeds. None if they were scored on different units, or their score files have no counts by unit.
    """
    tables = score_tables_of(first, measure), score_tables_of(second, measure)
    counts = _stacked([*tables[0], *tables[1]])
    if counts is None or not all(tables):
        return None
    seeds, scheme = len(tables[0]), tables[0][0].scheme

    def difference(sums: ndarray) -> Float64[ndarray, " n"]:
        ious = [mean_iou_over_seeds(part, scheme) for part in (sums[:, :seeds], sums[:, seeds:])]
        return np.asarray(ious[0] - ious[1])

    return _estimate(counts, difference)


def reported_iou(subject: Subject, variant: NetworkRuns, measure: str) -> ScoreEstimate:
    """Return the IoU of a network with its interval, if known: over all folds, or mean over seeds."""
    scores = [one for one in subject.folds.variants if one.variant == variant.name] if subject.folds else []
    if scores and measure == "test":
        return _from_folds(scores[0], 1)
    return seed_mean_iou(variant, measure) or ScoreEstimate(mean(variant.ious(measure)))


def reported_difference(
    subject: Subject, first: NetworkRuns, second: NetworkRuns, measure: str
) -> ScoreEstimate | None:
    """Return the IoU of the first network minus that of the second with the paired interval; None if unknown."""
    if subject.folds is None or measure != "test":
        return iou_difference(first, second, measure)
    for one in subject.folds.differences:
        for sign, names in ((1, (one.first, one.second)), (-1, (one.second, one.first))):
            if names == (first.name, second.name):
                return _from_folds(one, sign)
    return None


def mean_iou_over_seeds(sums: ndarray, scheme: ConfusionScheme) -> Float64[ndarray, " n"]:
    """Return the mean over seeds of the headline IoU of confusion matrices (n, s, ...)."""
    mean: Float64[ndarray, " n"] = nanmean(scheme.overall(sums)["iou"])
    return mean


def format_estimate_interval(ends: Interval, digits: int = 2) -> str:
    """Return an interval as text; empty for None.

    >>> format_estimate_interval((0.491, 0.618))
    '0.49 to 0.62'
    """
    return "" if ends is None else f"{format_signed(ends[0], digits)} to {format_signed(ends[1], digits)}"


def format_signed(value: float, digits: int = 2) -> str:
    """Return a number with a typographic minus sign, without a sign if it rounds to zero.

    >>> format_signed(-0.071), format_signed(-0.001)
    ('−0.07', '0.00')
    """
    text = format_number(abs(value), digits)
    return f"−{text}" if value < 0 and float(text) else text


def interval_clause(ends: Interval) -> str:
    """Return a confidence interval in brackets, to follow a value; empty for None."""
    return f" ({CI_TEXT} {format_estimate_interval(ends)})" if ends else ""


def interval_of(estimate: ScoreEstimate | None) -> Interval:
    """Return the confidence interval of an estimate, or None."""
    return (estimate.low, estimate.high) if estimate is not None and estimate.has_interval else None


def difference_sentence(name: str, rival: str, difference: ScoreEstimate) -> str:
    """Return the difference in IoU of two networks in a sentence, and whether it is statistically significant."""
    interval = interval_of(difference)
    if abs(difference.value) < MIN_DIFFERENCE:
        bounds = f" ({CI_TEXT} of the difference {format_estimate_interval(interval)})" if interval else ""
        return f"The IoU of “{name}” and “{rival}” differs by less than 0.01{bounds}"
    direction = "higher" if difference.value > 0 else "lower"
    sentence = f"The IoU of “{name}” is {format_number(abs(difference.value))} {direction} than that of “{rival}”"
    if interval is None:
        return sentence
    if interval[0] <= 0 <= interval[1]:
        bounds = format_estimate_interval(interval)
        return f"{sentence}, but not significantly: the {CI_TEXT} of the difference is {bounds}"
    # A bound that excludes 0 is not written as 0.00.
    digits = 3 if min(map(abs, interval)) < MIN_DIFFERENCE else 2
    return f"{sentence} ({CI_TEXT} of the difference {format_estimate_interval(interval, digits)})"


def _from_folds(scores: FoldScores, sign: int) -> ScoreEstimate:
    """Return the IoU over all folds, or a difference in IoU; `sign` -1 swaps the two networks."""
    value, ends = scores.overall.get("iou"), scores.overall_intervals.get("iou")
    low, high = sorted(sign * end for end in ends) if ends else (math.nan, math.nan)
    return ScoreEstimate(math.nan if value is None else sign * value, low, high)


def _stacked(tables: Sequence[ScoreTable]) -> Int64[ndarray, "u s ..."] | None:
    """Stack the counts by unit of several score files; None if they are of different units."""
    by_unit = [table.counts_by_unit for table in tables]
    layouts = {(t.tiles, t.classes, t.scheme, tuple(counts)) for t, counts in zip(tables, by_unit, strict=True)}
    if len(layouts) != 1 or not by_unit[0]:
        return None
    return np.stack([np.stack(list(counts.values())) for counts in by_unit], axis=1)


def _estimate(counts: Int64[ndarray, "u s ..."], statistic: Statistic) -> ScoreEstimate:
    estimate = BootstrapEstimator(counts, lambda sums: {"iou": statistic(sums)}).estimate()["iou"]
    return ScoreEstimate(estimate.value, estimate.low, estimate.high)
