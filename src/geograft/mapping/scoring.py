"""Tiles shown to a network: a few at a time, the next ones read meanwhile.

The tiles of a split become counts by cell (a block of a scene, or a scene). No pixel is kept.

Counts by unit become named figures with their 95 % intervals.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from numpy import ndarray

from geograft.card import ModelCard
from geograft.dataset.tileset import Samples, TileSet
from geograft.dataset.units import Units
from geograft.inference.predictor import Predictor
from geograft.legend import IGNORE
from geograft.mapping.prefetch import ahead
from geograft.mapping.shapes import ShapeCounter, ShapeCounts
from geograft.metrics.calibration import (
    RELIABILITY_BINS,
    STEPS,
    average_precision,
    probability_counts,
    reliability_of,
    squared_error,
)
from geograft.metrics.confusion import Counting
from geograft.metrics.intervals import intervals, paired_intervals
from geograft.metrics.scores import present_mean
from geograft.progress import track
from geograft.training.loader import Sample, imaged

BATCH = 8


def batched(order: Sequence[int]) -> list[list[int]]:
    """Return indices of tiles in the same order, BATCH at a time; the last may be fewer."""
    return [list(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def read(samples: Samples, batches: Sequence[Sequence[int]]) -> Iterator[tuple[Sequence[int], list[Sample]]]:
    """Yield the indices and the tiles of each batch. While one is used, the next is read in a thread of its own."""
    return ahead((indices, [samples[i] for i in indices]) for indices in batches)


def stacked(tiles: Sequence[Sample]) -> tuple[Float32[ndarray, "n b h w"], Bool[ndarray, "n h w"]]:
    """Return what a network takes of tiles: their images, and which pixels have one."""
    return np.stack([image for image, _ in tiles]), np.stack([imaged(*tile) for tile in tiles])


Confusion = Int64[ndarray, "..."]
"""As `geograft.metrics.confusion.Counting` has it."""


@dataclass
class Counts:
    """What was counted, by cell. Sums over cells are the counts of their ground together."""

    units: Units
    counting: Counting
    confusion: Int64[ndarray, "c ..."] = field(init=False)
    """Pixels: rows are the label, columns the map; of overlapping classes a table each."""
    probability: Int64[ndarray, "c ..."] = field(init=False)
    """Pixels outside and inside class 1 by probability (2, 1001), 16 kB a cell; of overlapping classes one each.

    Without cells for more than two classes that exclude each other.
    """
    reliability: Float64[ndarray, "c 15 3"] = field(init=False)
    squared_error: Float64[ndarray, "c 1"] = field(init=False)
    shapes: ShapeCounts | None = None

    def __post_init__(self) -> None:
        cells, counting = len(self.units.cells), self.counting
        self.confusion = counting.none(cells)
        curves = (counting.classes,) if counting.overlapping else ()
        curved = counting.binary or counting.overlapping
        self.probability = np.zeros((cells if curved else 0, *curves, 2, STEPS + 1), np.int64)
        self.reliability = np.zeros((cells, RELIABILITY_BINS, 3))
        self.squared_error = np.zeros((cells, 1))

    @cached_property
    def total(self) -> Confusion:
        """Pixel counts over all cells."""
        total: Confusion = self.confusion.sum(axis=0)
        return total

    def add(
        self,
        cell: int,
        label: UInt8[ndarray, "*kn h w"],
        probabilities: Float32[ndarray, "k h w"],
        predicted: UInt8[ndarray, "*kn h w"],
    ) -> None:
        """Count the labelled pixels of one tile."""
        self.confusion[cell] += self.counting.counts(label, predicted)
        truth, seen = self.counting.answers(label, probabilities)
        self.squared_error[cell] += squared_error(seen, truth)
        self.reliability[cell] += reliability_of(seen, truth)
        if self.counting.overlapping:
            for index, (own, likely) in enumerate(zip(label, probabilities, strict=True)):
                known = own != IGNORE
                self.probability[cell, index] += probability_counts(likely[known], own[known] == 1)
        elif self.counting.binary:
            self.probability[cell] += probability_counts(seen[1], truth == 1)


def count(predictor: Predictor, tile_set: TileSet, samples: Samples, units: Units, shapes: ShapeCounter) -> Counts:
    """Return the counts of every labelled pixel of the samples, cell after cell. Reading goes on beside the network."""
    counting = Counting.of(predictor.card.legend)
    counts = Counts(units, counting)
    batches = batched(np.argsort(units.cell_of, kind="stable").tolist())
    for indices, tiles in track(read(samples, batches), len(batches), f"scoring {tile_set.folder}", "batches"):
        probabilities = predictor(*stacked(tiles))
        predicted = decided(probabilities, predictor.card)
        for index, (_, label), each, found in zip(indices, tiles, probabilities, predicted, strict=True):
            cell, truth = int(units.cell_of[index]), counting.classed(label)
            counts.add(cell, truth, each, found)
            shapes.add(cell, samples.tiles[index], truth, found)
    counts.shapes = shapes.counts()
    return counts


def mapped(predictor: Predictor, tiles: Sequence[Sample]) -> UInt8[ndarray, "n ..."]:
    """Return the map of some tiles, which the network is shown as in training; see `decided`."""
    return decided(predictor(*stacked(tiles)), predictor.card)


def decided(probabilities: Float32[ndarray, "n k h w"], card: ModelCard) -> UInt8[ndarray, "n ..."]:
    """Return the class index of every pixel (n, h, w): at the card's threshold for two classes, else the most probable.

    Of overlapping classes, 1 where a class is and 0 where it is not (n, k, h, w), each at its own threshold.
    """
    return Counting.of(card.legend).decided(probabilities, card.cuts)


Named = Callable[[ndarray], Mapping[str, ndarray]]
"""Counts (n, ...) -> figures by name, each (n,)."""


@dataclass(frozen=True)
class Figure:
    """A score with the ends of its 95 % interval; NaN for what does not exist."""

    value: float
    low: float
    high: float

    @property
    def plain(self) -> float | None:
        """The value for JSON."""
        return None if np.isnan(self.value) else self.value

    @property
    def ends(self) -> list[float] | None:
        """The interval for JSON."""
        return None if np.isnan(self.low) else [self.low, self.high]

    def words(self, form: str = ".3f") -> tuple[str, str]:
        """Return the value and, in brackets, its interval; "-" and nothing for what does not exist."""
        return shown(self.plain, form), between(self.ends, form)


Figures = dict[str, Figure]


def shown(value: float | None, form: str = ".3f") -> str:
    """Return a number as text; "-" for None."""
    return "-" if value is None else f"{value:{form}}"


def between(ends: Sequence[float] | None, form: str = ".3f") -> str:
    """Return an interval as text in brackets; nothing for None."""
    return f"({ends[0]:{form}} to {ends[1]:{form}})" if ends else ""


def plain(figures: Figures) -> dict[str, float | None]:
    """Return the values of figures for JSON."""
    return {name: figure.plain for name, figure in figures.items()}


def plain_ends(figures: Figures) -> dict[str, list[float] | None]:
    """Return the intervals of figures for JSON."""
    return {name: figure.ends for name, figure in figures.items()}


def headline(counts: ndarray, counting: Counting) -> dict[str, float | None]:
    """Return the headline scores of the counts of one map for JSON."""
    found = counting.headline(counts)
    return {name: None if np.isnan(value) else value for name, value in found.items()}


@dataclass(frozen=True)
class Measure:
    """Counts by unit, and what is taken of their sum."""

    counts: ndarray
    """(u, ...)."""
    named: Named

    def figures(self) -> Figures:
        """Return each figure of all units together, with its interval."""
        flat, taken, names = self._parts()
        values = taken(flat.sum(axis=0, dtype=np.float64)[None])[0]
        return _figures(names, values, intervals(flat, taken))

    def less(self, other: "Measure") -> Figures:
        """Return the difference of each figure to that of another map of the same units, with its paired interval."""
        flat, taken, names = self._parts()
        rival = other.counts.reshape(len(other.counts), -1)
        values = [taken(counts.sum(axis=0, dtype=np.float64)[None])[0] for counts in (flat, rival)]
        return _figures(names, values[0] - values[1], paired_intervals(flat, rival, taken))

    def _parts(self) -> tuple[ndarray, Callable[[Float64[ndarray, "n c"]], Float64[ndarray, "n f"]], tuple[str, ...]]:
        shape = self.counts.shape[1:]

        def taken(sums: Float64[ndarray, "n c"]) -> Float64[ndarray, "n f"]:
            return np.stack(list(self.named(sums.reshape(-1, *shape)).values()), axis=-1)

        names = tuple(self.named(np.zeros((1, *shape))))
        return self.counts.reshape(len(self.counts), -1), taken, names


def measures(counts: Counts) -> dict[str, Measure]:
    """Return what is measured: "overall" and "classes" always, the others where they were counted."""
    units, counting = counts.units, counts.counting
    found = {
        "overall": Measure(units.summed(counts.confusion), counting.overall),
        "classes": Measure(units.summed(counts.confusion), partial(_by_class, counting)),
        "brier": Measure(np.hstack([units.summed(counts.squared_error), _pixels(counts)]), _mean_error),
    }
    if len(counts.probability):
        found["probability"] = Measure(units.summed(counts.probability), _average_precision)
    if counts.shapes is not None and counts.shapes.boundary is not None:
        found["boundary"] = Measure(units.summed(counts.shapes.boundary), _boundary)
    if counts.shapes is not None and counts.shapes.objects is not None:
        found["objects"] = Measure(units.summed(counts.shapes.objects), _objects)
    return found


def key(index: int, score: str) -> str:
    """Return the name of a score of one class among the figures of all classes."""
    return f"{index} {score}"


def _by_class(counting: Counting, counts: ndarray) -> dict[str, ndarray]:
    return {
        key(index, name): values[..., index]
        for name, values in counting.by_class(counts).items()
        for index in range(values.shape[-1])
    }


def _average_precision(counts: ndarray) -> dict[str, ndarray]:
    if counts.ndim == 3:
        return {"average_precision": average_precision(counts)}
    # Of overlapping classes, the mean over them, and each one's own.
    each = average_precision(counts)
    own = {key(index, "average_precision"): each[..., index] for index in range(each.shape[-1])}
    return {"average_precision": present_mean(each)} | own


def _pixels(counts: Counts) -> ndarray:
    return counts.counting.total(counts.units.summed(counts.confusion))[:, None]


def _mean_error(sums: ndarray) -> dict[str, ndarray]:
    return {"brier": _ratio(sums[:, 0], sums[:, 1])}


def _boundary(counts: ndarray) -> dict[str, ndarray]:
    precision, recall = _ratio(counts[..., 0], counts[..., 1]), _ratio(counts[..., 2], counts[..., 3])
    # A boundary that one of the two does not have at all is missed or made up: 0, not left out.
    there = counts[..., 1] + counts[..., 3] > 0
    values = {
        "precision": np.where(there, np.nan_to_num(precision), np.nan),
        "recall": np.where(there, np.nan_to_num(recall), np.nan),
    }
    values["f1"] = _harmonic(values["precision"], values["recall"])
    by_class = {
        key(index, name): array[..., index] for name, array in values.items() for index in range(counts.shape[-2])
    }
    return by_class | {"macro_f1": present_mean(values["f1"])}


def _objects(counts: ndarray) -> dict[str, ndarray]:
    matched, found, true = np.moveaxis(counts, -1, 0)
    return {
        "precision": _ratio(matched, found),
        "recall": _ratio(matched, true),
        "f1": _ratio(2 * matched, found + true),
        "count_error": _ratio(found - true, true),
    }


def _ratio(part: ndarray, whole: ndarray) -> ndarray:
    ratio: ndarray = np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)
    return ratio


def _harmonic(first: ndarray, second: ndarray) -> ndarray:
    both = first + second
    mean: ndarray = np.where(both == 0, 0.0, 2 * first * second / np.where(both == 0, 1, both))
    return mean


def _figures(names: tuple[str, ...], values: ndarray, ends: ndarray) -> Figures:
    rows = zip(names, values.tolist(), ends.tolist(), strict=True)
    return {name: Figure(value, low, high) for name, value, (low, high) in rows}
