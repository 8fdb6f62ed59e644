"""`geograft audit`: does the split leak? What training has seen of the held-out ground, and how near to it it came.

An audit in words and tables, for people who are no statisticians.

What an audit says as a whole.

Which share of the held-out pixels training has seen: exact counts from the tiles' corners.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from geograft.dataset.autocorrelation import Likeness, Variogram, likeness
from geograft.dataset.duplicates import STRUCTURE, read_structures
from geograft.dataset.leakage import Again, Held, Reach, Twin, by_looks, by_place, placings
from geograft.dataset.neighbours import nearest_distances, nearest_in_scene, on_mercator
from geograft.dataset.splits import Place, Planned
from geograft.dataset.tileset import INDEX, SPLITS, Split, Tile, TileSet
from geograft.errors import InputError
from geograft.figures.variogram import Curve, variogram_figure
from geograft.files import replacing
from geograft.geo.coverage import Placed, overlap, smallest_gap
from geograft.geo.vectors.reader import read_outlines
from geograft.text import table

MOST_LISTED = 5
FEW = 0.1
"""Share of tiles that may lie near training without a word about it."""
FACTOR, POINTS = 2.0, 0.02
"""A class is unlike where its shares differ by more than this factor, and by more than two points of a hundred."""
BY = {"place": "by where they lie", "file": "the same file", "image": "by their images", "labels": "by their labels"}
OF = {"image": "the image resembles itself", "labels": "the labels resemble themselves"}


def percent(share: float) -> str:
    """Return a share in words that never round something to nothing, nor a part to all.

    >>> percent(0.93978), percent(0.0), percent(0.00001), percent(0.9999)
    ('94.0 %', '0.0 %', '<0.1 %', '>99.9 %')
    """
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return "<0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")


def length(distance: float, unit: str) -> str:
    """Return a distance in words.

    >>> length(7.62, "m"), length(926.3, "m"), length(18_300, "m"), length(41.8, "px"), length(float("inf"), "px")
    ('7.6 m', '926 m', '18 km', '42 px', '-')
    """
    if not np.isfinite(distance):
        return "-"
    if unit == "m" and distance >= 10_000:
        return f"{distance / 1000:,.0f} km"
    return f"{distance:.1f} m" if unit == "m" and distance < 100 else f"{distance:,.0f} {unit}"


def listed(names: Sequence[str]) -> str:
    """Return the first five names and the number of the rest."""
    more = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def overlap_lines(tiles: Mapping[Split, int], held: Sequence[Held]) -> list[str]:
    """Return the table of what held-out tiles share with training tiles."""
    header = ("split", "tiles", "pixels also in train", "tiles wholly in train", "tiles clear of it", "gap")
    rows = {split: (split, f"{count:,}", "", "", "", "") for split, count in tiles.items()}
    for one in held:
        found = one.overlap
        gap = "-" if one.gap_px is None else f"{one.gap_px:,} px"
        shares = (percent(found.pixel_share), percent(found.inside_share), f"{found.apart:,}")
        rows[one.split] = (one.split, f"{found.tiles:,}", *shares, gap)
    return table([header, *rows.values()])


def distance_lines(held: Sequence[Held], reach: Reach | None, unit: str) -> list[str]:
    """Return the table of how far held-out tiles lie from training; nothing where no tile has training in reach."""
    near = [one for one in held if np.isfinite(one.distances).any()]
    if not near:
        return []
    header = ["nearest training tile", "least", "half of the tiles within"]
    header += [f"nearer than {length(reach.distance, unit)}"] if reach else []
    rows = [
        [
            one.split,
            length(float(one.distances.min()), unit),
            length(float(np.quantile(one.distances, 0.5, method="lower")), unit),
        ]
        + ([percent(one.nearer(reach.distance))] if reach else [])
        for one in near
    ]
    return [*table([header, *rows]), ""]


def likeness_lines(likeness: Likeness | None, pixel: float, unit: str) -> list[str]:
    """Return how far image and labels resemble themselves, and what that rests on."""
    if likeness is None:
        return []
    parts = []
    for what, one in (("image", likeness.image), ("labels", likeness.labels)):
        if one.model is None:
            parts.append(f"{what}: too little varies to say")
        elif one.resolved:
            parts.append(f"{what}: up to {length(pixel * one.range, unit)}")
        else:
            parts.append(f"{what}: beyond {length(pixel * float(one.lag[-1]), unit)}, the longest distance looked at")
    rests = f"{likeness.windows} windows, {likeness.pixels_read / 1e6:.1f} million pixels"
    return [f"How far the ground resembles itself, from {rests}:", *(f"  {part}" for part in parts), ""]


def balance_lines(balance: Mapping[Split, tuple[float, ...]], classes: Sequence[str]) -> list[str]:
    """Return the table of the classes' shares, and a line for every class that is unlike between splits."""
    if not classes:
        return []
    rows = [(split, *map(percent, shares)) for split, shares in balance.items()]
    return [*table([("labelled pixels", *classes), *rows]), *unlike(balance, classes), ""]


def unlike(balance: Mapping[Split, tuple[float, ...]], classes: Sequence[str]) -> list[str]:
    """Return a line for every class whose share of a held-out split is far from that of training.

    >>> unlike({"train": (0.8, 0.2), "test": (0.95, 0.05)}, ("other", "tree"))
    ['Unlike: tree is 20.0 % of train, 5.0 % of test.']
    """
    train = balance.get("train", ())
    return [
        f"Unlike: {name} is {percent(trained)} of train, {percent(share)} of {split}."
        for split, shares in balance.items()
        for name, trained, share in zip(classes, train, shares, strict=False)
        if max(share, trained) > FACTOR * min(share, trained) and abs(share - trained) > POINTS
    ]


def twin_lines(twins: Sequence[Twin]) -> list[str]:
    """Return the pairs of scenes that show the same ground on both sides of the split."""
    if not twins:
        return []
    rows = [
        f"  {twin.held} (held out) and {twin.trains} (trains), {BY[twin.by]}"
        + ("" if twin.similarity is None else f", similarity {twin.similarity:.2f}")
        for twin in twins[:MOST_LISTED]
    ]
    more = [f"  and {len(twins) - MOST_LISTED} more"] if len(twins) > MOST_LISTED else []
    return ["The same ground on both sides of the split:", *rows, *more, ""]


def leak(held: Sequence[Held], divided_groups: Sequence[str], twins: Sequence[Twin]) -> str:
    """Return in one line what training has seen of the held-out ground, and what to do."""
    names = " or ".join(one.split for one in held)
    found = [
        f"{percent(one.overlap.pixel_share)} of the {one.split} pixels also lie in a training tile"
        for one in held
        if one.overlap.shared_pixels
    ]
    found += [
        f"{percent(one.seen_elsewhere)} of the {one.split} ground is also seen in a training tile of another scene"
        for one in held
        if one.seen_elsewhere > 0
    ]
    if divided_groups:
        found.append(f"scenes of {len(divided_groups)} groups lie on both sides")
    pairs = [f"{twin.held} with {twin.trains}" for twin in twins]
    group = f", scenes of one place in one group (--groups): {listed(pairs)}" if pairs else " with --split auto"
    return f"Leak: {'; '.join(found)}. Scores on {names} flatter. Prepare again{group}."


def nearness(held: Sequence[Held], reach: Reach | None, unit: str, pixel: float) -> str:
    """Return in words whether held-out tiles lie nearer to training than the ground resembles itself; may be empty."""
    if reach is None:
        return ""
    if not any(np.isfinite(one.distances).any() for one in held):
        return "All of them lie in scenes of which no tile trains."
    so_far = length(reach.distance, unit)
    near = [(one.split, one.nearer(reach.distance)) for one in held]
    if any(share > FEW for _, share in near):
        shares = " and ".join(f"{percent(share)} of the {split} tiles" for split, share in near if share > FEW)
        beyond = "at least " if not reach.resolved else ""
        buffer = int(np.ceil(reach.distance / pixel))
        return (
            f"But {shares} lie nearer to a training tile than {OF[reach.what]} ({beyond}{so_far}): scores may be a "
            f"little better than on ground farther away. Use --buffer-px {buffer} or more, or hold out whole scenes."
        )
    if not reach.resolved:
        return f"How far {OF[reach.what]} is not known: it reaches beyond {so_far}, the longest distance looked at."
    many = "Nearly all" if any(share for _, share in near) else "All"
    return f"{many} of them lie farther from training than {OF[reach.what]} ({so_far}): scores tell of new ground."


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
    unit: Literal["m", "px"] = "px"
    """Of distances."""
    pixel: float = 1.0
    """Size of a pixel in that unit."""
    twins: tuple[Twin, ...] = ()
    likeness: Likeness | None = None
    """How far images and labels resemble themselves, in pixels; None where no image was read."""
    notes: tuple[str, ...] = ()
    """What could not be looked at."""

    @property
    def leaks(self) -> bool:
        """Whether training has seen held-out ground: the same pixels, another scene of it, or a group on both sides."""
        shared = any(held.overlap.shared_pixels or held.seen_elsewhere > 0 for held in self.held)
        return shared or bool(self.divided_groups)

    @property
    def reach(self) -> Reach | None:
        """How far the ground resembles itself, by the variogram that reaches farther; None where that is not known."""
        if self.likeness is None:
            return None
        found = []
        for what in ("image", "labels"):
            one = self.likeness.image if what == "image" else self.likeness.labels
            if one.model is not None:
                found.append(Reach(what, self.pixel * min(one.range, float(one.lag[-1])), one.resolved))
        return max(found, key=lambda one: (one.distance, not one.resolved), default=None)

    @property
    def verdict(self) -> str:
        """The finding in one line, with what to do about it."""
        if not self.held or "train" not in self.tiles:
            return "Nothing can leak: no tiles train and are held out at the same time."
        if self.leaks:
            return leak(self.held, self.divided_groups, self.twins)
        names = " or ".join(held.split for held in self.held)
        clean = f"No leak: no {names} pixel lies in a training tile."
        return f"{clean} {nearness(self.held, self.reach, self.unit, self.pixel)}".rstrip()

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        groups = [f"Groups on both sides of the split: {listed(self.divided_groups)}", ""]
        return [
            self.title,
            "",
            *overlap_lines(self.tiles, self.held),
            "",
            *balance_lines(self.balance, self.classes),
            *distance_lines(self.held, self.reach, self.unit),
            *likeness_lines(self.likeness, self.pixel, self.unit),
            *twin_lines(self.twins),
            *(groups if self.divided_groups else []),
            *(f"Note: {note}" for note in self.notes),
            self.verdict,
        ]


def audit_plan(planned: Sequence[Planned], places: Sequence[Place], title: str) -> Audit:
    """Return the audit of windows that no file holds yet, as `geograft.dataset.splits.plan` gives them."""
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
