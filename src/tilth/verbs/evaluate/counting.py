"""The tiles of a split become counts by cell (a block of a scene, or a scene). No pixel is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8
from numpy import ndarray

from tilth.calibration import RELIABILITY_BINS, STEPS, probability_counts, reliability_counts, squared_error
from tilth.card import ModelCard
from tilth.geo.splitting.units import Units
from tilth.geo.tilesets.tileset import Samples, TileSet
from tilth.learn.feeding.feed import Sample
from tilth.learn.using.inference import Predictor
from tilth.legend import IGNORE
from tilth.progress import track
from tilth.scores import confusion_of
from tilth.verbs.evaluate.shapes import ShapeCounter, ShapeCounts
from tilth.verbs.shown import batched, read, stacked

Confusion = Int64[ndarray, "k k"]


@dataclass
class Counts:
    """What was counted, by cell. Sums over cells are the counts of their ground together."""

    units: Units
    classes: int
    confusion: Int64[ndarray, "c k k"] = field(init=False)
    """Pixels: rows are the label, columns the map."""
    probability: Int64[ndarray, "c 2 bins"] = field(init=False)
    """Pixels outside and inside class 1 by probability, 16 kB a cell; without cells for more than two classes."""
    reliability: Float64[ndarray, "c 15 3"] = field(init=False)
    squared_error: Float64[ndarray, "c 1"] = field(init=False)
    shapes: ShapeCounts | None = None

    def __post_init__(self) -> None:
        cells, k = len(self.units.cells), self.classes
        self.confusion = np.zeros((cells, k, k), np.int64)
        self.probability = np.zeros((cells if k == 2 else 0, 2, STEPS + 1), np.int64)
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
        label: UInt8[ndarray, "h w"],
        probabilities: Float32[ndarray, "k h w"],
        predicted: UInt8[ndarray, "h w"],
    ) -> None:
        """Count the labelled pixels of one tile."""
        self.confusion[cell] += confusion_of(label, predicted, self.classes)
        known = label != IGNORE
        truth, seen = label[known], probabilities[:, known]
        self.squared_error[cell] += squared_error(seen, truth)
        if self.classes == 2:
            self.probability[cell] += probability_counts(seen[1], truth == 1)
            self.reliability[cell] += reliability_counts(seen[1], truth == 1)
        else:
            likeliest = seen.argmax(axis=0)
            confidence = seen[likeliest, np.arange(len(likeliest))]
            self.reliability[cell] += reliability_counts(confidence, likeliest == truth)


def count(predictor: Predictor, tile_set: TileSet, samples: Samples, units: Units, shapes: ShapeCounter) -> Counts:
    """Return the counts of every labelled pixel of the samples, cell after cell. Reading goes on beside the network."""
    counts = Counts(units, len(predictor.card.legend.names))
    batches = batched(np.argsort(units.cell_of, kind="stable").tolist())
    for indices, tiles in track(read(samples, batches), len(batches), f"scoring {tile_set.folder}", "batches"):
        probabilities = predictor(*stacked(tiles))
        predicted = decided(probabilities, predictor.card)
        for index, (_, label), each, found in zip(indices, tiles, probabilities, predicted, strict=True):
            cell = int(units.cell_of[index])
            counts.add(cell, label, each, found)
            shapes.add(cell, samples.tiles[index], label, found)
    counts.shapes = shapes.counts()
    return counts


def mapped(predictor: Predictor, tiles: Sequence[Sample]) -> UInt8[ndarray, "n h w"]:
    """Return the class index of every pixel of some tiles, which the network is shown as in training."""
    return decided(predictor(*stacked(tiles)), predictor.card)


def decided(probabilities: Float32[ndarray, "n k h w"], card: ModelCard) -> UInt8[ndarray, "n h w"]:
    """Return the class index of every pixel: at the card's threshold for two classes, else the most probable."""
    binary = card.legend.binary
    classes: ndarray = probabilities[:, 1] >= card.threshold if binary else probabilities.argmax(axis=1)
    return classes.astype(np.uint8)
