"""Accuracy scores of a class map, derived from a confusion matrix with the truth in rows and predictions in columns.

Every function takes one matrix (k, k) or a batch (..., k, k), as the bootstrap of `geograft.metrics.intervals` needs.
Sum the matrices of all tiles first: the mean of per-tile scores is biased. Overlapping classes have a binary matrix
each, (k, 2, 2) or (..., k, 2, 2): row 1 is labelled as the class, column 1 predicted as it.

A class in neither truth nor prediction has no score (NaN) and is left out of means. A class in only one of them scores
0 and counts in means: leaving it out would reward missed or invented classes. Sources of the formulas:

* IoU: Jaccard (1912), New Phytologist 11, p. 40; F1: Dice (1945), Ecology 26, p. 298.
* precision and recall are user's and producer's accuracy: Congalton (1991), Remote Sens. Environ. 37, p. 36.
* kappa: Cohen (1960), Educ. Psychol. Meas. 20, eq. 1.
* mean and frequency-weighted IoU: Long, Shelhamer & Darrell (2015), CVPR, section 5.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray

from geograft.legend import IGNORE

HEADLINE_SCORES = ("iou", "f1", "precision", "recall")


@dataclass(frozen=True)
class Scores:
    """Scores per class index, 0 to 1; NaN for a class in neither truth nor prediction.

    All scores of a class in only one of them are 0.
    """

    iou: Float64[ndarray, " k"]
    """Intersection of truth and prediction over their union."""
    f1: Float64[ndarray, " k"]
    """Harmonic mean of precision and recall; the Dice coefficient of the two pixel sets."""
    precision: Float64[ndarray, " k"]
    """Fraction of the predicted pixels of the class that are correct (user's accuracy)."""
    recall: Float64[ndarray, " k"]
    """Fraction of the true pixels of the class that are found (producer's accuracy)."""
    accuracy: float
    """Fraction of all pixels that are correct; NaN without pixels."""

    def macro(self, score: str) -> float:
        """Return the mean of a score ("iou", "f1", "precision", "recall") over classes, ignoring NaN."""
        return float(nanmean(getattr(self, score)))

    def headline(self) -> dict[str, float]:
        """Return iou, f1, precision and recall of the positive class if binary, else their macro means."""
        binary = len(self.iou) == 2
        return {name: float(getattr(self, name)[1]) if binary else self.macro(name) for name in HEADLINE_SCORES}


def confusion_matrix(
    truth: UInt8[ndarray, "*pixels"], predicted: UInt8[ndarray, "*pixels"], classes: int
) -> Int64[ndarray, "{classes} {classes}"]:
    """Return the confusion matrix: truth in rows, prediction in columns. Pixels that are 255 in either are ignored."""
    known = (truth != IGNORE) & (predicted != IGNORE)
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    counts: ndarray = np.bincount(pairs, minlength=classes**2).astype(np.int64)
    return counts.reshape(classes, classes)


def multilabel_confusion_matrix(
    truth: UInt8[ndarray, "k h w"], predicted: UInt8[ndarray, "k h w"]
) -> Int64[ndarray, "k 2 2"]:
    """Return a binary confusion matrix per overlapping class. Pixels that are 255 in either are ignored."""
    return np.stack([confusion_matrix(*each, 2) for each in zip(truth, predicted, strict=True)])


def scores(confusion: Int64[ndarray, "k k"]) -> Scores:
    """Return the scores of one confusion matrix."""
    return Scores(**class_scores(confusion), accuracy=float(accuracy(confusion)))


def class_scores(confusion: ndarray) -> dict[str, Float64[ndarray, "*n k"]]:
    """Return iou, f1, precision and recall per class of matrices (..., k, k)."""
    return _scores_of_margins(*_margins(confusion))


def multilabel_class_scores(tables: ndarray) -> dict[str, Float64[ndarray, "*n k"]]:
    """Return iou, f1, precision and recall per overlapping class of matrices (..., k, 2, 2)."""
    return _scores_of_margins(*(margin[..., 1] for margin in _margins(tables)))


def _scores_of_margins(
    hits: Float64[ndarray, "*n k"], truth: Float64[ndarray, "*n k"], predicted: Float64[ndarray, "*n k"]
) -> dict[str, Float64[ndarray, "*n k"]]:
    absent = truth + predicted == 0
    return {
        "iou": _ratio(hits, truth + predicted - hits, absent),
        "f1": _ratio(2 * hits, truth + predicted, absent),
        "precision": _ratio(hits, predicted, absent),
        "recall": _ratio(hits, truth, absent),
    }


def overall_scores(confusion: ndarray) -> dict[str, Float64[ndarray, "*n"]]:
    """Return the scores of the whole map from matrices (..., k, k).

    These are accuracy and kappa; iou, f1, precision and recall of the positive class if binary, else their macro means;
    the macro means as macro_iou, ...; and means weighted by the support of the classes as weighted_iou, ...
    """
    by_class, binary = class_scores(confusion), confusion.shape[-1] == 2
    means = _means(by_class, _margins(confusion)[1])
    first = {name: by_class[name][..., 1] if binary else means[f"macro_{name}"] for name in HEADLINE_SCORES}
    return {"accuracy": accuracy(confusion), "kappa": kappa(confusion), **first, **means}


def multilabel_overall_scores(tables: ndarray) -> dict[str, Float64[ndarray, "*n"]]:
    """Return the same scores from binary matrices (..., k, 2, 2): iou, f1, precision and recall are macro means.

    accuracy is 1 - Hamming loss, the fraction of correct predictions over all pixels and classes. kappa is the mean
    over classes.
    """
    means = _means(multilabel_class_scores(tables), _margins(tables)[1][..., 1])
    first = {name: means[f"macro_{name}"] for name in HEADLINE_SCORES}
    # The sum over classes is the confusion matrix of all binary predictions.
    return {"accuracy": accuracy(tables.sum(axis=-3)), "kappa": nanmean(kappa(tables)), **first, **means}


def accuracy(confusion: ndarray) -> Float64[ndarray, "*n"]:
    """Return the fraction of correct pixels of matrices (..., k, k); NaN without pixels."""
    hits, truth, _ = _margins(confusion)
    total = truth.sum(axis=-1)
    return _ratio(hits.sum(axis=-1), total, total == 0)


def kappa(confusion: ndarray) -> Float64[ndarray, "*n"]:
    """Return Cohen's kappa of matrices (..., k, k): (accuracy - chance agreement) / (1 - chance agreement).

    Chance agreement assumes the same class proportions and independence of truth and prediction. NaN without pixels, or
    if truth and prediction are the same single class, where chance agreement is 1.
    """
    hits, truth, predicted = _margins(confusion)
    total = truth.sum(axis=-1)
    # Numerator and denominator are multiplied by total squared, so that only one division rounds.
    chance = (truth * predicted).sum(axis=-1)
    return _ratio(total * hits.sum(axis=-1) - chance, total * total - chance, total * total == chance)


def nanmean(values: Float64[ndarray, "*n k"]) -> Float64[ndarray, "*n"]:
    """Return the mean over the last axis ignoring NaN; NaN if all values are. Unlike `np.nanmean` it does not warn."""
    finite = ~np.isnan(values)
    count = finite.sum(axis=-1)
    return _ratio(np.where(finite, values, 0).sum(axis=-1), count, count == 0)


def _means(
    by_class: dict[str, Float64[ndarray, "*n k"]], truth: Float64[ndarray, "*n k"]
) -> dict[str, Float64[ndarray, "*n"]]:
    macro = {f"macro_{name}": nanmean(values) for name, values in by_class.items()}
    return macro | {f"weighted_{name}": _weighted_mean(values, truth) for name, values in by_class.items()}


def _weighted_mean(values: Float64[ndarray, "*n k"], weights: Float64[ndarray, "*n k"]) -> Float64[ndarray, "*n"]:
    # A class without a score has a weight of 0.
    total = weights.sum(axis=-1)
    return _ratio((np.where(weights > 0, values, 0) * weights).sum(axis=-1), total, total == 0)


def _margins(
    confusion: ndarray,
) -> tuple[Float64[ndarray, "*n k"], Float64[ndarray, "*n k"], Float64[ndarray, "*n k"]]:
    counts = confusion.astype(np.float64)
    return counts.diagonal(axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)


def _ratio(part: Any, whole: Any, absent: Any) -> Float64[ndarray, "*n"]:
    # Sums of a single matrix are numpy scalars. If the whole is 0, so is the part.
    ratio: Float64[ndarray, "*n"] = np.asarray(np.where(absent, np.nan, part / np.where(whole == 0, 1, whole)))
    return ratio
