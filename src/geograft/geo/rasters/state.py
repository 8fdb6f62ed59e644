"""What tells whether a raster is still the same, without reading its pixels."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geograft.files import json_digest
from geograft.geo.rasters.raster import open_raster

STATISTICS = ".aux.xml"
"""Written by programs that only looked at a raster."""


def raster_state(path: Path) -> dict[str, Any]:
    """Return path, size and time of a raster, with all files that belong to it: masks, world files, a VRT's sources.

    Raises:
        InputError: when it is not there, or no raster.
    """
    with open_raster(path) as raster:
        files = sorted({Path(name) for name in raster.files if not name.endswith(STATISTICS)} | {path})
    states = [(file.name, state.st_size, state.st_mtime_ns) for file in files for state in [file.stat()]]
    several = {"files": len(files), "state": json_digest(states)[:16]} if len(files) > 1 else {}
    size, modified = sum(size for _, size, _ in states), max(time for *_, time in states)
    return {"path": str(path.resolve()), "bytes": size, "modified": _utc(modified), **several}


def _utc(ns: int) -> str:
    """Return a time in UTC to the nanosecond."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}.{ns % 10**9:09d}"
