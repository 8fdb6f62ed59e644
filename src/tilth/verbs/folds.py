"""A tile set for every fold of a cross-validation: an index of its own over the images and masks that are there."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tilth.errors import InputError
from tilth.geo.grid import Window, cells
from tilth.geo.rasters.raster import close_labels, read_labels
from tilth.geo.splitting.folds import fold_plans
from tilth.geo.splitting.splits import Place, Planned
from tilth.geo.tilesets.tileset import META, SPLITS, Tile, TileSet
from tilth.legend import IGNORE
from tilth.progress import track
from tilth.verbs.derived import derived_set

CELL = (512, 4096)


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
            Place(scene.name, scene.height, scene.width, scene.group, _counter(whole, scene.name))
            for scene in whole.meta.scenes
        ]
        plans = fold_plans(places, whole.meta.settings, folds)
        for folder, planned in track(zip(found, plans, strict=True), folds, "folds", "folds"):
            if not (folder / META).is_file():
                _write(whole, planned, folder)
    finally:
        close_labels()
    return found


def _counter(whole: TileSet, scene: str) -> Callable[[Window], tuple[int, ...]]:
    mask, classes = whole.mask_path(scene), len(whole.meta.legend.names)

    def count(window: Window) -> tuple[int, ...]:
        counts = np.zeros(IGNORE + 1, np.int64)
        for cell in cells(window, *CELL):
            counts += np.bincount(read_labels(mask, cell).ravel(), minlength=IGNORE + 1)
        return tuple(counts[:classes].tolist())

    return count


def _write(whole: TileSet, planned: Sequence[Planned], folder: Path) -> None:
    tiles = _labelled(whole, planned)
    missing = [split for split in SPLITS if not any(tile.split == split for tile in tiles)]
    if missing:
        raise InputError(f"{folder.name} has no labelled {' and no '.join(missing)} tile. Ask for fewer --folds.")
    derived_set(whole, tiles, folder)


def _labelled(whole: TileSet, planned: Sequence[Planned]) -> list[Tile]:
    counters = {scene.name: _counter(whole, scene.name) for scene in whole.meta.scenes}
    tiles = []
    for name, window, split in planned:
        counts = counters[name](window)
        labelled = sum(counts)
        valid = labelled / (window.height * window.width)
        if labelled and valid >= whole.meta.settings.min_valid:
            tiles.append(Tile(name, window, split, valid, tuple(count / labelled for count in counts)))
    return tiles
