"""The tiles of a split become counts by cell (a block of a scene, or a scene). No pixel is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray

from geograft.calibration import RELIABILITY_BINS, STEPS, probability_counts, reliability_of, squared_error
from geograft.card import ModelCard
from geograft.counting import Counting
from geograft.geo.splitting.units import Units
from geograft.geo.tilesets.tileset import Samples, TileSet
from geograft.learn.feeding.feed import Sample
from geograft.learn.using.inference import Predictor
from geograft.legend import IGNORE
from geograft.progress import track
from geograft.verbs.evaluate.shapes import ShapeCounter, ShapeCounts
from geograft.verbs.shown import batched, read, stacked

Confusion = Int64[ndarray, "..."]
"""As `geograft.counting.Counting` has it."""


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
