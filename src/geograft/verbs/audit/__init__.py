"""`geograft audit`: does the split leak? What training has seen of the held-out ground, and how near to it it came."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from geograft.errors import InputError
from geograft.figures.variogram import Curve, variogram_figure
from geograft.files import replacing
from geograft.geo.splitting.likeness import likeness
from geograft.geo.splitting.neighbours import nearest_distances, on_mercator
from geograft.geo.splitting.splits import Place
from geograft.geo.splitting.variogram import Variogram
from geograft.geo.tilesets.structure import STRUCTURE, read_structures
from geograft.geo.tilesets.tileset import INDEX, Split, Tile, TileSet
from geograft.geo.vectors.vectorindex import read_outlines
from geograft.verbs.audit.found import Held
from geograft.verbs.audit.pixels import audit_plan, audit_tiles
from geograft.verbs.audit.result import Audit
from geograft.verbs.audit.twins import Again, by_looks, by_place, placings

__all__ = ["Audit", "Held", "audit", "audit_plan", "audit_set", "audit_tiles", "draw"]


def audit(tiles: Path, figure: Path | None = None) -> Audit:
    """Return what training has seen of the validation and test ground of a tile set, and how near to it it came.

    Reads the index, and at most 16 windows of 1024 x 1024 pixels to see how far the ground resembles itself: about
    10 s. With `figure` that is drawn to a PNG file, over the distances of the held-out tiles from training.

    Raises:
        InputError: when `tiles` is no tile set, or a figure is wanted and an image cannot be read.
        OutputError: when the figure cannot be written.
    """
    tile_set = TileSet.open(tiles)
    found = audit_set(tile_set)
    try:
        found = replace(found, likeness=likeness(tile_set))
    except InputError as error:
        if figure:
            raise
        return replace(found, notes=(*found.notes, f"how far the ground resembles itself is not known: {error}"))
    if figure:
        with replacing(figure) as part:
            part.write_bytes(draw(found))
    return found


def audit_set(tile_set: TileSet) -> Audit:
    """Return the same of a tile set that is open, from its index alone, without how far the ground resembles itself.

    A few seconds for 100,000 tiles; a quarter of a minute for 1,000 scenes without a place on the ground.

    Raises:
        InputError: when the index cannot be read.
    """
    places = [Place(scene.name, scene.height, scene.width, scene.group) for scene in tile_set.meta.scenes]
    found = audit_tiles(tile_set.tiles, places, str(tile_set.folder), tile_set.meta.legend.names)
    if not found.held or "train" not in found.tiles:
        return found
    shapes, crs = read_outlines(tile_set.folder / INDEX)
    if crs is None:
        return _with_looks(found, tile_set)
    on_map, scale = on_mercator(shapes, crs)
    train = _indices(tile_set, "train")
    held = []
    again: dict[Split, Again] = {}
    for one in found.held:
        mine = _indices(tile_set, one.split)
        again[one.split] = by_place(_of(tile_set, mine), _of(tile_set, train), (on_map[mine], on_map[train]))
        distances = nearest_distances(on_map[mine], on_map[train], scale[mine])
        held.append(replace(one, distances=distances))
    found = replace(found, held=tuple(held), unit="m", pixel=tile_set.meta.resolution_m or 1.0)
    return _with_again(found, tile_set, again)


def draw(found: Audit) -> bytes:
    """Return the figure of an audit that knows how far the ground resembles itself, as PNG."""
    assert found.likeness is not None
    curves = [
        _curve(name, one.scaled(found.pixel))
        for name, one in (("image", found.likeness.image), ("labels", found.likeness.labels))
        if len(one.lag)
    ]
    return variogram_figure(curves, {held.split: held.distances for held in found.held}, found.unit)


def _with_looks(found: Audit, tile_set: TileSet) -> Audit:
    scenes = tile_set.meta.scenes
    # Beside the masks, which the folds of a cross-validation have in common.
    looks = read_structures(tile_set.mask_path(scenes[0].name).parent.parent / STRUCTURE)
    if looks is None and len(scenes) > 1:
        note = "scenes of the same ground under two names were not looked for: prepare the tile set again to know them"
        found = replace(found, notes=(*found.notes, note))
    train = tile_set.split("train")
    again = {}
    for one in found.held:
        held = tile_set.split(one.split)
        pairs = placings({tile.scene for tile in held}, {tile.scene for tile in train}, scenes, looks)
        again[one.split] = by_looks(held, train, tile_set.scenes, pairs)
    return _with_again(found, tile_set, again)


def _with_again(found: Audit, tile_set: TileSet, again: dict[Split, Again]) -> Audit:
    held = []
    for one in found.held:
        area = np.array([tile.window.height * tile.window.width for tile in tile_set.split(one.split)], float)
        held.append(replace(one, seen_elsewhere=float(area @ again[one.split].share / area.sum())))
    twins = dict.fromkeys(twin for one in again.values() for twin in one.twins)
    return replace(found, held=tuple(held), twins=tuple(twins))


def _curve(name: str, one: Variogram) -> Curve:
    if one.model is None:
        return Curve(name, one.lag, one.gamma)
    fine = np.linspace(0, float(one.lag[-1]), 300)
    model = np.stack([fine, one.at(fine)])
    return Curve(name, one.lag, one.gamma, model, one.sill, one.range if one.resolved else None)


def _indices(tile_set: TileSet, split: Split) -> list[int]:
    return [index for index, tile in enumerate(tile_set.tiles) if tile.split == split]


def _of(tile_set: TileSet, indices: list[int]) -> list[Tile]:
    return [tile_set.tiles[index] for index in indices]
