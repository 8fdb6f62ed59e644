"""Accuracy figures of a class map, all derived from one confusion matrix."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

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
        values: Float64[ndarray, " k"] = getattr(self, score)
        present = values[~np.isnan(values)]
        return float(present.mean()) if present.size else float("nan")

    def headline(self) -> dict[str, float]:
        """Return iou, f1, precision and recall of class 1 where there are two classes, else their macro means."""
        binary = len(self.iou) == 2
        return {name: float(getattr(self, name)[1]) if binary else self.macro(name) for name in HEADLINES}


def scores(confusion: Int64[ndarray, "k k"]) -> Scores:
    """Return the scores of a confusion matrix of pixel counts: rows are the truth, columns the prediction.

    Sum the matrices of all tiles first: the mean of scores by tile is another figure, and a wrong one.
    """
    hits = confusion.diagonal().astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    absent = truth + predicted == 0
    return Scores(
        iou=_share(hits, truth + predicted - hits, absent),
        f1=_share(2 * hits, truth + predicted, absent),
        precision=_share(hits, predicted, absent),
        recall=_share(hits, truth, absent),
        accuracy=float(hits.sum() / confusion.sum()) if confusion.any() else float("nan"),
    )


def _share(part: ndarray, whole: ndarray, absent: ndarray) -> Float64[ndarray, " k"]:
    # Where the whole is 0 so is the part.
    return np.where(absent, np.nan, part / np.maximum(whole, 1))
