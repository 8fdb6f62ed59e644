"""Writing maps: predict the strips of each, store them in its ledger, then write its files."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy import ndarray

from geograft.card import ModelCard
from geograft.config import PredictConfig
from geograft.errors import InputError, RasterChangedError, SettingError
from geograft.files import json_digest, refuse_existing, remove_scratch_folder
from geograft.geo.grid import Window
from geograft.geo.rasters.scene_image import ACQUIRED_TAG
from geograft.geo.rasters.styles import sidecar_paths
from geograft.geo.rasters.tags import BACKEND_TAG, ORIGIN_TAG, PRECISION_TAG, map_tags
from geograft.geo.scene import RasterInput
from geograft.interrupts import note_kept
from geograft.locations import Place
from geograft.locks import lock_output
from geograft.mapping.blend import Strip, blend
from geograft.mapping.classmap import (
    CLASSES,
    PROBABILITIES,
    UNCERTAINTY,
    MapValues,
    PixelCounts,
    ProbabilityEncoding,
    class_entropy,
    class_values,
    ensemble_std,
    write_class_map,
    write_probabilities,
    write_uncertainty,
)
from geograft.mapping.ledger import Ledger
from geograft.mapping.plan import MAP_SUFFIXES, MapSource, MapTask, map_sources, map_tags_of
from geograft.mapping.sums import Model
from geograft.outputs import is_local_copy
from geograft.progress import announce, progress_bar
from geograft.resume import differences, is_complete, keep_ledger_on_error, refuse_foreign_ledger, remove_ledger

if TYPE_CHECKING:
    from geograft.mapping.applicability import ApplicabilityCounts

CellWriter: TypeAlias = "Callable[[Path, dict[str, str]], ApplicabilityCounts]"
"""Writes the area of applicability to a path with these tags."""
CARRY_OVER = "carry_over"
"""Name of a strip's contribution to the next panel, in the ledger."""
ENTROPY_DESCRIPTION = "entropy of the class probabilities divided by its maximum, log(number of classes)"
STD_DESCRIPTION = (
    "standard deviation of the class probability over the runs, of the class where it is largest, "
    "divided by its maximum, 0.5"
)
MAX_OUTSIDE = 0.1
"""Fraction of a map outside the area of applicability above which a note is given."""


@dataclass(frozen=True)
class MapResult:
    """One map that was written."""

    path: Place
    probabilities: Place | None
    uncertainty: Place | None
    shape: tuple[int, int]
    """Rows and columns."""
    pixels: Mapping[str, int]
    """Mapped pixels by class name; empty for a map that an earlier job finished."""
    computed_px: int = 0
    """Pixels of the raster that this job processed; an interrupted job before it did the rest."""
    seconds: float = 0.0
    """Time that this job took for them."""
    applicability: Place | None = None
    outside_fraction: float | None = None
    """Fraction of the mapped area outside the area of applicability; None if not requested, or if found earlier."""
    mapped_px: int = 0
    """Pixels that have a value. Overlapping classes may add up to more or fewer."""

    def lines(self) -> list[str]:
        """Return size, speed and the proportions of the classes as text."""
        size = f"{self.path}: {self.shape[1]:,} x {self.shape[0]:,} pixels"
        if not self.pixels:
            return [f"{size}, finished earlier"]
        mpx, earlier = self.computed_px / 1e6, (self.shape[0] * self.shape[1] - self.computed_px) / 1e6
        speed = f", {mpx:.2f} Mpx in {self.seconds:.1f} s ({mpx / self.seconds:.2g} Mpx/s)" if mpx else ""
        speed += f", {earlier:.2f} Mpx from an earlier run" if earlier else ""
        width = max(map(len, self.pixels))
        classes = [f"  {name:{width}} {count / self.mapped_px:7.1%}" for name, count in self.pixels.items()]
        others = [f"{self.probabilities}: the probability of every class"] if self.probabilities else []
        others += [f"{self.uncertainty}: the uncertainty of every pixel"] if self.uncertainty else []
        if self.outside_fraction is not None:
            where = f"{self.outside_fraction:.1%} of the mapped area lies outside the area of applicability"
            others += [f"{self.applicability}: {where}"]
        return [f"{size}{speed}", *classes, *others]

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for the user, one line each."""
        if self.outside_fraction is None or self.outside_fraction <= MAX_OUTSIDE:
            return ()
        return (
            f"{self.outside_fraction:.1%} of {self.path} is unlike all training data; the run's scores do not apply "
            f"there. {self.applicability} shows where (above 1). Label some of it and train again; "
            "`geograft sample` draws pixels to label.",
        )


def finished_map(task: MapTask, alone: bool) -> MapResult | None:
    """Return the map if an earlier job finished it with the same origin, and remove the remains of its ledger.

    A finished map that is the only output (`alone`) is an error: there is nothing to do.

    Raises:
        InputError: if the ledger is corrupt.
        OutputError: if other files are at the paths of the outputs, or of the ledger.
    """
    path = task.source.path
    refuse_foreign_ledger(task.folder)
    same = path.exists() and map_tags_of(path).get(ORIGIN_TAG) == json_digest(task.origin)
    if same and task.folder.exists():
        remove_scratch_folder(path)
        remove_ledger(task.folder)
        return _result(task)
    if same and not alone:
        return _result(task)
    if not is_complete(task.folder):
        for output in (path, task.probabilities, task.uncertainty, task.applicability):
            for file in (output, *sidecar_paths(output)) if output else ():
                refuse_existing(file)
    return None


def usable_rasters(
    card: ModelCard, rasters: Sequence[RasterInput], out: Path, settings: PredictConfig, failures: list[str]
) -> list[RasterInput]:
    """Return those of `rasters` that fit the run and whose first windows can be read; append why others cannot.

    Raises:
        SettingError: if `out` is not a folder: a mosaic needs all of its rasters.
        InputError: if none is left.
    """
    if out.suffix.lower() in MAP_SUFFIXES:
        raise SettingError(f"--keep-going needs a folder as --out, for one map per raster; it is {out}.")
    usable: list[RasterInput] = []
    for raster in rasters:
        with _skip_errors(failures):
            (source,) = map_sources(card, (raster,), out, settings, None)
            MapTask(source, (), card, settings).sample_windows()
            usable.append(raster)
    if not usable:
        raise InputError(f"None of the {len(rasters)} rasters can be used. {' '.join(failures[:1])}")
    return usable


def write_maps(pairs: Sequence[tuple[MapTask, Model]], out: Path, failures: list[str] | None) -> tuple[MapResult, ...]:
    """Write maps, one after the other, except for those that an earlier job finished.

    With `failures`, a map whose raster turns out to be damaged or changed is skipped, and why is appended.

    Raises:
        InputError, OutputError: as `finished_map` and `write_map`.
    """
    left: list[tuple[MapTask, Model, MapResult | None]] = []
    for task, model in pairs:
        with _skip_errors(failures), lock_output(task.source.path):
            left.append((task, model, finished_map(task, _is_alone(task, out))))
    results = []
    for task, model, finished in left:
        # Locked one by one, so that several jobs can share a folder of maps; another may have written this one by now.
        with _skip_errors(failures), lock_output(task.source.path):
            results.append(finished or finished_map(task, _is_alone(task, out)) or write_map(task, model))
    return tuple(results)


def _is_alone(task: MapTask, out: Path) -> bool:
    # The only map of a bucket is complete where it could not be put there before.
    return task.source.path == out and not is_local_copy(out)


@contextmanager
def _skip_errors(failures: list[str] | None) -> Iterator[None]:
    """Append the InputError of the block to `failures` and announce it; raise it if that is None."""
    try:
        yield
    except InputError as error:
        if failures is None:
            raise
        announce(f"skipped: {error}")
        failures.append(str(error))


def write_map(task: MapTask, model: Model) -> MapResult:
    """Predict a map, or the rest of it, and write its files.

    Raises:
        InputError: as `predict`.
        OutputError: as `predict`.
    """
    ledger = Ledger(task.folder, task.origin, task.plan.lanes)
    earlier_px, started = ledger.finished_px, time.perf_counter()
    progress = partial(_progress, task, ledger)
    with note_kept("the map", progress, ledger.remove), keep_ledger_on_error(task.folder, progress):
        try:
            _predict_strips(task, ledger, model)
        except RasterChangedError:
            # The strips are of two versions.
            ledger.remove()
            raise
        seconds = time.perf_counter() - started
        _check_unchanged(task, ledger)
        _check_not_empty(task, ledger)
        ledger.finish()
        counts = write_files(task, ledger, partial(_write_cells, task, partial(_check_unchanged, task, ledger)))
    ledger.remove()
    computed_px = task.source.grid.height * task.source.grid.width - earlier_px
    return _result(task, counts, computed_px=computed_px, seconds=seconds)


def _predict_strips(task: MapTask, ledger: Ledger, model: Model) -> None:
    """Add the missing strips to the ledger."""
    grid, name = task.source.grid, f"predict {task.source.path.name}"
    total, done = grid.height * grid.width / 1e6, ledger.finished_px / 1e6
    with progress_bar(name, total, "Mpx", done=done) as bar, closing(task.source.mosaic):
        carry_over = partial(ledger.read_array, name=CARRY_OVER)
        with closing(blend(task.plan, task.source, model, ledger.tile_counts, carry_over)) as strips:
            for strip in strips:
                carried = {} if strip.carry_over is None else {CARRY_OVER: strip.carry_over}
                ledger.add(strip.window, strip.tiles, strip.data, carried | map_values(task, strip))
                bar.advance(strip.window.height * strip.window.width / 1e6)


def map_values(task: MapTask, strip: Strip) -> dict[str, ndarray]:
    """Return the values of the outputs in a strip's data, by the name of their array in the ledger."""
    if not (strip.data.width and strip.data.height):
        return {}
    legend, settings, encoding = task.card.legend, task.settings, _encoding(task)
    arrays: dict[str, ndarray] = {CLASSES: class_values(strip, legend, task.card.output_thresholds)}
    if settings.probabilities != "none":
        arrays[PROBABILITIES] = encoding.encode_probabilities(strip, legend)
    if settings.uncertainty:
        uncertainty = ensemble_std(strip) if task.has_std_layer else class_entropy(strip, legend)
        arrays[UNCERTAINTY] = encoding.encode(uncertainty, strip)
    return arrays


@dataclass(frozen=True)
class OutputCounts:
    """The mapped pixels of the outputs, or of a part of them."""

    classes: PixelCounts
    applicability: "ApplicabilityCounts | None" = None
    """Mapped pixels by the area of applicability; None if it was not requested."""


def write_files(task: MapTask, values: MapValues, write_cells: CellWriter, part: Window | None = None) -> OutputCounts:
    """Write the outputs of a map, given its values, and return their counts.

    With `part` they have only this part of the map, and `values` count rows and columns from there. `write_cells`
    writes the area of applicability, whose values are not among them.
    """
    legend, dtype = task.card.legend, _encoding(task).dtype
    grid = task.source.grid if part is None else task.source.grid.crop(part)
    dates = task.source.mosaic.acquired
    tags = map_tags(task.card, json_digest(task.origin)) | ({ACQUIRED_TAG: ", ".join(dates)} if dates else {})
    tags |= {BACKEND_TAG: str(task.origin["backend"]), PRECISION_TAG: task.precision}
    if task.probabilities:
        write_probabilities(task.probabilities, grid, values, legend, dtype, tags)
    if task.uncertainty:
        description = STD_DESCRIPTION if task.has_std_layer else ENTROPY_DESCRIPTION
        write_uncertainty(task.uncertainty, grid, values, dtype, tags, description)
    cells = write_cells(task.applicability, tags) if task.applicability else None
    # The map is written last, after its names and style: if it exists, all outputs exist.
    return OutputCounts(write_class_map(task.source.path, grid, values, legend, tags), cells)


def _encoding(task: MapTask) -> ProbabilityEncoding:
    return ProbabilityEncoding("float16" if task.settings.probabilities == "float16" else "uint8")


def _write_cells(task: MapTask, check: Callable[[], None], path: Path, tags: dict[str, str]) -> "ApplicabilityCounts":
    from geograft.mapping.applicability import ApplicabilityMapper  # noqa: PLC0415  (imports SciPy)

    return ApplicabilityMapper.load(task).write(path, tags, check)


def _result(task: MapTask, counts: OutputCounts | None = None, **speed: Any) -> MapResult:
    shape = task.source.grid.height, task.source.grid.width
    found = counts or OutputCounts(PixelCounts(0, {}))
    return MapResult(
        task.source.path,
        task.probabilities,
        task.uncertainty,
        shape,
        found.classes.by_class,
        applicability=task.applicability,
        outside_fraction=None if found.applicability is None else found.applicability.fraction,
        mapped_px=found.classes.pixels,
        **speed,
    )


def _check_not_empty(task: MapTask, ledger: Ledger) -> None:
    if not any(entry.data_width for entry in ledger.entries):
        ledger.remove()
        raise no_pixel_error(task.source)


def no_pixel_error(source: MapSource) -> InputError:
    """Return the error for rasters without a pixel to map."""
    where = f" inside {source.aoi}" if source.aoi else ""
    return InputError(
        f"{source.mosaic.name} has no valid pixel{where}: all are nodata. Check its nodata value and mask."
    )


def _check_unchanged(task: MapTask, ledger: Ledger) -> None:
    """Raise InputError if a raster changed while it was read: the strips are then useless."""
    changed = raster_changes(task, task.origin["rasters"])
    if changed:
        ledger.remove()
        raise InputError(
            f"{task.source.mosaic.name} changed while it was read: {changed[0]}. No map was written. "
            "Repeat the command once the raster no longer changes."
        )


def raster_changes(task: MapTask, before: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what has changed in the rasters of a map since their states were recorded, a line each."""
    state = task.source.mosaic.states()
    return differences({"rasters": list(before)}, {"rasters": state})


def _progress(task: MapTask, ledger: Ledger) -> str:
    """Return the finished fraction of the map as text; empty if no tile was predicted."""
    if not any(ledger.tile_counts):
        return ""
    return f"{ledger.finished_px / (task.source.grid.height * task.source.grid.width):.1%} of the map is"
