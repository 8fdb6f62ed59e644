"""A tile set for every fold of a cross-validation: an index of its own over the images and masks that are there."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import close_labels
from geograft.geo.splitting.folds import fold_plans
from geograft.geo.splitting.splits import Place, Planned
from geograft.geo.tilesets.tally import Tally, labelled_tiles, tally
from geograft.geo.tilesets.tileset import META, SPLITS, TileSet
from geograft.progress import track
from geograft.verbs.derived import derived_set


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
