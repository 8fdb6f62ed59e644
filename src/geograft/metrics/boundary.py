"""Counts of matched boundary pixels between two class maps. Counts can be summed over scenes and blocks.

They give the boundary scores of Csurka et al. (2013, "What is a good evaluation measure for semantic segmentation?",
BMVC, section 3): precision is the matched fraction of a class's predicted boundary pixels, recall the matched fraction
of its true boundary pixels, and the boundary F1 their harmonic mean. The F measure of Perazzi et al. (2016, "A
benchmark dataset and evaluation methodology for video object segmentation", CVPR, section 4.1) is the same.
"""

import math

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray
from scipy.ndimage import distance_transform_edt

from geograft.geo.grid import Window
from geograft.legend import IGNORE

SLACK_PX = 1e-9
"""Tolerance for rounding errors in metres / pixel size: 0.9 / 0.3 is not exactly 3."""


def boundary_counts(
    truth: UInt8[ndarray, "h w"],
    predicted: UInt8[ndarray, "h w"],
    k: int,
    tolerance_px: float,
    core: Window | None = None,
) -> Int64[ndarray, "{k} 4"]:
    """Return per class: matched predicted, all predicted, matched true and all true boundary pixels.

    A boundary pixel of class c is a pixel of c with a 4-neighbour of another class. It is matched when the other map
    has a boundary pixel of c at a distance of at most `tolerance_px` between pixel centres. Pixels that are 255 in
    either map are ignored in both. Neither they nor the array border create boundaries, so a boundary whose counterpart
    lies under ignored pixels is not matched.

    With `core`, only boundary pixels inside that window are counted; the rest is context for matching. Sums over
    disjoint blocks equal the counts of the whole scene if each block has a margin of `margin_px(tolerance_px)`.

    Time: two distance transforms per class over the bounding box of its boundaries, about 0.2 s per megapixel and
    class. Memory: 40 bytes per pixel.
    """
    unknown = (truth == IGNORE) | (predicted == IGNORE)
    edges = boundary_mask(truth, unknown), boundary_mask(predicted, unknown)
    counted = np.ones(truth.shape, bool) if core is None else _inside(core, truth.shape)
    counts = np.zeros((k, 4), np.int64)
    for c in range(k):
        true, pred = edges[0] & (truth == c), edges[1] & (predicted == c)
        box = _box(true | pred)
        true, pred, inside = true[box], pred[box], counted[box]
        counts[c] = [
            (_near(true, tolerance_px) & pred & inside).sum(),
            (pred & inside).sum(),
            (_near(pred, tolerance_px) & true & inside).sum(),
            (true & inside).sum(),
        ]
    return counts


def boundary_mask(labels: UInt8[ndarray, "h w"], unknown: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Return a mask of pixels with a 4-neighbour of another class. Unknown pixels are ignored on both sides."""
    edges = np.zeros(labels.shape, bool)
    for one, other in ((np.s_[1:, :], np.s_[:-1, :]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[one] != labels[other]) & ~unknown[one] & ~unknown[other]
        edges[one] |= differ
        edges[other] |= differ
    return edges


def margin_px(tolerance_px: float) -> int:
    """Return the margin around a block that its boundary pixels need for matching, in pixels."""
    return math.ceil(tolerance_px) + 1


def _near(edge: Bool[ndarray, "h w"], tolerance_px: float) -> Bool[ndarray, "h w"]:
    """Return a mask of pixels within `tolerance_px` of an edge pixel; all False without edges."""
    if not edge.any():
        return edge
    near: Bool[ndarray, "h w"] = distance_transform_edt(~edge) <= tolerance_px + SLACK_PX
    return near


def _inside(core: Window, shape: tuple[int, ...]) -> Bool[ndarray, "h w"]:
    inside = np.zeros(shape, bool)
    inside[core.slices] = True
    return inside


def _box(mask: Bool[ndarray, "h w"]) -> tuple[slice, slice]:
    """Return the bounding box of the True pixels; an empty box if there are none."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)) if rows.size else (slice(0), slice(0))
