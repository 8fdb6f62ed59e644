"""Imports a file that was sent to `geograft serve`, in a process of its own with limits, which the server starts.

    python -m geograft.commands.import_upload REQUEST

The request is JSON, see `main`. The server has recognised the file's format by its first bytes, named it, and put it
into a folder of its own, so that nothing lies beside it. Here it is checked further than a file that the user chose:
its pixels are counted before any is decoded, and a database may hold nothing but tables of features. What a library
does with it nevertheless ends at the limits. The last line on stdout is the result as JSON; the exit code is 1 after an
error.
"""

import json
import re
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from geograft.commands.import_labels import import_labels
from geograft.cores import limit_process
from geograft.errors import GeograftError, InputError
from geograft.geo.rasters.raster import Image

MAX_PIXELS = 2**28
"""Maximum number of pixels: 16,384 x 16,384."""
MAX_DECODED_BYTES = 2**30
"""Maximum size of the decoded pixels."""
TRIGGERS = re.compile(r"(rtree_|trigger_(insert|delete)_feature_count_|gpkg_)\w+", re.ASCII)
"""Names of the triggers that GDAL and QGIS write; reading runs none."""
COMPUTED = re.compile(r"\bgenerated\s+always\b|\)\s*as\s*\(|\bas\s*\(", re.IGNORECASE)
TOO_LARGE = "The file needs more memory than an upload may use. Import it with `geograft project --import`."


def check_upload(path: Path) -> None:
    """Raise InputError if a file is larger when it is decoded than an upload may be, or computes something."""
    if path.suffix == ".gpkg":
        _check_database(path)
    elif path.suffix in (".tif", ".png"):
        _check_raster(path)


def _check_raster(path: Path) -> None:
    with Image.open(path) as image:
        info = image.info
    pixels = info.grid.height * info.grid.width
    size = pixels * (info.bands + bool(info.alpha)) * np.dtype(info.dtype).itemsize
    if pixels > MAX_PIXELS or size > MAX_DECODED_BYTES:
        raise InputError(
            f"{path} has {info.grid.width:,} x {info.grid.height:,} pixels, {size / 1e6:,.0f} MB when decoded; an "
            f"upload may have {MAX_PIXELS:,} pixels and {MAX_DECODED_BYTES / 1e6:,.0f} MB. Use `geograft project "
            "--import`."
        )


def _check_database(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as file:
            file.execute("PRAGMA trusted_schema = OFF")
            rows = file.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{path} cannot be read as a GeoPackage: {error}. Export it again.") from error
    for kind, name, statement in rows:
        fault = _fault(str(kind), str(name), str(statement or ""))
        if fault:
            raise InputError(f"{path} has {fault}, which an upload may not. Export the layer as a new GeoPackage.")


def _fault(kind: str, name: str, statement: str) -> str:
    """Return what an entry of a database's schema computes; empty if nothing."""
    if kind == "view":
        return "a view"
    if kind == "trigger" and not TRIGGERS.fullmatch(name):
        return "a trigger of its own"
    return "a computed column" if kind == "table" and COMPUTED.search(statement) else ""


def main(arguments: Sequence[str]) -> int:
    """Import a file and print the result; return the exit code.

    The request has the `folder` of the project, the `file` in the working directory, the `class_name` of everything in
    it (empty: by attribute), the `origin`, and the limits `memory_bytes`, `processor_s` and `file_bytes`.
    """
    request: dict[str, Any] = json.loads(arguments[0])
    limit_process(*(request[name] for name in ("memory_bytes", "processor_s", "file_bytes")))
    path = Path(request["file"])
    try:
        check_upload(path)
        made = import_labels(request["folder"], path, request["class_name"], origin=request["origin"])
        answer = asdict(made) | {"path": made.path.name}
    except GeograftError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": TOO_LARGE}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    return int("error" in answer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
