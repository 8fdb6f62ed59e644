"""The pieces of ground that scores are resampled by: those that the split moved whole, or smaller where they are few.

A cell is one block of one scene, or one whole scene; counts are kept by cell. A unit is one or more cells that show the
same ground (two dates of one place), which are drawn together.

Tiles that share no pixel, and which unit of the split each belongs to.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.dataset.splits import ENOUGH_GROUPS, Place, block_parts, split_by_block
from geograft.dataset.stratify import Part
from geograft.dataset.tileset import Split, TileSet
from geograft.geo.coverage import Placed
from geograft.geo.grid import Window
from geograft.text import counted

Kind = Literal["scene", "group", "block"]


@dataclass(frozen=True, order=True)
class Cell:
    """A part of one scene that is counted by itself."""

    scene: str
    window: Window
    unit: str
    """Name of the ground: cells of one unit are drawn together."""


@dataclass(frozen=True)
class Units:
    """Where the tiles of one split lie."""

    kind: Kind
    scenes: int
    """How many scenes have tiles."""
    cells: tuple[Cell, ...]
    """Those that have tiles, by scene and place."""
    cell_of: Int64[ndarray, " tiles"]
    """Position of the cell of each tile."""

    @property
    def names(self) -> tuple[str, ...]:
        """The units, each once, in the order of the cells."""
        return tuple(dict.fromkeys(cell.unit for cell in self.cells))

    @property
    def words(self) -> str:
        """How many units there are of what.

        "6 scenes", "12 blocks of 2 scenes".
        """
        count = counted(len(self.names), self.kind)
        return f"{count} of {counted(self.scenes, 'scene')}" if self.kind == "block" else count

    @property
    def caveat(self) -> str:
        """What an interval over these units says nothing of; nothing where units are scenes."""
        if self.kind != "block":
            return ""
        return f"Its blocks lie in {counted(self.scenes, 'scene')}: other places may differ by more."

    def summed(self, counts: ndarray) -> ndarray:
        """Return counts by unit, of counts by cell (cells, ...)."""
        return _summed(counts, [cell.unit for cell in self.cells])

    def by_scene(self, counts: ndarray) -> dict[str, ndarray]:
        """Return counts by scene, of counts by cell (cells, ...)."""
        names = [cell.scene for cell in self.cells]
        return dict(zip(dict.fromkeys(names), _summed(counts, names), strict=True))


def units_of(tile_set: TileSet, split: Split) -> Units:
    """Return the units of the tiles of one split. Opens no image.

    Blocks where the split was made by block; else scenes, or groups of scenes of the same ground. Where these are fewer
    than six, the blocks that a split by block would make, for a handful of scenes gives no interval. A tile belongs to
    the cell in which its centre lies.
    """
    tiles = tile_set.split(split)
    kind, parts = _parts(tile_set, {tile.scene for tile in tiles})
    frames = _frames(parts)
    homes = [frames[tile.scene].holding(tile.window) for tile in tiles]
    cells = sorted({Cell(part.scene, part.window, part.group) for part in homes})
    position = {(cell.scene, cell.window): i for i, cell in enumerate(cells)}
    cell_of = np.array([position[part.scene, part.window] for part in homes], np.int64)
    return Units(kind, len({tile.scene for tile in tiles}), tuple(cells), cell_of)


def ground_names(tile_set: TileSet, units: Units) -> list[str]:
    """Return the ground of every cell where several splits are taken together, as the folds of a cross-validation are.

    What is too few scenes in one fold may be enough in all.
    """
    places = [Place(scene.name, scene.height, scene.width, scene.group) for scene in tile_set.meta.scenes]
    group_of = {place.name: place.group for place in places}
    few = len(set(group_of.values())) < ENOUGH_GROUPS
    if few or split_by_block(places, tile_set.meta.settings):
        return [cell.unit for cell in units.cells]
    return [group_of[cell.scene] for cell in units.cells]


def _parts(tile_set: TileSet, named: set[str]) -> tuple[Kind, list[Part]]:
    """Return what the ground of the scenes `named` is cut into."""
    places = [Place(scene.name, scene.height, scene.width, scene.group) for scene in tile_set.meta.scenes]
    groups = {place.group for place in places if place.name in named}
    settings = tile_set.meta.settings
    if split_by_block(places, settings) or len(groups) < ENOUGH_GROUPS:
        return "block", block_parts(places, settings)
    kind: Kind = "scene" if len(groups) == len(named) else "group"
    return kind, [Part(place.name, place.window, place.group) for place in places]


@dataclass(frozen=True)
class _Frame:
    """The parts of one scene, which lie in rows and columns, by their upper left corner."""

    rows: list[int]
    cols: list[int]
    parts: Mapping[tuple[int, int], Part]

    def holding(self, window: Window) -> Part:
        """Return the part in which the centre of a window lies."""
        row, col = window.row + window.height // 2, window.col + window.width // 2
        return self.parts[self.rows[bisect_right(self.rows, row) - 1], self.cols[bisect_right(self.cols, col) - 1]]


def _frames(parts: Sequence[Part]) -> dict[str, _Frame]:
    by_scene: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_scene[part.scene].append(part)
    return {
        scene: _Frame(
            sorted({part.window.row for part in mine}),
            sorted({part.window.col for part in mine}),
            {(part.window.row, part.window.col): part for part in mine},
        )
        for scene, mine in by_scene.items()
    }


def _summed(counts: ndarray, names: Sequence[str]) -> ndarray:
    """Return the sums of rows of the same name, in the order in which names come first."""
    position = {name: i for i, name in enumerate(dict.fromkeys(names))}
    total = np.zeros((len(position), *counts.shape[1:]), counts.dtype)
    np.add.at(total, [position[name] for name in names], counts)
    return total


def apart(tiles: Sequence[Placed]) -> list[int]:
    """Return the positions of tiles of which no two share a pixel: each that lies apart from those taken before it.

    Time and memory follow the number of tiles.
    """
    edge = max((max(window.height, window.width) for _, window in tiles), default=1)
    taken: dict[tuple[str, int, int], list[Window]] = defaultdict(list)
    found = []
    for position, (scene, window) in enumerate(tiles):
        row, col = window.row // edge, window.col // edge
        near = (taken.get((scene, row + i, col + j), ()) for i, j in product((-1, 0, 1), repeat=2))
        if any(window.overlap(other) for some in near for other in some):
            continue
        taken[scene, row, col].append(window)
        found.append(position)
    return found


def sampled_apart(tile_set: TileSet, split: Split, most: int) -> tuple[list[int], Int64[ndarray, " n"]]:
    """Return positions of at most `most` tiles of a split that share no pixel, and the number of the unit of each.

    Of more a random choice, the same one every time. Units are those that the split moved whole: see `units`.
    """
    positions = apart([(tile.scene, tile.window) for tile in tile_set.split(split)])
    if len(positions) > most:
        positions = sorted(np.random.default_rng(0).choice(positions, most, replace=False).tolist())
    units = units_of(tile_set, split)
    names = [units.cells[units.cell_of[position]].unit for position in positions]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return positions, np.array([number[name] for name in names], np.int64)
