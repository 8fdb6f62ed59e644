"""Where a label is probably wrong: places at which a confident model that never saw them disagrees with it.

The model must not have trained on the place, or it repeats the label's mistake: probabilities come from the model of
another fold. It counts as confident of a class where it is at least as sure as it is, on the average, of the pixels
that are labelled so (Northcutt, Jiang & Chuang 2021, "Confident learning: estimating uncertainty in dataset labels",
JAIR 70, eq. 2, the threshold t_j); a model that is sure of everything and one that is of nothing are judged alike.
"""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import shapely
from affine import Affine
from jaxtyping import Bool, Float32, Float64, Int, Int32, Shaped, UInt8
from numpy import ndarray
from rasterio.features import shapes as outlines

from geograft.legend import IGNORE

THICK = np.ones((3, 3), bool)
"""A place that holds no such square is a line along an edge that was drawn by hand, and no mistake."""


@dataclass(frozen=True)
class Suspects:
    """Places where the label is probably wrong, the gravest first: one entry a place in every array."""

    shapes: Shaped[ndarray, " n"]
    """Polygons, in what the transform leads to; pixels without one."""
    labelled: UInt8[ndarray, " n"]
    """Class index of most of the place's labels."""
    predicted: UInt8[ndarray, " n"]
    """Class index that the model sees there."""
    confidence: Float64[ndarray, " n"]
    """Mean probability that the model gives to what it sees."""
    doubt: Float64[ndarray, " n"]
    """Mean probability that it leaves to the label: near 0, the model is sure that the label is wrong."""
    pixels: Int[ndarray, " n"]

    def __len__(self) -> int:
        return len(self.pixels)


def of_two(probability: Float32[ndarray, "h w"]) -> Float32[ndarray, "2 h w"]:
    """Return the probabilities of both classes from that of class 1."""
    return np.stack([1 - probability, probability])


def self_confidence(truth: UInt8[ndarray, "h w"], probabilities: Float32[ndarray, "k h w"]) -> Float64[ndarray, "k 2"]:
    """Return by class: the sum of its probability over the pixels labelled so, and their number. Scenes add up."""
    sums = np.zeros((len(probabilities), 2))
    for index, probability in enumerate(probabilities):
        here = truth == index
        sums[index] = probability[here].sum(dtype=float), here.sum()
    return sums


def confident_from(sums: Float64[ndarray, "k 2"]) -> Float64[ndarray, " k"]:
    """Return by class the probability from which on the model counts as confident; 1 for a class without a pixel.

    Never below an even chance: a model that knows nothing of a class is not confident of it.
    """
    means = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return np.where(sums[:, 1] > 0, np.maximum(means, 0.5), 1.0)


def suspects(
    truth: UInt8[ndarray, "h w"],
    probabilities: Float32[ndarray, "k h w"],
    thresholds: Float64[ndarray, " k"],
    min_px: int = 25,
    transform: Affine | None = None,
) -> Suspects:
    """Return the connected places of at least `min_px` pixels where a confident model disagrees with the label.

    `truth` holds class indices, 255 where nothing is labelled or no model of another fold looked. A place is of one
    predicted class, connected by edges, and somewhere at least three pixels thick. The gravest first: pixels times the
    distance between the probability of what the model sees and that of the label. About 0.5 s and 60 MB a megapixel.
    """
    seen = probabilities.argmax(axis=0).astype(np.uint8)
    sure = probabilities.max(axis=0)
    against = (truth != IGNORE) & (seen != truth) & (sure >= thresholds[seen])
    places = _places(seen, against, min_px)
    count = int(places.max(initial=0))
    index = np.arange(1, count + 1)
    pixels = np.bincount(places.ravel(), minlength=count + 1)[1:]
    left = np.take_along_axis(probabilities, np.where(truth == IGNORE, 0, truth)[None].astype(np.intp), axis=0)[0]
    confidence, doubt = (_means(values, places, index) for values in (sure, left))
    order = np.argsort(-pixels * (confidence - doubt), kind="stable")
    return Suspects(
        _outlines(places, count, transform)[order],
        _most_common(truth, places, count, len(probabilities))[order],
        _most_common(seen, places, count, len(probabilities))[order],
        confidence[order],
        doubt[order],
        pixels[order],
    )


def _places(seen: UInt8[ndarray, "h w"], against: Bool[ndarray, "h w"], min_px: int) -> Int32[ndarray, "h w"]:
    """Return the number of every pixel's place, from 1 on; 0 where there is none."""
    places = np.zeros(seen.shape, np.int32)
    found = 0
    for value in np.unique(seen[against]).tolist():
        mine = against & (seen == value)
        parts, count = scipy.ndimage.label(mine)
        thick = np.zeros(count + 1, bool)
        thick[parts[scipy.ndimage.binary_erosion(mine, THICK)]] = True
        kept = thick & (np.bincount(parts.ravel(), minlength=count + 1) >= min_px)
        kept[0] = False
        numbers = np.where(kept, found + kept.cumsum(), 0).astype(np.int32)
        places += numbers[parts]
        found += int(kept.sum())
    return places


def _means(
    values: Float32[ndarray, "h w"], places: Int32[ndarray, "h w"], index: Int[ndarray, " n"]
) -> Float64[ndarray, " n"]:
    return np.asarray(scipy.ndimage.mean(values, places, index), float) if len(index) else np.zeros(0)


def _most_common(
    values: UInt8[ndarray, "h w"], places: Int32[ndarray, "h w"], count: int, classes: int
) -> UInt8[ndarray, " n"]:
    inside = places > 0
    pairs = (places[inside].astype(np.int64) - 1) * classes + values[inside]
    counts = np.bincount(pairs, minlength=count * classes).reshape(count, classes)
    most: UInt8[ndarray, " n"] = counts.argmax(axis=1).astype(np.uint8)
    return most


def _outlines(places: Int32[ndarray, "h w"], count: int, transform: Affine | None) -> Shaped[ndarray, " n"]:
    found = np.empty(count, object)
    for shape, number in outlines(places, mask=places > 0, connectivity=4, transform=transform or Affine.identity()):
        found[int(number) - 1] = shapely.geometry.shape(shape)
    return found
