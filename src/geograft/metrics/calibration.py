"""Calibration of probabilities and choice of thresholds.

All metrics are computed from counts that can be summed over tiles, scenes and blocks, so no pixel is stored and
`geograft.metrics.intervals` can resample the units. Functions of counts accept leading batch dimensions.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from numpy import ndarray
from scipy.optimize import brentq

STEPS = 1000
"""Probabilities are binned in steps of 1 / 1000, with one more bin for probability 1."""
THRESHOLDS = np.arange(STEPS + 1) / STEPS
EDGES = THRESHOLDS.astype(np.float32)
RELIABILITY_BINS = 15
"""Number of equal-width bins, as in Guo et al. (2017). Fixed bins allow counts of units to be summed."""
BOOTSTRAP_SAMPLES, MIN_CERTAINTY = 1000, 0.8
"""Number of bootstrap samples, and the fraction in which a threshold must be better than the one from before."""
MAX_TEMPERATURE = 20.0
"""Temperatures are searched from 1 / 20 to 20."""


def probability_counts(probability: Float32[ndarray, " n"], true: Bool[ndarray, " n"]) -> Int64[ndarray, "2 1001"]:
    """Return histograms of the probability of a class for negative (row 0) and positive pixels (row 1).

    They are exact at every threshold i / 1000: the pixels with at least that probability are in bins i and above.
    """
    bins = (probability * np.float32(STEPS)).astype(np.int64)
    # The product is rounded, so the bin can be off by one: compare with the bin edges.
    bins -= probability < EDGES[bins]
    bins += probability >= EDGES[np.minimum(bins + 1, STEPS)]
    bins = np.minimum(bins, STEPS) + (STEPS + 1) * true
    return np.bincount(bins, minlength=2 * (STEPS + 1)).reshape(2, STEPS + 1).astype(np.int64)


def precision_recall_curve(counts: ndarray) -> tuple[Float64[ndarray, "*n 1001"], Float64[ndarray, "*n 1001"]]:
    """Return precision and recall at every threshold from counts (..., 2, 1001).

    Precision is 1 at thresholds without predicted positives. Recall is NaN if the class has no pixel.
    """
    false_positive, true_positive = (_reverse_cumsum(counts[..., row, :]) for row in (0, 1))
    predicted = true_positive + false_positive
    positives = true_positive[..., :1]
    precision = np.where(predicted > 0, true_positive / np.maximum(predicted, 1), 1.0)
    recall = np.where(positives > 0, true_positive / np.maximum(positives, 1), np.nan)
    return precision, recall


def average_precision(counts: ndarray) -> Float64[ndarray, "*n"]:
    """Return the average precision of counts (..., 2, 1001); NaN if the class has no pixel.

    It is the sum over thresholds of precision times the increase in recall, as in scikit-learn's
    `average_precision_score`. Linear interpolation between points would be too optimistic (Davis & Goadrich 2006,
    ICML, section 3).
    """
    precision, recall = precision_recall_curve(counts)
    gain = recall - np.concatenate([recall[..., 1:], np.zeros_like(recall[..., :1])], axis=-1)
    return np.asarray((precision * gain).sum(axis=-1))


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold chosen on few tiles, or kept."""

    threshold: float
    kept: bool
    """Whether it is the one from before, because the tiles do not decide."""
    best: float
    """The threshold with the highest F1 on the tiles."""
    certainty: float
    """Fraction of the bootstrap samples of the tiles in which `best` has a higher F1 than the threshold from before."""
    f1_before: float
    f1: float
    """F1 on the tiles of the threshold from before and of the one chosen; NaN if they have no pixel of the class."""


def choose_threshold(
    counts: Int64[ndarray, "tiles 2 1001"], own: float, lowest: float, highest: float
) -> ThresholdChoice:
    """Choose between the threshold `own` and that with the highest F1 on some tiles, from `lowest` to `highest`.

    It also has the highest IoU, because IoU = F1 / (2 - F1). Of several such thresholds it is the middle one.
    `own` is kept unless the other is better in at least 80 % of 1,000 bootstrap samples of the tiles, with a fixed
    seed; it is rounded to 0.001 in the comparison. `counts` are those of `probability_counts`, by tile.
    """
    candidates = np.arange(max(1, ceil(lowest * STEPS - 1e-9)), max(1, floor(highest * STEPS + 1e-9)) + 1)
    before = int(np.clip(round(own * STEPS), 1, STEPS))
    at_least = _reverse_cumsum(counts)
    f1 = _f1(at_least.sum(axis=0))
    if np.isnan(f1).all():
        return ThresholdChoice(own, True, own, 0.0, np.nan, np.nan)
    ties = candidates[f1[candidates] == f1[candidates].max()]
    best = int(ties[len(ties) // 2])
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=BOOTSTRAP_SAMPLES)
    pair = np.stack([at_least[..., [0, i]] for i in (before, best)])
    theirs, ours = (np.nan_to_num(_f1(np.tensordot(draws, one, axes=1))[:, 1]) for one in pair)
    certainty = float((ours > theirs).mean())
    kept = certainty < MIN_CERTAINTY
    chosen = own if kept else best / STEPS
    return ThresholdChoice(
        chosen, kept, best / STEPS, certainty, float(f1[before]), float(f1[before if kept else best])
    )


def _f1(at_least: Float64[ndarray, "*n 2 k"]) -> Float64[ndarray, "*n k"]:
    """Return F1 from the number of negative and positive pixels at or above thresholds, of which the first is 0."""
    false_positive, true_positive = at_least[..., 0, :], at_least[..., 1, :]
    positives = true_positive[..., :1]
    f1 = 2 * true_positive / np.maximum(true_positive + false_positive + positives, 1)
    return np.where(positives > 0, f1, np.nan)


def reliability_counts(confidence: Float32[ndarray, " n"], correct: Bool[ndarray, " n"]) -> Float64[ndarray, "15 3"]:
    """Return per confidence bin: number of pixels, sum of confidences, number of correct pixels.

    Binary: confidence is the probability of the positive class, and "correct" means that the pixel is positive.
    Multiclass: confidence is the highest class probability, and "correct" means that this class is the label (Guo et
    al. 2017, ICML, section 2).
    """
    bins = np.minimum((confidence * np.float32(RELIABILITY_BINS)).astype(np.int64), RELIABILITY_BINS - 1)
    columns = (None, confidence, correct)
    return np.stack([np.bincount(bins, weights, RELIABILITY_BINS) for weights in columns], axis=-1).astype(np.float64)


def class_reliability_counts(
    probabilities: Float32[ndarray, "k n"], label: UInt8[ndarray, " n"]
) -> Float64[ndarray, "15 3"]:
    """Return `reliability_counts` from class probabilities: of the positive class if binary, else of the top class."""
    if len(probabilities) == 2:
        return reliability_counts(probabilities[1], label == 1)
    top_class = probabilities.argmax(axis=0)
    return reliability_counts(probabilities[top_class, np.arange(len(top_class))], top_class == label)


def expected_calibration_error(counts: ndarray) -> Float64[ndarray, "*n"]:
    """Return the expected calibration error (ECE, 0 to 1) of counts (..., 15, 3); NaN without pixels.

    It is the mean over bins of |accuracy - mean confidence|, weighted by pixels: Guo et al. (2017), eq. 3.
    """
    pixels, confidence, correct = np.moveaxis(counts, -1, 0)
    total = pixels.sum(axis=-1)
    error = np.abs(correct - confidence).sum(axis=-1)
    return np.asarray(np.where(total > 0, error / np.maximum(total, 1), np.nan))


def reliability_diagram(counts: Float64[ndarray, "15 3"]) -> list[dict[str, float | None]]:
    """Return the reliability diagram for JSON: bin edges, pixels, mean confidence and observed frequency per bin."""
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1).round(4).tolist()
    return [
        {
            "from": low,
            "to": high,
            "pixels": int(pixels),
            "confidence": float(confidence / pixels) if pixels else None,
            "observed_frequency": float(correct / pixels) if pixels else None,
        }
        for (low, high), (pixels, confidence, correct) in zip(pairwise(edges), counts, strict=True)
    ]


def brier_sum(probability: Float32[ndarray, "k n"], label: UInt8[ndarray, " n"]) -> float:
    """Return the Brier score summed over pixels, so that sums of tiles can be added.

    Binary: squared error of the positive class, 0 to 1 per pixel, as in scikit-learn; Brier's own definition is twice
    that. Multiclass: summed over all classes, 0 to 2 per pixel. Source: Brier (1950), Monthly Weather Review 78, eq. 2.
    """
    if len(probability) == 2:
        return float(np.square(probability[1] - label, dtype=np.float64).sum())
    # The target is one-hot: sum of (p - y)^2 = sum of p^2 - 2 p[label] + 1.
    label_probability = probability[label, np.arange(len(label))]
    total = np.square(probability, dtype=np.float64).sum() - 2 * label_probability.sum(dtype=np.float64)
    return float(total + len(label))


def log_loss(logits: Float32[ndarray, "n o"], label: UInt8[ndarray, " n"], temperature: float = 1.0) -> float:
    """Return the log loss (mean negative log-likelihood of the true class) of logits divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    if scaled.shape[1] == 1:
        return float(np.logaddexp(0, np.where(label == 1, -scaled[:, 0], scaled[:, 0])).mean())
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(label)), label]).mean())


def best_temperature(logits: Float32[ndarray, "n o"], label: UInt8[ndarray, " n"]) -> float:
    """Return the temperature with the lowest log loss ("temperature scaling", Guo et al. 2017, section 4.2).

    The loss is convex in 1 / temperature, so its derivative has one root; the result is clipped to 1 / 20 and 20.
    Temperature scaling preserves the order of the classes, so maps at a threshold of 0.5 do not change. About a second
    for a million logits.
    """
    exact = logits.astype(np.float64)
    own = np.where(label == 1, exact[:, 0], 0) if exact.shape[1] == 1 else exact[np.arange(len(label)), label]
    mean_label_logit = own.mean()

    def derivative(log_inverse: float) -> float:
        return float(_expected_logit(exact, np.exp(log_inverse)).mean() - mean_label_logit)

    limit = float(np.log(MAX_TEMPERATURE))
    if derivative(-limit) >= 0:
        return MAX_TEMPERATURE
    if derivative(limit) <= 0:
        return 1 / MAX_TEMPERATURE
    return float(np.exp(-brentq(derivative, -limit, limit, xtol=1e-6)))


def _expected_logit(logits: Float64[ndarray, "n o"], inverse_temperature: float) -> Float64[ndarray, " n"]:
    """Return the expected logit of each pixel under its own class probabilities at that temperature."""
    if logits.shape[1] == 1:
        first = logits[:, 0]
        expected: Float64[ndarray, " n"] = first / (1 + np.exp(np.clip(-inverse_temperature * first, None, 700)))
        return expected
    weights = np.exp(inverse_temperature * (logits - logits.max(axis=1, keepdims=True)))
    mean: Float64[ndarray, " n"] = (weights * logits).sum(axis=1) / weights.sum(axis=1)
    return mean


def _reverse_cumsum(counts: ndarray) -> Float64[ndarray, "*n 1001"]:
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1].astype(np.float64)
