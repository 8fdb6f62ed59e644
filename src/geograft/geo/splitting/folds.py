"""Cross-validation by place: the ground is shared out in folds, and each is the test once. Windows in, windows out."""

from collections import defaultdict
from collections.abc import Sequence

from geograft.config import PrepareConfig
from geograft.errors import SettingError
from geograft.geo.grid import Window, tiling
from geograft.geo.splitting.splits import Place, Planned, block_parts, block_tiles, split_by_block, training_stride
from geograft.geo.splitting.stratify import Part, assign, assign_folds
from geograft.geo.tilesets.tileset import Split

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
