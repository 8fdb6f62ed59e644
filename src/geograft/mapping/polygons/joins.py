"""Polygons by units: join the outlines that cross the borders of units, by a tree of joins.

A join has the outlines that reach beyond two by two units, or joins. Where these lie along the shared borders tells
which of them are of one region. Regions that reach no further are complete: their parts, which are in the files of the
units, are united, simplified and measured by the code that does it for a whole map. Of those that reach further, a join
keeps which parts they have and where they lie along its own border. So each part is united once, whatever the order of
units and joins; the last join has no border, and the polygons of all files are those of the map.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Bool, Int64
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geograft.geo.grid import Window
from geograft.mapping.polygons.arcs import expand_ranges
from geograft.mapping.polygons.ledger import LazyArrays, OpenParts, PolygonLedger, pack_parts, unpack_parts
from geograft.mapping.polygons.outlines import (
    COLUMNS,
    Columns,
    PolygonBuilder,
    concatenate_columns,
    pack_row,
    sort_by_first,
)
from geograft.mapping.polygons.regions import (
    BLOCK_PX,
    FinishedRegions,
    OpenRegion,
    finish_regions,
    merge_parts,
)
from geograft.mapping.polygons.shapes import NO_CORNERS, pack_wkb, unpack_wkb
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import JoinTree
from geograft.progress import progress_bar

INSIDE, CROSSING = "inside", "crossing"
"""Polygons inside a block, and those that cross borders of blocks."""
SIDES = ("top", "bottom", "left", "right")


# ------------------------------------------------------------------------------------- outlines that reach another unit


@dataclass(frozen=True)
class Reaching:
    """The outlines of one layer that reach beyond a unit or a join: what is known of the region of each."""

    values: Int64[ndarray, " n"]
    sums: Int64[ndarray, "n 3"]
    bottoms: Int64[ndarray, " n"]
    """Row below the last one of each."""
    units: Int64[ndarray, " m"]
    """Index of the unit of each part, region by region."""
    places: Int64[ndarray, " m"]
    """Index of each part in its unit."""
    ends: Int64[ndarray, " n"]
    """End of the parts of each region."""
    sides: Mapping[str, Int64[ndarray, "_ 3"]]
    """Where they lie along each side: start, stop and the index of the region, in order, without overlap."""

    def parts(self, region: int) -> slice:
        """Return where the parts of a region are."""
        return slice(int(self.ends[region - 1]) if region else 0, int(self.ends[region]))

    def arrays(self) -> Columns:
        """Return all as arrays, to be stored; nothing if there are no regions."""
        if not len(self.values):
            return {}
        own = {name: getattr(self, name) for name in NUMBERS}
        return {f"held_{name}": array for name, array in (own | dict(self.sides)).items()}

    def only(self, chosen: Bool[ndarray, " n"]) -> "Reaching":
        """Return the chosen regions, numbered anew."""
        counts = np.diff(self.ends, prepend=0)
        parts, number = np.repeat(chosen, counts), np.cumsum(chosen) - 1
        sides = {side: runs[chosen[runs[:, 2]]] for side, runs in self.sides.items()}
        sides = {side: np.column_stack([runs[:, :2], number[runs[:, 2]]]) for side, runs in sides.items()}
        rows = (self.values[chosen], self.sums[chosen], self.bottoms[chosen])
        return Reaching(*rows, self.units[parts], self.places[parts], np.cumsum(counts[chosen]), sides)


NUMBERS = ("values", "sums", "bottoms", "units", "places", "ends")
NO_RUNS = np.empty((0, 3), np.int64)
NONE = np.empty(0, np.int64)
NOTHING = Reaching(NONE, NO_RUNS, NONE, NONE, NONE, NONE, dict.fromkeys(SIDES, NO_RUNS))


def pack_reaching(regions: Sequence[OpenRegion], unit: Window, index: int) -> Columns:
    """Return the outlines that reach beyond a unit as arrays: united, with the corners near them."""
    corners = [region.parts.corners() for region in regions]
    united = [merge_parts(region.parts.polygons(), BLOCK_PX) for region in regions]
    parts = [
        OpenParts([*shapely.get_parts(shape)], *([_distinct(points)] for points in pair))
        for shape, pair in zip(united, corners, strict=True)
    ]
    count = len(regions)
    found = Reaching(
        np.array([region.value for region in regions], np.int64),
        np.array([region.sums for region in regions], np.int64).reshape(-1, 3),
        shapely.bounds(np.array(united, object)).reshape(-1, 4)[:, 3].astype(np.int64),
        np.full(count, index),
        np.arange(count),
        np.arange(1, count + 1),
        _runs(united, unit),
    )
    return pack_parts(parts) | found.arrays() if count else {}


def _distinct(points: list[ndarray]) -> Int64[ndarray, "n 2"]:
    return np.unique(np.concatenate([NO_CORNERS.turns, *points]), axis=0)


def _runs(shapes: Sequence[shapely.Geometry], unit: Window) -> dict[str, Int64[ndarray, "_ 3"]]:
    """Return where outlines lie along each side of a unit."""
    parts, shape_of = shapely.get_parts(np.array(shapes, object), return_index=True)
    rings, part_of = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    inner = np.flatnonzero(ring[1:] == ring[:-1])
    start, stop = points[inner].astype(np.int64), points[inner + 1].astype(np.int64)
    owner = shape_of[part_of[ring[inner]]]
    lines = ((1, unit.row), (1, unit.stop_row), (0, unit.col), (0, unit.stop_col))
    runs = {}
    for side, (axis, place) in zip(SIDES, lines, strict=True):
        here = (start[:, axis] == place) & (stop[:, axis] == place)
        ends = np.stack([start[here, 1 - axis], stop[here, 1 - axis]], axis=1)
        found = np.stack([ends.min(axis=1), ends.max(axis=1), owner[here]], axis=1)
        runs[side] = found[np.argsort(found[:, 0], kind="stable")]
    return runs


def join_reaching(rows: Sequence[Sequence[Reaching]], connectivity: int) -> Reaching:
    """Return the regions of the outlines of units, or joins, that lie in `rows` side by side."""
    every = [one for row in rows for one in row]
    starts = np.cumsum([0, *(len(one.values) for one in every)]).tolist()
    numbered = iter([_moved(one.sides, start) for one, start in zip(every, starts, strict=False)])
    sides = [[next(numbered) for _ in row] for row in rows]
    across = [_meeting(left["right"], right["left"], connectivity) for row in sides for left, right in pairwise(row)]
    along = [{side: np.concatenate([one[side] for one in row]) for side in ("top", "bottom")} for row in sides]
    down = [_meeting(above["bottom"], below["top"], connectivity) for above, below in pairwise(along)]
    values = np.concatenate([one.values for one in every])
    pairs = np.concatenate([np.empty((0, 2), np.int64), *across, *down])
    count, region = _components(len(values), pairs[values[pairs[:, 0]] == values[pairs[:, 1]]])
    outer = {
        "top": along[0]["top"],
        "bottom": along[-1]["bottom"],
        "left": np.concatenate([row[0]["left"] for row in sides]),
        "right": np.concatenate([row[-1]["right"] for row in sides]),
    }
    sums, bottoms, own = np.zeros((count, 3), np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(sums, region, np.concatenate([one.sums for one in every]))
    np.maximum.at(bottoms, region, np.concatenate([one.bottoms for one in every]))
    own[region] = values
    part_of = region[np.repeat(np.arange(len(region)), np.concatenate([np.diff(one.ends, prepend=0) for one in every]))]
    order = np.argsort(part_of, kind="stable")
    units, places = (np.concatenate([getattr(one, name) for one in every])[order] for name in ("units", "places"))
    ends = np.cumsum(np.bincount(part_of, minlength=count))
    own_sides = {side: np.column_stack([runs[:, :2], region[runs[:, 2]]]) for side, runs in outer.items()}
    return Reaching(own, sums, bottoms, units, places, ends, own_sides)


def _moved(sides: Mapping[str, ndarray], start: int) -> dict[str, Int64[ndarray, "_ 3"]]:
    """Return runs whose outlines are numbered from `start` on."""
    return {side: runs + np.array([0, 0, start]) for side, runs in sides.items()}


def _components(count: int, pairs: Int64[ndarray, "p 2"]) -> tuple[int, Int64[ndarray, " n"]]:
    """Return the number of connected components of a graph with `count` nodes, and that of each node."""
    if not count:
        return 0, NONE
    links = coo_array((np.ones(len(pairs), bool), tuple(pairs.T)), (count, count))
    found, component = connected_components(links, directed=False)
    return found, component.astype(np.int64)


def _meeting(ours: Int64[ndarray, "_ 3"], theirs: Int64[ndarray, "_ 3"], connectivity: int) -> Int64[ndarray, "p 2"]:
    """Return the pairs of outlines whose runs on the two sides of a border share an edge, or with 8 a corner."""
    corner = connectivity == 8
    first = np.searchsorted(theirs[:, 1], ours[:, 0], "left" if corner else "right")
    stop = np.searchsorted(theirs[:, 0], ours[:, 1], "right" if corner else "left")
    other, own = expand_ranges(first, np.maximum(stop - first, 0))
    return np.unique(np.stack([ours[own, 2], theirs[other, 2]], axis=1), axis=0)


# ---------------------------------------------------------------------------------------------------------- their files


@dataclass
class OutlineFiles:
    """The files of units and joins, whose receipts are compared when a file is first read."""

    ledger: UnitLedger
    tree: JoinTree
    scratch: Path
    """Folder for files of a bucket."""
    known: dict[int, Path | None] = field(default_factory=dict)
    """The files that were read and compared, by the index of the unit or join."""

    def path(self, index: int) -> Path | None:
        """Return the file of a unit or join on this machine; None if it has none.

        Raises:
            InputError: if it cannot be read, or has other values than its receipt says.
        """
        if index not in self.known:
            self.known[index] = self.ledger.unit_file(self.tree.name(index), ".npz", self.scratch)
        return self.known[index]

    def reaching(self, index: int, layer: int) -> Reaching:
        """Return the outlines of a layer that reach beyond a unit or join."""
        path = self.path(index)
        if path is None:
            return NOTHING
        with LazyArrays(path, f"{layer}_held_") as arrays:
            if not arrays.names:
                return NOTHING
            return Reaching(**{name: arrays[name] for name in NUMBERS}, sides={side: arrays[side] for side in SIDES})

    def united(self, layer: int, found: Reaching, regions: Sequence[int]) -> FinishedRegions:
        """Read the parts of complete regions, and unite those of each."""
        parts: dict[tuple[int, int], OpenParts] = {}
        units, places_of = (
            np.concatenate([side[found.parts(one)] for one in regions]) for side in (found.units, found.places)
        )
        for unit in np.unique(units).tolist():
            places, path = places_of[units == unit].tolist(), self.path(unit)
            assert path is not None, "it has outlines"
            with LazyArrays(path, f"{layer}_") as arrays:
                own = unpack_parts(arrays, places)
            parts |= {(unit, place): one for place, one in zip(places, own, strict=True)}
        ended = []
        for region in regions:
            whole, own_parts = OpenParts([]), found.parts(region)
            for key in zip(found.units[own_parts].tolist(), found.places[own_parts].tolist(), strict=True):
                whole.extend(parts.pop(key))
            count = own_parts.stop - own_parts.start
            ended.append(OpenRegion(int(found.values[region]), found.sums[region], count, whole))
        return finish_regions(ended, self.tree.base.unit_px)

    def polygons_of_row(self, layer: int, row: int, none: Columns) -> list[Columns]:
        """Return the polygons of all files that end in the row of blocks from pixel row `row`, as in a whole map.

        `none` are no polygons.
        """
        found: dict[str, list[Columns]] = {INSIDE: [], CROSSING: [none]}
        for path in filter(None, map(self.path, self._at_row(row))):
            for kind, batches in found.items():
                with LazyArrays(path, f"{layer}_{row}_{kind}_") as arrays:
                    if arrays.names:
                        batches.append(unpack_polygons(arrays))
        return [*found[INSIDE], sort_by_first(concatenate_columns(found[CROSSING]))]

    def _at_row(self, row: int) -> Iterator[int]:
        """Yield the units and joins that have a pixel row, units first, each level from left to right."""
        start = 0
        for level in self.tree.levels:
            first = start + row // level.unit_px * level.columns
            yield from range(first, first + level.columns)
            start += len(level)


def pack_polygons(batches: Sequence[Columns]) -> Columns:
    """Return the polygons of a row of blocks as plain arrays; nothing if there are none."""
    if not any(len(batch["value"]) or batch["left_out"] or len(batch["holes"]) for batch in batches):
        return {}
    found = concatenate_columns(batches)
    wkb, wkb_ends = pack_wkb(found.pop("shapes"))
    holes, hole_ends = pack_wkb(found.pop("holes"))
    return found | {"wkb": wkb, "wkb_ends": wkb_ends, "holes": holes, "hole_ends": hole_ends}


def unpack_polygons(arrays: LazyArrays) -> Columns:
    """Return the polygons of a row of blocks from the output of `pack_polygons`."""
    names = (*(name for name in COLUMNS if name != "shapes"), "left_out")
    shapes, holes = (
        unpack_wkb(arrays[name], arrays[ends]) for name, ends in (("wkb", "wkb_ends"), ("holes", "hole_ends"))
    )
    return {name: arrays[name] for name in names} | {"shapes": shapes, "holes": holes}


# ----------------------------------------------------------------------------------------------------------- joins


def join_units(
    files: OutlineFiles, builder: PolygonBuilder, index: int, layers: int, advance: Callable[[float], None]
) -> Columns:
    """Return the polygons that are complete in a join, and what reaches further, as arrays for its file.

    `advance` is called with the fractions that are finished. Memory: a few numbers for each outline of the units that
    it joins, and the polygons that are complete in it.

    Raises:
        InputError: if a file of a unit or join is missing, damaged or not the one of its receipt.
    """
    window, arrays = files.tree.window(index), Columns()
    for layer in range(layers):
        below = [[files.reaching(one, layer) for one in row] for row in files.tree.joined(index)]
        found = join_reaching(below, builder.settings.connectivity)
        reach = _reach_further(found, window, builder.grid.height, builder.grid.width)
        # A region that ends with a row of blocks is complete when the next row is read, if there is one.
        row_of = np.minimum(found.bottoms // BLOCK_PX, (builder.grid.height - 1) // BLOCK_PX) * BLOCK_PX
        for row in range(window.row, window.stop_row, BLOCK_PX):
            regions = np.flatnonzero(~reach & (row_of == row)).tolist()
            packed = pack_polygons([builder.columns(files.united(layer, found, regions))]) if regions else {}
            arrays |= {f"{layer}_{row}_{CROSSING}_{name}": array for name, array in packed.items()}
            advance(min(BLOCK_PX, window.stop_row - row) / window.height / layers)
        arrays |= {f"{layer}_{name}": array for name, array in found.only(reach).arrays().items()}
    return arrays


def _reach_further(found: Reaching, window: Window, height: int, width: int) -> Bool[ndarray, " n"]:
    """Return which regions lie along a border of a join, unless it is that of the raster."""
    inner = (window.row > 0, window.stop_row < height, window.col > 0, window.stop_col < width)
    reach = np.zeros(len(found.values), bool)
    for side, is_inner in zip(SIDES, inner, strict=True):
        if is_inner:
            reach[found.sides[side][:, 2]] = True
    return reach


def gather_polygons(files: OutlineFiles, builder: PolygonBuilder, ledger: PolygonLedger) -> None:
    """Add the polygons of all files to a ledger, row of blocks by row, as one process finds them in the whole map.

    Resumes where the ledger ends. Memory: the polygons that end in one row of blocks.

    Raises:
        InputError: as `join_units`.
    """
    height, none = builder.grid.height, builder.columns(FinishedRegions([], NO_CORNERS))
    with progress_bar("gathering", ledger.rows, "rows", done=ledger.rows_done) as bar:
        for layer in range(ledger.rows // height):
            before = layer * height
            for row in range(max(0, ledger.rows_done - before), height, BLOCK_PX):
                ended, stop = pack_row(files.polygons_of_row(layer, row, none)), min(row + BLOCK_PX, height)
                if len(ended["value"]) or ended["left_out"] or stop == height:
                    ledger.add(before + stop, ended, {})
                bar.advance(stop - row)
    ledger.finish()
