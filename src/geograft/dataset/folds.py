"""Cross-validation by place: the ground is shared out in folds, and each is the test once. Windows in, windows out.

A tile set made of another one: an index and statistics of its own over the images and masks that are there.

A tile set for every fold of a cross-validation: an index of its own over the images and masks that are there.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial, reduce
from itertools import chain
from operator import add
from pathlib import Path

from geograft.config import PrepareConfig
from geograft.dataset.splits import Place, Planned, block_parts, block_tiles, split_by_block, training_stride
from geograft.dataset.statistics import Moments, Tally, band_moments, labelled_tiles, tally
from geograft.dataset.stratify import Part, assign, assign_folds
from geograft.dataset.tileset import INDEX, META, SPLITS, Split, Tile, TileSet
from geograft.errors import InputError, SettingError
from geograft.files import building, json_digest, write_json
from geograft.geo.grid import Grid, Window, tiling
from geograft.geo.rasters.raster import Image, close_labels
from geograft.geo.vectors.outlines import outlines
from geograft.geo.vectors.writer import write_tiles
from geograft.progress import track

LEAST_FOLDS = 2


def fold_plans(places: Sequence[Place], config: PrepareConfig, folds: int) -> list[list[Planned]]:
    """Return the tiles of every fold's training, validation and test part, a list a fold.

    What the split moves whole (blocks, or scenes, or groups of scenes) is shared out evenly, and is the test of its
    fold. Of the rest, val has the share that it has in `config`, as far as that goes. Blocks keep the buffer of
    `config`. All ground is the test once, and the same arguments give the same folds.

    Raises:
        SettingError: for fewer than two folds or more than there are pieces of ground, or a split that cannot be cut.
    """
    if folds < LEAST_FOLDS:
        raise SettingError(f"--folds {folds}: at least {LEAST_FOLDS} are needed.")
    if config.split == "article" or not config.val:
        raise SettingError("--folds needs a tile set with --val above 0 whose split does not leak. Prepare it again.")
    by_block = split_by_block(places, config)
    parts = block_parts(places, config) if by_block else _scenes(places)
    fold_of = assign_folds(parts, folds, config.seed)
    return [_plan(places, config, by_block, _splits(parts, fold_of, fold, config)) for fold in range(folds)]


Splits = dict[str, dict[Window, Split]]
"""The split of every part, by scene and window."""


def _splits(parts: Sequence[Part], fold_of: Sequence[int], fold: int, config: PrepareConfig) -> Splits:
    rest = [part for part, own in zip(parts, fold_of, strict=True) if own != fold]
    left = 1 - 1 / (max(fold_of) + 1)
    val = min(config.val / left, 0.5)
    chosen = assign(rest, {"train": 1 - val, "val": val}, config.seed + fold + 1)
    found: Splits = defaultdict(dict)
    for part, own in zip(parts, fold_of, strict=True):
        if own == fold:
            found[part.scene][part.window] = "test"
    for part, split in zip(rest, chosen, strict=True):
        found[part.scene][part.window] = split
    return found


def _plan(places: Sequence[Place], config: PrepareConfig, by_block: bool, splits: Splits) -> list[Planned]:
    planned: list[Planned] = []
    for place in places:
        if by_block:
            planned += [(place.name, *tile) for tile in block_tiles(place.window, splits[place.name], config)]
            continue
        split = splits[place.name][place.window]
        stride = training_stride(config) if split == "train" else config.tile_px
        planned += [(place.name, window, split) for window in tiling(place.window, config.tile_px, stride)]
    return planned


def _scenes(places: Sequence[Place]) -> list[Part]:
    """Return every scene as one part, with its pixels by class where the place can count them."""
    return [
        Part(
            place.name, place.window, place.group, tuple(place.class_pixels(place.window)) if place.class_pixels else ()
        )
        for place in places
    ]


def derived_fingerprint(whole: TileSet, tiles: Sequence[Tile]) -> str:
    """Return the fingerprint of the tile set that holds `tiles` over the images and masks of `whole`."""
    return json_digest({"of": whole.meta.fingerprint, "tiles": [asdict(tile) for tile in tiles]})


def derived_set(whole: TileSet, tiles: Sequence[Tile], folder: Path) -> Path:
    """Write a tile set that holds `tiles` over the images and masks of `whole`, and return its folder.

    The one that is there already stays. Its band statistics are of its own training part, whose pixels are read once.

    Raises:
        InputError: when an image cannot be read, or `folder` holds another tile set.
        OutputError: when it cannot be written.
    """
    fingerprint = derived_fingerprint(whole, tiles)
    if (folder / META).is_file():
        if TileSet.open(folder).meta.fingerprint != fingerprint:
            raise InputError(f"{folder} holds other tiles than those of {whole.folder}. Choose another --out.")
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
    rows = [(tile.scene, tile.window, tile.split, tile.valid, tile.shares) for tile in tiles]
    shapes, crs = outlines([row[:2] for row in rows], _grids(whole))
    with building(folder) as part:
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
        )
        for scene in whole.meta.scenes
    )
    return reduce(add, chain.from_iterable(parts), Moments.none(len(whole.meta.band_names)))


def fold_sets(tiles: Path, folds: int, out: Path) -> list[Path]:
    """Return the tile sets of all folds, folders fold1, fold2, ... of `out`; those that are there already stay.

    Each holds an index and statistics of its own training part, and refers to images and masks where they are. Reads
    the masks once a fold, and the training part's pixels.

    Raises:
        InputError: when `tiles` is no tile set, or a part of a fold has no labelled tile.
        SettingError: when its ground cannot be shared out in so many folds.
    """
    whole = TileSet.open(tiles)
    found = [out / f"fold{number}" for number in range(1, folds + 1)]
    if all((folder / META).is_file() for folder in found):
        return found
    try:
        places = [
            Place(scene.name, scene.height, scene.width, scene.group, _balance(whole, scene.name))
            for scene in whole.meta.scenes
        ]
        plans = fold_plans(places, whole.meta.settings, folds)
        for folder, planned in track(zip(found, plans, strict=True), folds, "folds", "folds"):
            if not (folder / META).is_file():
                _write(whole, planned, folder)
    finally:
        close_labels()
    return found


def _tally_of(whole: TileSet, scene: str, window: Window) -> Tally:
    return tally(whole.mask_path(scene), window, whole.meta.legend, whole.meta.shares)


def _balance(whole: TileSet, scene: str) -> Callable[[Window], tuple[int, ...]]:
    return lambda window: _tally_of(whole, scene, window).balance


def _write(whole: TileSet, planned: Sequence[Planned], folder: Path) -> None:
    tiles = labelled_tiles(planned, partial(_tally_of, whole), whole.meta.settings.min_valid)
    missing = [split for split in SPLITS if not any(tile.split == split for tile in tiles)]
    if missing:
        raise InputError(f"{folder.name} has no labelled {' and no '.join(missing)} tile. Ask for fewer --folds.")
    derived_set(whole, tiles, folder)
