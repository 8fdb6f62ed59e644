"""Where the tiles of every split lie: by scene, by block, or as the article drew them. Windows in, windows out.

Subsets of tiles that lie inside each other: the smaller ones begin the order that the larger ones go on with.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.config import PrepareConfig
from geograft.dataset.stratify import Part, assign
from geograft.dataset.tileset import Split
from geograft.errors import SettingError
from geograft.geo.coverage import areas, boxes_of, covered_pixels
from geograft.geo.grid import Window, starts, tiling

Planned = tuple[str, Window, Split]

ENOUGH_GROUPS = 6
ENOUGH_BLOCKS = 12


@dataclass(frozen=True)
class Place:
    """What the split must know of a scene."""

    name: str
    height: int
    width: int
    group: str
    """Scenes of one group are never split; its own name when it stands alone."""
    class_pixels: Callable[[Window], Sequence[int]] | None = None
    """Counts the labelled, valid pixels of a window by class index. None: only area counts.

    Asked once for every scene or block, row by row.
    """

    @property
    def window(self) -> Window:
        """The window that holds the whole scene."""
        return Window(0, 0, self.height, self.width)


def plan(places: Sequence[Place], config: PrepareConfig) -> list[Planned]:
    """Return every tile with its scene and split, scene by scene in the order given: train, val, then test.

    Raises:
        SettingError: when the shares, the block size or the number of scenes or blocks allow no such split.
    """
    shares = _shares(config)
    if config.split == "article":
        return article_tiles(places, config.tile_px)
    if _by_block(places, config, shares):
        return _planned_by_block(places, config, shares)
    return _planned_by_group(places, config, shares)


def split_by_block(places: Sequence[Place], config: PrepareConfig) -> bool:
    """Return whether `plan` cuts scenes in blocks."""
    return _by_block(places, config, _shares(config))


def block_parts(places: Sequence[Place], config: PrepareConfig) -> list[Part]:
    """Return the blocks that `plan` moves whole where it cuts scenes in blocks; scenes of one group cut alike.

    Raises:
        SettingError: when a block would not hold a tile.
    """
    return list(_block_parts(places, _block_px(places, config), _least_px(config)))


def training_stride(config: PrepareConfig) -> int:
    """Return the pixels from one training tile to the next."""
    return max(round(config.tile_px * (1 - config.overlap)), 1)


def blocks(area: Window, block_px: int, least_px: int = 1) -> list[Window]:
    """Return square blocks that cut up `area`, row by row.

    What remains at the right and at the bottom is a block of its own when it is at least half a block and `least_px`
    wide; otherwise the last block takes it in.
    """
    rows, cols = (_cuts(length, block_px, least_px) for length in (area.height, area.width))
    return [
        Window(area.row + top, area.col + left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(cols)
    ]


def block_tiles(
    scene: Window, split_of: Mapping[Window, Split], config: PrepareConfig
) -> Iterator[tuple[Window, Split]]:
    """Yield the tiles of a scene that is cut in blocks.

    Every validation and test block is tiled on its own, without overlap. Training tiles lie where no pixel is nearer
    than `buffer_px` to such a block, across the borders of training blocks; see `training_tiles`. Validation and test
    blocks may touch, because neither trains: the buffer is taken from the training ground alone.
    """
    held = [block for block, split in split_of.items() if split != "train"]
    if len(held) < len(split_of):
        forbidden = [block.grown(config.buffer_px) for block in held]
        yield from ((w, "train") for w in training_tiles(scene, forbidden, config.tile_px, training_stride(config)))
    for split in ("val", "test"):
        mine = (block for block in held if split_of[block] == split)
        yield from ((w, split) for block in mine for w in tiling(block, config.tile_px, config.tile_px))


def training_tiles(scene: Window, forbidden: Sequence[Window], size: int, stride: int) -> list[Window]:
    """Return tiles of `size` that hold every pixel of `scene` that any tile clear of `forbidden` can hold.

    Most lie on the scene's own grid of `stride`; where that leaves ground out, tiles flush with the forbidden windows
    are added, only those that hold ground that no other tile does. 100,000 forbidden windows take seconds.
    """
    walls = boxes_of(forbidden)
    rows, cols = starts(scene.height, size, stride), starts(scene.width, size, stride)
    flush_rows = _flush(walls[:, [0, 2]] - scene.row, size, scene.height, rows)
    flush_cols = _flush(walls[:, [1, 3]] - scene.col, size, scene.width, cols)
    kept = boxes_of(())
    for these_rows, these_cols in ((rows, cols), (rows, flush_cols), (flush_rows, [*cols, *flush_cols])):
        tiles = _tiles_at(scene, these_rows, these_cols, size)
        tiles = tiles[covered_pixels(tiles, walls) == 0]
        kept = np.concatenate([kept, tiles[covered_pixels(tiles, kept) < areas(tiles)]])
    return [Window(row, col, size, size) for row, col in sorted(kept[:, :2].tolist())]


def article_tiles(places: Sequence[Place], tile_px: int = 224, seed: int = 2, held_out: int = 50) -> list[Planned]:
    """Return the article's own split, for the record; it leaks, and `geograft audit` says how much.

    Tiles lie at half overlap on one grid for all scenes, that of the smallest. In each scene `held_out` of them are
    drawn, and two of the eight neighbours of each, up left and down right, are left out of training. The article calls
    the drawn tiles its test set but validates on them every epoch; here they are "val", and there is no "test".
    With 23 scenes of 3248 x 3248 pixels: 14,812 training and 1,150 validation tiles.

    Raises:
        SettingError: when a scene is too small to draw `held_out` tiles from.
    """
    stride = tile_px // 2
    rows, cols = (
        range(0, shortest // stride * stride - tile_px + 1, stride)
        for shortest in (min(place.height for place in places), min(place.width for place in places))
    )
    if len(rows) * len(cols) <= held_out:
        raise SettingError(
            f"the smallest scene has {len(rows) * len(cols)} tiles of {tile_px} pixels at half overlap, the article's "
            f"split holds out {held_out} in each: use --split block."
        )
    rng = random.Random(seed)
    spots = list(product(range(len(rows)), range(len(cols))))
    planned: list[Planned] = []
    for place in places:
        drawn = rng.sample(spots, held_out)
        above = {(max(r - 1, 0), max(c - 1, 0)) for r, c in drawn}
        below = {(min(r + 1, len(rows) - 1), min(c + 1, len(cols) - 1)) for r, c in drawn}
        excluded = {*drawn, *above, *below}
        left = [spot for spot in spots if spot not in excluded]
        planned += [(place.name, Window(rows[r], cols[c], tile_px, tile_px), "train") for r, c in left]
        planned += [(place.name, Window(rows[r], cols[c], tile_px, tile_px), "val") for r, c in sorted(drawn)]
    return planned


def _shares(config: PrepareConfig) -> dict[Split, float]:
    train = 1 - config.val - config.test
    if train < -1e-9:
        raise SettingError(f"--val {config.val} and --test {config.test} add up to more than 1: lower one of them.")
    return {"train": train if train > 1e-9 else 0.0, "val": config.val, "test": config.test}


def _by_block(places: Sequence[Place], config: PrepareConfig, shares: Mapping[Split, float]) -> bool:
    if config.split != "auto":
        return config.split == "block"
    groups = len({place.group for place in places})
    # With one share there is nothing to keep apart, and blocks would only cost tiles.
    return groups < ENOUGH_GROUPS and sum(share > 0 for share in shares.values()) > 1


def _planned_by_group(places: Sequence[Place], config: PrepareConfig, shares: Mapping[Split, float]) -> list[Planned]:
    parts = [Part(place.name, place.window, place.group, _class_pixels(place, place.window)) for place in places]
    alone = len({place.group for place in places}) == len(places)
    planned: list[Planned] = []
    for place, split in zip(places, assign(parts, shares, config.seed, "scene" if alone else "group"), strict=True):
        stride = training_stride(config) if split == "train" else config.tile_px
        planned += [(place.name, window, split) for window in tiling(place.window, config.tile_px, stride)]
    return planned


def _planned_by_block(places: Sequence[Place], config: PrepareConfig, shares: Mapping[Split, float]) -> list[Planned]:
    parts = block_parts(places, config)
    splits = assign(parts, shares, config.seed, "block")
    split_of: dict[str, dict[Window, Split]] = {place.name: {} for place in places}
    for part, split in zip(parts, splits, strict=True):
        split_of[part.scene][part.window] = split
    planned: list[Planned] = [
        (place.name, window, split)
        for place in places
        for window, split in block_tiles(place.window, split_of[place.name], config)
    ]
    counts = Counter(split for _, _, split in planned)
    if shares["train"] > 0 and not counts["train"]:
        raise SettingError(
            f"no training tile of {config.tile_px} pixels is left between the held-out blocks: lower --buffer-px "
            f"({config.buffer_px}), raise --block-px ({_block_px(places, config)}), or lower --val and --test."
        )
    return planned


def _block_px(places: Sequence[Place], config: PrepareConfig) -> int:
    if 0 < config.block_px < config.tile_px:
        raise SettingError(
            f"--block-px {config.block_px} is less than --tile-px {config.tile_px}, and a block must hold a tile: "
            f"use --block-px {2 * config.tile_px}, or 0 to have it chosen."
        )
    narrow = _least_px(config)
    wide = max(2 * config.tile_px, narrow)
    found = sum(len(blocks(place.window, wide, narrow)) for place in places)
    return config.block_px or (wide if found >= ENOUGH_BLOCKS else narrow)


def _least_px(config: PrepareConfig) -> int:
    # A training block between two that are held out still has room for a tile.
    return config.tile_px + 2 * config.buffer_px


def _block_parts(places: Sequence[Place], block_px: int, least_px: int) -> Iterator[Part]:
    sizes: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for place in places:
        sizes[place.group].add((place.height, place.width))
    for place in places:
        # Scenes of one group show the same ground: on one grid, a block of it goes the same way in all of them;
        # without one it is not known which blocks fit together, and the whole group goes one way.
        alike = len(sizes[place.group]) == 1
        for window in blocks(place.window, block_px, least_px) if alike else [place.window]:
            group = f"{place.group}: {window.row}, {window.col}" if alike else place.group
            yield Part(place.name, window, group, _class_pixels(place, window))


def _class_pixels(place: Place, window: Window) -> tuple[int, ...]:
    return tuple(place.class_pixels(window)) if place.class_pixels else ()


def _cuts(length: int, block_px: int, least_px: int) -> list[int]:
    cuts = list(range(0, length + 1, block_px))
    rest = length - cuts[-1]
    if rest >= max(block_px / 2, least_px) or len(cuts) == 1:
        return [*cuts, length]
    return [*cuts[:-1], length]


def _flush(walls: Int64[ndarray, "n 2"], size: int, length: int, regular: Sequence[int]) -> list[int]:
    beside = np.union1d(walls[:, 0] - size, walls[:, 1])
    inside = beside[(beside >= 0) & (beside <= length - size)]
    return [int(start) for start in np.setdiff1d(inside, regular)]


def _tiles_at(scene: Window, rows: Sequence[int], cols: Sequence[int], size: int) -> Int64[ndarray, "_ 4"]:
    tops, lefts = np.meshgrid(np.array(rows, dtype=np.int64), np.array(cols, dtype=np.int64), indexing="ij")
    corner = np.column_stack([tops.ravel() + scene.row, lefts.ravel() + scene.col])
    return np.hstack([corner, corner + size])


def spread_order(unit_of: Sequence[Hashable], seed: int) -> list[int]:
    """Return the positions of tiles in a random order, any beginning of which is spread over the units in proportion.

    `unit_of` names the piece of ground (scene, block) of every tile. Where a beginning ends, one share fits all units:
    each has that share of its tiles, rounded up or down, any of them alike. This is systematic sampling with a start of
    its own in each unit (Cochran 1977, Sampling Techniques, section 8.1). The same arguments give the same order.
    """
    rng = np.random.default_rng(seed % 2**64)
    place: Float64[ndarray, " tiles"] = np.empty(len(unit_of))
    by_unit: dict[Hashable, list[int]] = defaultdict(list)
    for position, unit in enumerate(unit_of):
        by_unit[unit].append(position)
    for mine in by_unit.values():
        place[rng.permutation(mine)] = (np.arange(len(mine)) + rng.random()) / len(mine)
    return [int(position) for position in np.argsort(place, kind="stable")]
