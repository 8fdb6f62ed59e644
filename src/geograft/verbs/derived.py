"""A tile set made of another one: an index and statistics of its own over the images and masks that are there."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import reduce
from itertools import chain
from operator import add
from pathlib import Path

from geograft.errors import InputError
from geograft.files import building, json_digest, write_json
from geograft.geo.grid import Grid
from geograft.geo.rasters.raster import Image
from geograft.geo.tilesets.statistics import Moments, band_moments
from geograft.geo.tilesets.tileset import INDEX, META, Tile, TileSet
from geograft.geo.vectors.outlines import outlines
from geograft.geo.vectors.vectorout import write_tiles


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
