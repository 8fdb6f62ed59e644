"""Make polygons, killed by SIGKILL at each moment worth trying, then go on. Run by test_polygons_resume.py.

    python -m tests.support.kill_polygons FOLDER

FOLDER/whole is not interrupted; FOLDER/<moment> is, three times over. Prints one line a moment: its name, the signal
that ended the first process, and the rows that it had done.
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
from tests.support.processes import Fuse, in_a_process
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
    """Return what arms a fuse on the moment before or after a finished file takes its place."""

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
    """Kill a job twice at the same moment, let it come to its end, and say what the first kill left."""
    parts = folder / name / ".map.gpkg.part"

    def doomed() -> None:
        arm()
        made(folder, name)

    ended_by = in_a_process(doomed)
    rows = json.loads((parts / "ledger.json").read_text(encoding="utf-8"))["rows_done"] if parts.exists() else 0
    if parts.exists():
        in_a_process(doomed)
    if parts.exists():
        assert in_a_process(lambda: made(folder, name)) == 0
    return f"{name} {ended_by} {rows}"


def made(folder: Path, name: str) -> None:
    polygons(folder / "map.tif", folder / name / "map.gpkg", CONFIG)


def main(folder: Path) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, HEIGHT, WIDTH)), (0, 5, 5))
    write_raster(folder / "map.tif", (noise.argmax(axis=0) + 1).astype(np.uint8)[None], nodata=255)
    os.utime(folder / "map.tif", (1_700_000_000, 1_700_000_000))
    assert in_a_process(lambda: made(folder, "whole")) == 0
    # Files: the ledger; part, state and ledger for each of three rows of blocks; the ledger; the result.
    moments = {f"read-{n}": killed_while_reading(n) for n in (1, 2, 3)}
    moments |= {f"before-file-{n}": killed_at_file(n, after=False) for n in (2, 3, 4, 7, 11, 12)}
    moments |= {f"after-file-{n}": killed_at_file(n, after=True) for n in (1, 2, 4, 6, 11)}
    for name, arm in moments.items():
        sys.stdout.write(try_moment(folder, name, arm) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
