"""How far the map's probabilities can be believed: words and figures."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from geograft.commands.report.certainty import interval_in_words
from geograft.commands.report.numbers import NBSP, fixed, percent
from geograft.commands.report.scores import Column, Decision, PrecisionRecall, ReliabilityBin, Score, ScoreTable
from geograft.commands.report.sources import Run
from geograft.commands.report.text import capital
from geograft.commands.report.view import Plate, data_uri
from geograft.figures.calibration import Chosen, precision_recall_figure, reliability_figure
from geograft.figures.style import DARK, LIGHT, Look

TOLD = 0.8
"""The probability whose truth is told in words, or that nearest to it."""
LEAST_OF_ALL = 0.002
"""A bin with a smaller share of the pixels is not told of."""


def sureness_in_words(table: ScoreTable) -> list[str]:
    """Return how right the probabilities are, a sentence each; nothing for scores without them."""
    told = told_bin(table.reliability)
    if told is None:
        return []
    says, ece, brier = _says(table), table.overall.get("ece"), table.overall.get("brier")
    found = [f"When the map says {percent(told.confidence)}{says}, it is right in {percent(told.right)}."]
    if ece is not None and brier is not None:
        points = percent(ece).removesuffix(f"{NBSP}%")
        found.append(
            f"On average what it says is {points} points off (calibration error {fixed(ece, 3)}); the Brier score is "
            f"{fixed(brier, 3)}, where 0 is perfect and saying the same everywhere would give {fixed(guess(table), 3)}."
        )
    return [*found, *_bias(table)]


def elsewhere_in_words(run: Run, table: ScoreTable) -> list[str]:
    """Return the same in short for the run's other scores."""
    found = []
    for other in run.scores:
        told, ece = told_bin(other.reliability), other.overall.get("ece")
        if other is not table and other.name not in ("val", "train") and told and ece is not None:
            found.append(
                f"On “{other.name}”, when it says {percent(told.confidence)}{_says(other)}, it is right in "
                f"{percent(told.right)} (calibration error {fixed(ece, 3)})."
            )
            found += _bias(other)
    return found


def decision_in_words(run: Run, table: ScoreTable) -> str:
    """Return where threshold and temperature come from, and what would fit them."""
    made = table.decision
    if made is None:
        return ""
    if made.calibrated:
        cut = f"The {_cuts(table, made)} and the" if _cuts(table, made) else "The"
        verb = "were" if _cuts(table, made) else "was"
        way = "less" if made.temperature > 1 else "more"
        return (
            f"{cut} temperature {made.temperature:.2f}, which makes the network {way} sure than training did, {verb} "
            f"chosen on {made.calibrated}."
        )
    verb = "are" if table.counting.overlapping else "is"
    cut = f", and the {_cuts(table, made)} {verb} not chosen" if _cuts(table, made) else ""
    return (
        f"The probabilities are as training left them{cut}. To fit them to the validation tiles: "
        f"geograft calibrate {run.folder}"
    )


def _cuts(table: ScoreTable, made: Decision) -> str:
    """Return what a probability must reach to be mapped as a class, in words; nothing where the largest counts."""
    if table.counting.overlapping:
        each = zip(table.classes, made.thresholds, strict=True)
        return "thresholds " + ", ".join(f"{cut:.2f} ({name})" for name, cut in each)
    return f"threshold {made.threshold:.2f}" if table.counting.binary else ""


def curve_in_words(table: ScoreTable) -> str:
    """Return how to read the figures."""
    what = "answers, one a pixel and class," if table.counting.overlapping else "pixels"
    dots = (
        f"each dot is the {what} of which the map says about the same, a larger dot more of them; below the dashed "
        "line the map is too sure."
    )
    if table.counting.overlapping:
        return (
            f"The first figure: {dots} The others, one a class: a lower threshold finds more and is right less often."
        )
    if table.precision_recall is None:
        return capital(dots)
    average = table.overall.get("average_precision")
    sure = interval_in_words(table.overall_intervals.get("average_precision"))
    share = percent(_shares(table)[1])
    return (
        f"The first figure: {dots} The second: a lower threshold finds more and is right less often. Average "
        f"precision, the mean height of the curve, is {fixed(average)}{sure}; guessing would give {share}."
    )


def sureness_plates(table: ScoreTable) -> list[Plate]:
    """Return the reliability diagram, and precision over recall of class 1 of two, or of each overlapping class."""
    if told_bin(table.reliability) is None:
        return []
    made = table.decision
    if table.counting.overlapping:
        cuts = made.thresholds if made else (0.5,) * len(table.classes)
        curves = [(one, one.precision_recall, cut) for one, cut in zip(table.per_class, cuts, strict=True)]
    else:
        curves = [(table.per_class[-1], table.precision_recall, made.threshold if made else 0.5)]
    return [_reliability(table), *(plate for each in curves for plate in _precision_recall(*each))]


def told_bin(reliability: Sequence[ReliabilityBin]) -> ReliabilityBin | None:
    """Return the bin with a fair share of the pixels whose confidence is nearest to 80 %; None without any."""
    total = sum(one.pixels for one in reliability)
    fair = [one for one in reliability if one.confidence is not None and one.pixels >= LEAST_OF_ALL * total]
    return min(fair, key=lambda one: abs((one.confidence or 0) - TOLD), default=None)


def guess(table: ScoreTable) -> float:
    """Return the Brier score of a map that gives every pixel each class's share of the labels; NaN without labels."""
    shares = _shares(table)
    if table.counting.overlapping:
        answers = np.array(table.confusion, np.float64).sum(axis=(1, 2))
        return float((shares * (1 - shares) * answers).sum() / answers.sum())
    return float(shares[1] * (1 - shares[1]) if len(shares) == 2 else 1 - np.square(shares).sum())


def _bias(table: ScoreTable) -> list[str]:
    """Return what the map says on average beside what is right: with two classes, whether it says too much of one."""
    pixels = sum(one.pixels for one in table.reliability)
    says, right = (
        sum(one.pixels * (getattr(one, name) or 0.0) for one in table.reliability) / max(pixels, 1)
        for name in ("confidence", "right")
    )
    if table.counting.overlapping:
        return [f"Over all pixels and classes it says {percent(says)}, and {percent(right)} are."]
    if table.counting.binary:
        return [f"Over all pixels it says {percent(says)} {table.classes[1]}, and {percent(right)} are."]
    return [f"Over all pixels it is {percent(says)} sure, and right in {percent(right)}."]


def _says(table: ScoreTable) -> str:
    if table.counting.overlapping:
        return " for a class"
    return f" {table.classes[1]}" if table.counting.binary else ""


def _shares(table: ScoreTable) -> Float64[ndarray, " k"]:
    """Return the share of each class of the labelled pixels."""
    counts = np.array(table.confusion, np.float64)
    labelled = table.counting.labelled(counts)
    if table.counting.overlapping:
        return np.asarray(labelled / np.maximum(counts.sum(axis=(1, 2)), 1))
    shares: Float64[ndarray, " k"] = labelled / labelled.sum() if labelled.any() else np.full(len(labelled), math.nan)
    return shares


def _reliability(table: ScoreTable) -> Plate:
    columns = [[getattr(one, name) for one in table.reliability] for name in ("confidence", "right", "pixels")]
    confidence, right, pixels = (_array(tuple(column)) for column in columns)
    axes = (f"the map says{_says(table)}", f"share that is{_says(table) if table.counting.binary else ' right'}")

    def draw(look: Look) -> str:
        return data_uri(reliability_figure(confidence, right, pixels, axes, look), "image/svg+xml")

    points = [(one.confidence, one.right) for one in table.reliability if one.pixels]
    told = ", ".join(f"{percent(right)} at {percent(says)}" for says, right in points)
    alt = f"{axes[1]} over what {axes[0]}: {told}"
    return Plate(draw(LIGHT), draw(DARK), "", "", alt)


def _precision_recall(own: Score, curve: PrecisionRecall | None, threshold: float) -> list[Plate]:
    """Return the curve of a class, with where its threshold lies; nothing where there is none."""
    if curve is None or own.precision is None or own.recall is None:
        return []
    chosen, name = Chosen(threshold, own.precision, own.recall), own.name
    precision, recall = _array(curve.precision), _array(curve.recall)
    axes = (f"found, of the labelled {name} (recall)", f"right, of the mapped {name} (precision)")

    def draw(look: Look) -> str:
        return data_uri(precision_recall_figure(precision, recall, chosen, axes, look), "image/svg+xml")

    alt = (
        f"Precision over recall of {name} at every threshold; at the chosen one, {chosen.threshold:.2f}, "
        f"{percent(chosen.recall)} is found and {percent(chosen.precision)} is right"
    )
    return [Plate(draw(LIGHT), draw(DARK), "", "", alt)]


def _array(column: Column) -> Float64[ndarray, " n"]:
    return np.array([math.nan if value is None else value for value in column], np.float64)
