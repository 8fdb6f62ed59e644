"""Everything that decides what a map holds, and whether it is still the same."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tilth.applicability import KNOWN
from tilth.card import CARD, WEIGHTS
from tilth.errors import InputError
from tilth.files import file_digest, json_digest
from tilth.geo.rasters.maptags import BACKEND_TAG
from tilth.geo.rasters.raster import Image, open_raster
from tilth.making import origin_of
from tilth.verbs.predict.plan import Task

STATISTICS = ".aux.xml"
"""Written by programs that only looked at a raster."""


def origin(task: Task, backend: str) -> dict[str, Any]:
    """Return what decides a map: runs, rasters, area, settings, and what computes it. Reads each run's weights once."""
    job, settings = task.job, task.settings
    return {
        "runs": [
            {"path": str(run.resolve()), "weights": file_digest(run / WEIGHTS), "card": file_digest(run / CARD)}
            for run in task.runs
        ],
        "known": file_digest(task.runs[0] / KNOWN) if settings.applicability else None,
        "settings": asdict(settings) | {"bands": list(settings.bands)},
        "backend": backend,
        "versions": {name: version(name) for name in ("tilth", "torch")},
        "area": {"path": str(job.aoi.resolve()), "digest": file_digest(job.aoi)} if job.aoi else None,
        "rasters": raster_states(job.rasters),
    }


def backend_for(tasks: Sequence[Task]) -> str:
    """Return the backend to ask for: that of the settings; for "auto" the one that an earlier job found.

    What is fastest differs from day to day, and a map that was begun with one is not gone on with another.
    """
    asked = tasks[0].settings.backend
    if asked != "auto":
        return asked
    found = (_backend_before(task) for task in tasks)
    return next((backend for backend in found if backend), asked)


def map_tags_of(path: Path) -> dict[str, str]:
    """Return the metadata of a map; none where there is no raster."""
    try:
        with Image.open(path) as image:
            return image.info.tags
    except InputError:
        return {}


def _backend_before(task: Task) -> str | None:
    begun = origin_of(task.folder)
    return begun.get("backend") if begun else map_tags_of(task.job.path).get(BACKEND_TAG)


def raster_states(rasters: Sequence[Path]) -> list[dict[str, Any]]:
    """Return path, size and time of each raster, with all files that belong to it: masks, world files, a VRT's sources.

    Raises:
        InputError: when one is not there any more.
    """
    return [_state(path) for path in rasters]


def _state(path: Path) -> dict[str, Any]:
    with open_raster(path) as raster:
        files = sorted({Path(name) for name in raster.files if not name.endswith(STATISTICS)} | {path})
    states = [(file.name, state.st_size, state.st_mtime_ns) for file in files for state in [file.stat()]]
    several = {"files": len(files), "state": json_digest(states)[:16]} if len(files) > 1 else {}
    size, modified = sum(size for _, size, _ in states), max(time for *_, time in states)
    return {"path": str(path.resolve()), "bytes": size, "modified": _when(modified), **several}


def _when(ns: int) -> str:
    """Return a time in UTC to the nanosecond."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}.{ns % 10**9:09d}"
