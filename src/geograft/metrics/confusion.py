"""How right and wrong pixels are counted, and what is read from the counts: by K x K matrix, or by a table a class.

Classes that exclude each other are counted in one matrix (K, K): rows are the truth, columns the map. Of overlapping
classes a pixel may be of several or of none, so that each has a table of its own (K, 2, 2): row 1 is in the class,
column 1 is mapped as it. Whoever counts pixels asks here and need not know which of the two it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.legend import IGNORE, Legend
from geograft.metrics.scores import (
    HEADLINES,
    class_scores,
    confusion_of,
    overall_scores,
    overall_table_scores,
    table_scores,
    tables_of,
)


@dataclass(frozen=True)
class Counting:
    """Counts are arrays of `shape`, or many of them (..., *shape), and those of parts add up."""

    classes: int
    overlapping: bool = False

    @classmethod
    def of(cls, legend: Legend) -> "Counting":
        """Return how pixels of these classes are counted."""
        return cls(len(legend.names), legend.overlapping)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the counts of one map."""
        return (self.classes, 2, 2) if self.overlapping else (self.classes, self.classes)

    @property
    def binary(self) -> bool:
        """Whether the figures are those of class 1 of two, and not means over the classes."""
        return self.classes == 2 and not self.overlapping

    def none(self, *many: int) -> Int64[ndarray, "..."]:
        """Return the counts of no pixel, `many` times."""
        return np.zeros((*many, *self.shape), np.int64)

    def classed(self, label: UInt8[ndarray, "*kn h w"] | Float32[ndarray, "o h w"]) -> UInt8[ndarray, "..."]:
        """Return the classes of a label, as maps have them: (H, W) indices, or (K, H, W) of 0 and 1; 255 not known.

        Of shares, a pixel is of the class that has most of it; of overlapping classes, and of class 1 of two, from one
        half on.
        """
        if label.dtype == np.uint8:
            return label
        if self.overlapping:
            return np.where(np.isfinite(label), label >= 0.5, IGNORE).astype(np.uint8)
        index: ndarray = label[0] >= 0.5 if len(label) == 1 else label.argmax(axis=0)
        return np.where(np.isfinite(label).all(axis=0), index, IGNORE).astype(np.uint8)

    def decided(self, probabilities: Float32[ndarray, "*n k h w"], cuts: Sequence[float]) -> UInt8[ndarray, "..."]:
        """Return the classes that a map shows where the classes have these probabilities.

        `cuts` are the least probability of class 1 of two, or of each overlapping class.
        """
        if self.overlapping:
            return (probabilities >= np.array(cuts, np.float32)[:, None, None]).astype(np.uint8)
        index: ndarray = probabilities[..., 1, :, :] >= cuts[0] if self.binary else probabilities.argmax(axis=-3)
        return index.astype(np.uint8)

    def answers(
        self, classes: UInt8[ndarray, "*kn h w"], probabilities: Float32[ndarray, "k h w"]
    ) -> tuple[UInt8[ndarray, " n"], Float32[ndarray, "c n"]]:
        """Return the classes that are known, and the probability of each class there.

        Of overlapping classes, each is an answer by itself, of two: to be of the class (1) or not (0).
        """
        known = classes != IGNORE
        if not self.overlapping:
            return classes[known], probabilities[:, known]
        own = probabilities[known]
        return classes[known], np.stack([1 - own, own])

    def counts(self, truth: UInt8[ndarray, "*pixels"], mapped: UInt8[ndarray, "*pixels"]) -> Int64[ndarray, "..."]:
        """Return the counts of the classes of labels and of a map, without what is 255 in one of the two."""
        if self.overlapping:
            return tables_of(truth, mapped)
        return confusion_of(truth, mapped, self.classes)

    def by_class(self, counts: ndarray) -> dict[str, Float64[ndarray, "*n k"]]:
        """Return iou, f1, precision and recall by class of counts (..., *shape)."""
        return table_scores(counts) if self.overlapping else class_scores(counts)

    def overall(self, counts: ndarray) -> dict[str, Float64[ndarray, "*n"]]:
        """Return the figures of the whole map of counts (..., *shape): see `geograft.metrics.scores.overall_scores`."""
        return overall_table_scores(counts) if self.overlapping else overall_scores(counts)

    def headline(self, counts: ndarray) -> dict[str, float]:
        """Return iou, f1, precision and recall of class 1 of two, else their means over the classes."""
        found = self.overall(counts)
        return {name: float(found[name]) for name in HEADLINES}

    def labelled(self, counts: ndarray) -> Shaped[ndarray, "*n k"]:
        """Return how many pixels are labelled as each class, of counts (..., *shape)."""
        pixels: ndarray = counts[..., 1, :].sum(axis=-1) if self.overlapping else counts.sum(axis=-1)
        return pixels

    def pixels(self, counts: ndarray) -> int:
        """Return how many pixels one map's counts are of; of overlapping classes, of the one that most are known of."""
        return int(counts.sum(axis=(-2, -1)).max())

    def total(self, counts: ndarray) -> Int64[ndarray, "*n"]:
        """Return how many answers are counted: one a pixel, or one a pixel and overlapping class."""
        return np.asarray(counts.sum(axis=tuple(range(-len(self.shape), 0))))


def known_in(label: UInt8[ndarray, "*kn h w"]) -> Bool[ndarray, "h w"]:
    """Return which pixels have a label, of any class where they have one of each."""
    known = np.asarray(label != IGNORE)
    return known if known.ndim == 2 else np.asarray(known.any(axis=0))
