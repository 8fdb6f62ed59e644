"""`geograft jaccard`: the score of the DSTL competition (Kaggle, 2017), with confidence intervals.

The score is the mean over classes of the area-based Jaccard index of polygons. By the rules of the competition
("Evaluation", eq. Jaccard = TP / (TP + FP + FN)) the areas of true positives, false positives and false negatives of
each class are summed over all scenes, and the index is computed from the sums. Classes may overlap, as in the labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float64
from numpy import ndarray

from geograft.dataset.dstl import CLASS_NAMES, labels_table, read_wkt, scene_group
from geograft.errors import InputError
from geograft.files import StrPath, optional_path, refuse_existing, to_paths, write_json
from geograft.locks import locks_output
from geograft.metrics.confusion import nanmean
from geograft.metrics.intervals import confidence_intervals, few_units_warning
from geograft.text import format_table, pluralise

LayersByClass = Mapping[int, Sequence[shapely.Geometry] | ndarray]
"""Valid polygons of one scene by class number."""


def area_counts(
    predicted: Mapping[str, LayersByClass], true: Mapping[str, LayersByClass], classes: Sequence[int]
) -> Float64[ndarray, "s k 3"]:
    """Return the areas [TP, FP, FN] per scene (in the order of `true`) and class.

    Predicted and true polygons of a scene must have the same units. Overlapping polygons of a class count once. Areas
    of scenes with equal units can be summed, and resampled by `geograft.metrics.intervals`. A scene without prediction
    counts as missed. Takes seconds for a scene with thousands of polygons.

    Raises:
        InputError: when a predicted scene has no labels.
    """
    unlabelled = sorted(set(predicted) - set(true))
    if unlabelled:
        raise InputError(f"no labels for the predicted scenes {', '.join(unlabelled)}. Remove their polygons.")
    rows = [
        [_areas(predicted.get(scene, {}).get(c, ()), layers.get(c, ())) for c in classes]
        for scene, layers in true.items()
    ]
    return np.array(rows, np.float64).reshape(len(true), len(classes), 3)


def jaccard_index(counts: Float64[ndarray, "*n k 3"]) -> Float64[ndarray, "*n k"]:
    """Return the Jaccard index per class of summed areas (..., k, 3); NaN for a class without any polygon."""
    whole = counts.sum(axis=-1)
    index: Float64[ndarray, "*n k"] = np.where(whole > 0, counts[..., 0] / np.where(whole > 0, whole, 1), np.nan)
    return index


def _areas(
    predicted: Sequence[shapely.Geometry] | ndarray, true: Sequence[shapely.Geometry] | ndarray
) -> tuple[float, float, float]:
    predicted_union, true_union = (shapely.union_all(np.array(list(shapes), object)) for shapes in (predicted, true))
    both = shapely.area(shapely.intersection(predicted_union, true_union))
    return both, max(shapely.area(predicted_union) - both, 0.0), max(shapely.area(true_union) - both, 0.0)


@dataclass(frozen=True)
class ClassJaccard:
    """The Jaccard index of one class, with its 95 % confidence interval."""

    number: int
    name: str
    index: float
    low: float
    high: float


@dataclass(frozen=True)
class DstlScore:
    """The score of the submitted scenes."""

    score: float
    """Mean Jaccard index over classes."""
    low: float
    """Lower bound of the 95 % confidence interval over scenes; NaN for a single group of scenes."""
    high: float
    classes: tuple[ClassJaccard, ...]
    scenes: tuple[str, ...]
    warning: str

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        rows = [(str(c.number), c.name, f"{c.index:.4f}", _format_interval(c.low, c.high)) for c in self.classes]
        scenes = pluralise(len(self.scenes), "scene")
        return [
            *format_table([("class", "", "Jaccard", "95 % CI"), *rows]),
            f"mean {self.score:.4f} ({_format_interval(self.low, self.high)}) over {scenes}",
            *filter(None, [self.warning]),
        ]


@locks_output
def jaccard(submissions: StrPath | Sequence[StrPath], labels: StrPath, out: StrPath | None = None) -> DstlScore:
    """Score DSTL submissions against the labels of their scenes by the rule of the competition.

    `submissions` are tables written by `geograft polygons --out IMAGE.csv`, which together form one submission.
    `labels` is Kaggle's folder or train_wkt_v4.csv. All scenes of the submissions are scored, for all classes in them
    or in their labels. With `out`, the result is also written as JSON. Takes seconds per scene.

    Raises:
        InputError: when a table cannot be read, two tables have the same scene, or a scene has no labels.
        OutputError: when `out` exists or cannot be written.
    """
    labels, out = Path(labels), optional_path(out)
    if out is not None:
        refuse_existing(out)
    predicted = _merge_submissions(to_paths(submissions))
    labelled, _ = read_wkt(labels_table(labels), tuple(CLASS_NAMES))
    unlabelled = sorted(set(predicted) - set(labelled))
    if unlabelled:
        raise InputError(f"{labels} has no labels for {', '.join(unlabelled)}. Submit labelled scenes only.")
    true = {scene: labelled[scene] for scene in predicted}
    scenes = (*predicted.values(), *true.values())
    classes = sorted({number for layers in scenes for number in layers if len(layers[number])})
    result = _score(area_counts(predicted, true, classes), tuple(true), classes)
    if out is not None:
        write_json(out, asdict(result))
    return result


def _merge_submissions(submissions: Sequence[Path]) -> dict[str, LayersByClass]:
    merged: dict[str, LayersByClass] = {}
    for path in submissions:
        scenes, _ = read_wkt(path, tuple(CLASS_NAMES))
        duplicates = sorted(set(scenes) & set(merged))
        if duplicates:
            raise InputError(f"{path} has scene {duplicates[0]}, which is also in another table. Give each scene once.")
        merged |= scenes
    return merged


def _score(counts: Float64[ndarray, "s k 3"], scenes: tuple[str, ...], classes: Sequence[int]) -> DstlScore:
    # Scenes of the same area are resampled together.
    groups = list(dict.fromkeys(map(scene_group, scenes)))
    by_group = np.stack([counts[[scene_group(scene) == group for scene in scenes]].sum(axis=0) for group in groups])

    def statistic(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
        index = jaccard_index(sums.reshape(len(sums), -1, 3))
        return np.column_stack([nanmean(index), index])

    flat = by_group.reshape(len(groups), -1)
    values = statistic(flat.sum(axis=0)[None])[0].tolist()
    intervals = confidence_intervals(flat, statistic).tolist()
    rows = zip(classes, values[1:], intervals[1:], strict=True)
    per_class = tuple(
        ClassJaccard(number, CLASS_NAMES[number], value, low, high) for number, value, (low, high) in rows
    )
    (low, high), *_ = intervals
    return DstlScore(values[0], low, high, per_class, scenes, few_units_warning(len(groups)))


def _format_interval(low: float, high: float) -> str:
    return "no interval" if np.isnan(low) else f"{low:.4f} to {high:.4f}"
