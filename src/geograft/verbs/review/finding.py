"""The worst tiles and the labels that are probably wrong, from canvases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.config import ReviewConfig
from geograft.geo.accuracy.errors_map import tile_counts, worst_tiles
from geograft.geo.accuracy.suspects import confident_from, self_confidence, suspects
from geograft.geo.grid import Window
from geograft.legend import IGNORE
from geograft.scores import confusion_of
from geograft.verbs.review.canvases import Canvas, Look


@dataclass(frozen=True)
class WrongTile:
    """A tile in which much is wrong."""

    scene: str
    window: Window
    wrong: float
    """Share of its labelled pixels that are mapped as another class."""
    iou: float
    labelled_px: int


@dataclass(frozen=True)
class Suspect:
    """A place where the label is probably wrong."""

    scene: str
    shape: shapely.Polygon
    """In pixels of the scene, (column, row)."""
    labelled: str
    seen: str
    """The class that the model sees."""
    confidence: float
    """Mean probability that the model gives to what it sees."""
    doubt: float
    """Mean probability that it leaves to the label."""
    pixels: int

    @property
    def gravity(self) -> float:
        """Pixels times the distance between the two probabilities."""
        return self.pixels * (self.confidence - self.doubt)


@dataclass(frozen=True)
class Found:
    """What a review found."""

    worst: tuple[WrongTile, ...]
    """The worst first."""
    suspects: tuple[Suspect, ...]
    """The gravest first."""
    wrong: float
    """Share of the labelled pixels that are mapped as another class."""


def found_in(looks: Sequence[Look], kept: Sequence[Sequence[Canvas]], config: ReviewConfig) -> Found:
    """Return the worst tiles and the suspected labels, each look judged by its own model's confidence."""
    counts: list[Int64[ndarray, "n layers c c"]] = []
    doubted: list[Suspect] = []
    wrong = labelled = 0
    for look, canvases in zip(looks, kept, strict=True):
        counted, ground, thresholds = _first_look(look, canvases)
        counts.append(counted)
        right = np.trace(ground, axis1=1, axis2=2)
        wrong, labelled = wrong + int(ground.sum() - right.sum()), labelled + int(ground.sum())
        for canvas in canvases:
            doubted += _suspects(canvas, look, thresholds[canvas.layer], config.suspect_px)
    counting = looks[0].counting
    every = np.concatenate(counts)
    every = every.reshape(len(every), *counting.shape)
    tiles = [tile for look in looks for tile in look.tiles]
    ranked = worst_tiles(every, tiles[0].window.height, config.worst, overlapping=counting.overlapping)
    worst = tuple(
        WrongTile(tiles[i].scene, tiles[i].window, wrong, iou, counting.pixels(every[i]))
        for i, wrong, iou in zip(ranked.tiles.tolist(), ranked.wrong.tolist(), ranked.iou.tolist(), strict=True)
    )
    doubted.sort(key=lambda place: -place.gravity)
    return Found(worst, tuple(doubted), wrong / max(1, labelled))


def _first_look(
    look: Look, canvases: Sequence[Canvas]
) -> tuple[Int64[ndarray, "n layers c c"], Int64[ndarray, "layers c c"], Float64[ndarray, "layers c"]]:
    """Return by layer the confusion matrix of every tile, that of the ground, which tiles may share, and by class the
    probability from which on the model is confident.
    """
    layers, k = len(look.layers), len(look.layers[0])
    counts, ground = np.zeros((len(look.tiles), layers, k, k), np.int64), np.zeros((layers, k, k), np.int64)
    sums = np.zeros((layers, k, 2))
    for canvas in canvases:
        truth, predicted, probabilities = canvas.read()
        sums[canvas.layer] += self_confidence(truth, probabilities)
        ground[canvas.layer] += confusion_of(truth, predicted, k)
        parts = [
            (index, shared.within(canvas.window))
            for index, tile in enumerate(look.tiles)
            if tile.scene == canvas.scene and (shared := tile.window.overlap(canvas.window))
        ]
        found = tile_counts(truth, predicted, [window for _, window in parts], k)
        counts[[index for index, _ in parts], canvas.layer] += found
    return counts, ground, np.stack([confident_from(own) for own in sums])


def _suspects(canvas: Canvas, look: Look, thresholds: Float64[ndarray, " k"], least_px: int) -> Iterator[Suspect]:
    truth, predicted, probabilities = canvas.read()
    truth[predicted == IGNORE] = IGNORE
    found = suspects(truth, probabilities, thresholds, least_px)
    names = look.layers[canvas.layer]
    offset = np.array([canvas.window.col, canvas.window.row])
    for i in range(len(found)):
        yield Suspect(
            canvas.scene,
            shapely.transform(found.shapes[i], lambda points: points + offset),
            names[found.labelled[i]],
            names[found.predicted[i]],
            float(found.confidence[i]),
            float(found.doubt[i]),
            int(found.pixels[i]),
        )
