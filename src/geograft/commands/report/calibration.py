"""The calibration section: reliability diagram, Brier score, precision-recall curves, and what they mean in words."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from geograft.commands.report.intervals import interval_clause
from geograft.commands.report.scores import Column, Decision, PrecisionRecall, ReliabilityBin, Score, ScoreTable
from geograft.commands.report.sources import TrainedRun
from geograft.commands.report.text import NBSP, capitalize_first, format_number, format_percent
from geograft.commands.report.view import PageFigure, data_uri
from geograft.figures.curves import OperatingPoint, precision_recall_figure, reliability_figure
from geograft.figures.style import DARK, LIGHT, Theme

DESCRIBED_CONFIDENCE = 0.8
"""The text describes the bin whose mean confidence is nearest to this."""
MIN_BIN_FRACTION = 0.002
"""Bins with a smaller fraction of the pixels are not described."""


def calibration_summary(table: ScoreTable) -> list[str]:
    """Return sentences on the calibration of the probabilities; empty for scores without reliability bins."""
    described = described_bin(table.reliability)
    if described is None:
        return []
    ece, brier = table.overall.get("ece"), table.overall.get("brier")
    sentences = [f"{capitalize_first(_bin_clause(table, described))}."]
    if ece is not None and brier is not None:
        points = format_percent(ece).removesuffix(f"{NBSP}%")
        sentences.append(
            f"The expected calibration error is {format_number(ece, 3)}, an average of {points} percentage points. "
            f"The Brier score is {format_number(brier, 3)}; 0 is perfect, and predicting the class proportions for "
            f"every pixel would score {format_number(constant_brier_score(table), 3)}."
        )
    return [*sentences, _bias(table)]


def other_calibrations(run: TrainedRun, table: ScoreTable) -> list[str]:
    """Return sentences on the calibration in the run's other score files."""
    sentences = []
    for other in run.scores:
        described, ece = described_bin(other.reliability), other.overall.get("ece")
        if other is not table and other.name not in ("val", "train") and described and ece is not None:
            sentences.append(
                f"On “{other.name}”, {_bin_clause(other, described)} "
                f"(expected calibration error {format_number(ece, 3)})."
            )
            sentences.append(_bias(other))
    return sentences


def threshold_summary(run: TrainedRun, table: ScoreTable) -> str:
    """Return where threshold and temperature come from; for an uncalibrated run, the command that calibrates it."""
    decision = table.decision
    if decision is None:
        return ""
    thresholds = _thresholds(table, decision)
    if decision.calibrated:
        subject = f"The {thresholds} and the temperature" if thresholds else "The temperature"
        effect = "less" if decision.temperature > 1 else "more"
        return (
            f"{subject} {decision.temperature:.2f} {'were' if thresholds else 'was'} chosen on {decision.calibrated}. "
            f"The temperature makes the probabilities {effect} confident."
        )
    verb = "were" if table.scheme.overlapping else "was"
    untuned = f", and the {thresholds} {verb} not tuned" if thresholds else ""
    return (
        f"The probabilities are not calibrated{untuned}. To calibrate on the validation tiles, run: "
        f"geograft calibrate {run.folder}"
    )


def _thresholds(table: ScoreTable, decision: Decision) -> str:
    """Return the decision thresholds in words; empty where the most probable of several classes is mapped."""
    if table.scheme.overlapping:
        pairs = zip(table.classes, decision.thresholds, strict=True)
        return "thresholds " + ", ".join(f"{threshold:.2f} ({name})" for name, threshold in pairs)
    return f"threshold {decision.threshold:.2f}" if table.scheme.binary else ""


def figures_explanation(table: ScoreTable) -> str:
    """Return how to read the figures."""
    unit = "predictions (one per pixel and class)" if table.scheme.overlapping else "pixels"
    reliability = (
        f"Reliability diagram: each dot is a bin of {unit} with similar probability, and its size shows how many there "
        "are. Below the dashed line the map is overconfident."
    )
    trade_off = "a lower threshold raises recall and usually lowers precision"
    if table.scheme.overlapping:
        return f"{reliability} Precision-recall curves, one per class: {trade_off}."
    if table.precision_recall is None:
        return reliability
    average = table.overall.get("average_precision")
    interval = interval_clause(table.overall_intervals.get("average_precision"))
    return (
        f"{reliability} Precision-recall curve: {trade_off}. Average precision, the area under the curve, is "
        f"{format_number(average)}{interval}; a random map would score {format_number(_class_fractions(table)[1])}."
    )


def calibration_figures(table: ScoreTable) -> list[PageFigure]:
    """Return the reliability diagram, and the precision-recall curve of the positive or of each overlapping class."""
    if described_bin(table.reliability) is None:
        return []
    decision = table.decision
    if table.scheme.overlapping:
        thresholds = decision.thresholds if decision else (0.5,) * len(table.classes)
        curves = [(score, score.precision_recall, t) for score, t in zip(table.per_class, thresholds, strict=True)]
    else:
        curves = [(table.per_class[-1], table.precision_recall, decision.threshold if decision else 0.5)]
    return [_reliability(table), *(figure for curve in curves for figure in _precision_recall(*curve))]


def described_bin(reliability: Sequence[ReliabilityBin]) -> ReliabilityBin | None:
    """Return the bin with confidence nearest to 80 % among those with enough pixels; None if there are no pixels."""
    total = sum(each.pixels for each in reliability)
    large = [each for each in reliability if each.confidence is not None and each.pixels >= MIN_BIN_FRACTION * total]
    return min(large, key=lambda each: abs((each.confidence or 0) - DESCRIBED_CONFIDENCE), default=None)


def constant_brier_score(table: ScoreTable) -> float:
    """Return the Brier score of predicting the class proportions for every pixel; NaN without labelled pixels."""
    fractions = _class_fractions(table)
    if table.scheme.overlapping:
        predictions = np.array(table.confusion, np.float64).sum(axis=(1, 2))
        return float((fractions * (1 - fractions) * predictions).sum() / predictions.sum())
    return float(fractions[1] * (1 - fractions[1]) if len(fractions) == 2 else 1 - np.square(fractions).sum())


def _bin_clause(table: ScoreTable, described: ReliabilityBin) -> str:
    """Return what is observed in one reliability bin, without capital and full stop."""
    confidence, observed = format_percent(described.confidence), format_percent(described.observed_frequency)
    if table.scheme.overlapping:
        return (
            f"where the map gives a class a probability of {confidence}, the class is present in {observed} of pixels"
        )
    if table.scheme.binary:
        name = table.classes[1]
        return f"where the map gives {name} a probability of {confidence}, {observed} of the pixels are {name}"
    return f"where the map is {confidence} confident, {observed} of the pixels are correct"


def _bias(table: ScoreTable) -> str:
    """Return mean confidence and observed frequency over all bins, in a sentence."""
    pixels = max(sum(each.pixels for each in table.reliability), 1)
    confidence = format_percent(sum(each.pixels * (each.confidence or 0.0) for each in table.reliability) / pixels)
    observed = format_percent(
        sum(each.pixels * (each.observed_frequency or 0.0) for each in table.reliability) / pixels
    )
    if table.scheme.overlapping:
        return (
            f"Over all classes, the mean predicted probability is {confidence} and the observed frequency {observed}."
        )
    if table.scheme.binary:
        name = table.classes[1]
        return f"The mean predicted probability of {name} is {confidence}; {observed} of the pixels are {name}."
    return f"The mean confidence is {confidence} and the accuracy {observed}."


def _class_fractions(table: ScoreTable) -> Float64[ndarray, " k"]:
    """Return the fraction of the labelled pixels that belong to each class."""
    counts = np.array(table.confusion, np.float64)
    labelled = table.scheme.support(counts)
    if table.scheme.overlapping:
        return np.asarray(labelled / np.maximum(counts.sum(axis=(1, 2)), 1))
    return np.asarray(labelled / labelled.sum() if labelled.any() else np.full(len(labelled), math.nan))


def _reliability(table: ScoreTable) -> PageFigure:
    bins = table.reliability
    confidence, observed, pixels = (
        _array(tuple(getattr(each, name) for each in bins)) for name in ("confidence", "observed_frequency", "pixels")
    )
    of = f" of {table.classes[1]}" if table.scheme.binary else ""
    labels = (f"predicted probability{of}", f"observed frequency{of}")
    if not table.scheme.binary and not table.scheme.overlapping:
        labels = ("confidence", "accuracy")

    def draw(theme: Theme) -> str:
        return data_uri(reliability_figure(confidence, observed, pixels, labels, theme), "image/svg+xml")

    points = ", ".join(
        f"{format_percent(each.observed_frequency)} at {format_percent(each.confidence)}"
        for each in bins
        if each.pixels
    )
    return PageFigure(
        draw(LIGHT), draw(DARK), "", "", f"Reliability diagram: {labels[1]} against {labels[0]}: {points}"
    )


def _precision_recall(score: Score, curve: PrecisionRecall | None, threshold: float) -> list[PageFigure]:
    """Return the precision-recall curve of a class with its threshold marked; empty if there is no curve."""
    if curve is None or score.precision is None or score.recall is None:
        return []
    point = OperatingPoint(threshold, score.precision, score.recall)
    precision, recall = _array(curve.precision), _array(curve.recall)
    labels = (f"recall of {score.name}", f"precision of {score.name}")

    def draw(theme: Theme) -> str:
        return data_uri(precision_recall_figure(precision, recall, point, labels, theme), "image/svg+xml")

    alt = (
        f"Precision-recall curve of {score.name}: at the threshold {point.threshold:.2f}, recall is "
        f"{format_percent(point.recall)} and precision {format_percent(point.precision)}"
    )
    return [PageFigure(draw(LIGHT), draw(DARK), "", "", alt)]


def _array(column: Column) -> Float64[ndarray, " n"]:
    return np.array([math.nan if value is None else value for value in column], np.float64)
