"""Other looks of the same ground: flips and quarter turns, brightness, contrast and saturation. Plain numpy.

Nothing here draws from a hidden source: the caller passes the random generator, and equal generators give equal tiles.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Shaped, UInt8
from numpy import ndarray

Augment = Literal["none", "dihedral", "colour"]

JITTER = 0.3
"""Largest change: brightness by this many deviations of a band, for all bands together and for each alone; contrast and
saturation by this share."""


def dihedral(pixels: Shaped[ndarray, "*n h w"], element: int) -> Shaped[ndarray, "*n i j"]:
    """Return (..., H, W) `pixels` under one of the eight symmetries of the square, 0 to 7; 0 changes nothing.

    Bit 2 of `element` swaps rows and columns, then bit 1 turns the order of rows round, then bit 0 that of columns. A
    view: nothing is copied or resampled.
    """
    turned = pixels.swapaxes(-1, -2) if element & 4 else pixels
    return turned[..., :: -1 if element & 2 else 1, :: -1 if element & 1 else 1]


def inverse(element: int) -> int:
    """Return the symmetry that undoes `element`.

    >>> inverse(5)
    6
    """
    return element if element < 4 else (4, 6, 5, 7)[element - 4]


def jittered(
    image: Float32[ndarray, "b h w"],
    valid: Bool[ndarray, "h w"],
    std: Float[ndarray, " b"],
    brightness: Float[ndarray, " b"],
    contrast: float,
    saturation: float,
) -> Float32[ndarray, "b h w"]:
    """Return `image`, in its own units, with another brightness, contrast and saturation.

    All three are 0 for no change. `brightness` adds that many of each band's deviations `std`: unlike numbers are
    another light, haze or sensor. `contrast` scales the distance to the tile's mean over `valid` pixels by
    1 + contrast; `saturation` scales the distance to the mean of the bands likewise, and only where there are three.
    Any number of bands, any unit, no clipping.
    """
    centre = image.mean(axis=(1, 2), keepdims=True, where=valid) if valid.any() else 0.0
    result: ndarray = centre + (1 + contrast) * (image - centre) + (brightness * std)[:, None, None]
    if len(image) == 3:
        grey = result.mean(axis=0, keepdims=True)
        result = grey + (1 + saturation) * (result - grey)
    return result.astype(np.float32)


def augmented(
    image: Float32[ndarray, "b h w"],
    label: UInt8[ndarray, "h w"],
    valid: Bool[ndarray, "h w"],
    std: Float[ndarray, " b"],
    augment: Augment,
    rng: np.random.Generator,
) -> tuple[Float32[ndarray, "b i j"], UInt8[ndarray, "i j"], Bool[ndarray, "i j"]]:
    """Return image, label and valid pixels under a random symmetry, and with other colours where `augment` says so.

    Tiles that are not square keep their shape: they are mirrored, never turned by a quarter.
    """
    if augment == "none":
        return image, label, valid
    if augment == "colour":
        common, contrast, saturation, *by_band = rng.uniform(-JITTER, JITTER, 3 + len(image))
        image = jittered(image, valid, std, common + np.array(by_band), contrast, saturation)
    element = int(rng.integers(8 if label.shape[0] == label.shape[1] else 4))
    return dihedral(image, element), dihedral(label, element), dihedral(valid, element)
