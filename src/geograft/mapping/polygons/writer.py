"""Write the polygons of a map in the format of the file's suffix.

.gpkg               GeoPackage in the map's CRS
.geojson .json      GeoJSON in WGS 84 (RFC 7946)
.fgb                FlatGeobuf in the map's CRS
.parquet            GeoParquet 1.1 in the map's CRS
.csv                submission to the DSTL competition: WKT in its own coordinates
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from geograft.dataset.dstl import CLASS_NAMES, read_extents, to_pixels
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import translate_write_errors
from geograft.geo.grid import Grid
from geograft.geo.measure import to_gis_coordinates
from geograft.geo.vectors.arrow import to_multipolygons, write_geoparquet
from geograft.geo.vectors.reader import WGS84, Features
from geograft.geo.vectors.styles import Entry, FieldForm, categorized_style
from geograft.geo.vectors.writer import (
    Layer,
    fixed_date,
    output_errors,
    write_flatgeobuf,
    write_geojson,
    write_geopackage,
)

JSON_SUFFIXES = (".geojson", ".json")
ARROW_SUFFIXES = (".fgb", ".parquet")
"""Formats that need pyarrow."""


ALIASES = {
    "class": "Class",
    "value": "Value in the map",
    "area_m2": "Area in square metres",
    "area_px": "Area in pixels",
    "perimeter_m": "Perimeter in metres",
    "perimeter_px": "Perimeter in pixels",
    "mean_probability": "Mean probability of the class",
    "uncertain_fraction": "Fraction of uncertain pixels",
}
"""The fields in words."""
LAYER = "polygons"
"""Name of the layer where the name of the file cannot be used."""
LAYER_NAME, RESERVED_NAMES = (
    re.compile(r"\w[\w .()'+-]*"),
    re.compile(r"gpkg|sqlite_|rtree_|layer_styles$", re.IGNORECASE),
)


def layer_name(path: Path) -> str:
    """Return the name of the layer in a file of polygons: the file's, unless a GeoPackage reserves or refuses it.

    >>> layer_name(Path("map.gpkg")), layer_name(Path("sqlite_a.gpkg"))
    ('map', 'polygons')
    """
    name = path.stem
    return LAYER if RESERVED_NAMES.match(name) or not LAYER_NAME.fullmatch(name) else name


@dataclass(frozen=True)
class PolygonTarget:
    """The output file of polygons, and what its format needs."""

    path: Path
    grid: Grid
    """The map's grid."""
    image_id: str
    """The map's name, which is the ImageId in a DSTL submission."""
    dstl_grid: Path | None
    """DSTL's grid_sizes.csv; for .csv only."""
    timestamp: datetime
    """Modification time of the map, stored in formats that hold a time, so that equal maps give equal files."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Colour #RRGGBB of each class, for formats that hold a style."""

    @property
    def suffix(self) -> str:
        """The suffix in lower case."""
        return self.path.suffix.lower()

    @property
    def layer(self) -> str:
        """The layer's name."""
        return layer_name(self.path)


def check_target(target: PolygonTarget) -> None:
    """Check that a target can be written, before any work is done.

    Raises:
        OutputError: when the name has control characters, the suffix is unknown, or its format needs a package that
            is not installed.
        SettingError: when .csv is given without DSTL's grid sizes, or these with another suffix.
        InputError: when the grid sizes cannot be read or lack the image; when the format cannot hold the CRS.
    """
    if any(ord(letter) < ord(" ") for letter in target.path.name):
        raise OutputError(f"{str(target.path)!r} contains control characters. Choose another --out.")
    if target.suffix not in WRITERS:
        raise OutputError(f"{target.path}: unknown suffix for polygons. Use one of {', '.join(WRITERS)}.")
    if target.suffix in ARROW_SUFFIXES and find_spec("pyarrow") is None:
        raise OutputError(f"{target.path}: {target.suffix} needs pyarrow. Install it: pip install 'geograft[parquet]'.")
    if (target.suffix == ".csv") != (target.dstl_grid is not None):
        raise SettingError(
            f"{target.path}: a DSTL submission is a .csv file and needs --dstl-grid. Give both or neither."
        )
    if target.suffix in JSON_SUFFIXES and target.grid.crs is not None and not _can_be_in_wgs84(target.grid.crs):
        raise InputError(
            f"{target.path}: GeoJSON is in WGS 84, which {target.grid.crs.name}, the CRS of the map, cannot be "
            "transformed to. Write .gpkg, which keeps the CRS."
        )
    if target.dstl_grid:
        image_extent(target.image_id, target.dstl_grid)


def _can_be_in_wgs84(crs: CRS) -> bool:
    try:
        Transformer.from_crs(crs, WGS84)
    except ProjError:
        return False
    return True


def write_polygon_file(folder: Path, target: PolygonTarget, batches: Iterable[Features]) -> int:
    """Write polygons in pixels to a temporary file in `folder`, move it to the target, and return their number.

    The first batch, which may be empty, defines the columns. The target appears complete or not at all, and equal
    polygons give equal files. Memory: one batch; for DSTL, all polygons.

    Raises:
        OutputError: when the file cannot be written.
    """
    part = folder / f"out{target.suffix}"
    with translate_write_errors(target.path), output_errors(target.path), fixed_date(target.timestamp):
        try:
            for stale in folder.glob("out.*"):
                stale.unlink()
            written = WRITERS[target.suffix](part, batches, target)
            part.replace(target.path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    return written


def _placed(batches: Iterable[Features], grid: Grid) -> Iterator[Features]:
    """Yield features in the map's CRS."""
    return (replace(batch, shapes=to_gis_coordinates(np.asarray(batch.shapes, object), grid)) for batch in batches)


def _geopackage(part: Path, batches: Iterable[Features], to: PolygonTarget) -> int:
    entries = [Entry(name, name, colour) for name, colour in to.colours.items()]
    style = categorized_style("class", entries, "area", FieldForm(ALIASES))
    about = f"Polygons of the map {to.image_id}, with their classes and areas."
    return write_geopackage(part, _placed(batches, to.grid), to.grid.crs, Layer(to.layer, "", about, style))


def _geojson(part: Path, batches: Iterable[Features], to: PolygonTarget) -> int:
    return write_geojson(part, _placed(batches, to.grid), to.grid.crs, to.layer)


def _flatgeobuf(part: Path, batches: Iterable[Features], to: PolygonTarget) -> int:
    return write_flatgeobuf(part, _placed(batches, to.grid), to.grid.crs, to.layer)


def _geoparquet(part: Path, batches: Iterable[Features], to: PolygonTarget) -> int:
    return write_geoparquet(part, _placed(batches, to.grid), to.grid.crs)


def _submission(part: Path, batches: Iterable[Features], to: PolygonTarget) -> int:
    assert to.dstl_grid is not None
    return write_submission(part, batches, to.image_id, to.grid, image_extent(to.image_id, to.dstl_grid))


WRITERS: dict[str, Callable[[Path, Iterable[Features], PolygonTarget], int]] = {
    ".gpkg": _geopackage,
    ".geojson": _geojson,
    ".json": _geojson,
    ".fgb": _flatgeobuf,
    ".parquet": _geoparquet,
    ".csv": _submission,
}
"""Writer of each suffix."""


PRECISION = 1e-9
"""Coordinates are rounded to multiples of this; a pixel is about 2.7e-6."""
HEADER = ("ImageId", "ClassType", "MultipolygonWKT")


def image_extent(image: str, table: Path) -> tuple[float, float]:
    """Return (Xmax, Ymin) of an image from DSTL's grid_sizes.csv.

    Raises:
        InputError: when the table cannot be read or does not contain the image.
    """
    extents = read_extents(table)
    if image not in extents:
        raise InputError(
            f"{table} does not contain {image}, the map's name. Rename the map to the ImageId of its image."
        )
    return extents[image]


def class_number(value: int, name: str) -> int:
    """Return DSTL's class number: by the class's name if DSTL has it, else by its value.

    Raises:
        InputError: when DSTL has neither.
    """
    numbers = {known: number for number, known in CLASS_NAMES.items()}
    number = numbers.get(name, value)
    if number not in CLASS_NAMES:
        table = ", ".join(f"{number} {known}" for number, known in CLASS_NAMES.items())
        raise InputError(f"Class {name!r} ({value}) is not a DSTL class. A submission can contain: {table}.")
    return number


def write_submission(
    part: Path, batches: Iterable[Features], image: str, grid: Grid, extent: tuple[float, float]
) -> int:
    """Write polygons in pixels as ten rows, one per DSTL class, and return the number of polygons.

    Geometries are rounded with shapely's set_precision and so stay valid. Memory: all polygons of the image.

    Raises:
        InputError: when a class is not a DSTL class.
    """
    to_dstl = ~to_pixels(extent, grid)
    shapes: dict[int, list[shapely.Geometry]] = {number: [] for number in CLASS_NAMES}
    for batch in batches:
        for shape, value, name in zip(batch.shapes, batch.columns["value"], batch.columns["class"], strict=True):
            shapes[class_number(int(value), str(name))].append(shape)
    with part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        for number, own in shapes.items():
            table.writerow((image, number, _wkt(own, np.array([to_dstl.a, to_dstl.e]))))
    return sum(map(len, shapes.values()))


def _wkt(shapes: list[shapely.Geometry], scale: np.ndarray) -> str:
    """Return polygons in pixels as one multipolygon in DSTL's coordinates."""
    if not shapes:
        return "MULTIPOLYGON EMPTY"
    parts = shapely.get_parts(np.array(shapes, object))
    whole = shapely.transform(shapely.multipolygons(parts), lambda points: points * scale)
    rounded = shapely.set_precision(whole, PRECISION)
    return str(shapely.to_wkt(to_multipolygons(np.array([rounded], object))[0], rounding_precision=9))
