"""Spatial cross-validation: folds of blocks, scenes or groups, each in the test split once; or folds of a few tiles.

With several places, each fold may also be one of them (`write_place_folds`). Each fold is a derived tile set: it has
an index and band statistics of its own and refers to the images and masks of the original tile set. Learning curves and
searches write subsets of the training tiles in the same way.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import chain
from operator import add
from pathlib import Path

import shapely

from geograft.config import PrepareConfig
from geograft.dataset.joined import join_tile_sets, project_outlines, set_names
from geograft.dataset.places import place_names, refuse_overlapping_places
from geograft.dataset.splits import (
    PlannedTile,
    SplitScene,
    plan_tiles,
    planned_by_block,
    split_blocks,
    splits_by_block,
    training_stride,
    whole_scenes,
)
from geograft.dataset.statistics import ClassCounts, Moments, band_moments, count_classes, labelled_tiles
from geograft.dataset.stratify import SplitBlock, assign_folds, assign_splits
from geograft.dataset.tileset import INDEX, META, SPLITS, Split, Tile, TileSet
from geograft.dataset.units import units_of
from geograft.errors import InputError, SettingError
from geograft.files import atomic_folder, json_digest, write_json
from geograft.geo.grid import Grid, Window, WindowIndex, tiling
from geograft.geo.rasters.raster import Image, close_labels
from geograft.geo.scene import only_numbers
from geograft.geo.vectors.writer import tile_outlines, write_tiles
from geograft.progress import track

MIN_FOLDS = 2
MAX_HELD_OUT = 0.8
"""Largest fraction of a place in its validation and test splits, where it is trained on."""


def plan_folds(scenes: Sequence[SplitScene], config: PrepareConfig, folds: int) -> list[list[PlannedTile]]:
    """Return the train, val and test tiles of each fold.

    The blocks, scenes or groups of the split are distributed evenly over the folds, and each is in the test split of
    exactly one. In the rest of a fold, val has the fraction set in `config`, at most half. Splits by block keep the
    buffer of `config`. The same arguments give the same folds.

    Raises:
        SettingError: for fewer than two folds, more folds than blocks, scenes or groups, or an unsuitable split.
    """
    if folds < MIN_FOLDS:
        raise SettingError(f"--folds {folds} is below the minimum of {MIN_FOLDS}: use a larger number.")
    if config.split == "areas":
        raise SettingError(
            "--folds: the test split of this tile set is its random scoring areas, and stays the same. Compare with "
            "--seeds instead."
        )
    if config.split == "article" or not config.val:
        raise SettingError(
            "--folds needs a tile set with --val above 0 and a --split other than article: prepare the tile set again."
        )
    by_block = splits_by_block(scenes, config)
    blocks = split_blocks(scenes, config) if by_block else whole_scenes(scenes)
    fold_of = assign_folds(blocks, folds, config.seed)
    return [_plan(scenes, config, by_block, _splits(blocks, fold_of, fold, config)) for fold in range(folds)]


Splits = dict[str, dict[Window, Split]]
"""The split of each block, by scene and window."""


def _splits(blocks: Sequence[SplitBlock], fold_of: Sequence[int], fold: int, config: PrepareConfig) -> Splits:
    rest = [block for block, own in zip(blocks, fold_of, strict=True) if own != fold]
    left = 1 - 1 / (max(fold_of) + 1)
    val = min(config.val / left, 0.5)
    chosen = assign_splits(rest, {"train": 1 - val, "val": val}, config.seed + fold + 1)
    found: Splits = defaultdict(dict)
    for block, own in zip(blocks, fold_of, strict=True):
        if own == fold:
            found[block.scene][block.window] = "test"
    for block, split in zip(rest, chosen, strict=True):
        found[block.scene][block.window] = split
    return found


def _plan(scenes: Sequence[SplitScene], config: PrepareConfig, by_block: bool, splits: Splits) -> list[PlannedTile]:
    if by_block:
        return planned_by_block(scenes, splits, config)
    planned: list[PlannedTile] = []
    for scene in scenes:
        split = splits[scene.name][scene.window]
        stride = training_stride(config) if split == "train" else config.tile_px
        planned += [(scene.name, window, split) for window in tiling(scene.window, config.tile_px, stride)]
    return planned


def derived_fingerprint(whole: TileSet, tiles: Sequence[Tile]) -> str:
    """Return the fingerprint of the tile set with `tiles` over the images and masks of `whole`."""
    return json_digest({"of": whole.meta.fingerprint, "tiles": [tile.content for tile in tiles]})


def write_derived_set(whole: TileSet, tiles: Sequence[Tile], folder: Path) -> Path:
    """Write a tile set with `tiles` over the images and masks of `whole`, and return its folder.

    Does nothing if the folder already contains it. Reads the training pixels once, for the band statistics.

    Raises:
        InputError: if an image cannot be read, or `folder` contains another tile set.
        OutputError: if the tile set cannot be written.
    """
    fingerprint = derived_fingerprint(whole, tiles)
    if (folder / META).is_file():
        if TileSet.open(folder).meta.fingerprint != fingerprint:
            raise InputError(f"{folder} contains a tile set with other tiles of {whole.folder}. Choose another --out.")
        return folder
    meta = whole.meta
    moments = _statistics(whole, tiles)
    own = replace(
        meta,
        mean=tuple(moments.mean.tolist()),
        std=tuple(moments.std.tolist()),
        scenes=tuple(replace(s, image=str(whole.image_path(s.name).resolve())) for s in meta.scenes),
        masks=str((whole.folder / meta.masks).resolve()),
        fingerprint=fingerprint,
    )
    rows = [tile.record for tile in tiles]
    shapes, crs = tile_outlines([(tile.scene, tile.part) for tile in tiles], _grids(whole))
    with atomic_folder(folder) as part:
        write_tiles(part / INDEX, rows, shapes, meta.legend.names, crs)
        write_json(part / META, asdict(own))
    return folder


def _grids(whole: TileSet) -> dict[str, Grid]:
    grids = {}
    for scene in whole.meta.scenes:
        with Image.open(whole.image_path(scene.name)) as image:
            grids[scene.name] = image.info.grid
    return grids


def _statistics(whole: TileSet, tiles: Sequence[Tile]) -> Moments:
    parts = (
        band_moments(
            whole.image_path(scene.name),
            whole.mask_path(scene.name),
            [tile.window for tile in tiles if tile.scene == scene.name and tile.split == "train"],
            whole.meta.indices,
            only_numbers(whole.meta.settings.bands),
            whole.meta.validity,
        )
        for scene in whole.meta.scenes
    )
    return reduce(add, chain.from_iterable(parts), Moments.zeros(len(whole.meta.band_names)))


def write_fold_sets(tiles: Path, folds: int, out: Path) -> list[Path]:
    """Write the tile sets of all folds to fold1, fold2, ... in `out`, and return these folders; existing ones are kept.

    Each has its own index and band statistics and refers to the original images and masks. Reads the masks and the
    training pixels once per fold.

    Raises:
        InputError: if `tiles` is not a tile set, or a split of a fold has no labelled tile.
        SettingError: if the tile set cannot be divided into that many folds.
    """
    whole = TileSet.open(tiles)
    whole.check_masks()
    if folds > len(whole.tiles):
        raise SettingError(f"--folds {folds}: there are {len(whole.tiles)} tiles in all. Use a smaller number.")
    found = [out / f"fold{number}" for number in range(1, folds + 1)]
    if all((folder / META).is_file() for folder in found):
        return found
    try:
        scenes = [SplitScene.of(scene, _stratification_counts(whole, scene.name)) for scene in whole.meta.scenes]
        plans = plan_folds(scenes, whole.meta.settings, folds)
        for folder, planned in track(zip(found, plans, strict=True), folds, "folds", "folds"):
            if not (folder / META).is_file():
                _write(whole, planned, folder)
    finally:
        close_labels()
    return found


@dataclass(frozen=True)
class PlaceFold:
    """A place that is held out, and the tile sets of which the others are trained on."""

    place: str
    folders: tuple[Path, ...]
    """One for each of the given tile sets, with the tiles of the place in the test split of one of them."""


def write_place_folds(folders: Sequence[Path], out: Path) -> list[PlaceFold]:
    """Write the tile sets of a cross-validation that leaves out one place at a time to fold1, fold2, ... in `out`.

    Places are those of `geograft.dataset.places`. All tiles of the place that is left out are in the test split. Each
    other place is split by itself, into scenes or blocks, with the fractions of its tile set: its validation tiles
    choose the epoch, and its test tiles show the score in place. They are the same in all folds. Existing folds are
    kept. Reads the masks, and the training pixels once per fold.

    Raises:
        InputError: if one of `folders` is not a tile set, the tile sets do not fit, or a place has no labelled tile.
        SettingError: if there are fewer than two places, two share land, or one cannot be split.
    """
    joined = join_tile_sets([TileSet.open(folder) for folder in folders])
    places = place_names(joined)
    found = list(dict.fromkeys(places.values()))
    if len(found) < MIN_FOLDS:
        raise SettingError(
            f"--leave-one-place-out: {joined.title} has one place. Prepare it with --groups, or give several tile sets."
        )
    joined.check_masks()
    refuse_overlapping_places(joined, places)
    names = iter(places.values())
    members = joined.members or (joined,)
    by_set = [dict(zip(each.scenes, names, strict=False)) for each in members]
    try:
        tiles = [_tiles_by_place(each, own) for each, own in zip(members, by_set, strict=True)]
        return [
            PlaceFold(place, tuple(_write_without(members, tiles, place, out / f"fold{number}")))
            for number, place in enumerate(track(found, len(found), "folds", "folds"), start=1)
        ]
    finally:
        close_labels()


@dataclass(frozen=True)
class _PlaceTiles:
    """The tiles of one place in a tile set: divided into train, val and test, and all of them for testing."""

    split: list[Tile]
    tested: list[Tile]


def _tiles_by_place(whole: TileSet, places: Mapping[str, str]) -> dict[str, _PlaceTiles]:
    """Return the tiles of each place of a tile set; `places` are the names of the places of its scenes."""
    if whole.meta.settings.split == "areas":
        raise SettingError(
            f"--leave-one-place-out: {whole.folder} is split by the labelled areas of a project, which stay. Give tile "
            "sets that are split by scene, group or block."
        )
    config = replace(whole.meta.settings, split="auto", val_groups=(), test_groups=())
    if whole.meta.settings.split == "article" or not config.val or config.val + config.test > MAX_HELD_OUT:
        raise SettingError(
            f"--leave-one-place-out trains on {whole.folder}, too: prepare it with --val above 0, --val and --test "
            f"together up to {MAX_HELD_OUT:g}, and a --split other than article."
        )
    found = {}
    for place in dict.fromkeys(places.values()):
        # Scenes of a place show different parts of it, unless they are adjacent or overlap.
        scenes = [
            replace(SplitScene.of(scene, _stratification_counts(whole, scene.name)), group=scene.name)
            for scene in whole.meta.scenes
            if places[scene.name] == place
        ]
        tested: list[PlannedTile] = [
            (s.name, window, "test") for s in scenes for window in tiling(s.window, config.tile_px, config.tile_px)
        ]
        count = partial(_count_window, whole)
        split = labelled_tiles(plan_tiles(scenes, config), count, config.min_valid)
        found[place] = _PlaceTiles(split, labelled_tiles(tested, count, config.min_valid))
        if not found[place].tested:
            raise InputError(f"{whole.folder}: the place {place} has no labelled tile. Leave out its scenes.")
    return found


def _write_without(
    members: Sequence[TileSet], tiles: Sequence[Mapping[str, _PlaceTiles]], place: str, folder: Path
) -> Iterator[Path]:
    """Write the tile sets of the fold that leaves out a place, and yield their folders."""
    names = set_names(members)
    for whole, own, name in zip(members, tiles, names, strict=True):
        chosen = [tile for each, mine in own.items() for tile in (mine.tested if each == place else mine.split)]
        # The name of the place says that it was chosen, and that its scenes are the units of intervals.
        settings = replace(whole.meta.settings, split="group", test_groups=(place,), val_groups=())
        named = replace(whole, meta=replace(whole.meta, settings=settings))
        yield write_derived_set(named, chosen, folder / name if len(members) > 1 else folder)


def _count_window(whole: TileSet, scene: str, window: Window) -> ClassCounts:
    return count_classes(whole.mask_path(scene), window, whole.meta.legend, whole.meta.fractional)


def _stratification_counts(whole: TileSet, scene: str) -> Callable[[Window], tuple[int, ...]]:
    return lambda window: _count_window(whole, scene, window).stratification_counts


def _write(whole: TileSet, planned: Sequence[PlannedTile], folder: Path) -> None:
    tiles = labelled_tiles(planned, partial(_count_window, whole), whole.meta.settings.min_valid)
    missing = [split for split in SPLITS if not any(tile.split == split for tile in tiles)]
    if missing:
        raise InputError(f"{folder.name} has no labelled {' and no '.join(missing)} tile. Use fewer --folds.")
    write_derived_set(whole, tiles, folder)


@dataclass(frozen=True)
class TileFold:
    """A fold of the tiles of a tile set, as positions among them."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def independent_units(tile_set: TileSet) -> tuple[str, ...]:
    """Return the unit of each tile, whatever its split: the scene, group or block that `units_of` gives.

    If that is one unit for all, such as one group of scenes, each scene is a unit; within one scene, each tile.
    """
    units = units_of(replace(tile_set, tiles=tuple(replace(tile, split="val") for tile in tile_set.tiles)), "val")
    candidates = (
        [units.cells[cell].unit for cell in units.cell_of],
        [tile.scene for tile in tile_set.tiles],
        [f"tile {number}" for number in range(len(tile_set.tiles))],
    )
    return tuple(next((names for names in candidates if len(set(names)) >= MIN_FOLDS), candidates[-1]))


def plan_tile_folds(tile_set: TileSet, folds: int, seed: int) -> tuple[TileFold, ...]:
    """Return folds of all tiles of a small tile set, whatever their split: each tile is in `test` of exactly one fold.

    Tiles of one of the `independent_units` are in one fold; there are at most as many folds as units. Tiles nearer to
    one of `test` than the buffer of the tile set, or that show the same area in another scene, are not in `train`.

    Raises:
        InputError: if a fold has no training tile left.
    """
    tiles, units = tile_set.tiles, independent_units(tile_set)
    blocks = [
        SplitBlock(tile.scene, tile.window, unit, _tile_pixels(tile)) for tile, unit in zip(tiles, units, strict=True)
    ]
    fold_of = assign_folds(blocks, min(folds, len(set(units))), seed)
    near = _near_tiles(tile_set)
    found = []
    for fold in sorted(set(fold_of)):
        test = [position for position, own in enumerate(fold_of) if own == fold]
        excluded = set(test).union(*(near[position] for position in test))
        found.append(TileFold(tuple(i for i in range(len(tiles)) if i not in excluded), tuple(test)))
    if not all(fold.train for fold in found):
        raise InputError(
            f"{tile_set.title}: without the tiles of a fold and those within {tile_set.meta.settings.buffer_px} pixels "
            "of them, no tile is left to train on. Label tiles that are farther apart."
        )
    return tuple(found)


def _tile_pixels(tile: Tile) -> tuple[int, ...]:
    """Return the labelled pixels of a tile, and those of each class, to balance the folds by."""
    labelled = tile.valid * tile.window.height * tile.window.width
    return (round(labelled), *(round(labelled * fraction) for fraction in tile.class_fractions))


def _near_tiles(tile_set: TileSet) -> list[set[int]]:
    """Return for each tile the positions of those within the buffer, and of those that show the same area."""
    margin = tile_set.meta.settings.buffer_px
    by_place: dict[str, list[int]] = defaultdict(list)
    windows = []
    for number, tile in enumerate(tile_set.tiles):
        position = tile_set.scenes[tile.scene].position
        by_place[position.place if position else tile.scene].append(number)
        shift = (position.row, position.col) if position else (0, 0)
        windows.append(replace(tile.window, row=tile.window.row + shift[0], col=tile.window.col + shift[1]))
    near: list[set[int]] = [set() for _ in windows]
    for mine in by_place.values():
        index = WindowIndex([windows[number] for number in mine])
        for number in mine:
            near[number] |= {mine[i] for i in index.query(windows[number].pad(margin))}
    outlines = project_outlines(tile_set)
    if outlines is not None:
        one, other = shapely.STRtree(outlines[0]).query(outlines[0], predicate="intersects")
        for number, neighbour in zip(one.tolist(), other.tolist(), strict=True):
            near[number].add(neighbour)
    return near
