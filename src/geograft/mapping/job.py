"""Making one map: computing its strips, then writing its files from them."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt32
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import json_digest, refuse_existing, remove_scratch
from geograft.geo.rasters.raster import raster_state
from geograft.geo.rasters.tags import BACKEND_TAG, ORIGIN_TAG, map_tags
from geograft.mapping.applicability import write_applicability
from geograft.mapping.blend import Model, Strip, blend
from geograft.mapping.classmap import (
    CLASSES,
    PROBABILITIES,
    UNCERTAINTY,
    Shares,
    class_values,
    entropy,
    probabilities,
    spread,
    write_class_map,
    write_probabilities,
    write_uncertainty,
)
from geograft.mapping.ledger import Ledger
from geograft.mapping.plan import Task, map_tags_of
from geograft.progress import Meter, meter
from geograft.resume import differences, is_complete, keeping, remove_ledger

SPILL = "spill"
"""Name of what a strip adds to the next panel, in the ledger."""
ENTROPY_IN_WORDS = "entropy of the class probabilities, divided by its largest value, log(number of classes)"
SPREAD_IN_WORDS = (
    "standard deviation over the runs of the class probability, of the class with the largest, "
    "divided by its largest value, 0.5"
)

MOST_OUTSIDE = 0.1
"""From this share of a map outside the area of applicability on, it is said to be doubtful."""


@dataclass(frozen=True)
class MadeMap:
    """One map that was written."""

    path: Path
    probabilities: Path | None
    uncertainty: Path | None
    shape: tuple[int, int]
    """Rows and columns."""
    pixels: Mapping[str, int]
    """Mapped pixels by class name; empty for a map that an earlier job finished."""
    computed_px: int = 0
    """Pixels of the raster that this job went through; the rest a job before it that was killed."""
    seconds: float = 0.0
    """Time that this job took to compute them."""
    applicability: Path | None = None
    outside: float | None = None
    """Share of the mapped area outside the area of applicability; None where that was not asked, or found before."""
    mapped_px: int = 0
    """Pixels that have a value, of whatever class; where classes overlap, those of all classes are more or fewer."""

    def lines(self) -> list[str]:
        """Return size, speed and the shares of the classes as text."""
        size = f"{self.path}: {self.shape[1]:,} x {self.shape[0]:,} pixels"
        if not self.pixels:
            return [f"{size}, finished before"]
        mpx, before = self.computed_px / 1e6, (self.shape[0] * self.shape[1] - self.computed_px) / 1e6
        speed = f", {mpx:.2f} Mpx in {self.seconds:.1f} s ({mpx / self.seconds:.2g} Mpx/s)" if mpx else ""
        speed += f", {before:.2f} Mpx kept from before" if before else ""
        wide = max(map(len, self.pixels))
        shares = [f"  {name:{wide}} {count / self.mapped_px:7.1%}" for name, count in self.pixels.items()]
        also = [f"{self.probabilities}: the probability of every class"] if self.probabilities else []
        also += [f"{self.uncertainty}: the uncertainty of every pixel"] if self.uncertainty else []
        if self.outside is not None:
            also += [
                f"{self.applicability}: {self.outside:.1%} of the mapped area lies outside the area of applicability"
            ]
        return [f"{size}{speed}", *shares, *also]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the map, a line each."""
        if self.outside is None or self.outside <= MOST_OUTSIDE:
            return ()
        return (
            f"{self.outside:.1%} of {self.path} looks unlike all that the run was trained on; its scores say nothing "
            f"about that. {self.applicability} shows where (above 1). Label some of it and train again; "
            "`geograft sample` draws places to look at.",
        )


def made_before(task: Task, alone: bool) -> MadeMap | None:
    """Return the map when an earlier job finished it from the same origin, and remove what a kill left of its ledger.

    A map that is made `alone` and finished is not made again either, but said to exist: there is nothing else to do.

    Raises:
        OutputError: when other files are where the map's shall be.
    """
    path = task.job.path
    same = path.exists() and map_tags_of(path).get(ORIGIN_TAG) == json_digest(task.origin)
    if same and task.folder.exists():
        remove_scratch(path)
        remove_ledger(task.folder)
        return _finished(task)
    if same and not alone:
        return _finished(task)
    if not is_complete(task.folder):
        for there in (path, task.probabilities, task.uncertainty, task.applicability):
            if there:
                refuse_existing(there)
    return None


def make(task: Task, model: Model) -> MadeMap:
    """Compute a map, or what is left of it, and write its files.

    Raises:
        InputError: as `predict`.
        OutputError: as `predict`.
    """
    ledger = Ledger(task.folder, task.origin)
    legend, grid, tags = task.card.legend, task.job.grid, _tags(task)
    before, started = _pixels(ledger), time.perf_counter()
    with keeping(task.folder, lambda: _held(task, ledger)):
        _compute(task, ledger, model)
        seconds = time.perf_counter() - started
        _check_unchanged(task, ledger)
        _check_any(task, ledger)
        ledger.finish()
        if task.probabilities and task.settings.probabilities != "none":
            write_probabilities(task.probabilities, grid, ledger, legend, task.settings.probabilities, tags)
        if task.uncertainty:
            what = SPREAD_IN_WORDS if task.spread else ENTROPY_IN_WORDS
            write_uncertainty(task.uncertainty, grid, ledger, _shares(task).dtype, tags, what)
        outside = _write_applicability(task, ledger, tags)
        # The map comes last: when it is there, all is.
        mapped = write_class_map(task.job.path, grid, ledger, legend, tags)
    ledger.remove()
    return _finished(
        task,
        pixels=mapped.by_class,
        mapped_px=mapped.pixels,
        computed_px=grid.height * grid.width - before,
        seconds=seconds,
        outside=outside,
    )


@dataclass(frozen=True)
class Strips:
    """The ledger as what strips are given to."""

    task: Task
    ledger: Ledger
    bar: Meter

    @property
    def tiles(self) -> list[int]:
        """How many tiles each finished lane had."""
        return [entry.tiles for entry in self.ledger.entries]

    def add(self, strip: Strip) -> None:
        """Keep what the files will hold of a strip."""
        arrays = _arrays(self.task, strip) if strip.data.width and strip.data.height else {}
        spill = {} if strip.spill is None else {SPILL: strip.spill}
        self.ledger.add(strip.window, strip.tiles, strip.data, arrays | spill)
        self.bar.advance(strip.window.height * strip.window.width / 1e6)

    def spill(self, lane: int) -> UInt32[ndarray, "layers h s"] | None:
        """Return what a finished strip adds to the next panel."""
        return self.ledger.array(lane, SPILL)


def _compute(task: Task, ledger: Ledger, model: Model) -> None:
    """Add the strips that the ledger does not hold yet."""
    grid = task.job.grid
    with meter(f"predict {task.job.path.name}", grid.height * grid.width / 1e6, "Mpx") as bar, closing(task.job.mosaic):
        bar.advance(_pixels(ledger) / 1e6)
        blend(task.plan, task.job, model, Strips(task, ledger, bar))


def _arrays(task: Task, strip: Strip) -> dict[str, ndarray]:
    legend, settings = task.card.legend, task.settings
    arrays: dict[str, ndarray] = {CLASSES: class_values(strip, legend, task.card.cuts)}
    if settings.probabilities != "none":
        arrays[PROBABILITIES] = _shares(task).stored(probabilities(strip, legend), strip)
    if settings.uncertainty:
        uncertain = spread(strip) if task.spread else entropy(strip, legend)
        arrays[UNCERTAINTY] = _shares(task).stored(uncertain, strip)
    return arrays


def _tags(task: Task) -> dict[str, str]:
    return map_tags(task.card, json_digest(task.origin)) | {BACKEND_TAG: str(task.origin["backend"])}


def _write_applicability(task: Task, ledger: Ledger, tags: dict[str, str]) -> float | None:
    """Write the area of applicability when it is asked for, and return the share of the map outside of it."""
    if not task.applicability:
        return None
    return write_applicability(task.applicability, task, tags, lambda: _check_unchanged(task, ledger)).share


def _shares(task: Task) -> Shares:
    return Shares("float16" if task.settings.probabilities == "float16" else "uint8")


def _pixels(ledger: Ledger) -> int:
    """Return how many pixels of the map are finished."""
    return sum(entry.height * entry.width for entry in ledger.entries)


def _finished(task: Task, **done: Any) -> MadeMap:
    shape = task.job.grid.height, task.job.grid.width
    beside: dict[str, Any] = {"applicability": task.applicability, "pixels": {}}
    return MadeMap(task.job.path, task.probabilities, task.uncertainty, shape, **{**beside, **done})


def _check_any(task: Task, ledger: Ledger) -> None:
    if not any(entry.data_width for entry in ledger.entries):
        ledger.remove()
        where = f" inside {task.job.aoi}" if task.job.aoi else ""
        raise InputError(
            f"{task.job.mosaic.name} has no valid pixel{where}: all is nodata. Check its nodata value and mask."
        )


def _check_unchanged(task: Task, ledger: Ledger) -> None:
    """Raise InputError when a raster was written to while it was read: what was computed is of no use."""
    now = [raster_state(path) for path in task.job.rasters]
    changed = differences({"rasters": task.origin["rasters"]}, {"rasters": now})
    if changed:
        ledger.remove()
        raise InputError(
            f"{task.job.mosaic.name} changed while it was read: {changed[0]}. No map was written. "
            "Give the command again when the raster stays as it is."
        )


def _held(task: Task, ledger: Ledger) -> str:
    """Return how much of the map is finished, in words; nothing when no tile was computed."""
    if not any(entry.tiles for entry in ledger.entries):
        return ""
    return f"{_pixels(ledger) / (task.job.grid.height * task.job.grid.width):.1%} of the map is"
