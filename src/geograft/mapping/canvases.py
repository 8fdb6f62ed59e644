"""What a network makes of ground that it did not train on: tiles put together again, a canvas at a time, kept in files.

Every canvas is needed twice, for what counts as confident is only known when all are computed. So each is written once,
its probabilities in steps of 1/250, and read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from geograft.dataset.tileset import Samples, Split, Tile, TileSet
from geograft.geo.grid import Window, cells
from geograft.geo.rasters.tags import CERTAIN
from geograft.inference.predictor import Predictor
from geograft.legend import IGNORE
from geograft.mapping.scoring import batched, decided, read, stacked
from geograft.mapping.suspects import of_two
from geograft.metrics.confusion import Counting
from geograft.progress import Meter, meter

Slices: TypeAlias = tuple[slice, slice]
CANVAS_PX = 2048
"""Longest side of a canvas; what crosses its edge is cut there."""


@dataclass(frozen=True)
class Look:
    """One model, and tiles that it did not train on."""

    predictor: Predictor
    tile_set: TileSet
    split: Split

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles, in the index's order."""
        return self.tile_set.split(self.split)

    @property
    def counting(self) -> Counting:
        """How pixels are counted."""
        return Counting.of(self.tile_set.meta.legend)

    @property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The classes that are told apart: all of them; of overlapping ones, each from what it is not, one by one."""
        names = self.tile_set.meta.legend.names
        return tuple((f"no {name}", name) for name in names) if self.counting.overlapping else (names,)


@dataclass(frozen=True)
class Canvas:
    """Label and map of a part of a scene, in a file: of all classes, or of one that overlaps others."""

    path: Path
    scene: str
    window: Window
    layer: int = 0
    """Position in `Look.layers`."""

    def read(self) -> tuple[UInt8[ndarray, "h w"], UInt8[ndarray, "h w"], Float32[ndarray, "k h w"]]:
        """Return label, map and probabilities; class index 255 where nothing is labelled or no tile lies."""
        with np.load(self.path, allow_pickle=False) as arrays:
            return arrays["truth"], arrays["predicted"], arrays["steps"].astype(np.float32) / CERTAIN


@dataclass(frozen=True)
class _Place:
    scene: str
    window: Window
    tiles: tuple[int, ...]
    """Positions of the tiles that reach into it."""


def kept_canvases(look: Look, folder: Path) -> list[Canvas]:
    """Write what the network makes of the tiles into `folder` and return where it is, scene by scene."""
    folder.mkdir(parents=True)
    samples = look.tile_set.samples(look.split, once=True, means=look.predictor.card.mean)
    places = places_of(samples.tiles)
    kept = []
    with meter(f"mapping {look.split}", sum(len(place.tiles) for place in places), "tiles") as bar:
        for index, place in enumerate(places):
            for layer, painting in enumerate(_painted(look, samples, place, bar)):
                path = folder / f"{index:05d}-{layer}.npz"
                np.savez_compressed(path, truth=painting.truth, predicted=painting.predicted, steps=painting.steps)
                kept.append(Canvas(path, place.scene, place.window, layer))
    return kept


def places_of(tiles: Sequence[Tile]) -> list[_Place]:
    """Return the parts of scenes, none larger than CANVAS_PX, that the tiles lie in, scene by scene."""
    by_scene: dict[str, list[int]] = {}
    for index, tile in enumerate(tiles):
        by_scene.setdefault(tile.scene, []).append(index)
    found = []
    for scene, mine in by_scene.items():
        for part in cells(_frame([tiles[i].window for i in mine]), CANVAS_PX, CANVAS_PX):
            here = tuple(i for i in mine if part.overlap(tiles[i].window))
            found += [_Place(scene, part, here)] if here else []
    return found


@dataclass(frozen=True)
class _Painting:
    """Label, map, and the probability of each class in steps; 255 and 0 where nothing was painted."""

    truth: UInt8[ndarray, "h w"]
    predicted: UInt8[ndarray, "h w"]
    steps: UInt8[ndarray, "k h w"]

    @classmethod
    def blank(cls, window: Window, classes: int) -> "_Painting":
        shape = window.height, window.width
        unknown = np.full(shape, IGNORE, np.uint8)
        return cls(unknown, unknown.copy(), np.zeros((classes, *shape), np.uint8))

    def add(self, there: Slices, label: ndarray, mapped: ndarray, probabilities: ndarray) -> None:
        # Where tiles overlap only the first one's pixels are labelled, and the map must be of the same tile.
        free = (label != IGNORE) | (self.predicted[there] == IGNORE)
        self.truth[there][free], self.predicted[there][free] = label[free], mapped[free]
        self.steps[:, *there][:, free] = np.rint(probabilities[:, free] * CERTAIN).astype(np.uint8)


def _painted(look: Look, samples: Samples, place: _Place, bar: Meter) -> list[_Painting]:
    """Return the painting of every layer."""
    paintings = [_Painting.blank(place.window, len(names)) for names in look.layers]
    for indices, tiles in read(samples, batched(place.tiles)):
        probabilities = look.predictor(*stacked(tiles))
        maps = decided(probabilities, look.predictor.card)
        for index, (_, label), each, mapped in zip(indices, tiles, probabilities, maps, strict=True):
            shared = place.window.overlap(samples.tiles[index].window)
            assert shared is not None
            there, here = shared.within(place.window).slices, shared.within(samples.tiles[index].window).slices
            layers = _layers(look.counting.classed(label), mapped, each)
            for painting, (truth, found, likely) in zip(paintings, layers, strict=True):
                painting.add(there, truth[here], found[here], likely[:, *here])
        bar.advance(len(tiles))
    return paintings


def _layers(
    label: UInt8[ndarray, "*k h w"], mapped: UInt8[ndarray, "*k h w"], probabilities: Float32[ndarray, "k h w"]
) -> list[tuple[UInt8[ndarray, "h w"], UInt8[ndarray, "h w"], Float32[ndarray, "c h w"]]]:
    """Return classes, map and probabilities of a tile; of overlapping classes of each alone, as one of two."""
    if label.ndim == 2:
        return [(label, mapped, probabilities)]
    return [(*pair, of_two(own)) for *pair, own in zip(label, mapped, probabilities, strict=True)]


def _frame(windows: Sequence[Window]) -> Window:
    top, left = min(w.row for w in windows), min(w.col for w in windows)
    return Window(top, left, max(w.stop_row for w in windows) - top, max(w.stop_col for w in windows) - left)
