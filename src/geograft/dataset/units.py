"""Resampling units for confidence intervals: the blocks, scenes, groups or labelled areas of the split.

A cell is a block of a scene, a labelled area on it or a whole scene; counts are kept by cell. A unit is one or more
cells that show the same area, such as two dates, and are resampled together. Non-overlapping samples of tiles are
numbered by unit too.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from geograft.dataset.splits import MIN_GROUPS, SplitScene, split_blocks, splits_by_block, unit_names, whole_scenes
from geograft.dataset.stratify import SplitBlock
from geograft.dataset.tileset import Split, Tile, TileSet
from geograft.geo.coverage import SAMPLE, AreaKind, SceneWindow
from geograft.geo.grid import Window
from geograft.text import pluralise

UnitKind = Literal["scene", "group", "block"] | AreaKind


@dataclass(frozen=True, order=True)
class Cell:
    """A block of a scene, a labelled area on it, or a whole scene, with counts of its own."""

    scene: str
    window: Window
    unit: str
    """Name of the unit: cells of one unit are resampled together."""


@dataclass(frozen=True)
class Units:
    """The units and cells of the tiles of one split."""

    kind: UnitKind
    scenes: int
    """Number of scenes with tiles."""
    cells: tuple[Cell, ...]
    """The cells with tiles, sorted by scene and position."""
    cell_of: Int64[ndarray, " tiles"]
    """Index of the cell of each tile."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the units, in the order of the cells."""
        return tuple(dict.fromkeys(cell.unit for cell in self.cells))

    @property
    def description(self) -> str:
        """The number and kind of the units, such as "6 scenes" or "12 blocks of 2 scenes"."""
        count = pluralise(len(self.names), self.kind)
        return count if self.kind in ("scene", "group") else f"{count} of {pluralise(self.scenes, 'scene')}"

    @property
    def caveat(self) -> str:
        """A limit of intervals over these units; empty if units are scenes or groups."""
        if self.kind in ("scene", "group"):
            return ""
        if self.kind == SAMPLE:
            return f"They are a sample of {pluralise(self.scenes, 'scene')}: other places may differ by more."
        return f"All {self.kind}s lie in {pluralise(self.scenes, 'scene')}: other areas may differ by more."

    def part(self, inside: Bool[ndarray, " cells"]) -> "Units":
        """Return the units of some of the cells, and of the tiles in these."""
        cells = tuple(cell for cell, chosen in zip(self.cells, inside, strict=True) if chosen)
        cell_of = (inside.cumsum() - 1)[self.cell_of[inside[self.cell_of]]]
        return replace(self, scenes=len({cell.scene for cell in cells}), cells=cells, cell_of=cell_of)

    def sum_by_unit(self, counts: ndarray) -> ndarray:
        """Return counts by unit from counts by cell (cells, ...)."""
        return sum_by_name(counts, [cell.unit for cell in self.cells])

    def sum_by_scene(self, counts: ndarray) -> dict[str, ndarray]:
        """Return counts by scene from counts by cell (cells, ...)."""
        names = [cell.scene for cell in self.cells]
        return dict(zip(dict.fromkeys(names), sum_by_name(counts, names), strict=True))


def units_of(tile_set: TileSet, split: Split) -> Units:
    """Return the units of the tiles of one split. Opens no image.

    Units are the labelled areas if all tiles have one, blocks if the split is by block, otherwise scenes or groups of
    scenes. If there are fewer than six scenes or groups, which is too few for an interval, units are the blocks that a
    split by block would use. Groups that --val-groups or --test-groups name are places, not units: their scenes are. A
    tile belongs to its area, or to the cell that contains its centre.
    """
    tiles = tile_set.split(split)
    if tiles and all(tile.area for tile in tiles):
        return _area_units(tiles)
    kind, blocks = _unit_blocks(tile_set, {tile.scene for tile in tiles})
    grids = _grids(blocks)
    blocks_of_tiles = [grids[tile.scene].block_at(tile.window) for tile in tiles]
    cells = sorted({Cell(block.scene, block.window, block.group) for block in blocks_of_tiles})
    position = {(cell.scene, cell.window): i for i, cell in enumerate(cells)}
    cell_of = np.array([position[block.scene, block.window] for block in blocks_of_tiles], np.int64)
    return Units(kind, len({tile.scene for tile in tiles}), tuple(cells), cell_of)


def _area_units(tiles: Sequence[Tile]) -> Units:
    areas = [tile.area for tile in tiles if tile.area]
    cells = [Cell(area.scene, area.window, area.name) for area in areas]
    position = {cell: i for i, cell in enumerate(sorted(set(cells)))}
    kinds = {area.kind for area in areas}
    kind: UnitKind = kinds.pop() if len(kinds) == 1 else "block"
    scenes = len({tile.scene for tile in tiles})
    return Units(kind, scenes, tuple(position), np.array([position[cell] for cell in cells], np.int64))


def unit_names_over_folds(tile_set: TileSet, units: Units) -> list[str]:
    """Return the unit of each cell for scores pooled over several splits, such as the folds of a cross-validation.

    All folds together may have enough scenes even if a single fold does not.
    """
    scenes = _resampled_scenes(tile_set)
    group_of = unit_names(scenes)
    few = len(set(group_of.values())) < MIN_GROUPS
    if few or splits_by_block(scenes, tile_set.meta.settings):
        return [cell.unit for cell in units.cells]
    return [group_of[cell.scene] for cell in units.cells]


def _unit_blocks(tile_set: TileSet, named: set[str]) -> tuple[UnitKind, list[SplitBlock]]:
    """Return the kind of unit and the blocks of the named scenes."""
    scenes = _resampled_scenes(tile_set)
    names = unit_names(scenes)
    groups = {names[scene.name] for scene in scenes if scene.name in named}
    settings = tile_set.meta.settings
    if splits_by_block(scenes, settings) or len(groups) < MIN_GROUPS:
        return "block", split_blocks(scenes, settings)
    kind: UnitKind = "scene" if len(groups) == len(named) else "group"
    return kind, whole_scenes(scenes)


def _resampled_scenes(tile_set: TileSet) -> list[SplitScene]:
    """Return the scenes as the units see them.

    Groups that a split names are places, of which each scene shows another part; others show one area several times.
    """
    scenes = [SplitScene.of(scene) for scene in tile_set.meta.scenes]
    named = tile_set.meta.settings.val_groups or tile_set.meta.settings.test_groups
    return [replace(scene, group=scene.name) for scene in scenes] if named else scenes


@dataclass(frozen=True)
class _BlockGrid:
    """The blocks of one scene, which form a grid, by their upper left corner."""

    rows: list[int]
    cols: list[int]
    blocks: Mapping[tuple[int, int], SplitBlock]

    def block_at(self, window: Window) -> SplitBlock:
        """Return the block that contains the centre of a window."""
        row, col = window.row + window.height // 2, window.col + window.width // 2
        return self.blocks[self.rows[bisect_right(self.rows, row) - 1], self.cols[bisect_right(self.cols, col) - 1]]


def _grids(blocks: Sequence[SplitBlock]) -> dict[str, _BlockGrid]:
    by_scene: dict[str, list[SplitBlock]] = defaultdict(list)
    for block in blocks:
        by_scene[block.scene].append(block)
    return {
        scene: _BlockGrid(
            sorted({block.window.row for block in mine}),
            sorted({block.window.col for block in mine}),
            {(block.window.row, block.window.col): block for block in mine},
        )
        for scene, mine in by_scene.items()
    }


def sum_by_name(counts: ndarray, names: Sequence[str]) -> ndarray:
    """Return the sums of rows with the same name, in order of first appearance."""
    position = {name: i for i, name in enumerate(dict.fromkeys(names))}
    total = np.zeros((len(position), *counts.shape[1:]), counts.dtype)
    np.add.at(total, [position[name] for name in names], counts)
    return total


def non_overlapping_tiles(tiles: Sequence[SceneWindow]) -> list[int]:
    """Return the positions of tiles that do not overlap, chosen greedily in the given order.

    Time and memory are proportional to the number of tiles.
    """
    edge = max((max(window.height, window.width) for _, window in tiles), default=1)
    taken: dict[tuple[str, int, int], list[Window]] = defaultdict(list)
    found = []
    for position, (scene, window) in enumerate(tiles):
        row, col = window.row // edge, window.col // edge
        near = (taken.get((scene, row + i, col + j), ()) for i, j in product((-1, 0, 1), repeat=2))
        if any(window.intersection(other) for some in near for other in some):
            continue
        taken[scene, row, col].append(window)
        found.append(position)
    return found


def sample_non_overlapping_tiles(
    tile_set: TileSet, split: Split, max_tiles: int
) -> tuple[list[int], Int64[ndarray, " n"]]:
    """Return positions of at most `max_tiles` non-overlapping tiles of a split, and the number of each one's unit.

    If there are more, a random sample with a fixed seed is taken. For units see `units_of`.
    """
    positions = non_overlapping_tiles([(tile.scene, tile.part) for tile in tile_set.split(split)])
    if len(positions) > max_tiles:
        positions = sorted(np.random.default_rng(0).choice(positions, max_tiles, replace=False).tolist())
    units = units_of(tile_set, split)
    names = [units.cells[units.cell_of[position]].unit for position in positions]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return positions, np.array([number[name] for name in names], np.int64)
