"""`geograft prepare`: images and labels become a tile set."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from geograft.config import PrepareConfig
from geograft.errors import InputError
from geograft.files import building, refuse_existing
from geograft.geo.rasters.raster import close_labels
from geograft.geo.splitting.splits import plan
from geograft.geo.tilesets.scenes import Gathered, LabelledScene, Source
from geograft.geo.tilesets.tally import labelled_tiles
from geograft.geo.tilesets.tileset import Split, Tile, TileSet
from geograft.indices import indices_of
from geograft.progress import track
from geograft.verbs.prepare.burning import BurntScene, burn_all
from geograft.verbs.prepare.writing import band_names, write


def prepare(source: Source, out: Path, config: PrepareConfig | None = None) -> TileSet:
    """Make a tile set in the folder `out` and return it, opened.

    Pixels stay in the images they are in; those that cannot be read by windows (PNG, JPEG, zipped, large strips) are
    copied once, as tiled GeoTIFFs. Every image is read twice: for its valid pixels, and for the statistics of those
    under training tiles, each once. Memory: a few blocks, and the polygons.

    Raises:
        InputError: when images or labels cannot be used, or a class or a split would be without pixels.
        SettingError: when the split cannot be made with these settings.
        OutputError: when `out` exists already or cannot be written; nothing is left behind then.
    """
    settings = config or PrepareConfig()
    refuse_existing(out)
    gathered = source.gather()
    indices = indices_of(settings.index, band_names(gathered.scenes))
    _check_tile_fits(gathered.scenes, settings.tile_px)
    with building(out) as folder:
        try:
            burnt = burn_all(gathered, folder)
            tiles = _filled_tiles(burnt, settings)
            _check_splits(tiles, settings)
            _check_classes(gathered, burnt, tiles)
            write(folder, gathered, burnt, tiles, settings, indices)
        finally:
            close_labels()
    return TileSet.open(out)


def _filled_tiles(burnt: Sequence[BurntScene], settings: PrepareConfig) -> list[Tile]:
    """Return the planned tiles that have enough labelled pixels, with the shares of the classes."""
    planned = plan([scene.place for scene in burnt], settings)
    scenes = {scene.scene.name: scene for scene in burnt}
    passing = track(planned, len(planned), "Counting classes", "tiles")
    return labelled_tiles(passing, lambda name, window: scenes[name].tally(window), settings.min_valid)


def _check_tile_fits(scenes: Sequence[LabelledScene], tile_px: int) -> None:
    smallest = min(scenes, key=lambda scene: min(scene.info.grid.height, scene.info.grid.width)).info
    limit = min(smallest.grid.height, smallest.grid.width)
    if tile_px > limit:
        raise InputError(
            f"a tile of {tile_px} pixels is larger than {smallest.path}, which has {smallest.grid.width} x "
            f"{smallest.grid.height}. Use --tile-px {limit}, the largest that works, or leave the image out."
        )


def _check_splits(tiles: Sequence[Tile], settings: PrepareConfig) -> None:
    train = settings.split == "article" or settings.val + settings.test < 1
    wanted: dict[Split, bool] = {"train": train, "val": settings.val > 0, "test": settings.test > 0}
    if settings.split == "article":
        wanted["test"] = False
    there = {tile.split for tile in tiles}
    missing = [split for split, needed in wanted.items() if needed and split not in there]
    if missing:
        raise InputError(
            f"no {' and no '.join(missing)} tile has {settings.min_valid:.0%} of its pixels labelled and valid. "
            "Lower --min-valid, choose another --seed or smaller tiles, or label more."
        )


def _check_classes(gathered: Gathered, burnt: Sequence[BurntScene], tiles: Sequence[Tile]) -> None:
    """Raise InputError for a class that training would never see."""
    train = [tile for tile in tiles if tile.split == "train"]
    if not train:
        return
    names = gathered.legend.names
    needed = range(1 if gathered.implied and not gathered.legend.binary else 0, len(names))
    total = reduce(add, (scene.held for scene in burnt))
    absent = [names[index] for index in needed if not total.present[index]]
    if absent:
        raise InputError(
            f"no valid pixel of any image is of class {', '.join(absent)}. Check the labels, or leave it out."
        )
    unseen = [names[index] for index in needed if not any(tile.shares[index] for tile in train)]
    if unseen:
        raise InputError(
            f"no training tile holds a pixel of class {', '.join(unseen)}, only the others do. "
            "Choose another --seed, lower --val and --test, or use --split block."
        )
