"""Polygons by units: trace the outlines in each unit, in any order; `joins` joins those that reach another one.

The file of a unit has, for each layer of the map and each row of blocks, the finished polygons that end there, and the
outlines that reach another unit: their parts and the corners near them, and where along the border they lie.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import shapely

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.opening import raster_state
from geograft.geo.rasters.raster import Image
from geograft.locations import Place
from geograft.mapping.environment import describe_libraries
from geograft.mapping.polygons.joins import (
    CROSSING,
    INSIDE,
    OutlineFiles,
    join_units,
    pack_polygons,
    pack_reaching,
)
from geograft.mapping.polygons.outlines import Columns, PolygonBuilder
from geograft.mapping.polygons.regions import (
    BLOCK_PX,
    ClassMapSource,
    OpenRegion,
    RegionMerger,
    add_row,
    finish_regions,
)
from geograft.mapping.polygons.zonal import class_map_source, open_class_map
from geograft.mapping.unit_ledger import UnitLedger
from geograft.mapping.units import JoinTree, UnitGrid, UnitResult, unit_side
from geograft.mapping.worker import Proposal, new_job
from geograft.resume import save_arrays


def plan_polygon_units(grid: Grid) -> UnitGrid:
    """Return the units of a map, which depend on its size alone."""
    return UnitGrid(grid.height, grid.width, unit_side(grid.height, grid.width))


@dataclass(frozen=True)
class PolygonUnitWriter:
    """Traces the units of one map, and joins them."""

    map: Place
    out: Place
    """The folder or bucket of the job."""
    builder: PolygonBuilder
    layers: int
    """Number of layers of the map: its overlapping classes, or one."""
    units: JoinTree
    states: tuple[tuple[Place, dict[str, Any]], ...]
    """The map, and its probabilities if it has any, and their states when the job was planned (`raster_state`)."""

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        """Trace a unit or join some; see `geograft.mapping.worker.UnitWriter`. Memory: that of the outlines."""
        if self.units.joined(index):
            (below := scratch / "below").mkdir()
            files = OutlineFiles(UnitLedger(self.out), self.units, below)
            blocks, arrays = 0, join_units(files, self.builder, index, self.layers, advance)
        else:
            blocks, arrays = self._trace(index, advance)
        if arrays:
            save_arrays(scratch / f"{self.units.name(index)}.npz", arrays)
        return UnitResult(blocks)

    def _trace(self, index: int, advance: Callable[[float], None]) -> tuple[int, Columns]:
        """Return the number of blocks of a unit that were read, and its outlines as arrays."""
        unit, blocks = self.units.window(index), 0
        arrays, total = Columns(), unit.height * unit.width * self.layers

        def show(block: Window) -> None:
            nonlocal blocks
            blocks += 1
            advance(block.height * block.width / total)

        with ExitStack() as files:
            class_map = open_class_map(files.enter_context(Image.open(self.map)), self.builder.settings, files)
            for layer in range(self.layers):
                found = trace_unit(class_map_source(class_map, layer, show), self.builder, unit, index)
                arrays |= {f"{layer}_{name}": array for name, array in found.items()}
        self.check_unchanged()
        return blocks, arrays

    def check_unchanged(self) -> None:
        """Raise InputError if the map or its probabilities have changed since the job was planned."""
        for place, before in self.states:
            if raster_state(place) != before:
                raise InputError(
                    f"{place} changed while it was read. Start a new job once the raster no longer changes."
                )


def trace_unit(source: ClassMapSource, builder: PolygonBuilder, unit: Window, index: int) -> Columns:
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
            arrays |= {f"{start}_{kind}_{name}": array for name, array in pack_polygons(batches).items()}
    return arrays | pack_reaching(held, unit, index)


def _reaches_another(region: OpenRegion, unit: Window, source: ClassMapSource) -> bool:
    """Return whether a region has pixels along a border of its unit, unless it is that of the raster."""
    left, top, right, bottom = shapely.total_bounds(np.array(region.parts.polygons(), object))
    return bool(
        left == unit.col > 0
        or top == unit.row > 0
        or right == unit.stop_col < source.width
        or bottom == unit.stop_row < source.height
    )


def propose_polygons(writer: PolygonUnitWriter, origin: Mapping[str, Any]) -> Proposal[PolygonUnitWriter]:
    """Return the job of a map's polygons as this process would start it."""
    libraries = f"GEOS {shapely.geos_version_string}, PROJ {pyproj.proj_version_str}, GDAL {rasterio.__gdal_version__}"
    job = new_job("polygons", origin, writer.units, describe_libraries(f"{libraries}, NumPy {np.__version__}"))
    return Proposal(job, lambda found: writer)
