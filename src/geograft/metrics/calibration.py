"""How far probabilities can be believed, and where to cut them in two classes.

Everything is taken from counts that add up over tiles, scenes and blocks, so that no pixel is stored and
`geograft.metrics.intervals` can resample the units. Functions of counts take one set or many at once (..., bins, ...).
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from numpy import ndarray
from scipy.optimize import brentq

STEPS = 1000
"""Probabilities are counted from 0 to 1 in steps of a thousandth, the last one for 1 itself."""
THRESHOLDS = np.arange(STEPS + 1) / STEPS
EDGES = THRESHOLDS.astype(np.float32)
RELIABILITY_BINS = 15
"""As many as Guo et al. (2017) take, of equal width, so that bins are the same in every unit and counts add up."""
HOTTEST = 20.0
"""Temperatures are looked for from 1 / 20 to 20."""


def probability_counts(probability: Float32[ndarray, " n"], true: Bool[ndarray, " n"]) -> Int64[ndarray, "2 1001"]:
    """Return how many pixels outside (row 0) and inside the class (row 1) have each probability of it, rounded down.

    Exact at every threshold i / 1000: the pixels from it on are those in the bins from i on.
    """
    place = (probability * np.float32(STEPS)).astype(np.int64)
    # The product is rounded, so the bin can be the one beside; the edges decide.
    place -= probability < EDGES[place]
    place += probability >= EDGES[np.minimum(place + 1, STEPS)]
    place = np.minimum(place, STEPS) + (STEPS + 1) * true
    return np.bincount(place, minlength=2 * (STEPS + 1)).reshape(2, STEPS + 1).astype(np.int64)


def precision_recall(counts: ndarray) -> tuple[Float64[ndarray, "*n 1001"], Float64[ndarray, "*n 1001"]]:
    """Return precision and recall of the class at every threshold, of counts (..., 2, 1001).

    Precision is 1 at thresholds that no pixel reaches (nothing claimed, nothing wrong), recall NaN without any pixel of
    the class.
    """
    wrong, right = (_from_here_on(counts[..., row, :]) for row in (0, 1))
    claimed = right + wrong
    there = right[..., :1]
    precision = np.where(claimed > 0, right / np.maximum(claimed, 1), 1.0)
    recall = np.where(there > 0, right / np.maximum(there, 1), np.nan)
    return precision, recall


def average_precision(counts: ndarray) -> Float64[ndarray, "*n"]:
    """Return the mean precision over recall, of counts (..., 2, 1001); NaN without any pixel of the class.

    The sum over thresholds of precision times the gain in recall, as scikit-learn's `average_precision_score`. No line
    is drawn between points, which would flatter (Davis & Goadrich 2006, ICML, section 3).
    """
    precision, recall = precision_recall(counts)
    gain = recall - np.concatenate([recall[..., 1:], np.zeros_like(recall[..., :1])], axis=-1)
    return np.asarray((precision * gain).sum(axis=-1))


def best_threshold(counts: Int64[ndarray, "2 1001"]) -> float:
    """Return the threshold of the best F1, which is that of the best IoU, for IoU = F1 / (2 - F1).

    Of equals it is the one in the middle. Thresholds run from 0.001 to 1. 0.5 where no pixel is of the class, for then
    none is better than another.
    """
    wrong, right = (_from_here_on(counts[row]) for row in (0, 1))
    if not right[0]:
        return 0.5
    f1 = (2 * right / np.maximum(right + wrong + right[0], 1))[1:]
    best = np.flatnonzero(f1 == f1.max())
    return float(THRESHOLDS[1:][best[len(best) // 2]])


def reliability_counts(confidence: Float32[ndarray, " n"], right: Bool[ndarray, " n"]) -> Float64[ndarray, "15 3"]:
    """Return by bin of confidence: pixels, the sum of their confidence, and how many are right.

    With two classes, confidence is the probability of class 1 and right means to be of class 1. With more it is the
    probability of the most probable class, and right means to be of it (Guo et al. 2017, ICML, section 2).
    """
    place = np.minimum((confidence * np.float32(RELIABILITY_BINS)).astype(np.int64), RELIABILITY_BINS - 1)
    columns = (None, confidence, right)
    return np.stack([np.bincount(place, weights, RELIABILITY_BINS) for weights in columns], axis=-1).astype(np.float64)


def reliability_of(probabilities: Float32[ndarray, "k n"], label: UInt8[ndarray, " n"]) -> Float64[ndarray, "15 3"]:
    """Return `reliability_counts` of the probabilities of all classes: of class 1 where there are two."""
    if len(probabilities) == 2:
        return reliability_counts(probabilities[1], label == 1)
    likeliest = probabilities.argmax(axis=0)
    return reliability_counts(probabilities[likeliest, np.arange(len(likeliest))], likeliest == label)


def calibration_error(counts: ndarray) -> Float64[ndarray, "*n"]:
    """Return the expected calibration error of counts (..., 15, 3), 0 to 1; NaN without any pixel.

    The mean over bins of |share that is right - mean confidence|, weighted by pixels: Guo et al. (2017), eq. 3.
    """
    pixels, confidence, right = np.moveaxis(counts, -1, 0)
    total = pixels.sum(axis=-1)
    error = np.abs(right - confidence).sum(axis=-1)
    return np.asarray(np.where(total > 0, error / np.maximum(total, 1), np.nan))


def reliability_rows(counts: Float64[ndarray, "15 3"]) -> list[dict[str, float | None]]:
    """Return the reliability diagram: by bin its ends, pixels, their mean confidence and the share that is right."""
    edges = np.linspace(0, 1, RELIABILITY_BINS + 1).round(4).tolist()
    return [
        {
            "from": low,
            "to": high,
            "pixels": int(pixels),
            "confidence": float(confidence / pixels) if pixels else None,
            "right": float(right / pixels) if pixels else None,
        }
        for (low, high), (pixels, confidence, right) in zip(pairwise(edges), counts, strict=True)
    ]


def squared_error(probability: Float32[ndarray, "k n"], label: UInt8[ndarray, " n"]) -> float:
    """Return the Brier score times the number of pixels: the sum of squared distances from probabilities to the truth.

    With two classes of class 1 alone, 0 to 1 a pixel; with more over all classes, 0 to 2 a pixel: Brier (1950), Monthly
    Weather Review 78, eq. 2. With two classes Brier's own figure is twice ours, and scikit-learn's is ours.
    """
    if len(probability) == 2:
        return float(np.square(probability[1] - label, dtype=np.float64).sum())
    # The truth is 1 for one class: sum of (p - y)^2 = sum of p^2 - 2 p of that class + 1.
    own = probability[label, np.arange(len(label))]
    return float(np.square(probability, dtype=np.float64).sum() - 2 * own.sum(dtype=np.float64) + len(label))


def log_loss(logits: Float32[ndarray, "n o"], label: UInt8[ndarray, " n"], temperature: float = 1.0) -> float:
    """Return the mean negative logarithm of the probability of the true class, from logits over a temperature."""
    scaled = logits.astype(np.float64) / temperature
    if scaled.shape[1] == 1:
        return float(np.logaddexp(0, np.where(label == 1, -scaled[:, 0], scaled[:, 0])).mean())
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(label)), label]).mean())


def best_temperature(logits: Float32[ndarray, "n o"], label: UInt8[ndarray, " n"]) -> float:
    """Return the temperature that makes the log loss least: Guo et al. (2017), section 4.2, "temperature scaling".

    The loss is convex in 1 / temperature, so its slope has one root; 1 / 20 or 20 where that lies beyond. Dividing all
    logits by one number changes no ranking of classes, so maps at a threshold of 0.5 stay as they are. About a second
    for a million logits.
    """
    exact = logits.astype(np.float64)
    own = np.where(label == 1, exact[:, 0], 0) if exact.shape[1] == 1 else exact[np.arange(len(label)), label]
    wanted = own.mean()

    def slope(cold: float) -> float:
        return float(_expected(exact, np.exp(cold)).mean() - wanted)

    limit = float(np.log(HOTTEST))
    if slope(-limit) >= 0:
        return HOTTEST
    if slope(limit) <= 0:
        return 1 / HOTTEST
    return float(np.exp(-brentq(slope, -limit, limit, xtol=1e-6)))


def _expected(logits: Float64[ndarray, "n o"], cold: float) -> Float64[ndarray, " n"]:
    """Return the mean logit of each pixel under its own probabilities at the temperature 1 / cold."""
    if logits.shape[1] == 1:
        own: Float64[ndarray, " n"] = logits[:, 0] / (1 + np.exp(np.clip(-cold * logits[:, 0], None, 700)))
        return own
    weights = np.exp(cold * (logits - logits.max(axis=1, keepdims=True)))
    mean: Float64[ndarray, " n"] = (weights * logits).sum(axis=1) / weights.sum(axis=1)
    return mean


def _from_here_on(counts: ndarray) -> Float64[ndarray, "*n 1001"]:
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1].astype(np.float64)
