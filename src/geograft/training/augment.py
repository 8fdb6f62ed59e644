"""Other looks of the same ground: symmetries, scales, colours, and pixels of other tiles. Plain numpy.

Nothing here draws from a hidden source: the caller passes the random generator, and equal generators give equal tiles.
"""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8
from numpy import ndarray

from geograft.labels import Label

Augment = Literal["none", "dihedral", "colour"]

Sample: TypeAlias = tuple[Float32[ndarray, "b h w"], Label]

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


def jitter_colours(
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


def augment_tile(
    image: Float32[ndarray, "b h w"],
    label: Label,
    valid: Bool[ndarray, "h w"],
    std: Float[ndarray, " c"],
    augment: Augment,
    rng: np.random.Generator,
) -> tuple[Float32[ndarray, "b i j"], UInt8[ndarray, "i j"] | Float32[ndarray, "o i j"], Bool[ndarray, "i j"]]:
    """Return image, label and valid pixels under a random symmetry, and with other colours where `augment` says so.

    `std` is of the first C of the B bands, and theirs are the colours: an index, which is what light leaves alone, is
    among the others. Tiles that are not square keep their shape: they are mirrored, never turned by a quarter.
    """
    if augment == "none":
        return image, label, valid
    if augment == "colour":
        common, contrast, saturation, *by_band = rng.uniform(-JITTER, JITTER, 3 + len(std))
        colours = jitter_colours(image[: len(std)], valid, std, common + np.array(by_band), contrast, saturation)
        image = np.concatenate([colours, image[len(std) :]])
    element = int(rng.integers(8 if valid.shape[0] == valid.shape[1] else 4))
    return dihedral(image, element), dihedral(label, element), dihedral(valid, element)


def rescale(
    image: Float32[ndarray, "b h w"],
    label: Label,
    valid: Bool[ndarray, "h w"],
    scale: float,
    place: tuple[float, float],
) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
    """Return the tile of the same size at another scale: a part of it enlarged, or all of it made smaller.

    `place`, 0 to 1 for rows and columns, says which part is enlarged, or where the smaller one lies; what is beside it
    then is its mirror image. Brightness is interpolated (bilinear) between pixels that have an image, whatever the
    number and the unit of the bands; a label is that of the nearest pixel.
    """
    height, width = valid.shape
    above, below, down, row = _sample_positions(height, scale, place[0])
    left, beside, right, col = _sample_positions(width, scale, place[1])

    def between(values: Float32[ndarray, "*n h w"]) -> Float32[ndarray, "*n h w"]:
        rows = values[..., above, :] * (1 - down)[:, None] + values[..., below, :] * down[:, None]
        mixed: Float32[ndarray, "*n h w"] = rows[..., left] * (1 - right) + rows[..., beside] * right
        return mixed

    kept = valid[row[:, None], col]
    if valid.all():
        return between(image), label[..., row[:, None], col], kept
    # The pixel itself has at least a quarter of the weight where it counts.
    weight = np.where(kept, between(valid.astype(np.float32)), np.float32(1))
    return np.where(kept, between(image * valid) / weight, np.float32(0)), label[..., row[:, None], col], kept


def jitter_scale(
    image: Float32[ndarray, "b h w"],
    label: Label,
    valid: Bool[ndarray, "h w"],
    jitter: float,
    rng: np.random.Generator,
) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
    """Return the tile at a random scale from 1 / (1 + jitter) to 1 + jitter, enlarged as often as not: `rescaled`."""
    power, row, col = rng.random(3)
    return rescale(image, label, valid, float((1 + jitter) ** (2 * power - 1)), (float(row), float(col)))


def paste_class(sample: Sample, other: Sample, index: int) -> Sample:
    """Return `sample` with those pixels of `other`, image and label, that are of the class `index`.

    A pixel of shares is of a class that has more than half of it. Ghiasi et al. (2021), "Simple copy-paste".
    """
    (image, label), (from_image, from_label) = sample, other
    mask = _class_mask(from_label, index)
    return np.where(mask, from_image, image), np.where(mask, from_label, label)


def _class_mask(label: Label, index: int) -> Bool[ndarray, "h w"]:
    """Return which pixels are of the class `index`; one output is the class of index 1, the other has the rest."""
    if label.ndim == 2:
        return np.asarray(label == index)
    share = label[index] if len(label) > 1 else (1 - label[0], label[0])[index]
    return np.asarray(share > 0.5)


def _sample_positions(
    length: int, scale: float, place: float
) -> tuple[Int64[ndarray, " n"], Int64[ndarray, " n"], Float32[ndarray, " n"], Int64[ndarray, " n"]]:
    """Return of each new pixel the old ones on both sides, how far it is towards the second, and the nearest."""
    centre = place * (length - length / scale) + (np.arange(length) + 0.5) / scale
    first = np.floor(centre - 0.5)
    part = (centre - 0.5 - first).astype(np.float32)
    before, after, nearest = (_mirror(values, length) for values in (first, first + 1, np.floor(centre)))
    return before, after, part, nearest


def _mirror(position: Float[ndarray, " n"], length: int) -> Int64[ndarray, " n"]:
    """Return positions inside `length` for those outside: the edge is a mirror."""
    turned = position.astype(np.int64) % (2 * length)
    return np.where(turned < length, turned, 2 * length - 1 - turned)
