"""Duplicate areas in a split: held-out tiles whose area a training tile of another scene shows.

Two scenes of one place, taken at different dates or stored under different names, leak like shared pixels. Duplicates
are found by location if the tiles are georeferenced, otherwise by file digest and by the structure of the scenes; see
`geograft.dataset.duplicates`. Held-out tiles near training tiles are easier than new areas.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64, Int8, Shaped
from numpy import ndarray

from geograft.dataset.duplicates import find_matches
from geograft.dataset.neighbours import Outlines, shared_area
from geograft.dataset.splits import SplitScene, plan_tiles
from geograft.dataset.tileset import SPLITS, Scene, Split, Tile, TileSet
from geograft.errors import SettingError
from geograft.geo.coverage import Overlap

MAX_NEAR_FRACTION = 0.1
"""Fraction of a split's tiles that may lie within the autocorrelation range of training before the audit warns."""
Evidence = Literal["location", "file", "image", "labels"]
"""Why two scenes are taken to show the same area: location, identical file, similar images or similar labels."""


@dataclass(frozen=True)
class DuplicateScenes:
    """Two scenes that show the same area, one held out and one in train."""

    held_out: str
    train: str
    evidence: Evidence
    similarity: float | None = None
    """Correlation of the structures, for evidence from images or labels; see `geograft.dataset.duplicates`."""


@dataclass(frozen=True)
class HeldOutSplit:
    """The tiles of val or test in relation to the training tiles."""

    split: Split
    overlap: Overlap
    gap_px: int | None
    """Pixels between the nearest held-out and training tile of one scene; None if no scene has both."""
    distances: Float64[ndarray, " n"] = field(default_factory=lambda: np.zeros(0))
    """Distance from each tile to the nearest training tile; infinite if there is none. In metres, in any scene, if the
    tiles have a CRS; otherwise in pixels, within the scene. See `Audit.unit`."""
    duplicate_fraction: float = 0.0
    """Fraction of the tiles' area that training tiles of other scenes show."""

    def fraction_within(self, distance: float) -> float:
        """Return the fraction of the tiles that lie within `distance` of a training tile."""
        return float((self.distances < distance).mean()) if len(self.distances) else 0.0


@dataclass(frozen=True)
class AutocorrelationRange:
    """The spatial autocorrelation range of the image or the labels, whichever is longer."""

    variable: Literal["image", "labels"]
    distance: float
    """In the audit's unit."""
    resolved: bool
    """Whether the range was reached; if not, `distance` is the longest distance measured."""


def near_fractions(
    held_out: Sequence[HeldOutSplit], autocorrelation_range: AutocorrelationRange | None
) -> dict[Split, float]:
    """Return by split the fraction of tiles within the autocorrelation range of training, where it is too large."""
    if autocorrelation_range is None:
        return {}
    fractions = {one.split: one.fraction_within(autocorrelation_range.distance) for one in held_out}
    return {split: fraction for split, fraction in fractions.items() if fraction > MAX_NEAR_FRACTION}


def buffer_advice(tile_set: TileSet, buffer_px: int) -> str:
    """Return how to prepare a tile set whose held-out tiles lie `buffer_px` from training, if its scenes allow it."""
    settings = tile_set.meta.settings
    if tile_set.meta.areas:
        return f"Prepare the tile set again with --buffer-px {buffer_px}, or label training areas farther away."
    wanted = {split for split in SPLITS if tile_set.split(split)}
    # Blocks twice as wide as needed leave more training tiles, if there are enough of them.
    for block_px in (0, 2 * (settings.tile_px + 2 * buffer_px)):
        config = replace(settings, split="block", buffer_px=buffer_px, block_px=block_px)
        try:
            planned = plan_tiles([SplitScene.of(scene) for scene in tile_set.meta.scenes], config)
        except SettingError:
            continue
        if {split for _, _, split in planned} >= wanted:
            block = f" --block-px {block_px}" if block_px else ""
            return f"Prepare the tile set again with --split block --buffer-px {buffer_px}{block}."
    return (
        f"These scenes are too small for a split with --buffer-px {buffer_px}: for a score that holds for new areas, "
        "label another area and hold it out."
    )


@dataclass(frozen=True)
class DuplicateArea:
    """The area of held-out tiles that training tiles of other scenes show, and those scenes."""

    fractions: Float64[ndarray, " n"]
    """Fraction of each tile's area that a training tile of another scene shows."""
    duplicates: tuple[DuplicateScenes, ...]


@dataclass(frozen=True)
class DuplicateAlignment:
    """A pair of duplicate scenes and the position of the training scene on the held-out one."""

    duplicate: DuplicateScenes
    shift: tuple[float, float]
    """Offset of the upper left corner, in fractions of the held-out scene's height and width."""


def unaligned_groups(scenes: Sequence[SplitScene]) -> dict[str, set[str]]:
    """Return the groups whose scenes differ in size, with the names of their scenes."""
    groups: dict[str, list[SplitScene]] = defaultdict(list)
    for scene in scenes:
        groups[scene.group].append(scene)
    return {
        group: {scene.name for scene in members}
        for group, members in groups.items()
        if len({(scene.height, scene.width) for scene in members}) > 1
    }


def find_divided_groups(groups: Mapping[str, set[str]], tiles: Sequence[Tile]) -> Iterator[str]:
    """Yield the groups with tiles both in train and held out; `groups` has the names of the scenes of each."""
    in_train: dict[str, set[bool]] = defaultdict(set)
    for tile in tiles:
        in_train[tile.scene].add(tile.split == "train")
    for group, scenes in sorted(groups.items()):
        if len(set().union(*(in_train[scene] for scene in scenes))) > 1:
            yield group


def duplicates_by_outline(
    held_out: Sequence[Tile], train: Sequence[Tile], shapes: tuple[Shaped[ndarray, " n"], Shaped[ndarray, " m"]]
) -> DuplicateArea:
    """Return the duplicate area of held-out tiles, from the outlines of both kinds of tiles in one CRS."""
    names = sorted({tile.scene for tile in (*held_out, *train)})
    number = {name: index for index, name in enumerate(names)}
    mine, theirs = (
        Outlines(some, np.array([number[tile.scene] for tile in tiles], int))
        for tiles, some in zip((held_out, train), shapes, strict=True)
    )
    fractions, pairs = shared_area(mine, theirs)
    return DuplicateArea(
        fractions, tuple(DuplicateScenes(names[left], names[right], "location") for left, right in pairs.tolist())
    )


def duplicates_by_alignment(
    held_out: Sequence[Tile],
    train: Sequence[Tile],
    scenes: Mapping[str, Scene],
    alignments: Iterable[DuplicateAlignment],
) -> DuplicateArea:
    """Return the duplicate area of held-out tiles, from aligned pairs of scenes."""
    fractions, duplicates = np.zeros(len(held_out)), []
    for alignment in alignments:
        left, right = scenes[alignment.duplicate.held_out], scenes[alignment.duplicate.train]
        to_left = Affine.translation(alignment.shift[1] * left.width, alignment.shift[0] * left.height)
        to_left @= Affine.scale(left.width / right.width, left.height / right.height)
        indices = [index for index, tile in enumerate(held_out) if tile.scene == left.name]
        mine = _boxes([held_out[index] for index in indices], Affine.identity())
        theirs = _boxes([tile for tile in train if tile.scene == right.name], to_left)
        shared, _ = shared_area(Outlines(mine, np.zeros(len(mine), int)), Outlines(theirs, np.ones(len(theirs), int)))
        if shared.any():
            duplicates.append(alignment.duplicate)
            fractions[indices] = np.maximum(fractions[indices], shared)
    return DuplicateArea(fractions, tuple(duplicates))


def align_duplicates(
    held_out: Iterable[str],
    train: Iterable[str],
    scenes: Sequence[Scene],
    structures: Int8[ndarray, "n 2 2 64 64"] | None,
) -> list[DuplicateAlignment]:
    """Return the pairs of a held-out and a training scene, of different groups, that show the same area.

    Evidence is, in this order, the same file, similar images or similar labels. `structures` are in the order of
    `scenes`.
    """
    number = {scene.name: index for index, scene in enumerate(scenes)}
    left, right = (sorted({number[name] for name in names}) for names in (held_out, train))
    found: dict[tuple[int, int], DuplicateAlignment] = {}
    by_digest: dict[str, list[int]] = defaultdict(list)
    for j in right:
        by_digest[scenes[j].digest].append(j)
    for i in left:
        for j in by_digest[scenes[i].digest] if scenes[i].digest else ():
            found[i, j] = DuplicateAlignment(DuplicateScenes(scenes[i].name, scenes[j].name, "file"), (0.0, 0.0))
    for part, name in enumerate(("image", "labels")) if structures is not None else ():
        assert structures is not None
        evidence: Evidence = "image" if name == "image" else "labels"
        for match in find_matches(structures[left, part], structures[right, part]):
            i, j = left[match.left], right[match.right]
            duplicate = DuplicateScenes(scenes[i].name, scenes[j].name, evidence, match.similarity)
            found.setdefault((i, j), DuplicateAlignment(duplicate, match.shift))
    return [found[i, j] for i, j in sorted(found) if scenes[i].group != scenes[j].group]


def _boxes(tiles: Sequence[Tile], transform: Affine) -> Shaped[ndarray, " n"]:
    """Return the windows of tiles as rectangles, transformed."""
    parts = [tile.part for tile in tiles]
    corners = np.array([(part.col, part.row, part.stop_col, part.stop_row) for part in parts], float)
    left, top, right, bottom = corners.reshape(-1, 4).T
    x0, x1 = (transform.a * x + transform.c for x in (left, right))
    y0, y1 = (transform.e * y + transform.f for y in (top, bottom))
    return np.array(shapely.box(x0, y0, x1, y1), object)
