"""Tiles of the train, val and test splits: by scene, by group, by block, or as in the article.

Works on windows only; no image is opened. `stratified_order` gives nested subsets of tiles for learning curves.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import shapely
from jaxtyping import Float64, Int64
from numpy import ndarray

from geograft.config import PrepareConfig
from geograft.dataset.neighbours import connected_components
from geograft.dataset.stratify import SplitBlock, assign_splits
from geograft.dataset.tileset import Position, Scene, Split
from geograft.errors import SettingError
from geograft.geo.coverage import box_areas, covered_pixels, window_boxes
from geograft.geo.grid import Window, WindowIndex, tiling, window_offsets
from geograft.text import join_names

PlannedTile = tuple[str, Window, Split]
"""Scene name, window and split of a tile."""

MIN_GROUPS = 6
MIN_BLOCKS = 12


@dataclass(frozen=True)
class SplitScene:
    """What the split needs to know about a scene."""

    name: str
    height: int
    width: int
    group: str
    """Scenes of one group are assigned to the same split; the scene's own name if it has no group."""
    class_pixels: Callable[[Window], Sequence[int]] | None = None
    """Returns the labelled, valid pixels of a window by class index; None to stratify by area only.

    Called once per scene or block, in row order.
    """
    position: Position | None = None
    """Position among adjacent scenes, which are one place: their blocks keep the buffer across the edges of scenes."""

    @classmethod
    def of(cls, scene: Scene, class_pixels: Callable[[Window], Sequence[int]] | None = None) -> "SplitScene":
        """Return what the split needs to know about a scene of a tile set."""
        return cls(scene.name, scene.height, scene.width, scene.group, class_pixels, scene.position)

    @property
    def window(self) -> Window:
        """The window of the whole scene."""
        return Window(0, 0, self.height, self.width)


def plan_tiles(scenes: Sequence[SplitScene], config: PrepareConfig) -> list[PlannedTile]:
    """Return all tiles with their scene and split, in the order of `scenes`: train, val, then test.

    Raises:
        SettingError: if the fractions, the block size or the number of scenes or blocks make the split impossible.
    """
    fractions = _split_fractions(config)
    if (config.val_groups or config.test_groups) and config.split in ("block", "article"):
        raise SettingError(f"--val-groups and --test-groups need --split group, not {config.split}.")
    if config.split == "article":
        return article_tiles(scenes, config.tile_px)
    if _by_block(scenes, config, fractions):
        return _plan_by_block(scenes, config, fractions)
    return _plan_by_group(scenes, config, fractions)


def splits_by_block(scenes: Sequence[SplitScene], config: PrepareConfig) -> bool:
    """Return whether `plan_tiles` splits scenes by block."""
    return _by_block(scenes, config, _split_fractions(config))


def unit_names(scenes: Sequence[SplitScene]) -> dict[str, str]:
    """Return the name of the unit of each scene that a split by scene keeps whole: scenes of one group or place."""
    first: dict[tuple[str, str], int] = {}
    pairs = []
    for number, scene in enumerate(scenes):
        keys = [("group", scene.group), *([("place", scene.position.place)] if scene.position else [])]
        pairs += [(first.setdefault(key, number), number) for key in keys]
    connected = connected_components(len(scenes), pairs)
    return {scene.name: scenes[unit].group for scene, unit in zip(scenes, connected, strict=True)}


def whole_scenes(scenes: Sequence[SplitScene]) -> list[SplitBlock]:
    """Return every scene as one block; those of one group or place are assigned to one split."""
    units = unit_names(scenes)
    return [
        SplitBlock(scene.name, scene.window, units[scene.name], _class_pixels(scene, scene.window)) for scene in scenes
    ]


def split_blocks(scenes: Sequence[SplitScene], config: PrepareConfig) -> list[SplitBlock]:
    """Return the blocks that `plan_tiles` assigns to splits. Scenes of one group are cut into the same blocks.

    Blocks of adjacent scenes that share more than half of the smaller one are assigned to one split; so are adjacent
    scenes that are hardly larger than a tile, if they are in the same cell of up to four by four blocks.

    Raises:
        SettingError: if a block is too small for a tile.
    """
    min_px = _min_block_px(config)
    return _merge_adjacent(list(_blocks(scenes, _block_px(scenes, config), min_px)), scenes, min_px)


def adjacent_blocks(
    scenes: Sequence[SplitScene], split_of: Mapping[str, Mapping[Window, Split]], config: PrepareConfig
) -> dict[str, list[tuple[Window, Split]]]:
    """Return the val and test blocks of adjacent scenes within the buffer of each scene, in its pixels."""
    found: dict[str, list[tuple[Window, Split]]] = {scene.name: [] for scene in scenes}
    places: dict[str, list[SplitScene]] = defaultdict(list)
    for scene in scenes:
        if scene.position:
            places[scene.position.place].append(scene)
    for members in places.values():
        held = [
            (_on_place(block, scene.position), split, scene.name)
            for scene in members
            for block, split in split_of[scene.name].items()
            if split != "train"
        ]
        index = WindowIndex([block for block, _, _ in held])
        for scene in members:
            origin = _on_place(Window(0, 0, 0, 0), scene.position)
            frame = _on_place(scene.window, scene.position).pad(config.buffer_px)
            near = (held[number] for number in index.query(frame))
            found[scene.name] = [
                (block.relative_to(origin), split) for block, split, name in near if name != scene.name
            ]
    return found


def _on_place(window: Window, position: Position | None) -> Window:
    """Return a window of a scene on the common grid of its place."""
    assert position is not None
    return replace(window, row=window.row + position.row, col=window.col + position.col)


def _merge_adjacent(blocks: list[SplitBlock], scenes: Sequence[SplitScene], min_px: int) -> list[SplitBlock]:
    """Return the blocks with one group for those of adjacent scenes that overlap, or are small; see `split_blocks`."""
    positions = {scene.name: scene.position for scene in scenes if scene.position}
    if not positions:
        return blocks
    first: dict[str, int] = {}
    pairs = [(first.setdefault(block.group, number), number) for number, block in enumerate(blocks)]
    places: dict[str, list[int]] = defaultdict(list)
    for number, block in enumerate(blocks):
        if block.scene in positions:
            places[positions[block.scene].place].append(number)
    for numbers in places.values():
        moves = [positions[blocks[number].scene] for number in numbers]
        windows = [_on_place(blocks[number].window, move) for number, move in zip(numbers, moves, strict=True)]
        merged = [*_overlapping(windows), *_in_one_cell(windows, min_px)]
        pairs += [(numbers[i], numbers[j]) for i, j in merged]
    connected = connected_components(len(blocks), pairs)
    return [replace(block, group=blocks[one].group) for block, one in zip(blocks, connected, strict=True)]


def _overlapping(windows: Sequence[Window]) -> list[tuple[int, int]]:
    """Return the pairs of windows that share more than half of the smaller one."""
    boxes = np.array([window.outline for window in windows], object)
    mine, theirs = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    mine, theirs = mine[mine < theirs], theirs[mine < theirs]
    shared = shapely.area(shapely.intersection(boxes[mine], boxes[theirs]))
    most = shared > 0.5 * np.minimum(shapely.area(boxes[mine]), shapely.area(boxes[theirs]))
    return list(zip(mine[most].tolist(), theirs[most].tolist(), strict=True))


def _in_one_cell(windows: Sequence[Window], min_px: int) -> list[tuple[int, int]]:
    """Return the pairs that connect windows of hardly more than `min_px` in one cell of a grid.

    Alone, such windows would leave no room for training tiles between held-out ones. Cells have up to four times
    `min_px`, as long as there are twelve of them.
    """
    small = [i for i, window in enumerate(windows) if min(window.height, window.width) < 2 * min_px]
    for cell_px in (4 * min_px, 2 * min_px):
        first: dict[tuple[int, int], int] = {}
        cells = [
            ((window.row + window.height // 2) // cell_px, (window.col + window.width // 2) // cell_px)
            for window in (windows[i] for i in small)
        ]
        pairs = [(first.setdefault(cell, i), i) for cell, i in zip(cells, small, strict=True)]
        if len(first) >= MIN_BLOCKS:
            return pairs
    return []


def training_stride(config: PrepareConfig) -> int:
    """Return the distance in pixels between adjacent training tiles."""
    return max(round(config.tile_px * (1 - config.overlap)), 1)


def cut_blocks(area: Window, block_px: int, min_px: int = 1) -> list[Window]:
    """Return square blocks that cover `area`, row by row.

    The remainder at the right and bottom is a separate block if it is at least half a block and `min_px` wide;
    otherwise the last block includes it.
    """
    rows, cols = (_block_edges(length, block_px, min_px) for length in (area.height, area.width))
    return [
        Window(area.row + top, area.col + left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(cols)
    ]


def block_tiles(
    scene: Window,
    split_of: Mapping[Window, Split],
    config: PrepareConfig,
    adjacent: Sequence[tuple[Window, Split]] = (),
) -> Iterator[tuple[Window, Split]]:
    """Yield the tiles of a scene that is split by block.

    Each validation and test block is tiled separately, without overlap. Training tiles keep a distance of `buffer_px`
    from these blocks and may cross the borders of training blocks; see `training_tiles`. Validation and test blocks
    may touch, because neither is trained on: the buffer is taken from training blocks only.

    `adjacent` are the val and test blocks of adjacent scenes, to which training tiles keep the same distance. A test
    tile that shares a pixel with a val block among them is left out.
    """
    held = [block for block, split in split_of.items() if split != "train"]
    if len(held) < len(split_of):
        forbidden = [block.pad(config.buffer_px) for block in (*held, *(block for block, _ in adjacent))]
        yield from ((w, "train") for w in training_tiles(scene, forbidden, config.tile_px, training_stride(config)))
    for split in ("val", "test"):
        mine = (block for block in held if split_of[block] == split)
        taken = [block for block, other in adjacent if other == "val" != split]
        tiles = (window for block in mine for window in tiling(block, config.tile_px, config.tile_px))
        yield from ((window, split) for window in tiles if not any(window.intersection(block) for block in taken))


def training_tiles(
    scene: Window, forbidden: Sequence[Window], size: int, stride: int, area: Window | None = None
) -> list[Window]:
    """Return tiles of `size` that cover every pixel of `area` that a tile of `scene` outside `forbidden` can cover.

    Most lie on a grid of `stride` over `area` (default: the scene). Where the grid leaves pixels uncovered, tiles
    aligned to the edges of the forbidden windows are added if they cover pixels that no other tile covers. 100,000
    forbidden windows take seconds.
    """
    area = area or scene
    forbidden_boxes = window_boxes(forbidden)
    rows, cols = covering_offsets(scene, area, size, stride)
    flush_rows = _flush_offsets(forbidden_boxes[:, [0, 2]], size, (scene.row, scene.stop_row), rows)
    flush_cols = _flush_offsets(forbidden_boxes[:, [1, 3]], size, (scene.col, scene.stop_col), cols)
    flush_rows = [row for row in flush_rows if area.row - size < row < area.stop_row]
    flush_cols = [col for col in flush_cols if area.col - size < col < area.stop_col]
    low, high = window_boxes([area])[0, :2], window_boxes([area])[0, 2:]
    kept = window_boxes(())
    for these_rows, these_cols in ((rows, cols), (rows, flush_cols), (flush_rows, [*cols, *flush_cols])):
        tiles = _tiles_at(these_rows, these_cols, size)
        tiles = tiles[covered_pixels(tiles, forbidden_boxes) == 0]
        inside = np.hstack([np.maximum(tiles[:, :2], low), np.minimum(tiles[:, 2:], high)])
        kept = np.concatenate([kept, tiles[covered_pixels(inside, kept) < box_areas(inside)]])
    return [Window(row, col, size, size) for row, col in sorted(kept[:, :2].tolist())]


def covering_offsets(scene: Window, area: Window, size: int, stride: int) -> tuple[list[int], list[int]]:
    """Return the rows and the columns at which tiles of `size` start that cover `area`.

    Where the area is smaller than a tile, one tile is centred on it, as far as the scene allows.
    """
    return (
        _offsets(area.row, area.height, size, stride, (scene.row, scene.stop_row)),
        _offsets(area.col, area.width, size, stride, (scene.col, scene.stop_col)),
    )


def _offsets(start: int, length: int, size: int, stride: int, limits: tuple[int, int]) -> list[int]:
    if length >= size:
        return [start + offset for offset in window_offsets(length, size, stride)]
    return [max(min(start - (size - length) // 2, limits[1] - size), limits[0])]


def article_tiles(
    scenes: Sequence[SplitScene], tile_px: int = 224, seed: int = 2, held_out: int = 50
) -> list[PlannedTile]:
    """Return the split of the article, for reproduction only: it leaks, and `geograft audit` measures how much.

    Tiles overlap by half, on the grid of the smallest scene. In each scene `held_out` tiles are drawn at random, and
    two of their eight neighbours, upper left and lower right, are excluded from training. The article calls the drawn
    tiles its test set but validates on them every epoch; here they are "val", and "test" is empty. 23 scenes of
    3248 x 3248 pixels give 14,812 training and 1,150 validation tiles.

    Raises:
        SettingError: if a scene has no more than `held_out` tiles.
    """
    stride = tile_px // 2
    rows, cols = (
        range(0, shortest // stride * stride - tile_px + 1, stride)
        for shortest in (min(scene.height for scene in scenes), min(scene.width for scene in scenes))
    )
    if len(rows) * len(cols) <= held_out:
        raise SettingError(
            f"the smallest scene has {len(rows) * len(cols)} tiles of {tile_px} pixels at half overlap, but --split "
            f"article holds out {held_out} per scene: use --split block."
        )
    rng = random.Random(seed)
    spots = list(product(range(len(rows)), range(len(cols))))
    planned: list[PlannedTile] = []
    for scene in scenes:
        drawn = rng.sample(spots, held_out)
        above = {(max(r - 1, 0), max(c - 1, 0)) for r, c in drawn}
        below = {(min(r + 1, len(rows) - 1), min(c + 1, len(cols) - 1)) for r, c in drawn}
        excluded = {*drawn, *above, *below}
        left = [spot for spot in spots if spot not in excluded]
        planned += [(scene.name, Window(rows[r], cols[c], tile_px, tile_px), "train") for r, c in left]
        planned += [(scene.name, Window(rows[r], cols[c], tile_px, tile_px), "val") for r, c in sorted(drawn)]
    return planned


def _split_fractions(config: PrepareConfig) -> dict[Split, float]:
    train = 1 - config.val - config.test
    if train < -1e-9:
        raise SettingError(f"--val {config.val} and --test {config.test} add up to more than 1: lower one of them.")
    return {"train": train if train > 1e-9 else 0.0, "val": config.val, "test": config.test}


def _by_block(scenes: Sequence[SplitScene], config: PrepareConfig, fractions: Mapping[Split, float]) -> bool:
    if config.split != "auto":
        return config.split in ("block", "areas")
    if config.val_groups or config.test_groups:
        return False
    groups = len(set(unit_names(scenes).values()))
    # With a single split no separation is needed, and blocks would only cost tiles.
    return groups < MIN_GROUPS and sum(fraction > 0 for fraction in fractions.values()) > 1


def _plan_by_group(
    scenes: Sequence[SplitScene], config: PrepareConfig, fractions: Mapping[Split, float]
) -> list[PlannedTile]:
    blocks = whole_scenes(scenes)
    alone = len({block.group for block in blocks}) == len(scenes)
    split_of = _named_splits(scenes, config)
    rest = [block for block in blocks if block.group not in split_of]
    named = {"val": config.val_groups, "test": config.test_groups}
    left = {split: 0.0 if named.get(split) else fraction for split, fraction in fractions.items()}
    if rest:
        chosen = assign_splits(rest, left, config.seed, "scene" if alone else "group")
        split_of |= {block.group: split for block, split in zip(rest, chosen, strict=True)}
    planned: list[PlannedTile] = []
    for scene, block in zip(scenes, blocks, strict=True):
        split = split_of[block.group]
        stride = training_stride(config) if split == "train" else config.tile_px
        planned += [(scene.name, window, split) for window in tiling(scene.window, config.tile_px, stride)]
    return planned


def _named_splits(scenes: Sequence[SplitScene], config: PrepareConfig) -> dict[str, Split]:
    """Return the split of each unit (`unit_names`) with a group or scene that the settings name.

    Raises:
        SettingError: if a name is unknown, or names of both splits belong to one unit.
    """
    wanted: tuple[tuple[Split, tuple[str, ...]], ...] = (("val", config.val_groups), ("test", config.test_groups))
    units, known = unit_names(scenes), {name for scene in scenes for name in (scene.group, scene.name)}
    found: dict[str, Split] = {}
    for split, names in wanted:
        unknown = [name for name in names if name not in known]
        if unknown:
            groups = join_names(sorted({scene.group for scene in scenes}))
            raise SettingError(f"--{split}-groups {unknown[0]}: there is no such group or scene. There are {groups}.")
        for scene in scenes:
            if {scene.group, scene.name} & set(names) and found.setdefault(units[scene.name], split) != split:
                raise SettingError(
                    f"{scene.name} is in --test-groups, but scenes of its group or adjacent ones are in --val-groups. "
                    "Name whole groups."
                )
    return found


def _plan_by_block(
    scenes: Sequence[SplitScene], config: PrepareConfig, fractions: Mapping[Split, float]
) -> list[PlannedTile]:
    blocks = split_blocks(scenes, config)
    splits = assign_splits(blocks, fractions, config.seed, "block")
    split_of: dict[str, dict[Window, Split]] = {scene.name: {} for scene in scenes}
    for block, split in zip(blocks, splits, strict=True):
        split_of[block.scene][block.window] = split
    planned = planned_by_block(scenes, split_of, config)
    counts = Counter(split for _, _, split in planned)
    if fractions["train"] > 0 and not counts["train"]:
        raise SettingError(
            f"no training tile of {config.tile_px} pixels fits between the held-out blocks: lower --buffer-px "
            f"({config.buffer_px}), raise --block-px ({_block_px(scenes, config)}), or lower --val and --test."
        )
    return planned


def planned_by_block(
    scenes: Sequence[SplitScene], split_of: Mapping[str, Mapping[Window, Split]], config: PrepareConfig
) -> list[PlannedTile]:
    """Return the tiles of scenes whose blocks are assigned to splits."""
    adjacent = adjacent_blocks(scenes, split_of, config)
    return [
        (scene.name, *tile)
        for scene in scenes
        for tile in block_tiles(scene.window, split_of[scene.name], config, adjacent[scene.name])
    ]


def _block_px(scenes: Sequence[SplitScene], config: PrepareConfig) -> int:
    if 0 < config.block_px < config.tile_px:
        raise SettingError(
            f"--block-px {config.block_px} is less than --tile-px {config.tile_px}, but a block must contain a tile: "
            f"use --block-px {2 * config.tile_px}, or 0 for an automatic size."
        )
    narrow = _min_block_px(config)
    wide = max(2 * config.tile_px, narrow)
    found = sum(len(cut_blocks(scene.window, wide, narrow)) for scene in scenes)
    return config.block_px or (wide if found >= MIN_BLOCKS else narrow)


def _min_block_px(config: PrepareConfig) -> int:
    # A training block between two held-out blocks must have room for a tile.
    return config.tile_px + 2 * config.buffer_px


def _blocks(scenes: Sequence[SplitScene], block_px: int, min_px: int) -> Iterator[SplitBlock]:
    sizes: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for scene in scenes:
        sizes[scene.group].add((scene.height, scene.width))
    for scene in scenes:
        # Scenes of one group show the same area. If they have the same size, the same block of each goes to the same
        # split; if not, corresponding blocks are unknown, and the whole group goes to one split.
        aligned = len(sizes[scene.group]) == 1
        for window in cut_blocks(scene.window, block_px, min_px) if aligned else [scene.window]:
            group = f"{scene.group}: {window.row}, {window.col}" if aligned else scene.group
            yield SplitBlock(scene.name, window, group, _class_pixels(scene, window))


def _class_pixels(scene: SplitScene, window: Window) -> tuple[int, ...]:
    return tuple(scene.class_pixels(window)) if scene.class_pixels else ()


def _block_edges(length: int, block_px: int, min_px: int) -> list[int]:
    edges = list(range(0, length + 1, block_px))
    rest = length - edges[-1]
    if rest >= max(block_px / 2, min_px) or len(edges) == 1:
        return [*edges, length]
    return [*edges[:-1], length]


def _flush_offsets(
    boxes: Int64[ndarray, "n 2"], size: int, limits: tuple[int, int], regular: Sequence[int]
) -> list[int]:
    offsets = np.union1d(boxes[:, 0] - size, boxes[:, 1])
    inside = offsets[(offsets >= limits[0]) & (offsets <= limits[1] - size)]
    return [int(start) for start in np.setdiff1d(inside, regular)]


def _tiles_at(rows: Sequence[int], cols: Sequence[int], size: int) -> Int64[ndarray, "_ 4"]:
    tops, lefts = np.meshgrid(np.array(rows, dtype=np.int64), np.array(cols, dtype=np.int64), indexing="ij")
    corner = np.column_stack([tops.ravel(), lefts.ravel()])
    return np.hstack([corner, corner + size])


def stratified_order(unit_of: Sequence[Hashable], seed: int) -> list[int]:
    """Return the positions of tiles in a random order whose every prefix is stratified by unit.

    `unit_of` has the unit (scene or block) of each tile. A prefix contains the same fraction of the tiles of each unit,
    rounded up or down, so smaller subsets are nested in larger ones. This is systematic sampling with an independent
    start in each unit (Cochran 1977, Sampling Techniques, section 8.1). The same arguments give the same order.
    """
    rng = np.random.default_rng(seed % 2**64)
    rank: Float64[ndarray, " tiles"] = np.empty(len(unit_of))
    by_unit: dict[Hashable, list[int]] = defaultdict(list)
    for position, unit in enumerate(unit_of):
        by_unit[unit].append(position)
    for mine in by_unit.values():
        rank[rng.permutation(mine)] = (np.arange(len(mine)) + rng.random()) / len(mine)
    return [int(position) for position in np.argsort(rank, kind="stable")]
