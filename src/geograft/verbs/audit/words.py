"""An audit in words and tables, for people who are no statisticians."""

from collections.abc import Mapping, Sequence

import numpy as np

from geograft.geo.splitting.likeness import Likeness
from geograft.geo.tilesets.tileset import Split
from geograft.table import table
from geograft.verbs.audit.found import Held, Reach, Twin

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
