"""`geograft jaccard`: the DSTL competition's own score of polygons, with intervals.

The score of the DSTL competition: the Jaccard index of polygons by area, mean over classes (Kaggle, 2017).

By the rules of the competition ("Evaluation", eq. Jaccard = TP / (TP + FP + FN)): for each class the areas of overlap
(TP), of what was drawn in vain (FP) and of what was missed (FN) are added up over all scenes, and the index is taken of
the sums; the score is the mean of the classes. Classes may overlap each other, as they do in the labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float64
from numpy import ndarray

from geograft.dataset.dstl import NAMES, group, labels_table, read_wkt
from geograft.errors import InputError
from geograft.files import refuse_existing, write_json
from geograft.metrics.intervals import caveat, intervals
from geograft.metrics.scores import present_mean
from geograft.text import counted, table

Layers = Mapping[int, Sequence[shapely.Geometry] | ndarray]
"""Valid polygons of one scene by class."""


def area_counts(
    predicted: Mapping[str, Layers], true: Mapping[str, Layers], classes: Sequence[int]
) -> Float64[ndarray, "s k 3"]:
    """Return by scene (in the order of `true`) and class the areas [in both, predicted alone, true alone].

    Both sides of a scene must be in the same units, of whatever kind; polygons of one class may overlap and count once.
    Counts of scenes add up where the units of all scenes are alike, and can be resampled by
    `geograft.metrics.intervals`. Seconds for a scene with thousands of polygons.

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


@dataclass(frozen=True)
class ClassJaccard:
    """The index of one class."""

    number: int
    name: str
    index: float
    low: float
    high: float


@dataclass(frozen=True)
class DstlScore:
    """The score of some scenes."""

    score: float
    """Mean of the classes' indices."""
    low: float
    """Of the 95 % interval over scenes; NaN for a single place."""
    high: float
    classes: tuple[ClassJaccard, ...]
    scenes: tuple[str, ...]
    warning: str

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        rows = [(str(c.number), c.name, f"{c.index:.4f}", _between(c.low, c.high)) for c in self.classes]
        return [
            *table([("class", "", "Jaccard", "95 % interval"), *rows]),
            f"mean {self.score:.4f} ({_between(self.low, self.high)}) over {counted(len(self.scenes), 'scene')}",
            *filter(None, [self.warning]),
        ]


def jaccard(submissions: Sequence[Path], labels: Path, out: Path | None = None) -> DstlScore:
    """Score DSTL submissions against the labels of their scenes by the competition's rule: areas summed by class.

    `submissions` are tables as `geograft polygons --out IMAGE.csv` writes them, together one submission; `labels` is
    Kaggle's folder, or train_wkt_v4.csv itself. Scored are the scenes of the submissions and the classes that they or
    their labels hold. With `out`, all figures go there as JSON. Seconds a scene.

    Raises:
        InputError: when a table cannot be read, two hold the same scene, or a scene has no labels.
        OutputError: when `out` exists or cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    predicted = _together(submissions)
    known, _ = read_wkt(labels_table(labels), tuple(NAMES))
    strange = sorted(set(predicted) - set(known))
    if strange:
        raise InputError(f"{labels} holds no labels of {', '.join(strange)}. Score scenes that have some.")
    true = {scene: known[scene] for scene in predicted}
    classes = sorted({number for side in (predicted, true) for of in side.values() for number in of if len(of[number])})
    result = _score(area_counts(predicted, true, classes), tuple(true), classes)
    if out is not None:
        write_json(out, asdict(result))
    return result


def _together(submissions: Sequence[Path]) -> dict[str, Layers]:
    found: dict[str, Layers] = {}
    for path in submissions:
        scenes, _ = read_wkt(path, tuple(NAMES))
        twice = sorted(set(scenes) & set(found))
        if twice:
            raise InputError(f"{path} holds {twice[0]}, and so does another table. Give each scene once.")
        found |= scenes
    return found


def _score(counts: Float64[ndarray, "s k 3"], scenes: tuple[str, ...], classes: Sequence[int]) -> DstlScore:
    grounds = list(dict.fromkeys(map(group, scenes)))
    by_ground = np.stack([counts[[group(scene) == ground for scene in scenes]].sum(axis=0) for ground in grounds])

    def figures(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
        index = jaccard_index(sums.reshape(len(sums), -1, 3))
        return np.column_stack([present_mean(index), index])

    flat = by_ground.reshape(len(grounds), -1)
    values, ends = figures(flat.sum(axis=0)[None])[0].tolist(), intervals(flat, figures).tolist()
    rows = zip(classes, values[1:], ends[1:], strict=True)
    each = tuple(ClassJaccard(number, NAMES[number], value, low, high) for number, value, (low, high) in rows)
    (low, high), *_ = ends
    return DstlScore(values[0], low, high, each, scenes, caveat(len(grounds)))


def _between(low: float, high: float) -> str:
    return "no interval" if np.isnan(low) else f"{low:.4f} to {high:.4f}"
