"""Polygons as the DSTL competition takes them: a table of WKT in its own coordinates."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import shapely

from geograft.errors import InputError
from geograft.geo.grid import Grid
from geograft.geo.tilesets.dstl import NAMES, read_extents, to_pixels
from geograft.geo.vectors.arrowout import as_multi
from geograft.geo.vectors.features import Features

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
