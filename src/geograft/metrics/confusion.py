"""Confusion matrices, with the truth in rows and predictions in columns, and the accuracy scores derived from them.

Mutually exclusive classes are counted in one matrix (K, K). With overlapping classes a pixel can belong to several
classes or to none, so each class has a binary matrix of its own (K, 2, 2), as in scikit-learn's
`multilabel_confusion_matrix`: row 1 is labelled as the class, column 1 predicted as it. `ConfusionScheme` hides the
difference from its callers.

Every score is of one matrix or of a batch (..., k, k), as the bootstrap of `geograft.metrics.intervals` needs. Sum the
matrices of all tiles first: the mean of per-tile scores is biased.

A class in neither truth nor prediction has no score (NaN) and is left out of means. A class in only one of them scores
0 and counts in means: leaving it out would reward missed or invented classes. Sources of the formulas:

* IoU: Jaccard (1912), New Phytologist 11, p. 40; F1: Dice (1945), Ecology 26, p. 298.
* precision and recall are user's and producer's accuracy: Congalton (1991), Remote Sens. Environ. 37, p. 36.
* kappa: Cohen (1960), Educ. Psychol. Meas. 20, eq. 1.
* mean and frequency-weighted IoU: Long, Shelhamer & Darrell (2015), CVPR, section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.legend import IGNORE, Legend

HEADLINE_SCORES = ("iou", "f1", "precision", "recall")


@dataclass(frozen=True)
class ConfusionScheme:
    """Layout of confusion counts: arrays of `shape`, or batches (..., *shape). Counts can be summed."""

    classes: int
    overlapping: bool = False

    @classmethod
    def from_legend(cls, legend: Legend) -> "ConfusionScheme":
        """Return the scheme for the classes of a legend."""
        return cls(len(legend.names), legend.overlapping)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the confusion counts of one map."""
        return (self.classes, 2, 2) if self.overlapping else (self.classes, self.classes)

    @property
    def binary(self) -> bool:
        """Whether scores are those of the positive class (class 1 of two), not means over classes."""
        return self.classes == 2 and not self.overlapping

    def zeros(self, *batch: int) -> Int64[ndarray, "..."]:
        """Return counts of zero with leading dimensions `batch`."""
        return np.zeros((*batch, *self.shape), np.int64)

    def to_classes(self, label: UInt8[ndarray, "*kn h w"] | Float32[ndarray, "o h w"]) -> UInt8[ndarray, "..."]:
        """Return a label as class indices (H, W), or as 0 and 1 per overlapping class (K, H, W); 255 is unknown.

        Fractional labels become the class with the largest fraction; binary and overlapping classes are positive from
        0.5.
        """
        if label.dtype == np.uint8:
            return label
        if self.overlapping:
            return np.where(np.isfinite(label), label >= 0.5, IGNORE).astype(np.uint8)
        index: ndarray = label[0] >= 0.5 if len(label) == 1 else label.argmax(axis=0)
        return np.where(np.isfinite(label).all(axis=0), index, IGNORE).astype(np.uint8)

    def apply_thresholds(
        self, probabilities: Float32[ndarray, "*n k h w"], thresholds: Sequence[float]
    ) -> UInt8[ndarray, "..."]:
        """Return the predicted classes: at the thresholds if binary or overlapping, else the most probable class.

        `thresholds` are the minimum probabilities of the positive class, or of each overlapping class.
        """
        if self.overlapping:
            return (probabilities >= np.array(thresholds, np.float32)[:, None, None]).astype(np.uint8)
        index: ndarray = probabilities[..., 1, :, :] >= thresholds[0] if self.binary else probabilities.argmax(axis=-3)
        return index.astype(np.uint8)

    def flatten_known(
        self, classes: UInt8[ndarray, "*kn h w"], probabilities: Float32[ndarray, "k h w"]
    ) -> tuple[UInt8[ndarray, " n"], Float32[ndarray, "c n"]]:
        """Return the known labels and the class probabilities at those pixels, flattened.

        Each overlapping class of a pixel is a binary label of its own: 1 inside the class, 0 outside.
        """
        known = classes != IGNORE
        if not self.overlapping:
            return classes[known], probabilities[:, known]
        own = probabilities[known]
        return classes[known], np.stack([1 - own, own])

    def confusion(self, truth: UInt8[ndarray, "*pixels"], mapped: UInt8[ndarray, "*pixels"]) -> Int64[ndarray, "..."]:
        """Return the confusion counts of a label and a prediction. Pixels that are 255 in either are ignored."""
        if self.overlapping:
            return multilabel_confusion_matrix(truth, mapped)
        return confusion_matrix(truth, mapped, self.classes)

    def by_class(self, counts: ndarray) -> dict[str, Float64[ndarray, "*n k"]]:
        """Return iou, f1, precision and recall per class from counts (..., *shape)."""
        return multilabel_class_scores(counts) if self.overlapping else class_scores(counts)

    def overall(self, counts: ndarray) -> dict[str, Float64[ndarray, "*n"]]:
        """Return the scores of the whole map from counts (..., *shape); see `overall_scores`."""
        return multilabel_overall_scores(counts) if self.overlapping else overall_scores(counts)

    def headline(self, counts: ndarray) -> dict[str, float]:
        """Return iou, f1, precision and recall of the positive class if binary, else their means over classes."""
        overall = self.overall(counts)
        return {name: float(overall[name]) for name in HEADLINE_SCORES}

    def support(self, counts: ndarray) -> Shaped[ndarray, "*n k"]:
        """Return the number of pixels labelled as each class, from counts (..., *shape)."""
        pixels: ndarray = counts[..., 1, :].sum(axis=-1) if self.overlapping else counts.sum(axis=-1)
        return pixels

    def pixels(self, counts: ndarray) -> int:
        """Return the number of pixels in the counts of one map; the largest over overlapping classes."""
        return int(counts.sum(axis=(-2, -1)).max())

    def total(self, counts: ndarray) -> Int64[ndarray, "*n"]:
        """Return the number of predictions counted: one per pixel, or one per pixel and overlapping class."""
        return np.asarray(counts.sum(axis=tuple(range(-len(self.shape), 0))))


def known_mask(label: UInt8[ndarray, "*kn h w"]) -> Bool[ndarray, "h w"]:
    """Return a mask of labelled pixels; with overlapping classes, of pixels labelled for at least one class."""
    known = np.asarray(label != IGNORE)
    return known if known.ndim == 2 else np.asarray(known.any(axis=0))


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
