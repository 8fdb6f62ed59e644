"""The score of the DSTL competition: the Jaccard index of polygons by area, mean over classes (Kaggle, 2017).

By the rules of the competition ("Evaluation", eq. Jaccard = TP / (TP + FP + FN)): for each class the areas of overlap
(TP), of what was drawn in vain (FP) and of what was missed (FN) are added up over all scenes, and the index is taken of
the sums; the score is the mean of the classes. Classes may overlap each other, as they do in the labels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import shapely
from jaxtyping import Float64
from numpy import ndarray

from geograft.errors import InputError
from geograft.scores import present_mean

Layers = Mapping[int, Sequence[shapely.Geometry] | ndarray]
"""Valid polygons of one scene by class."""


def area_counts(
    predicted: Mapping[str, Layers], true: Mapping[str, Layers], classes: Sequence[int]
) -> Float64[ndarray, "s k 3"]:
    """Return by scene (in the order of `true`) and class the areas [in both, predicted alone, true alone].

    Both sides of a scene must be in the same units, of whatever kind; polygons of one class may overlap and count once.
    Counts of scenes add up where the units of all scenes are alike, and can be resampled by `geograft.intervals`.
    Seconds for a scene with thousands of polygons.

    Raises:
        InputError: when a scene of the prediction is not among the true ones. A scene without prediction is all missed.
    """
    strange = sorted(set(predicted) - set(true))
    if strange:
        raise InputError(f"{', '.join(strange)}: not among the scenes with labels. Leave out their polygons.")
    rows = [
        [_areas(predicted.get(scene, {}).get(c, ()), layers.get(c, ())) for c in classes]
        for scene, layers in true.items()
    ]
    return np.array(rows, np.float64).reshape(len(true), len(classes), 3)


def jaccard_index(counts: Float64[ndarray, "*n k 3"]) -> Float64[ndarray, "*n k"]:
    """Return the index of each class of summed areas (..., k, 3); NaN for a class that is in neither."""
    whole = counts.sum(axis=-1)
    index: Float64[ndarray, "*n k"] = np.where(whole > 0, counts[..., 0] / np.where(whole > 0, whole, 1), np.nan)
    return index


def dstl_score(
    predicted: Mapping[str, Layers], true: Mapping[str, Layers], classes: Sequence[int]
) -> tuple[float, tuple[float, ...]]:
    """Return the competition's score, and the index of each class; one that is in neither is NaN and left out.

    Raises:
        InputError: when a scene of the prediction is not among the true ones.
    """
    by_class = jaccard_index(area_counts(predicted, true, classes).sum(axis=0))
    return float(present_mean(by_class)), tuple(by_class.tolist())


def _areas(
    predicted: Sequence[shapely.Geometry] | ndarray, true: Sequence[shapely.Geometry] | ndarray
) -> tuple[float, float, float]:
    found, wanted = (shapely.union_all(np.array(list(shapes), object)) for shapes in (predicted, true))
    both = shapely.area(shapely.intersection(found, wanted))
    return both, max(shapely.area(found) - both, 0.0), max(shapely.area(wanted) - both, 0.0)
