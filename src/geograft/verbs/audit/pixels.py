"""Which share of the held-out pixels training has seen: exact counts from the tiles' corners."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from geograft.geo.coverage import Placed, overlap, smallest_gap
from geograft.geo.splitting.neighbours import nearest_in_scene
from geograft.geo.splitting.splits import Place, Planned
from geograft.geo.tilesets.tileset import SPLITS, Split, Tile
from geograft.verbs.audit.found import Held
from geograft.verbs.audit.result import Audit


def audit_plan(planned: Sequence[Planned], places: Sequence[Place], title: str) -> Audit:
    """Return the audit of windows that no file holds yet, as `geograft.geo.splitting.splits.plan` gives them."""
    return audit_tiles([Tile(*row) for row in planned], places, title)


def audit_tiles(tiles: Sequence[Tile], places: Sequence[Place], title: str, classes: tuple[str, ...] = ()) -> Audit:
    """Return the audit of `tiles` of the scenes `places`.

    Scenes of one group show the same ground. Where they are of one size, the same pixel of two of them counts as
    shared; where they are not, it is not known which pixels those are, and the group must not be divided at all.
    """
    unlike = _unlike_groups(places)
    ground = {place.name: place.name if place.group in unlike else place.group for place in places}
    placed: dict[Split, list[Placed]] = {split: [] for split in SPLITS}
    for tile in tiles:
        placed[tile.split].append((ground[tile.scene], tile.window))
    train = placed["train"]
    return Audit(
        title=f"{title}: {len(tiles):,} tiles of {len(places):,} {'scene' if len(places) == 1 else 'scenes'}",
        tiles={split: len(found) for split, found in placed.items() if found},
        held=tuple(
            Held(split, overlap(found, train), smallest_gap(found, train), nearest_in_scene(found, train))
            for split, found in placed.items()
            if found and split != "train"
        ),
        divided_groups=tuple(_divided(unlike, tiles)),
        balance={split: _balance([tile for tile in tiles if tile.split == split]) for split in SPLITS if placed[split]},
        classes=classes,
    )


def _unlike_groups(places: Sequence[Place]) -> dict[str, set[str]]:
    groups: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        groups[place.group].append(place)
    return {
        group: {place.name for place in found}
        for group, found in groups.items()
        if len({(place.height, place.width) for place in found}) > 1
    }


def _divided(groups: Mapping[str, set[str]], tiles: Sequence[Tile]) -> Iterator[str]:
    trains: dict[str, set[bool]] = defaultdict(set)
    for tile in tiles:
        trains[tile.scene].add(tile.split == "train")
    for group, scenes in sorted(groups.items()):
        if len(set().union(*(trains[scene] for scene in scenes))) > 1:
            yield group


def _balance(tiles: Sequence[Tile]) -> tuple[float, ...]:
    labelled = np.array([tile.valid * tile.window.height * tile.window.width for tile in tiles])
    shares = np.array([tile.shares for tile in tiles])
    total = labelled.sum()
    return tuple((labelled @ shares / total).tolist()) if total > 0 else ()
