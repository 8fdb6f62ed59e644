"""Where a map is wrong: an error raster of a scene, and the tiles in which the most is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64, UInt8, UInt16
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.legend import IGNORE
from geograft.metrics.confusion import Counting
from geograft.metrics.scores import confusion_of

RIGHT, MISSED, FALSE = 0, 1, 2
"""Values of an error raster of two classes."""
MOST_IN_BYTES = 15
"""Classes of which every pair has a value of eight bits."""
LEAST_LABELLED = 0.1
"""Share of a tile that must be labelled for the tile to be ranked."""


@dataclass(frozen=True)
class Ranked:
    """Tiles in which the most is wrong, the worst first."""

    tiles: Int[ndarray, " n"]
    """Positions among the tiles that were given."""
    wrong: Float64[ndarray, " n"]
    """Share of the labelled pixels that are mapped as another class."""
    iou: Float64[ndarray, " n"]
    """Of class 1 of two, else the mean over the classes that are labelled or mapped in the tile; NaN where two classes
    leave nothing of class 1."""


def error_raster(
    truth: UInt8[ndarray, "h w"], predicted: UInt8[ndarray, "h w"], classes: int
) -> UInt8[ndarray, "h w"] | UInt16[ndarray, "h w"]:
    """Return what is wrong at every pixel: 0 right, 255 not labelled or not mapped.

    Of two classes: 1 where class 1 is missed, 2 where it is mapped falsely. Of more: 1 + label * classes + map, see
    `error_names`, in 16 bits beyond 15 classes, where 65535 stands for not labelled.
    """
    dtype, unknown = (np.uint8, IGNORE) if classes <= MOST_IN_BYTES else (np.uint16, 65535)
    wrong = truth != predicted
    if classes == 2:
        values = np.where(wrong, np.where(truth == 1, MISSED, FALSE), RIGHT)
    else:
        values = np.where(wrong, 1 + truth.astype(np.int32) * classes + predicted, RIGHT)
    values = np.where((truth == IGNORE) | (predicted == IGNORE), unknown, values)
    found: UInt8[ndarray, "h w"] | UInt16[ndarray, "h w"] = values.astype(dtype)
    return found


def error_names(names: Sequence[str]) -> dict[int, str]:
    """Return what the values of an error raster mean, in ascending order.

    >>> error_names(("other", "tree"))
    {0: 'right', 1: 'tree missed', 2: 'tree mapped falsely'}
    >>> error_names(("a", "b", "c"))[3]
    'a mapped as c'
    """
    if len(names) == 2:
        return {RIGHT: "right", MISSED: f"{names[1]} missed", FALSE: f"{names[1]} mapped falsely"}
    count = len(names)
    wrong = {
        1 + i * count + j: f"{label} mapped as {mapped}"
        for i, label in enumerate(names)
        for j, mapped in enumerate(names)
        if i != j
    }
    return {RIGHT: "right"} | wrong


def tile_counts(
    truth: UInt8[ndarray, "h w"], predicted: UInt8[ndarray, "h w"], windows: Sequence[Window], classes: int
) -> Int64[ndarray, "n {classes} {classes}"]:
    """Return the confusion matrix of every window of a scene: pixels by label (rows) and map (columns).

    Pixels that are 255 in either, and those outside the scene, are not counted.
    """
    counts = [confusion_of(truth[window.slices], predicted[window.slices], classes) for window in windows]
    return np.array(counts, np.int64).reshape(len(windows), classes, classes)


def worst_tiles(
    counts: Int64[ndarray, "n ..."],
    tile_px: int,
    most: int = 20,
    least: float = LEAST_LABELLED,
    overlapping: bool = False,
) -> Ranked:
    """Return at most `most` tiles, ranked by the share of their labelled pixels that is wrong, then by its number.

    `counts` are confusion matrices (n, k, k), or of `overlapping` classes tables (n, k, 2, 2): then a pixel counts once
    for each class. Tiles with a smaller share of labelled pixels than `least` are left out, and those where nothing is
    wrong.
    """
    counting = Counting(counts.shape[1], overlapping)
    total, right = counting.total(counts), np.trace(counts, axis1=-2, axis2=-1)
    wrong = total - (right.sum(axis=-1) if overlapping else right)
    share = wrong / np.maximum(total, 1)
    order = np.lexsort((-wrong, -share))
    whole = tile_px**2 * (counting.classes if overlapping else 1)
    order = order[(total[order] >= max(least * whole, 1)) & (wrong[order] > 0)][:most]
    return Ranked(order, share[order], counting.overall(counts[order])["iou"])
