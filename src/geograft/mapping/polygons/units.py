"""Polygons by units: trace the outlines in each unit, in any order, and join those that cross the borders of units.

The file of a unit has, for each layer of the map and each row of blocks, the finished polygons that end there, and the
outlines that reach another unit: their parts and the corners near them, and where along the border they lie. These
runs tell which outlines are of one region. Regions are united, simplified and measured when all of their parts are
there, by the code that does it for a whole map; so the order of units and joins cannot matter.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely
from jaxtyping import Int64
from numpy import ndarray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geograft.config import PolygonConfig
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.opening import raster_state
from geograft.geo.rasters.raster import Image
from geograft.locations import Place
from geograft.mapping.environment import describe_libraries
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
    ClassMapSource,
    FinishedRegions,
    OpenRegion,
    RegionMerger,
    add_row,
    finish_regions,
    merge_parts,
)
from geograft.mapping.polygons.shapes import NO_CORNERS, pack_wkb, unpack_wkb
from geograft.mapping.polygons.zonal import class_map_source, open_class_map
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import UnitGrid, UnitResult, unit_side
from geograft.mapping.worker import Proposal, new_job
from geograft.progress import progress_bar
from geograft.resume import save_arrays

INSIDE, CROSSING = "inside", "crossing"
"""Polygons inside a block, and those that cross borders of blocks."""
OPPOSITE = (("bottom", "top"), ("right", "left"))
"""Sides of units that face each other: of the one above and the one below, of the left and the right one."""


def plan_polygon_units(grid: Grid) -> UnitGrid:
    """Return the units of a map, which depend on its size alone."""
    return UnitGrid(grid.height, grid.width, unit_side(grid.height, grid.width))


# --------------------------------------------------------------------------------------------------------- in one unit


@dataclass(frozen=True)
class PolygonUnitWriter:
    """Traces the units of one map."""

    map: Place
    settings: PolygonConfig
    units: UnitGrid
    states: tuple[tuple[Place, dict[str, Any]], ...]
    """The map, and its probabilities if it has any, and their states when the job was planned (`raster_state`)."""

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        """Trace a unit; see `geograft.mapping.worker.UnitWriter`. Memory: that of its outlines."""
        unit, blocks = self.units.window(index), 0
        arrays: Columns = {}
        with ExitStack() as files:
            class_map = open_class_map(files.enter_context(Image.open(self.map)), self.settings, files)
            total = unit.height * unit.width * class_map.layer_count

            def show(block: Window) -> None:
                nonlocal blocks
                blocks += 1
                advance(block.height * block.width / total)

            builder = PolygonBuilder(class_map.image.info.grid, self.settings)
            for layer in range(class_map.layer_count):
                found = trace_unit(class_map_source(class_map, layer, show), builder, unit)
                arrays |= {f"{layer}_{name}": array for name, array in found.items()}
        self.check_unchanged()
        if arrays:
            save_arrays(scratch / f"{self.units.name(index)}.npz", arrays)
        return UnitResult(blocks)

    def check_unchanged(self) -> None:
        """Raise InputError if the map or its probabilities have changed since the job was planned."""
        for place, before in self.states:
            if raster_state(place) != before:
                raise InputError(
                    f"{place} changed while it was read. Start a new job once the raster no longer changes."
                )


def trace_unit(source: ClassMapSource, builder: PolygonBuilder, unit: Window) -> Columns:
    """Return the polygons of one layer that end in a unit, and the outlines that reach another unit, as arrays."""
    reach, held = builder.reach_px, []
    arrays: Columns = {}
    merger = RegionMerger(unit.width, builder.settings.connectivity, reach, left=unit.col)
    for start in range(unit.row, unit.stop_row, BLOCK_PX):
        row = Window(start, unit.col, min(BLOCK_PX, unit.stop_row - start), unit.width)
        inside = [builder.columns(found) for found in add_row(source, merger, row, BLOCK_PX, reach)]
        ended = merger.end_row(row.stop_row == unit.stop_row)
        reaching = [_reaches_another(region, unit, source) for region in ended]
        held += [region for region, held_back in zip(ended, reaching, strict=True) if held_back]
        own = [region for region, held_back in zip(ended, reaching, strict=True) if not held_back]
        crossing = [builder.columns(finish_regions(own, BLOCK_PX))] if own else []
        for kind, batches in ((INSIDE, inside), (CROSSING, crossing)):
            arrays |= {f"{start}_{kind}_{name}": array for name, array in _pack(batches).items()}
    return arrays | (_pack_held(held, unit) if held else {})


def _reaches_another(region: OpenRegion, unit: Window, source: ClassMapSource) -> bool:
    """Return whether a region has pixels along a border of its unit, unless it is that of the raster."""
    left, top, right, bottom = shapely.total_bounds(np.array(region.parts.polygons(), object))
    return bool(
        left == unit.col > 0
        or top == unit.row > 0
        or right == unit.stop_col < source.width
        or bottom == unit.stop_row < source.height
    )


def _pack(batches: list[Columns]) -> Columns:
    """Return the polygons of a row of blocks as plain arrays; nothing if there are none."""
    if not any(len(batch["value"]) or batch["left_out"] or len(batch["holes"]) for batch in batches):
        return {}
    found = concatenate_columns(batches)
    wkb, wkb_ends = pack_wkb(found.pop("shapes"))
    holes, hole_ends = pack_wkb(found.pop("holes"))
    return found | {"wkb": wkb, "wkb_ends": wkb_ends, "holes": holes, "hole_ends": hole_ends}


def _unpack(arrays: LazyArrays) -> Columns:
    """Return the polygons of a row of blocks from the output of `_pack`."""
    names = (*(name for name in COLUMNS if name != "shapes"), "left_out")
    shapes, holes = (
        unpack_wkb(arrays[name], arrays[ends]) for name, ends in (("wkb", "wkb_ends"), ("holes", "hole_ends"))
    )
    return {name: arrays[name] for name in names} | {"shapes": shapes, "holes": holes}


def _pack_held(held: list[OpenRegion], unit: Window) -> Columns:
    """Return the outlines that reach another unit: united within this one, with the corners near them."""
    corners = [region.parts.corners() for region in held]
    united = [merge_parts(region.parts.polygons(), BLOCK_PX) for region in held]
    parts = [
        OpenParts([*shapely.get_parts(shape)], *([_distinct(points)] for points in pair))
        for shape, pair in zip(united, corners, strict=True)
    ]
    return {
        **pack_parts(parts),
        "held_values": np.array([region.value for region in held], np.int64),
        "held_sums": np.array([region.sums for region in held], np.int64),
        "held_bottoms": shapely.bounds(np.array(united, object))[:, 3].astype(np.int64),
        **{f"held_{side}": runs for side, runs in _runs(united, unit).items()},
    }


def _distinct(points: list[ndarray]) -> Int64[ndarray, "n 2"]:
    return np.unique(np.concatenate([NO_CORNERS.turns, *points]), axis=0)


def _runs(shapes: Sequence[shapely.Geometry], unit: Window) -> dict[str, Int64[ndarray, "_ 3"]]:
    """Return where outlines lie along each side of a unit: start, stop and the index of the outline, in order."""
    parts, shape_of = shapely.get_parts(np.array(shapes, object), return_index=True)
    rings, part_of = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    inner = np.flatnonzero(ring[1:] == ring[:-1])
    start, stop = points[inner].astype(np.int64), points[inner + 1].astype(np.int64)
    owner = shape_of[part_of[ring[inner]]]
    sides = {"top": (1, unit.row), "bottom": (1, unit.stop_row), "left": (0, unit.col), "right": (0, unit.stop_col)}
    runs = {}
    for side, (axis, place) in sides.items():
        here = (start[:, axis] == place) & (stop[:, axis] == place)
        ends = np.stack([start[here, 1 - axis], stop[here, 1 - axis]], axis=1)
        found = np.stack([ends.min(axis=1), ends.max(axis=1), owner[here]], axis=1)
        runs[side] = found[np.argsort(found[:, 0], kind="stable")]
    return runs


def propose_polygons(writer: PolygonUnitWriter, origin: Mapping[str, Any]) -> Proposal[PolygonUnitWriter]:
    """Return the job of a map's polygons as this process would start it."""
    libraries = f"GEOS {shapely.geos_version_string}, PROJ {pyproj.proj_version_str}, GDAL {rasterio.__gdal_version__}"
    job = new_job("polygons", origin, writer.units, describe_libraries(f"{libraries}, NumPy {np.__version__}"))
    return Proposal(job, lambda found: writer)


# ------------------------------------------------------------------------------------------------------------ all units


@dataclass
class OutlineFiles:
    """The files of the units, whose receipts are compared when a file is first read."""

    ledger: UnitLedger
    units: UnitGrid
    scratch: Path
    """Folder for files of a bucket."""
    known: dict[int, Path | None] = field(default_factory=dict)
    """The files that were read and compared, by the index of the unit."""

    def path(self, index: int) -> Path | None:
        """Return the file of a unit on this machine; None if it has none.

        Raises:
            InputError: if it cannot be read, or has other values than its receipt says.
        """
        if index not in self.known:
            self.known[index] = self.ledger.unit_file(self.units.name(index), ".npz", self.scratch)
        return self.known[index]


@dataclass(frozen=True)
class HeldOutlines:
    """The outlines of one layer that reach another unit, and which of them are of one region."""

    unit: Int64[ndarray, " n"]
    """Index of the unit of each."""
    place: Int64[ndarray, " n"]
    """Index of each in its unit."""
    value: Int64[ndarray, " n"]
    sums: Int64[ndarray, "n k"]
    bottom: Int64[ndarray, " n"]
    """Row below the last one of each."""
    pairs: Int64[ndarray, "p 2"]
    """Outlines that meet at a border of units and have the same value."""

    @cached_property
    def regions(self) -> list[Int64[ndarray, " _"]]:
        """The outlines of each region."""
        count = len(self.unit)
        if not count:
            return []
        links = coo_array((np.ones(len(self.pairs), bool), tuple(self.pairs.T)), (count, count))
        _, region = connected_components(links, directed=False)
        order = np.argsort(region, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(region[order])) + 1)

    def by_row(self, height: int) -> Mapping[int, list[Int64[ndarray, " _"]]]:
        """Return the regions by the first pixel row of the row of blocks in which a map of `height` ends them."""
        last = (height - 1) // BLOCK_PX
        found: dict[int, list[ndarray]] = defaultdict(list)
        for members in self.regions:
            found[min(int(self.bottom[members].max()) // BLOCK_PX, last) * BLOCK_PX].append(members)
        return found


def read_held(files: OutlineFiles, layer: int, connectivity: int) -> HeldOutlines:
    """Read which outlines of a layer reach other units, and find those of one region. Reads units row by row."""
    units, count = files.units, 0
    tables: dict[str, list[ndarray]] = defaultdict(list)
    below: list[ndarray] = []
    for row in range(units.rows):
        runs: dict[str, list[ndarray]] = defaultdict(list)
        right = np.empty((0, 3), np.int64)
        for index in range(row * units.columns, (row + 1) * units.columns):
            found = _read_table(files.path(index), layer)
            for name in ("values", "sums", "bottoms"):
                tables[name].append(found[name])
            tables["unit"].append(np.full(len(found["values"]), index))
            tables["place"].append(np.arange(len(found["values"])))
            sides = {side: found[side] + [0, 0, count] for pair in OPPOSITE for side in pair}
            tables["pairs"].append(_meeting(right, sides["left"], connectivity))
            right, count = sides["right"], count + len(found["values"])
            for side in ("top", "bottom"):
                runs[side].append(sides[side])
        tables["pairs"].append(_meeting(np.concatenate([NO_RUNS, *below]), np.concatenate(runs["top"]), connectivity))
        below = runs["bottom"]
    joined = {name: np.concatenate(arrays) for name, arrays in tables.items()}
    pairs, value = joined["pairs"], joined["values"]
    same = value[pairs[:, 0]] == value[pairs[:, 1]]
    return HeldOutlines(joined["unit"], joined["place"], value, joined["sums"], joined["bottoms"], pairs[same])


NO_RUNS = np.empty((0, 3), np.int64)
EMPTY_TABLE = {
    "values": np.empty(0, np.int64),
    "sums": np.empty((0, 3), np.int64),
    "bottoms": np.empty(0, np.int64),
    **{side: NO_RUNS for pair in OPPOSITE for side in pair},
}


def _read_table(path: Path | None, layer: int) -> Mapping[str, ndarray]:
    if path is None:
        return EMPTY_TABLE
    with LazyArrays(path, f"{layer}_held_") as arrays:
        return {name: arrays[name] for name in EMPTY_TABLE} if arrays.names else EMPTY_TABLE


def _meeting(ours: Int64[ndarray, "_ 3"], theirs: Int64[ndarray, "_ 3"], connectivity: int) -> Int64[ndarray, "p 2"]:
    """Return the pairs of outlines whose runs on the two sides of a border share an edge, or with 8 a corner.

    The runs of each side are in order and do not overlap.
    """
    corner = connectivity == 8
    first = np.searchsorted(theirs[:, 1], ours[:, 0], "left" if corner else "right")
    stop = np.searchsorted(theirs[:, 0], ours[:, 1], "right" if corner else "left")
    other, own = expand_ranges(first, np.maximum(stop - first, 0))
    return np.unique(np.stack([ours[own, 2], theirs[other, 2]], axis=1), axis=0)


def join_units(files: OutlineFiles, builder: PolygonBuilder, ledger: PolygonLedger) -> None:
    """Add the polygons of all units to a ledger, as one process finds them in the whole map, row of blocks by row.

    Resumes where the ledger ends. Memory: a few numbers for each outline that reaches another unit, and the regions
    that end in one row of blocks.

    Raises:
        InputError: if a file of a unit is missing, damaged or not the one of its receipt.
    """
    height = builder.grid.height
    with progress_bar("joining", ledger.rows, "rows", done=ledger.rows_done) as bar:
        for layer in range(ledger.rows // height):
            before = layer * height
            if ledger.rows_done >= before + height:
                continue
            held = read_held(files, layer, builder.settings.connectivity)
            ending = held.by_row(height)
            for row in range(max(0, ledger.rows_done - before), height, BLOCK_PX):
                joined = builder.columns(_unite(files, layer, held, ending.get(row, [])))
                ended, stop = pack_row(_of_row(files, f"{layer}_{row}", row, joined)), min(row + BLOCK_PX, height)
                if len(ended["value"]) or ended["left_out"] or stop == height:
                    ledger.add(before + stop, ended, {})
                bar.advance(stop - row)
    ledger.finish()


def _unite(files: OutlineFiles, layer: int, held: HeldOutlines, regions: list[Int64[ndarray, " _"]]) -> FinishedRegions:
    """Read the outlines of regions and unite them."""
    wanted = np.concatenate([np.empty(0, np.int64), *regions])
    parts: dict[int, OpenParts] = {}
    for index in np.unique(held.unit[wanted]).tolist():
        members, path = wanted[held.unit[wanted] == index], files.path(index)
        assert path is not None, "it has outlines"
        with LazyArrays(path, f"{layer}_") as arrays:
            found = unpack_parts(arrays, held.place[members].tolist())
        parts |= dict(zip(members.tolist(), found, strict=True))
    ended = []
    for members in regions:
        whole = OpenParts([])
        for member in members.tolist():
            whole.extend(parts.pop(member))
        value, sums = int(held.value[members[0]]), held.sums[members].sum(axis=0)
        ended.append(OpenRegion(value, sums, len(members), whole))
    return finish_regions(ended, files.units.unit_px)


def _of_row(files: OutlineFiles, prefix: str, row: int, joined: Columns) -> list[Columns]:
    """Return the polygons that end in the row of blocks from pixel row `row`, in the order of a whole map."""
    units = files.units
    first = row // units.unit_px * units.columns
    found: dict[str, list[Columns]] = {INSIDE: [], CROSSING: [joined]}
    for path in filter(None, map(files.path, range(first, first + units.columns))):
        for kind, batches in found.items():
            with LazyArrays(path, f"{prefix}_{kind}_") as arrays:
                if arrays.names:
                    batches.append(_unpack(arrays))
    return [*found[INSIDE], sort_by_first(concatenate_columns(found[CROSSING]))]
