"""The pictures of a report: sample tiles, best and worst tiles, and the split on the scenes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray

from geograft.dataset.tileset import SPLITS, Samples, Scene, Split, Tile, TileSet
from geograft.figures.pictures import (
    Limits,
    Picture,
    Sample,
    shrink_factor,
    split_picture,
    stretch_limits,
    stretched,
    tile_iou,
)
from geograft.figures.style import SPLIT_COLOURS, UNKNOWN, rgb
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.labels import Label
from geograft.legend import IGNORE, Legend
from geograft.mapping.scoring import batched, read
from geograft.metrics.confusion import Counting
from geograft.progress import track
from geograft.training.loader import imaged

MapTiles = Callable[[Sequence[tuple[ndarray, ndarray]]], UInt8[ndarray, "n ..."]]
"""Tiles, each an image in its own units and a label, to the classes that a network gives them."""

MOST_RANKED = 240
"""Tiles among which best, median and worst are looked for; more are thinned out evenly."""
MOST_SCENES = 12
MOST_SCENE_PIXELS = 400_000_000
"""Larger scenes are drawn without their picture, for every pixel of it would have to be read."""
LEAST_SHARE = 0.01
"""A tile in whose label and map the class covers less than this says nothing about the network."""


@dataclass(frozen=True)
class RankedTile:
    """A tile's place in the index of its split, and its IoU."""

    index: int
    iou: float


def tile_limits(samples: Samples, scene: str) -> Limits:
    """Return one stretch for a scene's tiles, from up to eight of them, so that their colours can be compared."""
    here = [index for index, tile in enumerate(samples.tiles) if tile.scene == scene]
    images, labels = zip(*(samples[here[place]] for place in thinned(len(here), 8)), strict=True)
    bands = [image[: len(image) - len(samples.indices)] for image in images]
    return stretch_limits(bands, [imaged(image, label) for image, label in zip(images, labels, strict=True)])


def tile_picture(image: Float32[ndarray, "b h w"], label: Label, limits: Limits) -> Picture:
    """Return a tile as a picture; grey where there is no image."""
    return stretched(image, imaged(image, label), limits)


def sample_indices(tiles: Sequence[Tile], count: int, overlapping: bool = False) -> list[int]:
    """Return up to `count` tiles, from little of the class of interest to much of it.

    With more than two classes, from tiles of one class to mixed ones; of overlapping classes from little of any to much
    of all. Tiles that are half unlabelled are left out, where there are others.
    """
    interest = [sum(tile.shares) if overlapping else _interest(tile) for tile in tiles]
    shown = [i for i, tile in enumerate(tiles) if tile.valid >= 0.5 and interest[i] > 0] or list(range(len(tiles)))
    shown.sort(key=lambda i: (interest[i], i))
    places = np.linspace(0.2, 0.95, count) * (len(shown) - 1)
    return list(dict.fromkeys(shown[round(place)] for place in places))


def mapped_samples(
    samples: Samples, indices: Sequence[int], networks: Mapping[str, MapTiles], legend: Legend
) -> list[tuple[str, Sample]]:
    """Return tiles with where they lie and what every network makes of them."""
    result = []
    for index in indices:
        image, label = samples[index]
        maps = {name: map_tiles([(image, label)])[0] for name, map_tiles in networks.items()}
        limits = tile_limits(samples, samples.tiles[index].scene)
        shown = Sample(tile_picture(image, label, limits), Counting.of(legend).classed(label), maps)
        result.append((place_of(samples.tiles[index]), shown))
    return result


def place_of(tile: Tile) -> str:
    """Return where a tile lies, in words."""
    return f"{tile.scene}, row {tile.window.row}, column {tile.window.col}"


def ranked_tiles(samples: Samples, map_tiles: MapTiles, legend: Legend) -> list[RankedTile]:
    """Return tiles from worst to best IoU, at most MOST_RANKED; without those that say nothing about the network.

    Costs one pass of the network over those tiles.
    """
    batches = batched(thinned(len(samples), MOST_RANKED))
    ranked: list[RankedTile] = []
    for indices, tiles in track(read(samples, batches), len(batches), "looking for best and worst tiles", "batches"):
        for index, (_, label), mapped in zip(indices, tiles, map_tiles(tiles), strict=True):
            classes = Counting.of(legend).classed(label)
            iou = tile_iou(classes, mapped, len(legend.names))
            if not math.isnan(iou) and _tells(classes, mapped, legend):
                ranked.append(RankedTile(index, iou))
    return sorted(ranked, key=lambda tile: (tile.iou, tile.index))


def extremes(ranked: Sequence[RankedTile]) -> dict[str, list[RankedTile]]:
    """Return two best, two median and two worst tiles of a list from worst to best; one each for fewer than six.

    Fewer than three are all "best".
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


def shown_scenes(tiles: TileSet) -> list[Scene]:
    """Return at most MOST_SCENES scenes by name, as even a mix of training, validation and test as there is."""
    mains = main_splits(tiles)
    groups = [[scene for scene in tiles.meta.scenes if mains.get(scene.name) == split] for split in SPLITS]
    mixed = [scene for row in zip_longest(*groups) for scene in row if scene is not None]
    return sorted(mixed[:MOST_SCENES], key=lambda scene: scene.name)


def main_splits(tiles: TileSet) -> dict[str, Split]:
    """Return by scene the split that has the fewest tiles in all, of those that the scene has a tile of."""
    commonest_first = sorted(SPLITS, key=lambda split: -len(tiles.split(split)))
    return {tile.scene: split for split in commonest_first for tile in tiles.split(split)}


def scene_picture(tiles: TileSet, scene: Scene, longest_px: int) -> Picture:
    """Return a scene's thumbnail with the ground of its training, validation and test tiles.

    Reads every pixel of the scene once, a block at a time; of scenes over MOST_SCENE_PIXELS, none.

    Raises:
        InputError: when the image cannot be read.
    """
    factor = shrink_factor(scene.height, scene.width, longest_px)
    bands = [1, 2, 3] if tiles.meta.bands >= 3 else [1]
    shape = (max(scene.height // factor, 1), max(scene.width // factor, 1))
    picture = np.full((*shape, 3), rgb(UNKNOWN), np.uint8)
    if scene.height * scene.width <= MOST_SCENE_PIXELS:
        with Image.open(tiles.image_path(scene.name)) as image:
            pixels, valid = thumbnail(image, bands, shape, factor)
        picture = stretched(pixels, valid, stretch_limits([pixels], [valid]))
    covered = {split: np.zeros(shape, bool) for split in SPLIT_COLOURS}
    for tile in tiles.tiles:
        if tile.scene == scene.name:
            covered[tile.split][_shrunk_slices(tile.window, factor)] = True
    return split_picture(picture, covered, SPLIT_COLOURS)


def thumbnail(
    image: Image, bands: Sequence[int], shape: tuple[int, int], factor: int
) -> tuple[Float32[ndarray, "b h w"], Bool[ndarray, "h w"]]:
    """Return the mean of the valid pixels of every `factor` x `factor` square, and where there are any.

    Memory follows the thumbnail, not the image.
    """
    pixels = np.zeros((len(bands), *shape), np.float32)
    known = np.zeros(shape, bool)
    step = max(512 // factor, 1)
    for row in range(0, shape[0], step):
        for col in range(0, shape[1], step):
            height, width = min(step, shape[0] - row), min(step, shape[1] - col)
            block, valid = image.read(Window(row * factor, col * factor, height * factor, width * factor), bands)
            counts = _square_sums(valid[None], factor)[0]
            here = (slice(row, row + height), slice(col, col + width))
            pixels[:, *here] = _square_sums(block, factor) / np.maximum(counts, 1)
            known[here] = counts > 0
    return pixels, known


def thinned(count: int, most: int) -> list[int]:
    """Return `most` places spread evenly over `count`, all of them when there are no more.

    >>> thinned(9, 3)
    [0, 4, 8]
    """
    return [round(place) for place in np.linspace(0, count - 1, min(count, most))]


def _square_sums(pixels: ndarray, factor: int) -> Float32[ndarray, "b h w"]:
    bands, height, width = pixels.shape
    squares = pixels.reshape(bands, height // factor, factor, width // factor, factor)
    sums: ndarray = squares.sum(axis=(2, 4), dtype=np.float64)
    return sums.astype(np.float32)


def _shrunk_slices(window: Window, factor: int) -> tuple[slice, slice]:
    rows = slice(max(window.row, 0) // factor, -(-window.stop_row // factor))
    return rows, slice(max(window.col, 0) // factor, -(-window.stop_col // factor))


def _interest(tile: Tile) -> float:
    if len(tile.shares) == 2:
        return tile.shares[1]
    return 1 - max(tile.shares, default=0)


def _tells(label: UInt8[ndarray, "*k h w"], mapped: UInt8[ndarray, "*k h w"], legend: Legend) -> bool:
    known = label != IGNORE
    here = ((label == 1) | (mapped == 1)) & known if legend.binary or legend.overlapping else known
    return bool((here.any(axis=0) if legend.overlapping else here).mean() >= LEAST_SHARE)
