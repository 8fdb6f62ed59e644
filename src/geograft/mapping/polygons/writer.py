"""Files of polygons from a map, in the format that their suffix names.

.gpkg               GeoPackage in the map's CRS
.geojson .json      GeoJSON in WGS 84 (RFC 7946)
.fgb                FlatGeobuf in the map's CRS
.parquet            GeoParquet 1.1 in the map's CRS
.csv                DSTL's submission: WKT in its own coordinates

Polygons as the DSTL competition takes them: a table of WKT in its own coordinates.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import shapely

from geograft.dataset.dstl import NAMES, read_extents, to_pixels
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import writing
from geograft.geo.grid import Grid
from geograft.geo.measure import on_ground
from geograft.geo.vectors.arrow import as_multi, write_geoparquet
from geograft.geo.vectors.reader import Features
from geograft.geo.vectors.writer import dated, refusals, write_flatgeobuf, write_geojson, write_geopackage

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


STEP = 1e-9
"""What coordinates are rounded to; a pixel is some 2.7e-6."""
HEADER = ("ImageId", "ClassType", "MultipolygonWKT")


def extent_of(image: str, table: Path) -> tuple[float, float]:
    """Return (Xmax, Ymin) of an image from DSTL's grid_sizes.csv.

    Raises:
        InputError: when the table cannot be read or does not name the image.
    """
    extents = read_extents(table)
    if image not in extents:
        raise InputError(
            f"{table} does not name {image}, of which the map would be. Name the map as its image, {image}.tif."
        )
    return extents[image]


def class_number(value: int, name: str) -> int:
    """Return DSTL's number of a class: by its name where DSTL has it, else its value.

    Raises:
        InputError: when it is neither.
    """
    numbers = {known: number for number, known in NAMES.items()}
    number = numbers.get(name, value)
    if number not in NAMES:
        table = ", ".join(f"{number} {known}" for number, known in NAMES.items())
        raise InputError(f"Class {name!r} ({value}) is none of DSTL's. A submission holds these: {table}.")
    return number


def write_submission(
    part: Path, batches: Iterable[Features], image: str, grid: Grid, extent: tuple[float, float]
) -> int:
    """Write polygons in pixels as ten rows, one a class of DSTL, and return their number.

    Every row holds valid geometry: rounding goes by shapely's set_precision. Memory: all polygons of the image.

    Raises:
        InputError: when a class is none of DSTL's.
    """
    place = ~to_pixels(extent, grid)
    shapes: dict[int, list[shapely.Geometry]] = {number: [] for number in NAMES}
    for batch in batches:
        for shape, value, name in zip(batch.shapes, batch.columns["value"], batch.columns["class"], strict=True):
            shapes[class_number(int(value), str(name))].append(shape)
    with part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for number, own in shapes.items():
            table.writerow((image, number, _wkt(own, np.array([place.a, place.e]))))
    return sum(map(len, shapes.values()))


def _wkt(shapes: list[shapely.Geometry], scale: np.ndarray) -> str:
    """Return polygons in pixels as one multipolygon in DSTL's coordinates."""
    if not shapes:
        return "MULTIPOLYGON EMPTY"
    parts = shapely.get_parts(np.array(shapes, object))
    whole = shapely.transform(shapely.multipolygons(parts), lambda points: points * scale)
    rounded = shapely.set_precision(whole, STEP)
    return str(shapely.to_wkt(as_multi(np.array([rounded], object))[0], rounding_precision=9))
