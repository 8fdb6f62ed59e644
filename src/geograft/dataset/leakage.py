"""What an audit finds, piece by piece.

Held-out ground that a training tile of another scene shows: the same place twice, at another date or name.

By where scenes lie, where the tiles have a place on the ground; otherwise by what scenes look like.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64, Int8, Shaped
from numpy import ndarray

from geograft.dataset.duplicates import matches
from geograft.dataset.neighbours import Outlines, shared_ground
from geograft.dataset.tileset import Scene, Split, Tile
from geograft.geo.coverage import Overlap

Evidence = Literal["place", "file", "image", "labels"]
"""How two scenes were known to show the same ground: where they lie, the same file, or what they look like."""


@dataclass(frozen=True)
class Twin:
    """Two scenes that show the same ground, one held out and one that trains."""

    held: str
    trains: str
    by: Evidence
    similarity: float | None = None
    """Correlation of their structure, for those known by what they look like; see
    `geograft.dataset.duplicates`."""


@dataclass(frozen=True)
class Held:
    """The tiles of one split that does not train, beside the training tiles."""

    split: Split
    overlap: Overlap
    gap_px: int | None
    """Pixels between the nearest two tiles, one of each kind; None where no scene holds both kinds."""
    distances: Float64[ndarray, " n"] = field(default_factory=lambda: np.zeros(0))
    """From every tile to the nearest training tile; infinite where there is none in reach. Metres on the ground where
    the tiles have a CRS, otherwise pixels in the scene: see `Audit.unit`."""
    seen_elsewhere: float = 0.0
    """Share of the tiles' area of which a training tile of another scene shows the same ground."""

    def nearer(self, distance: float) -> float:
        """Return the share of the tiles that lie nearer than that to a training tile."""
        return float((self.distances < distance).mean()) if len(self.distances) else 0.0


@dataclass(frozen=True)
class Reach:
    """How far the ground resembles itself, of image or labels, whichever reaches farther."""

    what: Literal["image", "labels"]
    distance: float
    """In the audit's unit."""
    resolved: bool
    """Whether likeness ends there; else it is the longest distance that was looked at."""


@dataclass(frozen=True)
class Again:
    """What of some tiles is seen again, and in which scenes."""

    share: Float64[ndarray, " n"]
    """Share of every tile's area that a training tile of another scene shows."""
    twins: tuple[Twin, ...]


@dataclass(frozen=True)
class Placing:
    """Where the right scene of a pair lies on the left one."""

    twin: Twin
    shift: tuple[float, float]
    """Of the upper left corner, in shares of the left scene's height and width."""


def by_place(
    held: Sequence[Tile], train: Sequence[Tile], shapes: tuple[Shaped[ndarray, " n"], Shaped[ndarray, " m"]]
) -> Again:
    """Return what is seen again by the outlines of the held-out tiles and of the training tiles, on one map."""
    names = sorted({tile.scene for tile in (*held, *train)})
    number = {name: index for index, name in enumerate(names)}
    mine, theirs = (
        Outlines(some, np.array([number[tile.scene] for tile in tiles], int))
        for tiles, some in zip((held, train), shapes, strict=True)
    )
    share, pairs = shared_ground(mine, theirs)
    return Again(share, tuple(Twin(names[left], names[right], "place") for left, right in pairs.tolist()))


def by_looks(
    held: Sequence[Tile], train: Sequence[Tile], scenes: Mapping[str, Scene], placings: Iterable[Placing]
) -> Again:
    """Return what is seen again by pairs of scenes that show the same ground."""
    share, twins = np.zeros(len(held)), []
    for placing in placings:
        left, right = scenes[placing.twin.held], scenes[placing.twin.trains]
        onto = Affine.translation(placing.shift[1] * left.width, placing.shift[0] * left.height)
        onto @= Affine.scale(left.width / right.width, left.height / right.height)
        here = [index for index, tile in enumerate(held) if tile.scene == left.name]
        mine = _boxes([held[index] for index in here], Affine.identity())
        theirs = _boxes([tile for tile in train if tile.scene == right.name], onto)
        found, _ = shared_ground(Outlines(mine, np.zeros(len(mine), int)), Outlines(theirs, np.ones(len(theirs), int)))
        if found.any():
            twins.append(placing.twin)
            share[here] = np.maximum(share[here], found)
    return Again(share, tuple(twins))


def placings(
    held: Iterable[str], train: Iterable[str], scenes: Sequence[Scene], looks: Int8[ndarray, "n 2 2 64 64"] | None
) -> list[Placing]:
    """Return the pairs of a held-out and a training scene, of different groups, that show the same ground.

    The same file, or images that look the same, or labels that do, in this order; `looks` in the order of `scenes`.
    """
    number = {scene.name: index for index, scene in enumerate(scenes)}
    left, right = (sorted({number[name] for name in names}) for names in (held, train))
    found: dict[tuple[int, int], Placing] = {}
    of_digest: dict[str, list[int]] = defaultdict(list)
    for j in right:
        of_digest[scenes[j].digest].append(j)
    for i in left:
        for j in of_digest[scenes[i].digest] if scenes[i].digest else ():
            found[i, j] = Placing(Twin(scenes[i].name, scenes[j].name, "file"), (0.0, 0.0))
    for part, by in enumerate(("image", "labels")) if looks is not None else ():
        assert looks is not None
        for match in matches(looks[left, part], looks[right, part]):
            i, j = left[match.left], right[match.right]
            twin = Twin(scenes[i].name, scenes[j].name, "image" if by == "image" else "labels", match.similarity)
            found.setdefault((i, j), Placing(twin, match.shift))
    return [found[i, j] for i, j in sorted(found) if scenes[i].group != scenes[j].group]


def _boxes(tiles: Sequence[Tile], onto: Affine) -> Shaped[ndarray, " n"]:
    corners = np.array([(t.window.col, t.window.row, t.window.stop_col, t.window.stop_row) for t in tiles], float)
    left, top, right, bottom = corners.reshape(-1, 4).T
    x0, x1 = (onto.a * x + onto.c for x in (left, right))
    y0, y1 = (onto.e * y + onto.f for y in (top, bottom))
    return np.array(shapely.box(x0, y0, x1, y1), object)
