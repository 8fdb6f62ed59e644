"""Error rasters of scenes, and the tiles with the highest error rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8, UInt16
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.legend import IGNORE
from geograft.metrics.confusion import ConfusionScheme, confusion_matrix

CORRECT, FALSE_NEGATIVE, FALSE_POSITIVE = 0, 1, 2
"""Values of a binary error raster."""
MAX_UINT8_CLASSES = 15
"""Maximum number of classes for which all pairs of classes fit into uint8."""
MIN_LABELLED_FRACTION = 0.1
"""Minimum labelled fraction of a tile to be ranked."""


@dataclass(frozen=True)
class TileRanking:
    """Tiles in descending order of error rate."""

    tiles: Int[ndarray, " n"]
    """Indices into the input tiles."""
    error_rate: Float64[ndarray, " n"]
    """Fraction of the labelled pixels that are misclassified."""
    iou: Float64[ndarray, " n"]
    """IoU of the positive class if binary (NaN if it is absent), else the mean over the classes present in the tile."""


def error_raster(
    truth: UInt8[ndarray, "h w"], predicted: UInt8[ndarray, "h w"], classes: int
) -> UInt8[ndarray, "h w"] | UInt16[ndarray, "h w"]:
    """Return the error of every pixel: 0 correct, 255 not labelled or not mapped.

    Binary: 1 is a false negative, 2 a false positive. Multiclass: 1 + label * classes + prediction, see `error_names`;
    uint16 with more than 15 classes, where 65535 is not labelled.
    """
    dtype, unknown = (np.uint8, IGNORE) if classes <= MAX_UINT8_CLASSES else (np.uint16, 65535)
    wrong = truth != predicted
    if classes == 2:
        values = np.where(wrong, np.where(truth == 1, FALSE_NEGATIVE, FALSE_POSITIVE), CORRECT)
    else:
        values = np.where(wrong, 1 + truth.astype(np.int32) * classes + predicted, CORRECT)
    values = np.where((truth == IGNORE) | (predicted == IGNORE), unknown, values)
    raster: UInt8[ndarray, "h w"] | UInt16[ndarray, "h w"] = values.astype(dtype)
    return raster


def error_names(names: Sequence[str]) -> dict[int, str]:
    """Return the meaning of each value of an error raster, in ascending order.

    >>> error_names(("other", "tree"))
    {0: 'correct', 1: 'tree: false negative', 2: 'tree: false positive'}
    >>> error_names(("a", "b", "c"))[3]
    'a mapped as c'
    """
    if len(names) == 2:
        return {
            CORRECT: "correct",
            FALSE_NEGATIVE: f"{names[1]}: false negative",
            FALSE_POSITIVE: f"{names[1]}: false positive",
        }
    count = len(names)
    errors = {
        1 + i * count + j: f"{label} mapped as {mapped}"
        for i, label in enumerate(names)
        for j, mapped in enumerate(names)
        if i != j
    }
    return {CORRECT: "correct"} | errors


def tile_counts(
    truth: UInt8[ndarray, "h w"], predicted: UInt8[ndarray, "h w"], windows: Sequence[Window], classes: int
) -> Int64[ndarray, "n {classes} {classes}"]:
    """Return the confusion matrix of every window of a scene: labels in rows, predictions in columns.

    Pixels that are 255 in either and pixels outside the scene are ignored.
    """
    counts = [confusion_matrix(truth[window.slices], predicted[window.slices], classes) for window in windows]
    return np.array(counts, np.int64).reshape(len(windows), classes, classes)


def worst_tiles(
    counts: Int64[ndarray, "n ..."],
    tile_px: int,
    max_tiles: int = 20,
    min_labelled: float = MIN_LABELLED_FRACTION,
    overlapping: bool = False,
) -> TileRanking:
    """Return at most `max_tiles` tiles ranked by error rate, then by number of wrong pixels.

    `counts` are confusion matrices (n, k, k), or binary matrices (n, k, 2, 2) of `overlapping` classes, which count
    each pixel once per class. Tiles with a labelled fraction below `min_labelled` or without errors are left out.
    """
    scheme = ConfusionScheme(counts.shape[1], overlapping)
    total, correct = scheme.total(counts), np.trace(counts, axis1=-2, axis2=-1)
    wrong = total - (correct.sum(axis=-1) if overlapping else correct)
    error_rate = wrong / np.maximum(total, 1)
    order = np.lexsort((-wrong, -error_rate))
    max_total = tile_px**2 * (scheme.classes if overlapping else 1)
    order = order[(total[order] >= max(min_labelled * max_total, 1)) & (wrong[order] > 0)][:max_tiles]
    return TileRanking(order, error_rate[order], scheme.overall(counts[order])["iou"])
