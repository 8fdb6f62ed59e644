"""Score the tiles of a split: counts per cell, metrics with 95 % confidence intervals.

Counts are collected per cell (a block of a scene, or a scene), so that no pixel is kept in memory. Counts summed by
unit are bootstrapped to named metrics with confidence intervals.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray

from geograft.dataset.places import Where
from geograft.dataset.tileset import Samples, TileSet
from geograft.dataset.units import Units
from geograft.legend import IGNORE
from geograft.mapping.held_out import predict_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.shapes import ShapeCounter, ShapeCounts
from geograft.metrics.calibration import (
    RELIABILITY_BINS,
    STEPS,
    average_precision,
    brier_sum,
    class_reliability_counts,
    probability_counts,
)
from geograft.metrics.confusion import ConfusionScheme, nanmean
from geograft.metrics.intervals import (
    Statistic,
    certainty_of_gain,
    confidence_intervals,
    paired_confidence_intervals,
)
from geograft.runs import run_file
from geograft.text import format_table

OWN_SCORES = "scores-test.json"
"""Where `geograft evaluate` writes the scores of a run's own test tiles."""

Confusion = Int64[ndarray, "..."]
"""Confusion counts, with the layout of a `geograft.metrics.confusion.ConfusionScheme`."""


@dataclass
class SplitCounts:
    """Counts of one split per cell. Sums over cells are the counts of their union."""

    units: Units
    scheme: ConfusionScheme
    confusion: Int64[ndarray, "c ..."] = field(init=False)
    """Pixels: labels in rows, predictions in columns; a binary matrix per overlapping class."""
    probability: Int64[ndarray, "c ..."] = field(init=False)
    """Probability histograms of negative and positive pixels (2, 1001), 16 kB per cell; one per overlapping class.

    Empty for more than two mutually exclusive classes.
    """
    reliability: Float64[ndarray, "c 15 3"] = field(init=False)
    squared_error: Float64[ndarray, "c 1"] = field(init=False)
    """Brier scores summed over pixels."""
    shapes: ShapeCounts | None = None

    def __post_init__(self) -> None:
        cells, scheme = len(self.units.cells), self.scheme
        self.confusion = scheme.zeros(cells)
        per_class = (scheme.classes,) if scheme.overlapping else ()
        has_curve = scheme.binary or scheme.overlapping
        self.probability = np.zeros((cells if has_curve else 0, *per_class, 2, STEPS + 1), np.int64)
        self.reliability = np.zeros((cells, RELIABILITY_BINS, 3))
        self.squared_error = np.zeros((cells, 1))

    @cached_property
    def total(self) -> Confusion:
        """Confusion counts over all cells."""
        total: Confusion = self.confusion.sum(axis=0)
        return total

    def add(
        self,
        cell: int,
        label: UInt8[ndarray, "*kn h w"],
        probabilities: Float32[ndarray, "k h w"],
        predicted: UInt8[ndarray, "*kn h w"],
    ) -> None:
        """Add the labelled pixels of one tile."""
        self.confusion[cell] += self.scheme.confusion(label, predicted)
        truth, probability = self.scheme.flatten_known(label, probabilities)
        self.squared_error[cell] += brier_sum(probability, truth)
        self.reliability[cell] += class_reliability_counts(probability, truth)
        if self.scheme.overlapping:
            for index, (class_label, class_probability) in enumerate(zip(label, probabilities, strict=True)):
                known = class_label != IGNORE
                counts = probability_counts(class_probability[known], class_label[known] == 1)
                self.probability[cell, index] += counts
        elif self.scheme.binary:
            self.probability[cell] += probability_counts(probability[1], truth == 1)


def choose_samples(samples: Samples, positions: Sequence[int]) -> Samples:
    """Return some of the samples. What is not labelled in them, because an earlier tile has it, stays so."""
    tiles = [samples.tiles[position] for position in positions]
    return replace(samples, tiles=tiles, masked_windows=[samples.masked_windows[position] for position in positions])


def count_split(
    model: RunModel,
    tile_set: TileSet,
    samples: Samples,
    units: Units,
    shapes: ShapeCounter,
    advance: Callable[[], None] | None = None,
) -> SplitCounts:
    """Return the counts of all labelled pixels of the samples by cell, predicted as in a map of their scenes.

    Shows progress, unless `advance` is given, which is called after each tile.
    """
    title = "" if advance else f"scoring {tile_set.title}"
    scheme = ConfusionScheme.from_legend(model.card.legend)
    counts = SplitCounts(units, scheme)
    for tile in predict_tiles(model, tile_set, samples.tiles, title):
        cell, (_, label) = int(units.cell_of[tile.index]), samples[tile.index]
        truth = scheme.to_classes(label)
        counts.add(cell, truth, tile.probabilities, tile.classes)
        shapes.add(cell, samples.tiles[tile.index], truth, tile.classes)
        if advance:
            advance()
    counts.shapes = shapes.counts()
    return counts


MetricFunction = Callable[[ndarray], Mapping[str, ndarray]]
"""Function from counts (n, ...) to metrics by name, each (n,)."""


@dataclass(frozen=True)
class Metric:
    """A score with the bounds of its 95 % confidence interval; NaN if undefined."""

    value: float
    low: float
    high: float

    @property
    def json_value(self) -> float | None:
        """The value, or None if undefined."""
        return None if np.isnan(self.value) else self.value

    @property
    def interval(self) -> list[float] | None:
        """The bounds of the confidence interval, or None if undefined."""
        return None if np.isnan(self.low) else [self.low, self.high]

    def format(self, form: str = ".3f") -> tuple[str, str]:
        """Return the value and its interval in brackets as text; "-" and "" if undefined."""
        return format_value(self.json_value, form), format_interval(self.interval, form)


Metrics = dict[str, Metric]


def format_value(value: float | None, form: str = ".3f") -> str:
    """Return a number as text; "-" for None."""
    return "-" if value is None else f"{value:{form}}"


def format_interval(interval: Sequence[float] | None, form: str = ".3f") -> str:
    """Return an interval as text in brackets; "" for None."""
    return f"({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""


def json_values(metrics: Metrics) -> dict[str, float | None]:
    """Return the values of metrics for JSON."""
    return {name: metric.json_value for name, metric in metrics.items()}


def json_intervals(metrics: Metrics) -> dict[str, list[float] | None]:
    """Return the confidence intervals of metrics for JSON."""
    return {name: metric.interval for name, metric in metrics.items()}


def headline_scores(counts: ndarray, scheme: ConfusionScheme) -> dict[str, float | None]:
    """Return the headline scores of the confusion counts of one map for JSON."""
    scores = scheme.headline(counts)
    return {name: None if np.isnan(value) else value for name, value in scores.items()}


@dataclass(frozen=True)
class BootstrapEstimator:
    """Counts per unit and a statistic of their sum, bootstrapped over units."""

    counts: ndarray
    """(u, ...)."""
    statistic: MetricFunction

    def estimate(self) -> Metrics:
        """Return each metric over all units, with its confidence interval."""
        flat, statistic, names = self._flatten()
        values = statistic(flat.sum(axis=0, dtype=np.float64)[None])[0]
        return _metrics(names, values, confidence_intervals(flat, statistic))

    def difference(self, other: "BootstrapEstimator") -> Metrics:
        """Return the difference of each metric to that of another map of the same units, with a paired interval."""
        flat, statistic, names = self._flatten()
        other_flat = other.counts.reshape(len(other.counts), -1)
        values = [statistic(counts.sum(axis=0, dtype=np.float64)[None])[0] for counts in (flat, other_flat)]
        return _metrics(names, values[0] - values[1], paired_confidence_intervals(flat, other_flat, statistic))

    def certainty(self, other: "BootstrapEstimator", score: str) -> float:
        """Return the fraction of bootstrap samples in which a metric is higher than that of another map."""
        flat, statistic, names = self._flatten()
        found = certainty_of_gain(flat, other.counts.reshape(len(other.counts), -1), statistic)
        return float(found[names.index(score)])

    def _flatten(self) -> tuple[ndarray, Statistic, tuple[str, ...]]:
        shape = self.counts.shape[1:]

        def statistic(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
            return np.stack(list(self.statistic(sums.reshape(-1, *shape)).values()), axis=-1)

        names = tuple(self.statistic(np.zeros((1, *shape))))
        return self.counts.reshape(len(self.counts), -1), statistic, names


def estimators(counts: SplitCounts) -> dict[str, BootstrapEstimator]:
    """Return the estimators by group: "overall", "classes" and "brier" always, the others if they were counted."""
    units, scheme = counts.units, counts.scheme
    groups = {
        "overall": BootstrapEstimator(units.sum_by_unit(counts.confusion), scheme.overall),
        "classes": BootstrapEstimator(units.sum_by_unit(counts.confusion), partial(_by_class, scheme)),
        "brier": BootstrapEstimator(np.hstack([units.sum_by_unit(counts.squared_error), _pixels(counts)]), _mean_error),
    }
    if len(counts.probability):
        groups["probability"] = BootstrapEstimator(units.sum_by_unit(counts.probability), _average_precision)
    if counts.shapes is not None and counts.shapes.boundary is not None:
        groups["boundary"] = BootstrapEstimator(units.sum_by_unit(counts.shapes.boundary), _boundary)
    if counts.shapes is not None and counts.shapes.objects is not None:
        groups["objects"] = BootstrapEstimator(units.sum_by_unit(counts.shapes.objects), _objects)
    return groups


@dataclass(frozen=True)
class PartScores:
    """The scores of some scenes of a split."""

    tiles: int
    units: int
    """Number of units that its intervals resample."""
    overall: Metrics

    def content(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        return {
            "tiles": self.tiles,
            "units": self.units,
            "overall": json_values(self.overall),
            "overall_intervals": json_intervals(self.overall),
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> "PartScores":
        """Return the scores in JSON.

        Raises:
            KeyError, TypeError, ValueError: if something is missing or not a number.
        """
        ends = content["overall_intervals"]
        overall = {
            name: Metric(
                *(
                    float("nan" if value is None else value)
                    for value in (content["overall"][name], *(ends[name] or (None, None)))
                )
            )
            for name in ("iou", "f1")
        }
        return cls(int(content["tiles"]), int(content["units"]), overall)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table: tiles, IoU and F1 with their intervals."""
        return (f"{self.tiles:,}", *self.overall["iou"].format(), *self.overall["f1"].format())


def score_part(counts: SplitCounts, scenes: Collection[str]) -> PartScores | None:
    """Return the scores of the tiles in `scenes`, with intervals over their units; None if there are none."""
    inside = np.array([cell.scene in scenes for cell in counts.units.cells], bool)
    if not inside.any():
        return None
    units = counts.units.part(inside)
    estimator = BootstrapEstimator(units.sum_by_unit(counts.confusion[inside]), counts.scheme.overall)
    return PartScores(len(units.cell_of), len(units.names), estimator.estimate())


@dataclass(frozen=True)
class ScoresByPlace:
    """Scores in place, where the run has training tiles in the same place, and elsewhere."""

    parts: Mapping[Where, PartScores]
    """Without a part that has no tiles."""
    by_place: Sequence[tuple[str, Where, PartScores]]
    beside: PartScores | None = None
    """Where all tiles are elsewhere: the scores in place of the run's own test tiles, where they are known."""

    def content(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        return {
            **{where.replace(" ", "_"): part.content() for where, part in self.parts.items()},
            "per_place": [{"place": name, "where": where} | part.content() for name, where, part in self.by_place],
        }

    def lines(self) -> list[str]:
        """Return the output of the command line."""
        rows: list[tuple[str, ...]] = [(where, *part.cells()) for where, part in self.parts.items()]
        if self.beside:
            rows.insert(0, ("in place, own test tiles", *self.beside.cells()))
        if len({name for name, _, _ in self.by_place}) > 1:
            rows += [(f"{name}, {where}", *part.cells()) for name, where, part in self.by_place]
        table = format_table([("place", "tiles", "IoU", "", "F1", ""), *rows]) if len(rows) > 1 else []
        return [*table, *([ONLY_PART[where] for where in self.parts] if len(self.parts) == 1 else [])]


ONLY_PART: Mapping[Where, str] = {
    "in place": "These scores are in place: the run has training tiles in the same place.",
    "elsewhere": "These scores are elsewhere: the run has no training tiles in this place.",
}


def score_places(counts: SplitCounts, places: Mapping[str, str], in_place: Collection[str]) -> ScoresByPlace:
    """Return the scores in place and elsewhere, and of each place.

    `places` are the names of the places of all scenes, `in_place` the scenes in whose place a run has training tiles.
    """
    scenes = {cell.scene for cell in counts.units.cells}
    elsewhere = scenes - set(in_place)
    split: dict[Where, Collection[str]] = {"in place": scenes - elsewhere, "elsewhere": elsewhere}
    parts = {where: score_part(counts, inside) for where, inside in split.items()}
    by_place = [
        (name, where, found)
        for name in sorted({places[scene] for scene in scenes})
        for where, inside in split.items()
        if (found := score_part(counts, {scene for scene in inside if places[scene] == name}))
    ]
    return ScoresByPlace({where: part for where, part in parts.items() if part}, by_place)


def read_scores_in_place(run: Path, prediction: Mapping[str, Any]) -> PartScores | None:
    """Return the scores in place in scores-test.json of a run, if its map is made as `prediction` says.

    None otherwise, and for runs that were not evaluated, or by an earlier version.
    """
    try:
        known = json.loads(run_file(run, OWN_SCORES).read_bytes())
        same = any(prediction["weights"]) and known["prediction"] == json.loads(json.dumps(prediction))
        return PartScores.from_content(known["places"]["in_place"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def class_key(index: int, score: str) -> str:
    """Return the name of a score of one class among the metrics of all classes."""
    return f"{index} {score}"


def _by_class(scheme: ConfusionScheme, counts: ndarray) -> dict[str, ndarray]:
    return {
        class_key(index, name): values[..., index]
        for name, values in scheme.by_class(counts).items()
        for index in range(values.shape[-1])
    }


def _average_precision(counts: ndarray) -> dict[str, ndarray]:
    if counts.ndim == 3:
        return {"average_precision": average_precision(counts)}
    # Overlapping classes: the mean, and the value of each class.
    values = average_precision(counts)
    by_class = {class_key(index, "average_precision"): values[..., index] for index in range(values.shape[-1])}
    return {"average_precision": nanmean(values)} | by_class


def _pixels(counts: SplitCounts) -> ndarray:
    return counts.scheme.total(counts.units.sum_by_unit(counts.confusion))[:, None]


def _mean_error(sums: ndarray) -> dict[str, ndarray]:
    return {"brier": _ratio(sums[:, 0], sums[:, 1])}


def _boundary(counts: ndarray) -> dict[str, ndarray]:
    precision, recall = _ratio(counts[..., 0], counts[..., 1]), _ratio(counts[..., 2], counts[..., 3])
    # A class with a boundary in only one of label and map scores 0 and counts in the mean.
    present = counts[..., 1] + counts[..., 3] > 0
    values = {
        "precision": np.where(present, np.nan_to_num(precision), np.nan),
        "recall": np.where(present, np.nan_to_num(recall), np.nan),
    }
    values["f1"] = _harmonic_mean(values["precision"], values["recall"])
    by_class = {
        class_key(index, name): array[..., index] for name, array in values.items() for index in range(counts.shape[-2])
    }
    return by_class | {"macro_f1": nanmean(values["f1"])}


def _objects(counts: ndarray) -> dict[str, ndarray]:
    matched, predicted, true = np.moveaxis(counts, -1, 0)
    return {
        "precision": _ratio(matched, predicted),
        "recall": _ratio(matched, true),
        "f1": _ratio(2 * matched, predicted + true),
        "count_error": _ratio(predicted - true, true),
    }


def _ratio(part: ndarray, whole: ndarray) -> ndarray:
    ratio: ndarray = np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
    return ratio


def _harmonic_mean(first: ndarray, second: ndarray) -> ndarray:
    total = first + second
    mean: ndarray = np.where(total == 0, 0.0, 2 * first * second / np.where(total == 0, 1, total))
    return mean


def _metrics(names: tuple[str, ...], values: ndarray, intervals: ndarray) -> Metrics:
    rows = zip(names, values.tolist(), intervals.tolist(), strict=True)
    return {name: Metric(value, low, high) for name, value, (low, high) in rows}
