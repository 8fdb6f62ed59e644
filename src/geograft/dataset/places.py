"""The places of a tile set, and in which of them a run was trained: scores in place, and elsewhere.

A place is a named group of scenes (`geograft prepare --groups`), or one of several tile sets. Without groups all scenes
of a tile set are one place, but those that --val-groups or --test-groups name are places of their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import shapely

from geograft.card import CARD, ModelCard, read_card
from geograft.dataset.joined import open_run_tiles, project_outlines
from geograft.dataset.splits import SplitScene, unit_names
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import InputError, SettingError

Where = Literal["in place", "elsewhere"]
"""Whether a run has training tiles in a place."""


def place_names(tile_set: TileSet) -> dict[str, str]:
    """Return the name of the place of each scene. Adjacent scenes are one place."""
    if not tile_set.members:
        return _own_places(tile_set)
    joined = iter(tile_set.meta.scenes)
    found = {}
    for member in tile_set.members:
        own = _own_places(member)
        for scene, each in zip(member.meta.scenes, joined, strict=False):
            name = each.name.removesuffix(f".{scene.name}")
            found[each.name] = f"{name}.{own[scene.name]}" if len(set(own.values())) > 1 else name
    return found


def refuse_overlapping_places(tile_set: TileSet, places: Mapping[str, str]) -> None:
    """Raise SettingError if tiles of two places share land, where all scenes are georeferenced.

    Raises:
        InputError: if the index of a tile set cannot be read.
    """
    outlines = project_outlines(tile_set)
    if outlines is None:
        return
    shapes, names = outlines[0], np.array([places[tile.scene] for tile in tile_set.tiles])
    first, second = shapely.STRtree(shapes).query(shapes, predicate="overlaps")
    for one, other in zip(first[names[first] != names[second]], second[names[first] != names[second]], strict=True):
        raise SettingError(
            f"Tiles of {names[one]} and {names[other]} share land, so they are one place. Give their scenes one group."
        )


def scenes_in_place(scored: TileSet, split: Split, own: TileSet) -> frozenset[str]:
    """Return the scenes with tiles of a split in whose place a run has training tiles; `own` is its tile set.

    Of another tile set, these are the scenes that have the image of a scene in such a place, those of a group with the
    same name, and those of which a tile shares land with a training tile. Others are elsewhere.

    Raises:
        InputError: if the index of a tile set cannot be read.
    """
    places = place_names(scored)
    names = {tile.scene for tile in scored.split(split)}
    own_places = place_names(own)
    trained = {own_places[tile.scene] for tile in own.split("train")}
    if scored.meta.fingerprint == own.meta.fingerprint:
        return frozenset(name for name in names if places[name] in trained)
    images = {own.scenes[name].digest for name, place in own_places.items() if place in trained}
    groups = trained & set(_groups(own)) & set(_groups(scored))
    near = _overlapping_scenes(scored, split, own)
    known = {name for name in names if scored.scenes[name].digest in images or places[name] in groups or name in near}
    grouped = {places[name] for name in known} & set(_groups(scored))
    return frozenset(known | {name for name in names if places[name] in grouped})


def known_scenes_in_place(runs: Sequence[Path], scored: TileSet, split: Split) -> frozenset[str] | None:
    """Return the scenes with tiles of a split in whose place one of several runs has training tiles.

    Runs that they were started from count too. None if a tile set of one of them is not there, and may be in one of the
    other places.

    Raises:
        InputError: if the index of a tile set cannot be read.
    """
    found: set[str] = set()
    complete = True
    for run, card in _ancestry(runs):
        own = _tiles_of(run, card, scored) if card else None
        complete = complete and own is not None
        found |= scenes_in_place(scored, split, own) if own else frozenset()
    return frozenset(found) if complete or found == {tile.scene for tile in scored.split(split)} else None


def _ancestry(runs: Sequence[Path]) -> Iterator[tuple[Path, ModelCard | None]]:
    """Yield runs and those that they were started from, each once, with their cards; None for one that is not here."""
    seen: set[Path] = set()
    waiting = list(runs)
    while waiting:
        run = waiting.pop()
        if run in seen:
            continue
        seen.add(run)
        card = _card_here(run, named=run in runs)
        yield run, card
        waiting += [Path(card.model.start)] if card and card.model.start else []


def _card_here(run: Path, named: bool) -> ModelCard | None:
    """Return the card of a run; None if it is not here. Only for a run that the user named, something is downloaded."""
    try:
        return read_card(run) if named or (run / CARD).is_file() or run.is_file() else None
    except InputError:
        return None


def _tiles_of(run: Path, card: ModelCard, scored: TileSet) -> TileSet | None:
    """Return the tile set of a run; None if it is not there, or was prepared again."""
    if scored.meta.fingerprint == card.data_fingerprint:
        return scored
    try:
        own = open_run_tiles(run)
    except InputError:
        return None
    return own if own.meta.fingerprint == card.data_fingerprint else None


def _own_places(tile_set: TileSet) -> dict[str, str]:
    meta = tile_set.meta
    units = unit_names([SplitScene.of(scene) for scene in meta.scenes])
    if _groups(tile_set):
        return units
    named = {*meta.settings.val_groups, *meta.settings.test_groups}
    apart = {units[scene.name] for scene in meta.scenes if scene.name in named}
    whole = tile_set.folder.resolve().name
    return {name: unit if unit in apart else whole for name, unit in units.items()}


def _groups(tile_set: TileSet) -> Sequence[str]:
    """Return the names of the places that are named groups of a tile set; empty without groups, and if it is joined."""
    if tile_set.members or all(scene.group == scene.name for scene in tile_set.meta.scenes):
        return ()
    return tuple(unit_names([SplitScene.of(scene) for scene in tile_set.meta.scenes]).values())


def _overlapping_scenes(scored: TileSet, split: Split, own: TileSet) -> set[str]:
    """Return the scenes of which a tile of a split shares land with a training tile; empty where not georeferenced."""
    mine, theirs = project_outlines(own), project_outlines(scored)
    if mine is None or theirs is None:
        return set()
    training = mine[0][[tile.split == "train" for tile in own.tiles]]
    numbers = [number for number, tile in enumerate(scored.tiles) if tile.split == split]
    shapes = theirs[0][numbers]
    first, second = shapely.STRtree(training).query(shapes, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[first], training[second])) > 0
    return {scored.tiles[numbers[number]].scene for number in np.unique(first[shared])}
