"""Run `polygons`, kill it with SIGKILL at several moments, and resume it. Run by test_polygons_resume.py.

    python -m tests.support.kill_polygons FOLDER

FOLDER/whole is not interrupted. In FOLDER/<moment> the job is killed twice at the same moment and then finished. Prints
one line per moment: its name, the signal that ended the first process, and the rows that it had done.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy import ndimage

from geograft.commands.polygons import polygons
from geograft.config import PolygonConfig
from geograft.geo.rasters.raster import Image
from tests.support.processes import Fuse, run_in_child
from tests.support.rasters import write_raster

HEIGHT, WIDTH = 2600, 40
CONFIG = PolygonConfig(fill_holes_m2=0.05, min_area_m2=0.03, simplify_m=0.1, smooth=1, connectivity=8)


def killed_while_reading(length: int) -> Callable[[], None]:
    def arm() -> None:
        fuse, read = Fuse(length), Image.read

        def burning(self: Image, *args: object) -> tuple[ndarray, ndarray]:
            fuse.burn()
            return read(self, *args)  # type: ignore[arg-type]

        Image.read = burning  # type: ignore[method-assign, assignment]

    return arm


def killed_at_file(length: int, after: bool) -> Callable[[], None]:
    """Return a function that kills the process before or after the `length`-th finished file is moved into place."""

    def arm() -> None:
        fuse, replace = Fuse(length), Path.replace

        def burning(self: Path, target: Path) -> Path:
            if not after:
                fuse.burn()
            result = replace(self, target)
            if after:
                fuse.burn()
            return result

        Path.replace = burning  # type: ignore[method-assign, assignment]

    return arm


def try_moment(folder: Path, name: str, arm: Callable[[], None]) -> str:
    """Kill a job twice at the same moment, let it finish, and return what the first kill left."""
    parts = folder / name / ".map.gpkg.part"

    def doomed() -> None:
        arm()
        run(folder, name)

    ended_by = run_in_child(doomed)
    rows = json.loads((parts / "ledger.json").read_text(encoding="utf-8"))["rows_done"] if parts.exists() else 0
    if parts.exists():
        run_in_child(doomed)
    if parts.exists():
        assert run_in_child(lambda: run(folder, name)) == 0
    return f"{name} {ended_by} {rows}"


def run(folder: Path, name: str) -> None:
    polygons(folder / "map.tif", folder / name / "map.gpkg", CONFIG)


def main(folder: Path) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, HEIGHT, WIDTH)), (0, 5, 5))
    write_raster(folder / "map.tif", (noise.argmax(axis=0) + 1).astype(np.uint8)[None], nodata=255)
    os.utime(folder / "map.tif", (1_700_000_000, 1_700_000_000))
    assert run_in_child(lambda: run(folder, "whole")) == 0
    # Files: the ledger; part, state and ledger for each of three rows of blocks; the ledger; the result.
    moments = {f"read-{n}": killed_while_reading(n) for n in (1, 2, 3)}
    moments |= {f"before-file-{n}": killed_at_file(n, after=False) for n in (2, 3, 4, 7, 11, 12)}
    moments |= {f"after-file-{n}": killed_at_file(n, after=True) for n in (1, 2, 4, 6, 11)}
    for name, arm in moments.items():
        sys.stdout.write(try_moment(folder, name, arm) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
