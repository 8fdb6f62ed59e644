"""What a network makes of ground that it did not train on: tiles put together again, a canvas at a time, kept in files.

Every canvas is needed twice, for what counts as confident is only known when all are computed. So each is written once,
its probabilities in steps of 1/250, and read again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from tilth.geo.grid import Window, cells
from tilth.geo.rasters.maptags import CERTAIN
from tilth.geo.tilesets.tileset import Samples, Split, Tile, TileSet
from tilth.learn.using.inference import Predictor
from tilth.legend import IGNORE
from tilth.progress import Meter, meter
from tilth.verbs.evaluate import decided
from tilth.verbs.shown import batched, read, stacked

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
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return self.tile_set.meta.legend.names


@dataclass(frozen=True)
class Canvas:
    """Label and map of a part of a scene, in a file."""

    path: Path
    scene: str
    window: Window

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
            path = folder / f"{index:05d}.npz"
            truth, predicted, steps = _painted(look.predictor, samples, place, bar)
            np.savez_compressed(path, truth=truth, predicted=predicted, steps=steps)
            kept.append(Canvas(path, place.scene, place.window))
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


def _painted(
    predictor: Predictor, samples: Samples, place: _Place, bar: Meter
) -> tuple[UInt8[ndarray, "h w"], UInt8[ndarray, "h w"], UInt8[ndarray, "k h w"]]:
    """Return label, map, and probabilities in steps."""
    shape = (place.window.height, place.window.width)
    truth, predicted = np.full(shape, IGNORE, np.uint8), np.full(shape, IGNORE, np.uint8)
    steps = np.zeros((len(predictor.card.legend.names), *shape), np.uint8)
    for indices, tiles in read(samples, batched(place.tiles)):
        probabilities = predictor(*stacked(tiles))
        maps = decided(probabilities, predictor.card)
        for index, (_, label), each, mapped in zip(indices, tiles, probabilities, maps, strict=True):
            shared = place.window.overlap(samples.tiles[index].window)
            assert shared is not None
            there, here = shared.within(place.window).slices, shared.within(samples.tiles[index].window).slices
            # Where tiles overlap only the first one's pixels are labelled, and the map must be of the same tile.
            free = (label[here] != IGNORE) | (predicted[there] == IGNORE)
            truth[there][free], predicted[there][free] = label[here][free], mapped[here][free]
            steps[:, *there][:, free] = np.rint(each[:, *here][:, free] * CERTAIN).astype(np.uint8)
        bar.advance(len(tiles))
    return truth, predicted, steps


def _frame(windows: Sequence[Window]) -> Window:
    top, left = min(w.row for w in windows), min(w.col for w in windows)
    return Window(top, left, max(w.stop_row for w in windows) - top, max(w.stop_col for w in windows) - left)
