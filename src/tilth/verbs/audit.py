"""`tilth audit`: does the split leak? Which share of the validation and test pixels training has seen."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilth.geo.coverage import Overlap, Placed, overlap, smallest_gap
from tilth.geo.splits import Place, Planned
from tilth.geo.tileset import SPLITS, Split, Tile, TileSet
from tilth.table import table

MOST_LISTED = 5


@dataclass(frozen=True)
class Held:
    """The tiles of one split that does not train, beside the training tiles."""

    split: Split
    overlap: Overlap
    gap_px: int | None
    """Pixels between the nearest two tiles, one of each kind; None where no scene holds both kinds."""


@dataclass(frozen=True)
class Audit:
    """What the split of a tile set gives away."""

    title: str
    tiles: Mapping[Split, int]
    held: tuple[Held, ...]
    """One entry for each of val and test that has tiles."""
    divided_groups: tuple[str, ...]
    """Groups of scenes of different sizes that train in one scene and are held out in another."""
    balance: Mapping[Split, tuple[float, ...]]
    """Share of each class among the labelled pixels of a split's tiles, by class index."""
    classes: tuple[str, ...] = ()

    @property
    def leaks(self) -> bool:
        """Whether a validation or test pixel lies in a training tile, or a group of scenes on both sides."""
        return any(held.overlap.shared_pixels for held in self.held) or bool(self.divided_groups)

    @property
    def verdict(self) -> str:
        """The finding in one line, with what to do where the split leaks."""
        if not self.held or "train" not in self.tiles:
            return "Nothing can leak: no tiles train and are held out at the same time."
        names = " or ".join(held.split for held in self.held)
        if not self.leaks:
            return f"No leak: no {names} pixel lies in a training tile."
        found = [
            f"{percent(held.overlap.pixel_share)} of the {held.split} pixels also lie in a training tile"
            for held in self.held
            if held.overlap.shared_pixels
        ]
        if self.divided_groups:
            found.append(f"scenes of {len(self.divided_groups)} groups lie on both sides")
        return f"Leak: {'; '.join(found)}. Scores on {names} flatter. Prepare again with --split auto."

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        return [self.title, "", *self._overlap_lines(), "", *self._balance_lines(), *self._group_lines(), self.verdict]

    def _overlap_lines(self) -> list[str]:
        header = ("split", "tiles", "pixels also in train", "tiles wholly in train", "tiles clear of it", "gap")
        rows = {split: (split, f"{count:,}", "", "", "", "") for split, count in self.tiles.items()}
        for held in self.held:
            found = held.overlap
            gap = "-" if held.gap_px is None else f"{held.gap_px:,} px"
            shares = (percent(found.pixel_share), percent(found.inside_share), f"{found.apart:,}")
            rows[held.split] = (held.split, f"{found.tiles:,}", *shares, gap)
        return table([header, *rows.values()])

    def _balance_lines(self) -> list[str]:
        if not self.classes:
            return []
        rows = [(split, *map(percent, shares)) for split, shares in self.balance.items()]
        return [*table([("labelled pixels", *self.classes), *rows]), ""]

    def _group_lines(self) -> list[str]:
        if not self.divided_groups:
            return []
        more = len(self.divided_groups) - MOST_LISTED
        named = ", ".join(self.divided_groups[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        return [f"Groups on both sides of the split: {named}", ""]


def audit(tiles: Path) -> Audit:
    """Return which share of the validation and test pixels of a tile set also lies in a training tile.

    Reads the index and no image. A few seconds for 100,000 tiles.

    Raises:
        InputError: when `tiles` is no tile set.
    """
    return audit_set(TileSet.open(tiles))


def audit_set(tile_set: TileSet) -> Audit:
    """Return the same of a tile set that is open."""
    places = [Place(scene.name, scene.height, scene.width, scene.group) for scene in tile_set.meta.scenes]
    return audit_tiles(tile_set.tiles, places, str(tile_set.folder), tile_set.meta.legend.names)


def audit_plan(planned: Sequence[Planned], places: Sequence[Place], title: str) -> Audit:
    """Return the audit of windows that no file holds yet, as `tilth.geo.splits.plan` gives them."""
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
            Held(split, overlap(found, train), smallest_gap(found, train))
            for split, found in placed.items()
            if found and split != "train"
        ),
        divided_groups=tuple(_divided(unlike, tiles)),
        balance={split: _balance([tile for tile in tiles if tile.split == split]) for split in SPLITS if placed[split]},
        classes=classes,
    )


def percent(share: float) -> str:
    """Return a share in words that never round something to nothing.

    >>> percent(0.93978), percent(0.0), percent(0.00001)
    ('94.0 %', '0.0 %', '<0.1 %')
    """
    return "<0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")


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
