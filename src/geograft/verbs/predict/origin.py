"""Everything that decides what a map holds, and whether it is still the same."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from geograft.applicability import KNOWN
from geograft.card import CARD, WEIGHTS
from geograft.errors import InputError
from geograft.files import file_digest
from geograft.geo.rasters.maptags import BACKEND_TAG
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.state import raster_state
from geograft.making import origin_of
from geograft.verbs.predict.plan import Task


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
        "versions": {name: version(name) for name in ("geograft", "torch")},
        "area": {"path": str(job.aoi.resolve()), "digest": file_digest(job.aoi)} if job.aoi else None,
        "rasters": [raster_state(path) for path in job.rasters],
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
