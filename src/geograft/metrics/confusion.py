"""Confusion matrices and their scores for multiclass and multilabel (overlapping) classes.

Mutually exclusive classes are counted in one matrix (K, K): rows are labels, columns predictions. With overlapping
classes a pixel can belong to several classes or to none, so each class has a binary matrix of its own (K, 2, 2), as in
scikit-learn's `multilabel_confusion_matrix`. `ConfusionScheme` hides the difference from its callers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.legend import IGNORE, Legend
from geograft.metrics.scores import (
    HEADLINE_SCORES,
    class_scores,
    confusion_matrix,
    multilabel_class_scores,
    multilabel_confusion_matrix,
    multilabel_overall_scores,
    overall_scores,
)


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
