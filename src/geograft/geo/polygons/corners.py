"""Corners of pixels at which outlines turn or meet: what simplifying and smoothing must know of a region's neighbours.

All that is said of a corner is found in the four pixels around it, and so is the same in every block that sees them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64
from numpy import ndarray

from geograft.geo.grid import Window

MOST_LOOKS = 2**20
"""Pixels that are looked at in one go."""


@dataclass(frozen=True)
class Corners:
    """Places in whole pixels, (column, row)."""

    turns: Int64[ndarray, "n 2"]
    """Where an outline turns or outlines meet: every vertex that any outline has."""
    nodes: Int64[ndarray, "m 2"]
    """Where three outlines or more meet: what several regions' outlines must share."""


NO_CORNERS = Corners(np.empty((0, 2), np.int64), np.empty((0, 2), np.int64))


def corners(values: Int64[ndarray, "h w"], row: int, col: int) -> Corners:
    """Return the corners between the pixels of `values`, whose first one lies at (`row`, `col`) of the raster.

    A pixel that belongs to no region has a value of its own.
    """
    a, b, c, d = values[:-1, :-1], values[:-1, 1:], values[1:, :-1], values[1:, 1:]
    turns = ~(((a == b) & (c == d)) | ((a == c) & (b == d)))
    # Of four pixels, three are equal at a plain turn. What is left has three values, or two that touch crosswise.
    plain = ((a == b) & ((a == c) | (a == d))) | ((c == d) & ((a == c) | (b == c)))
    shift = np.array([col + 1, row + 1])
    return Corners(*(np.argwhere(found)[:, ::-1].astype(np.int64) + shift for found in (turns, turns & ~plain)))


def by_label(
    points: Int64[ndarray, "n 2"],
    labels: Int32[ndarray, "h w"],
    window: Window,
    wanted: Bool[ndarray, " k"],
    reach: int,
) -> dict[int, Int64[ndarray, "_ 2"]]:
    """Return those points that lie within `reach` pixels, rows and columns, of a pixel of each wanted label.

    `labels` are those of `window`; `wanted` tells by label. Time: (2 reach)^2 looks at every point.
    """
    places = points - [window.col, window.row]
    step = max(1, MOST_LOOKS // (2 * reach) ** 2)
    looks = [_seen(places, labels, wanted, reach, start, step) for start in range(0, len(points), step)]
    owners, index = np.divmod(np.concatenate([np.empty(0, np.int64), *looks]), max(len(points), 1))
    order = np.argsort(owners, kind="stable")
    firsts, cuts = np.unique(owners[order], return_index=True)
    groups = np.split(points[index[order]], cuts[1:])
    return dict(zip(firsts.tolist(), groups, strict=False))


def _seen(
    places: Int64[ndarray, "n 2"],
    labels: Int32[ndarray, "h w"],
    wanted: Bool[ndarray, " k"],
    reach: int,
    start: int,
    step: int,
) -> Int64[ndarray, " m"]:
    """Return label * n + index of every wanted label that is seen from `step` places."""
    looks = np.arange(-reach, reach)
    some = places[start : start + step]
    rows, cols = some[:, 1, None, None] + looks[:, None], some[:, 0, None, None] + looks
    height, width = labels.shape
    inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    found = np.where(inside, labels[rows.clip(0, height - 1), cols.clip(0, width - 1)], 0)
    index = np.broadcast_to(np.arange(start, start + len(some))[:, None, None], found.shape)
    chosen = wanted[found]
    return np.unique(found[chosen].astype(np.int64) * len(places) + index[chosen])
