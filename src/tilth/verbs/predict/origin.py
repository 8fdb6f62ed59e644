"""Everything that decides what a map holds, and whether it is still the same."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tilth.card import CARD, WEIGHTS
from tilth.config import PredictConfig
from tilth.files import file_digest, json_digest
from tilth.geo.raster import open_raster
from tilth.verbs.predict.plan import Job

STATISTICS = ".aux.xml"
"""Written by programs that only looked at a raster."""


@runtime_checkable
class Runs(Protocol):
    """What computes."""

    backend: str


def origin(runs: Sequence[Path], job: Job, settings: PredictConfig, mapper: Runs) -> dict[str, Any]:
    """Return what decides a map: runs, rasters, area, settings, and what computes it. Reads each run's weights once."""
    return {
        "runs": [
            {"path": str(run.resolve()), "weights": file_digest(run / WEIGHTS), "card": file_digest(run / CARD)}
            for run in runs
        ],
        "settings": asdict(settings) | {"bands": list(settings.bands)},
        "backend": mapper.backend,
        "versions": {name: version(name) for name in ("tilth", "torch")},
        "area": {"path": str(job.aoi.resolve()), "digest": file_digest(job.aoi)} if job.aoi else None,
        "rasters": raster_states(job.rasters),
    }


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
