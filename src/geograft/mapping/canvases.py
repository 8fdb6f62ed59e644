"""Predict held-out tiles and mosaic them into canvases, parts of scenes that are stored in files.

Each canvas is needed twice, because the confidence thresholds are known only after all are predicted. So it is written
once, with its probabilities in steps of 1/250, and read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from geograft.dataset.tileset import Samples, Split, Tile, TileSet
from geograft.geo.grid import Window, block_windows
from geograft.geo.rasters.tags import BYTE_SCALE
from geograft.inference.predictor import Predictor
from geograft.legend import IGNORE
from geograft.mapping.scoring import apply_thresholds, batch_indices, read_batches, stack_tiles
from geograft.mapping.suspects import binary_probabilities
from geograft.metrics.confusion import ConfusionScheme
from geograft.progress import ProgressBar, progress_bar

Slices: TypeAlias = tuple[slice, slice]
CANVAS_PX = 2048
"""Longest side of a canvas; regions that cross its edge are cut there."""


@dataclass(frozen=True)
class HeldOutTiles:
    """A model, and a split of tiles that it was not trained on."""

    predictor: Predictor
    tile_set: TileSet
    split: Split

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles of the split, in the order of the index."""
        return self.tile_set.split(self.split)

    @property
    def scheme(self) -> ConfusionScheme:
        """How pixels are counted."""
        return ConfusionScheme.from_legend(self.tile_set.meta.legend)

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The class names of each layer: one layer of all classes, or a binary layer for each overlapping class."""
        names = self.tile_set.meta.legend.names
        return tuple((f"no {name}", name) for name in names) if self.scheme.overlapping else (names,)


@dataclass(frozen=True)
class Canvas:
    """The label and the prediction of a part of a scene, stored in a file: one layer, see `HeldOutTiles.layers`."""

    path: Path
    scene: str
    window: Window
    layer: int = 0
    """Index into `HeldOutTiles.layers`."""

    def read(self) -> tuple[UInt8[ndarray, "h w"], UInt8[ndarray, "h w"], Float32[ndarray, "k h w"]]:
        """Return label, prediction and probabilities; class index 255 without a label or outside all tiles."""
        with np.load(self.path, allow_pickle=False) as arrays:
            return arrays["truth"], arrays["predicted"], arrays["steps"].astype(np.float32) / BYTE_SCALE


@dataclass(frozen=True)
class _ScenePart:
    scene: str
    window: Window
    tiles: tuple[int, ...]
    """Indices of the tiles that intersect it."""


def write_canvases(held_out: HeldOutTiles, folder: Path) -> list[Canvas]:
    """Predict the tiles, write the canvases into `folder` and return them, scene by scene."""
    folder.mkdir(parents=True)
    samples = held_out.tile_set.samples(held_out.split, unique_pixels=True, means=held_out.predictor.card.mean)
    parts = scene_parts(samples.tiles)
    canvases = []
    with progress_bar(f"mapping {held_out.split}", sum(len(part.tiles) for part in parts), "tiles") as bar:
        for index, part in enumerate(parts):
            for layer, arrays in enumerate(_predict_canvas(held_out, samples, part, bar)):
                path = folder / f"{index:05d}-{layer}.npz"
                np.savez_compressed(path, truth=arrays.truth, predicted=arrays.predicted, steps=arrays.steps)
                canvases.append(Canvas(path, part.scene, part.window, layer))
    return canvases


def scene_parts(tiles: Sequence[Tile]) -> list[_ScenePart]:
    """Return the parts of scenes that contain tiles, at most CANVAS_PX on a side, scene by scene."""
    by_scene: dict[str, list[int]] = {}
    for index, tile in enumerate(tiles):
        by_scene.setdefault(tile.scene, []).append(index)
    found = []
    for scene, mine in by_scene.items():
        for part in block_windows(_frame([tiles[i].window for i in mine]), CANVAS_PX, CANVAS_PX):
            here = tuple(i for i in mine if part.intersection(tiles[i].window))
            found += [_ScenePart(scene, part, here)] if here else []
    return found


@dataclass(frozen=True)
class _CanvasArrays:
    """Label, prediction, and the probability of each class in steps; 255, 255 and 0 outside all tiles."""

    truth: UInt8[ndarray, "h w"]
    predicted: UInt8[ndarray, "h w"]
    steps: UInt8[ndarray, "k h w"]

    @classmethod
    def blank(cls, window: Window, classes: int) -> "_CanvasArrays":
        shape = window.height, window.width
        unknown = np.full(shape, IGNORE, np.uint8)
        return cls(unknown, unknown.copy(), np.zeros((classes, *shape), np.uint8))

    def add(self, there: Slices, label: ndarray, mapped: ndarray, probabilities: ndarray) -> None:
        # Where tiles overlap, only the first tile's pixels are labelled, and the prediction must be of the same tile.
        free = (label != IGNORE) | (self.predicted[there] == IGNORE)
        self.truth[there][free], self.predicted[there][free] = label[free], mapped[free]
        self.steps[:, *there][:, free] = np.rint(probabilities[:, free] * BYTE_SCALE).astype(np.uint8)


def _predict_canvas(
    held_out: HeldOutTiles, samples: Samples, part: _ScenePart, bar: ProgressBar
) -> list[_CanvasArrays]:
    """Return the arrays of each layer of one canvas."""
    canvas = [_CanvasArrays.blank(part.window, len(names)) for names in held_out.layers]
    for indices, tiles in read_batches(samples, batch_indices(part.tiles)):
        probabilities = held_out.predictor(*stack_tiles(tiles))
        predictions = apply_thresholds(probabilities, held_out.predictor.card)
        for index, (_, label), of_tile, mapped in zip(indices, tiles, probabilities, predictions, strict=True):
            tile_window = samples.tiles[index].window
            shared = part.window.intersection(tile_window)
            assert shared is not None
            there, here = shared.relative_to(part.window).slices, shared.relative_to(tile_window).slices
            layers = _layers(held_out.scheme.to_classes(label), mapped, of_tile)
            for arrays, (truth, predicted, likely) in zip(canvas, layers, strict=True):
                arrays.add(there, truth[here], predicted[here], likely[:, *here])
        bar.advance(len(tiles))
    return canvas


def _layers(
    label: UInt8[ndarray, "*k h w"], mapped: UInt8[ndarray, "*k h w"], probabilities: Float32[ndarray, "k h w"]
) -> list[tuple[UInt8[ndarray, "h w"], UInt8[ndarray, "h w"], Float32[ndarray, "c h w"]]]:
    """Return label, prediction and probabilities of each layer of a tile; a binary layer per overlapping class."""
    if label.ndim == 2:
        return [(label, mapped, probabilities)]
    return [(*pair, binary_probabilities(own)) for *pair, own in zip(label, mapped, probabilities, strict=True)]


def _frame(windows: Sequence[Window]) -> Window:
    top, left = min(w.row for w in windows), min(w.col for w in windows)
    return Window(top, left, max(w.stop_row for w in windows) - top, max(w.stop_col for w in windows) - left)
