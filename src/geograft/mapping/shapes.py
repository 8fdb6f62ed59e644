"""Boundary and object counts of a split, from tiles stitched back together.

The tiles of one cell (a block, or a scene) are adjacent. They are pasted onto a canvas of two bytes per pixel (and per
overlapping class), which is counted when its last tile has arrived. Cells larger than CANVAS_PX are divided into
several canvases, so that memory stays near a gigabyte. Objects and boundaries that cross the edge of a canvas are cut
there, in labels and map alike.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from geograft.config import Cleaning
from geograft.dataset.tileset import Tile, TileSet
from geograft.dataset.units import Units
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window, block_windows
from geograft.legend import IGNORE
from geograft.metrics.cleaning import clean_labels
from geograft.metrics.objects import boundary_counts, object_counts

CANVAS_PX = 4096


@dataclass(frozen=True)
class ShapeCounts:
    """Counts per cell; None if not requested."""

    boundary: Int64[ndarray, "c k 4"] | None
    """Per class: matched predicted, all predicted, matched labelled and all labelled boundary pixels."""
    objects: Int64[ndarray, "c 3"] | None
    """Matched, predicted and labelled objects."""


@dataclass(frozen=True)
class ShapeConfig:
    """Which shapes to count."""

    classes: int
    tolerance_m: float = 0.0
    """Boundary tolerance in metres; 0 disables boundaries."""
    object_class: int | None = None
    """Index of the class whose objects are counted; None disables objects."""
    overlapping: bool = False
    cleaning: Cleaning | None = None
    """What `geograft polygons` does to the objects before they are counted; None for nothing."""

    @property
    def enabled(self) -> bool:
        """Whether any shapes are counted."""
        return self.tolerance_m > 0 or self.object_class is not None


@dataclass
class _Canvas:
    window: Window
    truth: UInt8[ndarray, "*k h w"]
    predicted: UInt8[ndarray, "*k h w"]
    missing: int
    """Number of tiles not yet added."""


class ShapeCounter:
    """Collects the tiles of a split in any order and counts every canvas as soon as it is complete."""

    def __init__(self, config: ShapeConfig, tile_set: TileSet, tiles: Sequence[Tile], units: Units) -> None:
        self._config, self._units, self._scenes = config, units, tile_set.scenes
        self._pixel_m = pixel_sizes(tile_set, tiles) if config.tolerance_m else {}
        n = len(units.cells)
        self._boundary = np.zeros((n, config.classes, 4), np.int64) if config.tolerance_m else None
        self._objects = np.zeros((n, 3), np.int64) if config.object_class is not None else None
        self._canvases: dict[tuple[int, Window], _Canvas] = {}
        self._extents = _cell_extents(units, tiles) if config.enabled else {}
        self._tile_counts = Counter(
            (cell, window)
            for cell, tile in zip(units.cell_of.tolist(), tiles, strict=True)
            for window in self._windows(cell, tile)
        )

    def add(self, cell: int, tile: Tile, label: UInt8[ndarray, "*k h w"], predicted: UInt8[ndarray, "*k h w"]) -> None:
        """Paste a tile onto its canvases and count those that are complete."""
        for window in self._windows(cell, tile):
            canvas = self._canvas(cell, window)
            _paste(canvas, tile.window, label, predicted)
            canvas.missing -= 1
            if not canvas.missing:
                self._count(cell, self._canvases.pop((cell, window)))

    def counts(self) -> ShapeCounts | None:
        """Return the counts of all canvases; None if no shapes are counted."""
        return ShapeCounts(self._boundary, self._objects) if self._config.enabled else None

    def _windows(self, cell: int, tile: Tile) -> Iterator[Window]:
        if cell in self._extents:
            yield from (
                part
                for part in block_windows(self._extents[cell], CANVAS_PX, CANVAS_PX)
                if part.intersection(tile.window)
            )

    def _canvas(self, cell: int, window: Window) -> _Canvas:
        if (cell, window) not in self._canvases:
            bands = (self._config.classes,) if self._config.overlapping else ()
            truth, predicted = (np.full((*bands, window.height, window.width), IGNORE, np.uint8) for _ in range(2))
            self._canvases[cell, window] = _Canvas(window, truth, predicted, self._tile_counts[cell, window])
        return self._canvases[cell, window]

    def _count(self, cell: int, canvas: _Canvas) -> None:
        config = self._config
        if self._boundary is not None:
            tolerance_px = config.tolerance_m / self._pixel_m[self._units.cells[cell].scene]
            self._boundary[cell] += _boundary_counts(canvas, config, tolerance_px)
        if self._objects is not None and config.object_class is not None:
            pixel_m = self._scenes[self._units.cells[cell].scene].resolution_m or 1.0
            self._objects[cell] += _object_counts(canvas, config, config.object_class, pixel_m**2)


def _boundary_counts(canvas: _Canvas, config: ShapeConfig, tolerance_px: float) -> Int64[ndarray, "k 4"]:
    if not config.overlapping:
        return boundary_counts(canvas.truth, canvas.predicted, config.classes, tolerance_px)
    pairs = zip(canvas.truth, canvas.predicted, strict=True)
    return np.stack([boundary_counts(truth, predicted, 2, tolerance_px)[1] for truth, predicted in pairs])


def _object_counts(canvas: _Canvas, config: ShapeConfig, index: int, pixel_m2: float) -> Int64[ndarray, " 3"]:
    if config.overlapping:
        return object_counts(canvas.truth[index], canvas.predicted[index], 1)
    return object_counts(canvas.truth, clean_labels(canvas.predicted, index, config.cleaning, pixel_m2), index)


def object_class_index(name: str, names: Sequence[str]) -> int | None:
    """Return the index of the class `name`; None for an empty name.

    Raises:
        SettingError: when no class has that name.
    """
    if name and name not in names:
        raise SettingError(f"--objects {name}: no such class. Choose one of: {', '.join(names)}.")
    return names.index(name) if name else None


def pixel_sizes(tile_set: TileSet, tiles: Sequence[Tile]) -> dict[str, float]:
    """Return the pixel size in metres of every scene with a tile.

    Raises:
        InputError: when a scene is not georeferenced.
    """
    used = {tile.scene for tile in tiles}
    sizes = {scene.name: scene.resolution_m for scene in tile_set.meta.scenes if scene.name in used}
    for scene, size in sizes.items():
        if size is None:
            raise InputError(
                f"{tile_set.folder}: scene {scene} is not georeferenced, so --boundary-m cannot be converted to "
                "pixels. Omit it, or assign a CRS to the image and run prepare again."
            )
    return {scene: size for scene, size in sizes.items() if size is not None}


def _cell_extents(units: Units, tiles: Sequence[Tile]) -> dict[int, Window]:
    """Return the bounding window of the tiles of each cell."""
    ends: dict[int, tuple[int, int, int, int]] = {}
    for cell, tile in zip(units.cell_of.tolist(), tiles, strict=True):
        w = tile.window
        top, left, bottom, right = ends.get(cell, (w.row, w.col, w.stop_row, w.stop_col))
        ends[cell] = min(top, w.row), min(left, w.col), max(bottom, w.stop_row), max(right, w.stop_col)
    return {cell: Window(top, left, bottom - top, right - left) for cell, (top, left, bottom, right) in ends.items()}


def _paste(canvas: _Canvas, tile: Window, label: UInt8[ndarray, "*k h w"], predicted: UInt8[ndarray, "*k h w"]) -> None:
    """Paste the part of a tile that overlaps the canvas. Labelled pixels of earlier tiles are kept."""
    overlap = canvas.window.intersection(tile)
    if overlap is None:
        return
    target, source = (..., *overlap.relative_to(canvas.window).slices), (..., *overlap.relative_to(tile).slices)
    # Where tiles overlap only one of them has a label, and the prediction must come from the same tile.
    free = (label[source] != IGNORE) | (canvas.predicted[target] == IGNORE)
    canvas.truth[target][free] = label[source][free]
    canvas.predicted[target][free] = predicted[source][free]
