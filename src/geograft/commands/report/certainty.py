"""How sure a figure on the page is: its interval over the ground that was scored, and that of a difference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.commands.report.numbers import NBSP, fixed
from geograft.commands.report.scores import Across, Ends, IntervalNote, ScoreTable
from geograft.commands.report.sources import Subject, Variant, mean
from geograft.mapping.scoring import Measure
from geograft.metrics.confusion import Counting
from geograft.metrics.intervals import ENOUGH_UNITS, Statistic
from geograft.metrics.scores import present_mean
from geograft.text import counted

LEVEL_TEXT = "with 95 % confidence".replace(" %", f"{NBSP}%")
LEAST_LEAD = 0.005
"""Differences below this are written as 0.00."""


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not math.isnan(self.low)


def tables_of(variant: Variant, measure: str) -> list[ScoreTable]:
    """Return the scores called `measure` of those runs of a network that have them."""
    return [table for run in variant.runs if (table := run.score(measure))]


def iou_of(variant: Variant, measure: str) -> Estimate | None:
    """Return the IoU of a network, mean over its seeds, with the interval over the ground they were scored on.

    None where a seed has no counts by unit, or the seeds were not scored on the same ground.
    """
    tables = tables_of(variant, measure)
    counts = _stacked(tables)
    if counts is None or len(variant.runs) != counts.shape[1]:
        return None
    return _estimate(counts, partial(mean_iou, counting=tables[0].counting))


def lead_of(first: Variant, second: Variant, measure: str) -> Estimate | None:
    """Return by how much the IoU of one network is better than that of another, means over the seeds.

    The interval is paired: both are scored on the same ground in every draw. It says nothing of other seeds. None where
    they were not scored on the same ground, or that is not on file.
    """
    tables = tables_of(first, measure), tables_of(second, measure)
    counts = _stacked([*tables[0], *tables[1]])
    if counts is None or not all(tables):
        return None
    seeds, counting = len(tables[0]), tables[0][0].counting

    def lead(sums: ndarray) -> Float64[ndarray, " n"]:
        difference: Float64[ndarray, " n"] = mean_iou(sums[:, :seeds], counting) - mean_iou(sums[:, seeds:], counting)
        return difference

    return _estimate(counts, lead)


def figure_of(subject: Subject, variant: Variant, measure: str) -> Estimate:
    """Return the IoU of a network, with its interval where that is on file: over all folds, or mean over seeds."""
    across = [one for one in subject.folds.variants if one.variant == variant.name] if subject.folds else []
    if across and measure == "test":
        return _across(across[0], 1)
    return iou_of(variant, measure) or Estimate(mean(variant.values(measure)))


def difference_of(subject: Subject, first: Variant, second: Variant, measure: str) -> Estimate | None:
    """Return by how much the IoU of one network is better than that of another, with the paired interval; or None."""
    if subject.folds is None or measure != "test":
        return lead_of(first, second, measure)
    for one in subject.folds.differences:
        for sign, names in ((1, (one.first, one.second)), (-1, (one.second, one.first))):
            if names == (first.name, second.name):
                return _across(one, sign)
    return None


def mean_iou(sums: ndarray, counting: Counting) -> Float64[ndarray, " n"]:
    """Return the mean over seeds of the IoU of class 1 of two, else of the mean over classes, of sums (n, s, ...)."""
    mean: Float64[ndarray, " n"] = present_mean(counting.overall(sums)["iou"])
    return mean


def between(ends: Ends, digits: int = 2) -> str:
    """Return an interval for small print; nothing where there is none.

    >>> between((0.491, 0.618))
    '0.49 to 0.62'
    """
    return "" if ends is None else f"{signed(ends[0], digits)} to {signed(ends[1], digits)}"


def signed(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign, and none before a zero.

    >>> signed(-0.071), signed(-0.001)
    ('−0.07', '0.00')
    """
    text = fixed(abs(value), digits)
    return f"−{text}" if value < 0 and float(text) else text


def interval_in_words(ends: Ends) -> str:
    """Return an interval as the end of a clause; nothing where there is none."""
    return f", 95{NBSP}% interval {between(ends)}" if ends else ""


def ends_of(estimate: Estimate | None) -> Ends:
    """Return the ends of an interval, or None."""
    return (estimate.low, estimate.high) if estimate is not None and estimate.bounded else None


def lead_in_words(name: str, rival: str, lead: Estimate) -> str:
    """Return how far one network is ahead of another or behind it, and how sure that is."""
    if abs(lead.value) < LEAST_LEAD:
        about = f" (95{NBSP}% interval of the difference {between(ends_of(lead))})" if lead.bounded else ""
        return f"“{name}” and “{rival}” are level{about}"
    way = "ahead of" if lead.value > 0 else "behind"
    sentence = f"“{name}” is {way} “{rival}” by {fixed(abs(lead.value))}"
    if not lead.bounded:
        return sentence
    least = min(abs(lead.low), abs(lead.high))
    if lead.low <= 0 <= lead.high:
        return f"{sentence}, which can be chance: the 95{NBSP}% interval is {between(ends_of(lead))}"
    return f"{sentence}, and {LEVEL_TEXT} by {'more than 0' if least < LEAST_LEAD else f'at least {fixed(least)}'}"


def few_units(interval: IntervalNote | None, scenes: int) -> list[str]:
    """Return in plain sentences what an interval over so few units, or of so few places, cannot say."""
    if interval is None:
        return []
    units = counted(interval.units, interval.unit)
    if interval.units < 2:
        return [f"Only {units} was scored, so nothing says how far off this figure may be on other ground."]
    found = []
    if interval.units < ENOUGH_UNITS:
        found.append(
            f"Only {units} were scored: that is too few for a trustworthy interval, and the true figure may well lie "
            "outside it."
        )
    if interval.unit == "block":
        where = "one scene" if scenes == 1 else counted(scenes, "scene")
        found.append(f"All {units} lie in {where}: other places may differ by more.")
    return found


def _across(found: Across, sign: int) -> Estimate:
    """Return the IoU, or a difference of it turned round where `sign` is -1."""
    value, ends = found.overall.get("iou"), found.overall_intervals.get("iou")
    low, high = sorted(sign * end for end in ends) if ends else (math.nan, math.nan)
    return Estimate(math.nan if value is None else sign * value, low, high)


def _stacked(tables: Sequence[ScoreTable]) -> Int64[ndarray, "u s ..."] | None:
    """Return the counts by unit of several scores side by side; None where they are not of the same ground."""
    counted = [table.by_unit for table in tables]
    ground = {
        (table.tiles, table.classes, table.counting, tuple(counts))
        for table, counts in zip(tables, counted, strict=True)
    }
    if len(ground) != 1 or not counted[0]:
        return None
    return np.stack([np.stack(list(counts.values())) for counts in counted], axis=1)


def _estimate(counts: Int64[ndarray, "u s ..."], figure: Statistic) -> Estimate:
    found = Measure(counts, lambda sums: {"iou": figure(sums)}).figures()["iou"]
    return Estimate(found.value, found.low, found.high)
