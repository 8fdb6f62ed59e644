"""Labels of tiles: arrays of class indices or fractional (soft) labels, and the encoding of fractions as uint8."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8
from numpy import ndarray

from geograft.legend import IGNORE, Legend

Label: TypeAlias = UInt8[ndarray, "h w"] | Float32[ndarray, "o h w"]
"""Class indices, 255 where unlabelled; or fractional labels, the fraction of a pixel per output, NaN where unknown."""

MAX_CODE = 250
"""The uint8 code of a fraction of 1; 255 is the code of an unknown fraction."""
_FRACTIONS: Float32[ndarray, " 256"] = np.where(np.arange(256) <= MAX_CODE, np.arange(256) / MAX_CODE, np.nan).astype(
    np.float32
)


def encode_fractions(fractions: Float[ndarray, "*n"]) -> UInt8[ndarray, "*n"]:
    """Encode fractions from 0 to 1 as uint8 in steps of 1/250, rounded; NaN becomes 255.

    >>> encode_fractions(np.array([0.0, 0.1, 1.0, np.nan]))
    array([  0,  25, 250, 255], dtype=uint8)
    """
    steps = np.where(np.isnan(fractions), IGNORE, np.rint(fractions * MAX_CODE))
    return steps.astype(np.uint8)


def encode_exclusive_fractions(fractions: Float[ndarray, "k h w"]) -> UInt8[ndarray, "k h w"]:
    """Encode fractions of mutually exclusive classes as uint8 codes that sum to 250 in every pixel.

    If the fractions sum to 1, the error of each is at most one step of 1/250. If one is NaN, all become 255.
    """
    edges = np.rint(fractions.cumsum(axis=0) * MAX_CODE)
    edges[-1] = np.where(np.isnan(edges[-1]), np.nan, MAX_CODE)
    # A cumulative sum rounded above 1 must not make the last fraction negative.
    steps = np.diff(np.minimum(edges, MAX_CODE), axis=0, prepend=0)
    return np.where(np.isnan(edges[-1]), IGNORE, steps).astype(np.uint8)


def decode_fractions(codes: UInt8[ndarray, "*n"]) -> Float32[ndarray, "*n"]:
    """Decode uint8 codes to fractions from 0 to 1, NaN for 255.

    >>> decode_fractions(np.array([0, 25, 250, 255], np.uint8))
    array([0. , 0.1, 1. , nan], dtype=float32)
    """
    found: Float32[ndarray, "*n"] = _FRACTIONS[codes]
    return found


def labelled_mask(label: Label) -> Bool[ndarray, "h w"]:
    """Return the mask of labelled pixels: the class, or the fraction of at least one output, is known."""
    return np.asarray(label != IGNORE if label.ndim == 2 else np.isfinite(label).any(axis=0))


def image_mask(image: Shaped[ndarray, "b h w"], label: Label) -> Bool[ndarray, "h w"]:
    """Return the mask of a tile's pixels with image data: all but those that are 0 in every band and unlabelled."""
    mask: Bool[ndarray, "h w"] = labelled_mask(label) | image.any(axis=0)
    return mask


def missing_value(label: Label) -> np.uint8 | np.float32:
    """Return the value of unlabelled pixels: 255 for class indices, NaN for fractions."""
    return np.uint8(IGNORE) if label.ndim == 2 else np.float32(np.nan)


def class_fractions(label: Label, legend: Legend) -> Float32[ndarray, "k h w"]:
    """Return the fraction of each pixel per class of the legend, 0 to 1, NaN where unlabelled."""
    if label.ndim == 2:
        fractions = (label == np.arange(len(legend.names), dtype=np.uint8)[:, None, None]).astype(np.float32)
        return np.where(label == IGNORE, np.float32(np.nan), fractions)
    return np.concatenate([1 - label, label]) if legend.binary else label
