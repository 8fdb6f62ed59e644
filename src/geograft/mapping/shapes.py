"""Boundaries and objects: tiles are stitched together again, for these are seen on whole ground only.

Held-out tiles of one cell (a block, or a scene) lie side by side. They are put on a canvas, two bytes a pixel (for each
class, where these overlap), and each canvas is counted when its last tile is there. A cell larger than CANVAS_PX is cut
in several, so that memory stays near a gigabyte. What crosses the edge of a canvas is cut there, in the labels and in
the map alike.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray

from geograft.dataset.tileset import Tile, TileSet
from geograft.dataset.units import Units
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Window, cells
from geograft.legend import IGNORE
from geograft.metrics.boundary import boundary_counts
from geograft.metrics.objects import object_counts

CANVAS_PX = 4096


@dataclass(frozen=True)
class ShapeCounts:
    """Counts by cell; None where they were not asked for."""

    boundary: Int64[ndarray, "c k 4"] | None
    """By class: mapped boundary pixels matched, all of them, labelled ones matched, all of them."""
    objects: Int64[ndarray, "c 3"] | None
    """Objects matched, mapped, labelled."""


@dataclass(frozen=True)
class Wanted:
    """What to count of shapes."""

    classes: int
    tolerance_m: float = 0.0
    """Metres; 0: no boundaries."""
    object_class: int | None = None
    """Class index; None: no objects."""
    overlapping: bool = False

    @property
    def something(self) -> bool:
        """Whether canvases are needed at all."""
        return self.tolerance_m > 0 or self.object_class is not None


@dataclass
class _Canvas:
    window: Window
    truth: UInt8[ndarray, "*k h w"]
    found: UInt8[ndarray, "*k h w"]
    missing: int
    """Tiles that are still to come."""


class ShapeCounter:
    """Takes the tiles of a split in any order and counts every canvas as soon as it is whole."""

    def __init__(self, wanted: Wanted, tile_set: TileSet, tiles: Sequence[Tile], units: Units) -> None:
        self._wanted, self._units = wanted, units
        self._pixel_m = _pixel_sizes(tile_set, tiles) if wanted.tolerance_m else {}
        n = len(units.cells)
        self._boundary = np.zeros((n, wanted.classes, 4), np.int64) if wanted.tolerance_m else None
        self._objects = np.zeros((n, 3), np.int64) if wanted.object_class is not None else None
        self._canvases: dict[tuple[int, Window], _Canvas] = {}
        self._frames = _frames(units, tiles) if wanted.something else {}
        self._due = Counter(
            (cell, window)
            for cell, tile in zip(units.cell_of.tolist(), tiles, strict=True)
            for window in self._windows(cell, tile)
        )

    def add(self, cell: int, tile: Tile, label: UInt8[ndarray, "*k h w"], found: UInt8[ndarray, "*k h w"]) -> None:
        """Put a tile on its canvas; count the canvas when that was the last one."""
        for window in self._windows(cell, tile):
            canvas = self._canvas(cell, window)
            _paint(canvas, tile.window, label, found)
            canvas.missing -= 1
            if not canvas.missing:
                self._count(cell, self._canvases.pop((cell, window)))

    def counts(self) -> ShapeCounts | None:
        """Return the counts of all canvases; None where nothing was asked for."""
        return ShapeCounts(self._boundary, self._objects) if self._wanted.something else None

    def _windows(self, cell: int, tile: Tile) -> Iterator[Window]:
        if cell in self._frames:
            yield from (part for part in cells(self._frames[cell], CANVAS_PX, CANVAS_PX) if part.overlap(tile.window))

    def _canvas(self, cell: int, window: Window) -> _Canvas:
        if (cell, window) not in self._canvases:
            bands = (self._wanted.classes,) if self._wanted.overlapping else ()
            blank = [np.full((*bands, window.height, window.width), IGNORE, np.uint8) for _ in range(2)]
            self._canvases[cell, window] = _Canvas(window, blank[0], blank[1], self._due[cell, window])
        return self._canvases[cell, window]

    def _count(self, cell: int, canvas: _Canvas) -> None:
        wanted = self._wanted
        if self._boundary is not None:
            tolerance_px = wanted.tolerance_m / self._pixel_m[self._units.cells[cell].scene]
            self._boundary[cell] += _boundary_counts(canvas, wanted, tolerance_px)
        if self._objects is not None and wanted.object_class is not None:
            self._objects[cell] += _object_counts(canvas, wanted, wanted.object_class)


def _boundary_counts(canvas: _Canvas, wanted: Wanted, tolerance_px: float) -> Int64[ndarray, "k 4"]:
    if not wanted.overlapping:
        return boundary_counts(canvas.truth, canvas.found, wanted.classes, tolerance_px)
    pairs = zip(canvas.truth, canvas.found, strict=True)
    return np.stack([boundary_counts(truth, found, 2, tolerance_px)[1] for truth, found in pairs])


def _object_counts(canvas: _Canvas, wanted: Wanted, index: int) -> Int64[ndarray, " 3"]:
    if wanted.overlapping:
        return object_counts(canvas.truth[index], canvas.found[index], 1)
    return object_counts(canvas.truth, canvas.found, index)


def class_index(name: str, names: Sequence[str]) -> int | None:
    """Return the index of the class called `name`; None for no name.

    Raises:
        SettingError: when there is no such class.
    """
    if name and name not in names:
        raise SettingError(f"--objects {name}: there is no such class. Name one of: {', '.join(names)}.")
    return names.index(name) if name else None


def _pixel_sizes(tile_set: TileSet, tiles: Sequence[Tile]) -> dict[str, float]:
    """Return the ground size of a pixel of every scene that has a tile."""
    named = {tile.scene for tile in tiles}
    sizes = {scene.name: scene.resolution_m for scene in tile_set.meta.scenes if scene.name in named}
    for scene, size in sizes.items():
        if size is None:
            raise InputError(
                f"{tile_set.folder}: scene {scene} has no place on the ground, so --boundary-m cannot be turned into "
                "pixels. Leave it out, or assign the image its CRS and prepare again."
            )
    return {scene: size for scene, size in sizes.items() if size is not None}


def _frames(units: Units, tiles: Sequence[Tile]) -> dict[int, Window]:
    """Return by cell the window that holds all its tiles."""
    ends: dict[int, tuple[int, int, int, int]] = {}
    for cell, tile in zip(units.cell_of.tolist(), tiles, strict=True):
        w = tile.window
        top, left, bottom, right = ends.get(cell, (w.row, w.col, w.stop_row, w.stop_col))
        ends[cell] = min(top, w.row), min(left, w.col), max(bottom, w.stop_row), max(right, w.stop_col)
    return {cell: Window(top, left, bottom - top, right - left) for cell, (top, left, bottom, right) in ends.items()}


def _paint(canvas: _Canvas, tile: Window, label: UInt8[ndarray, "*k h w"], found: UInt8[ndarray, "*k h w"]) -> None:
    """Put the part of a tile that lies on the canvas there. Ground that an earlier tile has labelled stays as it is."""
    shared = canvas.window.overlap(tile)
    if shared is None:
        return
    there, here = (..., *shared.within(canvas.window).slices), (..., *shared.within(tile).slices)
    # In overlaps the label is known in one tile only, and the map must be of the same.
    free = (label[here] != IGNORE) | (canvas.found[there] == IGNORE)
    canvas.truth[there][free] = label[here][free]
    canvas.found[there][free] = found[here][free]
