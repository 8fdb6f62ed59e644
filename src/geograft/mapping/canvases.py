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

from geograft.dataset.tileset import Split, Tile, TileSet
from geograft.geo.grid import Window, block_windows
from geograft.geo.rasters.tags import BYTE_SCALE
from geograft.legend import IGNORE
from geograft.mapping.held_out import TilePrediction, predict_tiles
from geograft.mapping.models import RunModel
from geograft.mapping.suspects import binary_probabilities
from geograft.metrics.confusion import ConfusionScheme

Slices: TypeAlias = tuple[slice, slice]
CANVAS_PX = 2048
"""Longest side of a canvas; regions that cross its edge are cut there."""


@dataclass(frozen=True)
class HeldOutTiles:
    """A model, and a split of tiles that it was not trained on."""

    model: RunModel
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
    """Predict the tiles, write the canvases into `folder` and return them, scene by scene.

    Memory: the canvases along a row of tiles, 2 bytes and one byte per class for each pixel.
    """
    folder.mkdir(parents=True)
    samples = held_out.tile_set.samples(held_out.split, unique_pixels=True, means=held_out.model.card.mean)
    parts = scene_parts(samples.tiles)
    parts_of: dict[int, list[int]] = {}
    for number, part in enumerate(parts):
        for index in part.tiles:
            parts_of.setdefault(index, []).append(number)
    missing = [len(part.tiles) for part in parts]
    open_parts: dict[int, list[_CanvasArrays]] = {}
    canvases: dict[int, list[Canvas]] = {}
    for tile in predict_tiles(held_out.model, held_out.tile_set, samples.tiles, f"mapping {held_out.split}"):
        label = held_out.scheme.to_classes(samples[tile.index][1])
        for number in parts_of[tile.index]:
            part = parts[number]
            if number not in open_parts:
                open_parts[number] = [_CanvasArrays.blank(part.window, len(names)) for names in held_out.layers]
            _add_tile(open_parts[number], part.window, samples.tiles[tile.index].window, label, tile)
            missing[number] -= 1
            if not missing[number]:
                canvases[number] = _write_part(folder, number, part, open_parts.pop(number))
    return [canvas for number in sorted(canvases) for canvas in canvases[number]]


def _write_part(folder: Path, number: int, part: _ScenePart, layers: Sequence["_CanvasArrays"]) -> list[Canvas]:
    written = []
    for layer, arrays in enumerate(layers):
        path = folder / f"{number:05d}-{layer}.npz"
        np.savez_compressed(path, truth=arrays.truth, predicted=arrays.predicted, steps=arrays.steps)
        written.append(Canvas(path, part.scene, part.window, layer))
    return written


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


def _add_tile(
    canvas: Sequence[_CanvasArrays], part: Window, window: Window, label: UInt8[ndarray, "*k h w"], tile: TilePrediction
) -> None:
    """Add a tile to the arrays of each layer of a canvas."""
    shared = part.intersection(window)
    assert shared is not None
    there, here = shared.relative_to(part).slices, shared.relative_to(window).slices
    layers = _layers(label, tile.classes, tile.probabilities)
    for arrays, (truth, predicted, likely) in zip(canvas, layers, strict=True):
        arrays.add(there, truth[here], predicted[here], likely[:, *here])


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
