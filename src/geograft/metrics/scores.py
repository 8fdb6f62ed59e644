"""Accuracy figures of a class map, all derived from one confusion matrix: rows are the truth, columns the prediction.

Every function takes one matrix (k, k) or many at once (..., k, k); the bootstrap of `geograft.metrics.intervals` hands
in thousands. Sum the matrices of all tiles first: the mean of scores by tile is another figure, and a wrong one.
Overlapping classes have a table each, (k, 2, 2) or (..., k, 2, 2): row 1 is in the class, column 1 is mapped as it.

A class that is neither in the truth nor in the prediction has no score (NaN) and is left out of means: nothing was
asked and nothing was claimed. A class that is in one of the two only scores 0 throughout, and counts: the map missed it
or made it up, and a mean that left it out would reward that. Sources of the formulas:

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

HEADLINES = ("iou", "f1", "precision", "recall")


@dataclass(frozen=True)
class Scores:
    """Scores by class index, 0 to 1; NaN for a class that is neither in the truth nor in the prediction.

    A class that is in one of the two only has every score 0.
    """

    iou: Float64[ndarray, " k"]
    """Pixels in both truth and prediction, over pixels in either."""
    f1: Float64[ndarray, " k"]
    """Harmonic mean of precision and recall; the Dice coefficient of the two pixel sets."""
    precision: Float64[ndarray, " k"]
    """Share of the class's predicted pixels that are right (user's accuracy)."""
    recall: Float64[ndarray, " k"]
    """Share of the class's true pixels that are found (producer's accuracy)."""
    accuracy: float
    """Share of all pixels that are right; NaN without any pixel."""

    def macro(self, score: str) -> float:
        """Return the mean of a score ("iou", "f1", "precision", "recall") over the classes that are not NaN."""
        return float(present_mean(getattr(self, score)))

    def headline(self) -> dict[str, float]:
        """Return iou, f1, precision and recall of class 1 where there are two classes, else their macro means."""
        binary = len(self.iou) == 2
        return {name: float(getattr(self, name)[1]) if binary else self.macro(name) for name in HEADLINES}


def confusion_of(
    truth: UInt8[ndarray, "*pixels"], predicted: UInt8[ndarray, "*pixels"], classes: int
) -> Int64[ndarray, "{classes} {classes}"]:
    """Return how many pixels of each true class (row) are mapped as each class (column); not those 255 in either."""
    known = (truth != IGNORE) & (predicted != IGNORE)
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    counts: ndarray = np.bincount(pairs, minlength=classes**2).astype(np.int64)
    return counts.reshape(classes, classes)


def tables_of(truth: UInt8[ndarray, "k h w"], predicted: UInt8[ndarray, "k h w"]) -> Int64[ndarray, "k 2 2"]:
    """Return for each overlapping class how many pixels outside (row 0) and inside (1) are mapped so; not those 255."""
    return np.stack([confusion_of(*each, 2) for each in zip(truth, predicted, strict=True)])


def scores(confusion: Int64[ndarray, "k k"]) -> Scores:
    """Return the scores of one confusion matrix of pixel counts."""
    return Scores(**class_scores(confusion), accuracy=float(accuracy(confusion)))


def class_scores(confusion: ndarray) -> dict[str, Float64[ndarray, "*n k"]]:
    """Return iou, f1, precision and recall by class of matrices (..., k, k)."""
    return _of_margins(*_margins(confusion))


def table_scores(tables: ndarray) -> dict[str, Float64[ndarray, "*n k"]]:
    """Return iou, f1, precision and recall by overlapping class of tables (..., k, 2, 2)."""
    return _of_margins(*(margin[..., 1] for margin in _margins(tables)))


def _of_margins(
    hits: Float64[ndarray, "*n k"], truth: Float64[ndarray, "*n k"], predicted: Float64[ndarray, "*n k"]
) -> dict[str, Float64[ndarray, "*n k"]]:
    absent = truth + predicted == 0
    return {
        "iou": _share(hits, truth + predicted - hits, absent),
        "f1": _share(2 * hits, truth + predicted, absent),
        "precision": _share(hits, predicted, absent),
        "recall": _share(hits, truth, absent),
    }


def overall_scores(confusion: ndarray) -> dict[str, Float64[ndarray, "*n"]]:
    """Return the figures of the whole map, of matrices (..., k, k).

    accuracy, kappa; iou, f1, precision and recall of class 1 where there are two classes, else their means over the
    classes; and these means as macro_iou, ... and weighted by the classes' share of the truth as weighted_iou, ...
    """
    by_class, binary = class_scores(confusion), confusion.shape[-1] == 2
    means = _means(by_class, _margins(confusion)[1])
    first = {name: by_class[name][..., 1] if binary else means[f"macro_{name}"] for name in HEADLINES}
    return {"accuracy": accuracy(confusion), "kappa": kappa(confusion), **first, **means}


def overall_table_scores(tables: ndarray) -> dict[str, Float64[ndarray, "*n"]]:
    """Return the same figures of tables (..., k, 2, 2): iou, f1, precision and recall are means over the classes.

    accuracy is the share of all answers that are right, one a pixel and class (1 less the Hamming loss); kappa is the
    mean over the classes.
    """
    means = _means(table_scores(tables), _margins(tables)[1][..., 1])
    first = {name: means[f"macro_{name}"] for name in HEADLINES}
    # Answers of all classes together make one table.
    return {"accuracy": accuracy(tables.sum(axis=-3)), "kappa": present_mean(kappa(tables)), **first, **means}


def accuracy(confusion: ndarray) -> Float64[ndarray, "*n"]:
    """Return the share of all pixels that are right, of matrices (..., k, k); NaN without any pixel."""
    hits, truth, _ = _margins(confusion)
    total = truth.sum(axis=-1)
    return _share(hits.sum(axis=-1), total, total == 0)


def kappa(confusion: ndarray) -> Float64[ndarray, "*n"]:
    """Return Cohen's kappa of matrices (..., k, k): (right - right by chance) / (1 - right by chance).

    By chance means: with the same shares of classes in truth and map, and no relation between them. NaN where there is
    no pixel, or where chance alone is always right because truth and map are one and the same class.
    """
    hits, truth, predicted = _margins(confusion)
    total = truth.sum(axis=-1)
    # Both sides of the fraction times the square of the total: nothing is divided before the end.
    chance = (truth * predicted).sum(axis=-1)
    return _share(total * hits.sum(axis=-1) - chance, total * total - chance, total * total == chance)


def present_mean(values: Float64[ndarray, "*n k"]) -> Float64[ndarray, "*n"]:
    """Return the mean over the last axis without what is NaN; NaN where everything is."""
    there = ~np.isnan(values)
    count = there.sum(axis=-1)
    return _share(np.where(there, values, 0).sum(axis=-1), count, count == 0)


def _means(
    by_class: dict[str, Float64[ndarray, "*n k"]], truth: Float64[ndarray, "*n k"]
) -> dict[str, Float64[ndarray, "*n"]]:
    macro = {f"macro_{name}": present_mean(values) for name, values in by_class.items()}
    return macro | {f"weighted_{name}": _weighted_mean(values, truth) for name, values in by_class.items()}


def _weighted_mean(values: Float64[ndarray, "*n k"], weights: Float64[ndarray, "*n k"]) -> Float64[ndarray, "*n"]:
    # A class without a score has no weight either.
    total = weights.sum(axis=-1)
    return _share((np.where(weights > 0, values, 0) * weights).sum(axis=-1), total, total == 0)


def _margins(
    confusion: ndarray,
) -> tuple[Float64[ndarray, "*n k"], Float64[ndarray, "*n k"], Float64[ndarray, "*n k"]]:
    counts = confusion.astype(np.float64)
    return counts.diagonal(axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)


def _share(part: Any, whole: Any, absent: Any) -> Float64[ndarray, "*n"]:
    # Sums of a single matrix are numpy's scalars. Where the whole is 0 so is the part.
    share: Float64[ndarray, "*n"] = np.asarray(np.where(absent, np.nan, part / np.where(whole == 0, 1, whole)))
    return share
