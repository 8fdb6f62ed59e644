"""Labels as arrays: class indices, or how much of a pixel is of the class of each output; and shares in whole bytes."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray

from geograft.legend import IGNORE, Legend

Label: TypeAlias = UInt8[ndarray, "h w"] | Float32[ndarray, "o h w"]
"""Class indices, 255 where the class is not known; or the share of each output's class in a pixel, NaN where it is not
known."""

FULL = 250
"""What stands for a whole pixel in a byte; 255 stands for a share that is not known."""
_SHARES: Float32[ndarray, " 256"] = np.where(np.arange(256) <= FULL, np.arange(256) / FULL, np.nan).astype(np.float32)


def coded(shares: Float[ndarray, "*n"]) -> UInt8[ndarray, "*n"]:
    """Return shares from 0 to 1 in steps of 1/250, each within half a step; 255 where they are NaN.

    >>> coded(np.array([0.0, 0.1, 1.0, np.nan]))
    array([  0,  25, 250, 255], dtype=uint8)
    """
    steps = np.where(np.isnan(shares), IGNORE, np.rint(shares * FULL))
    return steps.astype(np.uint8)


def coded_together(shares: Float[ndarray, "k h w"]) -> UInt8[ndarray, "k h w"]:
    """Return the shares of classes that exclude each other in steps of 1/250 that sum to 250 in every pixel.

    Each is within one step of its own, where they sum to 1. Where one is NaN all become 255.
    """
    edges = np.rint(shares.cumsum(axis=0) * FULL)
    edges[-1] = np.where(np.isnan(edges[-1]), np.nan, FULL)
    # Sums that pass 1 by rounding must not make the last share negative.
    steps = np.diff(np.minimum(edges, FULL), axis=0, prepend=0)
    return np.where(np.isnan(edges[-1]), IGNORE, steps).astype(np.uint8)


def decoded(codes: UInt8[ndarray, "*n"]) -> Float32[ndarray, "*n"]:
    """Return the shares, 0 to 1, that bytes stand for; NaN where they are not known.

    >>> decoded(np.array([0, 25, 250, 255], np.uint8))
    array([0. , 0.1, 1. , nan], dtype=float32)
    """
    found: Float32[ndarray, "*n"] = _SHARES[codes]
    return found


def labelled(label: Label) -> Bool[ndarray, "h w"]:
    """Return the pixels of which something is known: their class, or the share of at least one output's."""
    return np.asarray(label != IGNORE if label.ndim == 2 else np.isfinite(label).any(axis=0))


def unknown(label: Label) -> np.uint8 | np.float32:
    """Return what stands in `label` for what is not known."""
    return np.uint8(IGNORE) if label.ndim == 2 else np.float32(np.nan)


def class_shares(label: Label, legend: Legend) -> Float32[ndarray, "k h w"]:
    """Return how much of each pixel is of each class of the legend, 0 to 1; NaN where it is not known."""
    if label.ndim == 2:
        shares = (label == np.arange(len(legend.names), dtype=np.uint8)[:, None, None]).astype(np.float32)
        return np.where(label == IGNORE, np.float32(np.nan), shares)
    return np.concatenate([1 - label, label]) if legend.binary else label
