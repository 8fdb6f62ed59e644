"""Counts of a few tiles, with thresholds fitted out of fold, and the scores of an adapted run beside those before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.dataset.folds import TileFold
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import Cell, Units
from geograft.mapping.models import RunModel
from geograft.mapping.run_calibration import FEW_TILES, limited_choice
from geograft.mapping.scoring import (
    BootstrapEstimator,
    Confusion,
    Metrics,
    choose_samples,
    count_split,
    json_intervals,
    json_values,
)
from geograft.mapping.shapes import ShapeConfig, ShapeCounter
from geograft.metrics.calibration import MIN_CERTAINTY, STEPS, ThresholdChoice
from geograft.metrics.confusion import ConfusionScheme
from geograft.metrics.intervals import few_units_warning
from geograft.text import format_table

RUN, FITTED, ADAPTED = "the run as it is", "the run, threshold fitted there", "adapted"
"""Names of the maps that are compared."""


@dataclass(frozen=True)
class TileCounts:
    """Counts of the labelled pixels of each tile."""

    scheme: ConfusionScheme
    confusion: Int64[ndarray, "tiles ..."]
    """At the thresholds of the model's card."""
    probability: Int64[ndarray, "tiles thresholds 2 1001"]
    """Histograms of the probability, for the positive or each overlapping class; none for exclusive classes."""

    def choose_thresholds(self, tiles: Sequence[int], own: Sequence[float]) -> tuple[ThresholdChoice, ...]:
        """Return the choice of each threshold on some tiles, between `own` and the best one, limited as for places."""
        counts, few = self.probability[list(tiles)], len(tiles) < FEW_TILES
        return tuple(limited_choice(counts[:, i], threshold, few) for i, threshold in enumerate(own))

    def with_fitted_thresholds(self, folds: Sequence[TileFold], own: Sequence[float]) -> Confusion:
        """Return the confusion counts of each tile, at thresholds that are chosen on the training tiles of its fold."""
        found = self.confusion.copy()
        for fold in folds:
            choices = self.choose_thresholds(fold.train, own)
            moved = [(i, choice.threshold) for i, choice in enumerate(choices) if not choice.kept]
            for tile in fold.test:
                for index, threshold in moved:
                    table = confusion_at(self.probability[tile, index], threshold)
                    found[tile] = _with_table(found[tile], index, table, self.scheme)
        return found


def _with_table(confusion: ndarray, index: int, table: ndarray, scheme: ConfusionScheme) -> Confusion:
    if not scheme.overlapping:
        return table
    changed: Confusion = confusion.copy()
    changed[index] = table
    return changed


def confusion_at(histogram: Int64[ndarray, "2 1001"], threshold: float) -> Int64[ndarray, "2 2"]:
    """Return the confusion matrix at a threshold, a multiple of 1 / 1000, from the histogram of a probability."""
    positive = histogram[:, round(threshold * STEPS) :].sum(axis=1)
    return np.stack([histogram.sum(axis=1) - positive, positive], axis=1)


def count_tiles(model: RunModel, tile_set: TileSet, positions: Sequence[int]) -> TileCounts:
    """Return the counts of some tiles of a tile set, predicted as in a map of their scenes.

    Pixels in several tiles of the set, chosen or not, count in the first of these only.

    Raises:
        InputError: if an image cannot be read.
    """
    whole = replace(tile_set, tiles=tuple(replace(tile, split="val") for tile in tile_set.tiles))
    samples = whole.samples("val", unique_pixels=True, means=model.card.mean)
    samples = choose_samples(samples, positions)
    tiles = samples.tiles
    cells = tuple(Cell(tile.scene, tile.window, str(i)) for i, tile in zip(positions, tiles, strict=True))
    units = Units("block", len({tile.scene for tile in tiles}), cells, np.arange(len(tiles)))
    shapes = ShapeCounter(ShapeConfig(len(model.card.legend.names)), whole, tiles, units)
    counts = count_split(model, whole, samples, units, shapes)
    # Empty without thresholds, that is, for more than two exclusive classes.
    probability = counts.probability.reshape(len(tiles), -1, 2, STEPS + 1)
    return TileCounts(counts.scheme, counts.confusion, probability)


@dataclass(frozen=True)
class PlaceScores:
    """Scores of several maps of the same tiles; the last one is that of the adapted run."""

    title: str
    description: str
    """The units of the confidence intervals."""
    scheme: ConfusionScheme
    counts: Mapping[str, ndarray]
    """Confusion counts by unit, (units, ...), of each map by name."""

    @cached_property
    def figures(self) -> dict[str, Metrics]:
        """The metrics of each map."""
        return {name: self._estimator(name).estimate() for name in self.counts}

    @property
    def warning(self) -> str:
        """A warning if there are few units; else empty."""
        return few_units_warning(len(self.counts[ADAPTED]))

    @property
    def best_before(self) -> str:
        """The name of the map with the highest IoU but for the last one."""
        return max(list(self.counts)[:-1], key=lambda name: np.nan_to_num(self.figures[name]["iou"].value))

    @cached_property
    def difference(self) -> Metrics:
        """The metrics of the adapted run minus those of the best map before, with paired confidence intervals."""
        return self._estimator(ADAPTED).difference(self._estimator(self.best_before))

    @cached_property
    def certainty(self) -> float:
        """The fraction of the bootstrap samples of the units in which the adapted run has the higher IoU."""
        return self._estimator(ADAPTED).certainty(self._estimator(self.best_before), "iou")

    @property
    def is_better(self) -> bool:
        """Whether the adapted run has the higher IoU, also in at least 80 % of the bootstrap samples."""
        return bool(self.difference["iou"].value > 0) and self.certainty >= MIN_CERTAINTY

    def lines(self) -> list[str]:
        """Return a table of the scores and the difference."""
        rows: list[tuple[str, ...]] = [(self.title, "IoU", "", "F1", "")]
        rows += [(f"  {name}", *self._cells(figures, ".3f")) for name, figures in self.figures.items()]
        words = f"  difference to {self.best_before}" if len(self.counts) > 2 else "  difference"
        return format_table([*rows, (words, *self._cells(self.difference, "+.3f"))])

    def content(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        maps = {**self.figures, "difference": self.difference}
        found = {name: {"scores": json_values(each), "intervals": json_intervals(each)} for name, each in maps.items()}
        return {"units": self.description, "compared_with": self.best_before, "certainty": self.certainty, **found}

    def _estimator(self, name: str) -> BootstrapEstimator:
        return BootstrapEstimator(self.counts[name], self.scheme.overall)

    @staticmethod
    def _cells(figures: Metrics, form: str) -> tuple[str, ...]:
        return (*figures["iou"].format(form), *figures["f1"].format(form))
