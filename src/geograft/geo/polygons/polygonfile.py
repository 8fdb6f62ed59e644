"""Files of polygons from a map, in the format that their suffix names.

.gpkg               GeoPackage in the map's CRS
.geojson .json      GeoJSON in WGS 84 (RFC 7946)
.fgb                FlatGeobuf in the map's CRS
.parquet            GeoParquet 1.1 in the map's CRS
.csv                DSTL's submission: WKT in its own coordinates
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from geograft.errors import OutputError, SettingError
from geograft.files import writing
from geograft.geo.grid import Grid
from geograft.geo.polygons.submission import extent_of, write_submission
from geograft.geo.vectors.arrowout import write_geoparquet
from geograft.geo.vectors.features import Features
from geograft.geo.vectors.measure import on_ground
from geograft.geo.vectors.vectorout import dated, refusals, write_flatgeobuf, write_geojson, write_geopackage

ARROW = (".fgb", ".parquet")
"""Formats that need pyarrow."""


@dataclass(frozen=True)
class Target:
    """Where polygons go."""

    path: Path
    grid: Grid
    """The map's."""
    image: str
    """The map's name, which is DSTL's name of the image."""
    dstl_grid: Path | None
    """DSTL's grid_sizes.csv, for its format."""
    moment: datetime
    """When the map was written. Files that state a time state this one."""

    @property
    def suffix(self) -> str:
        """The suffix in small letters, which names the format."""
        return self.path.suffix.lower()


def check_target(target: Target) -> None:
    """Raise what is wrong with a target, before any work is done.

    Raises:
        OutputError: when the suffix names no format, or one that needs a package which is not installed.
        SettingError: when DSTL's format lacks its grid sizes, or they are given for another.
        InputError: when these cannot be read or lack the image.
    """
    if target.suffix not in WRITERS:
        raise OutputError(f"{target.path}: polygons are written as {', '.join(WRITERS)}. Choose one of these suffixes.")
    if target.suffix in ARROW and find_spec("pyarrow") is None:
        raise OutputError(f"{target.path}: {target.suffix} needs pyarrow. Install it: pip install 'geograft[parquet]'.")
    if (target.suffix == ".csv") != (target.dstl_grid is not None):
        raise SettingError(
            f"{target.path}: .csv is DSTL's submission, and --dstl-grid its grid_sizes.csv. Give both or neither."
        )
    if target.dstl_grid:
        extent_of(target.image, target.dstl_grid)


def write_into(folder: Path, target: Target, batches: Iterable[Features]) -> int:
    """Write polygons in pixels to their file by way of `folder`, and return their number.

    The first batch, which may be empty, states the columns. The file appears whole or not at all, and equal polygons
    make equal files. Memory: one batch; of all polygons for DSTL.

    Raises:
        OutputError: when it cannot be written.
    """
    part = folder / f"out{target.suffix}"
    with writing(target.path), refusals(target.path), dated(target.moment):
        try:
            for left in folder.glob("out.*"):
                left.unlink()
            written = WRITERS[target.suffix](part, batches, target)
            part.replace(target.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return written


def _placed(batches: Iterable[Features], grid: Grid) -> Iterator[Features]:
    """Yield features on the ground."""
    return (replace(batch, shapes=on_ground(np.asarray(batch.shapes, object), grid)) for batch in batches)


def _geopackage(part: Path, batches: Iterable[Features], to: Target) -> int:
    return write_geopackage(part, _placed(batches, to.grid), to.grid.crs, to.path.stem)


def _geojson(part: Path, batches: Iterable[Features], to: Target) -> int:
    return write_geojson(part, _placed(batches, to.grid), to.grid.crs, to.path.stem)


def _flatgeobuf(part: Path, batches: Iterable[Features], to: Target) -> int:
    return write_flatgeobuf(part, _placed(batches, to.grid), to.grid.crs, to.path.stem)


def _geoparquet(part: Path, batches: Iterable[Features], to: Target) -> int:
    return write_geoparquet(part, _placed(batches, to.grid), to.grid.crs)


def _submission(part: Path, batches: Iterable[Features], to: Target) -> int:
    assert to.dstl_grid is not None
    return write_submission(part, batches, to.image, to.grid, extent_of(to.image, to.dstl_grid))


WRITERS: dict[str, Callable[[Path, Iterable[Features], Target], int]] = {
    ".gpkg": _geopackage,
    ".geojson": _geojson,
    ".json": _geojson,
    ".fgb": _flatgeobuf,
    ".parquet": _geoparquet,
    ".csv": _submission,
}
"""By suffix."""
