"""The units of a map: how a worker computes one, and the job that it starts or joins.

A unit is predicted with the windows of the whole map that share a pixel with it, see `geograft.mapping.units`.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.inference.predictor import EnsemblePredictor
from geograft.mapping.blend import Strip, blend
from geograft.mapping.environment import Agreement, Sample, describe_environment, sample_count
from geograft.mapping.held_out import PartOfInterest
from geograft.mapping.job import OutputCounts, map_values, no_pixel_error, raster_changes, write_files
from geograft.mapping.ledger import Ledger
from geograft.mapping.plan import MapTask
from geograft.mapping.unit_ledger import Job
from geograft.mapping.units import UnitGrid, UnitResult, plan_units, unit_plan
from geograft.mapping.worker import Proposal, new_job
from geograft.resume import to_json_types

if TYPE_CHECKING:
    from geograft.mapping.applicability import ApplicabilityCounts, ApplicabilityMapper


@dataclass(frozen=True)
class MapUnitWriter:
    """Computes the units of one map."""

    task: MapTask
    """With the origin of the job, so that all workers write the same tags."""
    model: EnsemblePredictor
    units: UnitGrid
    rasters: tuple[dict[str, Any], ...]
    """The states of the task's rasters when it was planned (`raster_state`)."""
    cells: "ApplicabilityMapper | None" = None
    """Computes the area of applicability, if that is requested."""

    def write(self, index: int, scratch: Path, advance: Callable[[float], None]) -> UnitResult:
        """Compute a unit, and write its class map and its other outputs into `scratch`. Overwrites older files.

        `advance` is called with the fractions of the unit that are finished. Memory: that of `blend`, with the columns
        of a unit at most. Temporary files, of at most the size of the outputs, are in the folder `.NAME.part` there.

        Raises:
            InputError: if a raster cannot be read, or has changed since the task was planned.
            OutputError: if a file cannot be written.
        """
        unit, path = self.units.window(index), scratch / f"{self.units.name(index)}.tif"
        task = replace(self.task, source=replace(self.task.source, path=path))
        ledger = Ledger(task.folder, {"unit": str(unit)}, unit_plan(task.plan, unit).lanes)
        try:
            windows = self._predict(unit, ledger, lambda px: advance(px / (unit.height * unit.width)))
            self.check_unchanged()
            if not any(entry.data_width for entry in ledger.entries):
                return UnitResult(windows)
            return _unit_result(windows, write_files(task, ledger, partial(self._write_cells, unit), unit))
        finally:
            ledger.remove()

    def _predict(self, unit: Window, ledger: Ledger, advance: Callable[[int], None]) -> int:
        """Add the pixels of a unit to its ledger, and return how many windows were predicted, halo included."""
        source, windows = PartOfInterest(self.task.source, (unit,)), 0
        with (
            closing(self.task.source.mosaic),
            closing(blend(unit_plan(self.task.plan, unit), source, self.model)) as strips,
        ):
            for strip in strips:
                windows += strip.tiles
                finished = strip.window.intersection(unit)
                if finished is not None:
                    _add(ledger, strip, finished, unit, map_values(self.task, strip))
                    advance(finished.height * finished.width)
        return windows

    def _write_cells(self, unit: Window, path: Path, tags: dict[str, str]) -> "ApplicabilityCounts":
        assert self.cells is not None
        return self.cells.write(path, tags, self.check_unchanged, unit)

    def check_unchanged(self) -> None:
        """Raise InputError if a raster has changed since the task was planned."""
        changed = raster_changes(self.task, self.rasters)
        if changed:
            raise InputError(
                f"{self.task.source.mosaic.name} changed while it was read: {changed[0]}. Start a new job once the "
                "raster no longer changes."
            )


def _add(ledger: Ledger, strip: Strip, finished: Window, unit: Window, values: dict[str, ndarray]) -> None:
    """Add the pixels of a strip that are in a unit to its ledger, with rows and columns counted from the unit."""
    data = strip.data.intersection(unit) if values else None
    if data is None:
        place = finished.relative_to(unit)
        ledger.add(place, strip.tiles, replace(place, width=0), {})
        return
    here = data.relative_to(strip.data).slices
    arrays = {name: array[..., *here] for name, array in values.items()}
    ledger.add(finished.relative_to(unit), strip.tiles, data.relative_to(unit), arrays)


def _unit_result(windows: int, counts: OutputCounts) -> UnitResult:
    cells = counts.applicability
    return UnitResult(
        windows,
        counts.classes.pixels,
        dict(counts.classes.by_class),
        (cells.pixels_with_index, cells.outside_px) if cells else None,
    )


def propose_map(task: MapTask, model: EnsemblePredictor) -> Proposal[MapUnitWriter]:
    """Return the job of a map as this process would start it; the task has its origin.

    Raises:
        InputError: if no pixel of the rasters is valid.
    """
    windows = task.spread_windows(sample_count(task.layers, task.window[0]))
    if windows is None:
        raise no_pixel_error(task.source)
    sample = Sample.compute(model, windows)
    cells = _applicability(task)
    units = plan_units(task.plan.lanes.tiles, cells.encoder.cell_px if cells else 1)
    environment = describe_environment(model.backend, model.precision, task.device)
    kinds = ("probabilities", "uncertainty", "applicability")
    job = new_job("predict", to_json_types(task.origin), units, environment, sample.to_bytes())
    job = replace(job, precision=task.precision, outputs=("", *(kind for kind in kinds if getattr(task, kind))))

    def writer(found: Job) -> MapUnitWriter:
        shared = replace(task, origin=found.origin, precision=found.precision)
        return MapUnitWriter(shared, model, found.grid, tuple(task.origin["rasters"]), cells)

    def compare(content: bytes) -> Agreement:
        return Sample.from_bytes(content, sample.levels.shape).agreement(sample, task.card)

    return Proposal(job, writer, sample.to_bytes(), compare)


def _applicability(task: MapTask) -> "ApplicabilityMapper | None":
    if not task.applicability:
        return None
    from geograft.mapping.applicability import ApplicabilityMapper  # noqa: PLC0415  (imports SciPy)

    return ApplicabilityMapper.load(task)
