"""Tiles and scenes of a report: choose sample, best and worst tiles, and map them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from geograft.dataset.tileset import SPLITS, Samples, Scene, Split, Tile, TileSet
from geograft.figures.pictures import ExampleTile, Limits, Picture, stretch, stretch_limits, tile_iou
from geograft.labels import Label, image_mask
from geograft.legend import IGNORE, Legend
from geograft.mapping.held_out import evenly_spaced
from geograft.metrics.confusion import ConfusionScheme

MapTiles = Callable[[Sequence[Tile]], list[UInt8[ndarray, "*k h w"]]]
"""Predict the classes of tiles, as in a map of their scenes."""

MAX_RANKED_TILES = 240
"""Best, median and worst tiles are chosen among at most this many, spread evenly over the split."""
MAX_SCENES = 12
MIN_CLASS_FRACTION = 0.01
"""Tiles are not ranked if the class covers less than this in label and map together."""


@dataclass(frozen=True)
class RankedTile:
    """A tile's index in its split, and its IoU."""

    index: int
    iou: float


def tile_limits(samples: Samples, scene: str) -> Limits:
    """Return the stretch limits of a scene, from up to eight of its tiles, so that colours are comparable."""
    here = [index for index, tile in enumerate(samples.tiles) if tile.scene == scene]
    images, labels = zip(*(samples[here[place]] for place in evenly_spaced(len(here), 8)), strict=True)
    bands = [image[: len(image) - len(samples.indices)] for image in images]
    return stretch_limits(bands, [image_mask(image, label) for image, label in zip(images, labels, strict=True)])


def tile_picture(image: Float32[ndarray, "b h w"], label: Label, limits: Limits) -> Picture:
    """Return a tile as an RGB picture; grey where the image is not valid."""
    return stretch(image, image_mask(image, label), limits)


def example_indices(tiles: Sequence[Tile], count: int, overlapping: bool = False) -> list[int]:
    """Return up to `count` tiles, ordered from low to high fraction of the positive class.

    With more than two classes, from tiles of a single class to mixed ones; with overlapping classes, from low to high
    sum of the fractions. Tiles that are more than half unlabelled are used only if there are no others.
    """
    interest = [sum(tile.class_fractions) if overlapping else _interest(tile) for tile in tiles]
    shown = [i for i, tile in enumerate(tiles) if tile.valid >= 0.5 and interest[i] > 0] or list(range(len(tiles)))
    shown.sort(key=lambda i: (interest[i], i))
    places = np.linspace(0.2, 0.95, count) * (len(shown) - 1)
    return list(dict.fromkeys(shown[round(place)] for place in places))


def map_examples(
    samples: Samples, indices: Sequence[int], networks: Mapping[str, MapTiles], legend: Legend
) -> list[tuple[str, ExampleTile]]:
    """Return the location of each tile, and its image, label and map by every network."""
    result = []
    shown_tiles = [samples.tiles[index] for index in indices]
    by_network = {name: map_tiles(shown_tiles) for name, map_tiles in networks.items()}
    for position, index in enumerate(indices):
        image, label = samples[index]
        maps = {name: classes[position] for name, classes in by_network.items()}
        limits = tile_limits(samples, samples.tiles[index].scene)
        shown = ExampleTile(
            tile_picture(image, label, limits), ConfusionScheme.from_legend(legend).to_classes(label), maps
        )
        result.append((tile_location(samples.tiles[index]), shown))
    return result


def tile_location(tile: Tile) -> str:
    """Return scene, row and column of a tile as text."""
    return f"{tile.scene}, row {tile.window.row}, column {tile.window.col}"


def rank_tiles(samples: Samples, map_tiles: MapTiles, legend: Legend) -> list[RankedTile]:
    """Return at most MAX_RANKED_TILES tiles from worst to best IoU, without those that show too little of the class.

    Costs one prediction of those tiles.
    """
    chosen = evenly_spaced(len(samples), MAX_RANKED_TILES)
    ranked: list[RankedTile] = []
    for index, mapped in zip(chosen, map_tiles([samples.tiles[index] for index in chosen]), strict=True):
        classes = ConfusionScheme.from_legend(legend).to_classes(samples[index][1])
        iou = tile_iou(classes, mapped, len(legend.names))
        if not math.isnan(iou) and _shows_class(classes, mapped, legend):
            ranked.append(RankedTile(index, iou))
    return sorted(ranked, key=lambda tile: (tile.iou, tile.index))


def extremes(ranked: Sequence[RankedTile]) -> dict[str, list[RankedTile]]:
    """Return the two best, two median and two worst of tiles ranked from worst to best; one each of fewer than six.

    Fewer than three tiles are all "Best".
    """
    if len(ranked) < 3:
        return {"Best": list(ranked[::-1])}
    each = 2 if len(ranked) >= 6 else 1
    middle = (len(ranked) - each) // 2
    return {
        "Best": list(ranked[: -each - 1 : -1]),
        "Median": list(ranked[middle : middle + each]),
        "Worst": list(ranked[:each]),
    }


def select_scenes(tiles: TileSet) -> list[Scene]:
    """Return at most MAX_SCENES scenes by name, in turn of training, validation and test."""
    splits = rarest_splits(tiles)
    groups = [[scene for scene in tiles.meta.scenes if splits.get(scene.name) == split] for split in SPLITS]
    mixed = [scene for row in zip_longest(*groups) for scene in row if scene is not None]
    return sorted(mixed[:MAX_SCENES], key=lambda scene: scene.name)


def rarest_splits(tiles: TileSet) -> dict[str, Split]:
    """Return for each scene the split with the fewest tiles in the whole set, among the splits of its tiles."""
    by_size = sorted(SPLITS, key=lambda split: -len(tiles.split(split)))
    return {tile.scene: split for split in by_size for tile in tiles.split(split)}


def _interest(tile: Tile) -> float:
    if len(tile.class_fractions) == 2:
        return tile.class_fractions[1]
    return 1 - max(tile.class_fractions, default=0)


def _shows_class(label: UInt8[ndarray, "*k h w"], mapped: UInt8[ndarray, "*k h w"], legend: Legend) -> bool:
    """Return whether enough labelled pixels are of the class in label or map; with several classes, are labelled."""
    known = label != IGNORE
    here = ((label == 1) | (mapped == 1)) & known if legend.binary or legend.overlapping else known
    return bool((here.any(axis=0) if legend.overlapping else here).mean() >= MIN_CLASS_FRACTION)
