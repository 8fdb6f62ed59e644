"""Rasters at half their resolution, for viewers that zoom out. Pixels of nodata have no say."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

Rule = Literal["mode", "average"]
"""How four pixels become one: the most frequent value, for classes; the mean, for numbers."""


def halved(pixels: Shaped[ndarray, "b h w"], rule: Rule, nodata: float | None) -> Shaped[ndarray, "b hh hw"]:
    """Return (b, ceil(h / 2), ceil(w / 2)) pixels, each from the two by two under it that are not nodata.

    Of values that are equally frequent the first counts, in the order of reading. Means of whole numbers are rounded
    half up.
    """
    blank = np.asarray(0 if nodata is None else nodata, pixels.dtype)
    bands, height, width = pixels.shape
    even = np.full((bands, height + height % 2, width + width % 2), blank, pixels.dtype)
    even[:, :height, :width] = pixels
    known = np.zeros(even.shape, bool)
    known[:, :height, :width] = True if nodata is None else ~_is(pixels, blank)
    fours, there = _fours(even), _fours(known)
    found = _mean(fours, there) if rule == "average" else _most_frequent(fours, there)
    return np.where(there.any(axis=0), found, blank)


def blocks_above(filled: Bool[ndarray, "rows cols"]) -> Bool[ndarray, "r c"]:
    """Return which blocks of the halved raster lie over a filled one."""
    rows, cols = filled.shape
    even = np.zeros((1, rows + rows % 2, cols + cols % 2), bool)
    even[0, :rows, :cols] = filled
    above: Bool[ndarray, "1 r c"] = np.logical_or.reduce(_fours(even))
    return above.reshape(above.shape[1:])


def _is(pixels: Shaped[ndarray, "b h w"], value: Shaped[ndarray, ""]) -> Bool[ndarray, "b h w"]:
    same: ndarray = np.isnan(pixels) if np.isnan(value) else pixels == value
    return same


def _fours(pixels: Shaped[ndarray, "b h w"]) -> Shaped[ndarray, "4 b hh hw"]:
    return np.stack([pixels[:, row::2, col::2] for row in (0, 1) for col in (0, 1)])


def _mean(fours: Shaped[ndarray, "4 b h w"], there: Bool[ndarray, "4 b h w"]) -> Shaped[ndarray, "b h w"]:
    whole = fours.dtype.kind in "ui"
    count = np.maximum(there.sum(axis=0), 1)
    total = np.where(there, fours, 0).sum(axis=0, dtype=np.int64 if whole else np.float64)
    mean: ndarray = (2 * total + count) // (2 * count) if whole else total / count
    return mean.astype(fours.dtype)


def _most_frequent(fours: Shaped[ndarray, "4 b h w"], there: Bool[ndarray, "4 b h w"]) -> Shaped[ndarray, "b h w"]:
    votes = np.stack([(there & (fours == value)).sum(axis=0, dtype=np.uint8) for value in fours])
    votes[~there] = 0
    chosen: ndarray = np.take_along_axis(fours, votes.argmax(axis=0)[None], axis=0)
    return chosen.reshape(chosen.shape[1:])
