"""The DSTL Satellite Imagery competition's own files and geometry (Kaggle, 2017)."""

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import shapely
from affine import Affine
from jaxtyping import UInt8
from numpy import ndarray
from shapely.errors import ShapelyError

from geograft.errors import InputError, SettingError
from geograft.files import check_input_file
from geograft.geo.grid import Grid
from geograft.geo.rasters.rasterize import PixelShapes, to_pixel_shapes
from geograft.geo.vectors.reader import repair_polygons
from geograft.text import pluralise

CLASS_NAMES = {
    1: "buildings",
    2: "misc structures",
    3: "road",
    4: "track",
    5: "trees",
    6: "crops",
    7: "waterway",
    8: "standing water",
    9: "large vehicles",
    10: "small vehicles",
}
SCALE, SCALE_INFRARED = 2.0**11, 2.0**14
"""Three-band images have 11 bits per pixel, the eight bands of sixteen_band 14."""
DUPLICATE_SCENES = (("6110_1_2", "6140_1_2"), ("6110_3_1", "6140_3_1"))
"""Scenes of the same area at different dates, which a split must keep together."""
READ_ERRORS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, csv.Error, ValueError, TypeError)
"""Errors raised for damaged archives and tables."""
MAX_EXTENT = 1e6
"""Coordinates above it, and sizes below its inverse, are errors; DSTL's are about 0.01."""
MAX_FIELD_BYTES = 2**31 - 1
"""Limit for a field of the labels table, which holds all polygons of a class in a scene: up to several megabytes."""


@dataclass(frozen=True)
class DstlLabels:
    """The polygons of the selected classes by scene, in DSTL's units."""

    shapes: dict[str, ndarray]
    """(n,) polygons by scene, in the order of the classes."""
    values: dict[str, UInt8[ndarray, " n"]]
    """Class indices by scene: 1 for the first class."""
    repaired: int

    def summary(self) -> str:
        """Return a note on the number of polygons and repairs."""
        total = sum(map(len, self.shapes.values()))
        repaired = f", {self.repaired} of them repaired" if self.repaired else ""
        return f"{pluralise(total, 'polygon')} in {pluralise(len(self.shapes), 'scene')}{repaired}"

    def in_pixels(self, scene: str, extent: tuple[float, float], grid: Grid) -> PixelShapes:
        """Return the polygons of a scene in the pixel coordinates of an image of any resolution."""
        return to_pixel_shapes(self.shapes[scene], self.values[scene], to_pixels(extent, grid))


def to_pixels(extent: tuple[float, float], grid: Grid) -> Affine:
    """Return the transform from DSTL's (x, y) to (column, row): x·W·W/(W+1)/Xmax and y·H·H/(H+1)/Ymin, as in its rules.

    `extent` is (Xmax, Ymin) of the scene.
    """
    x_max, y_min = extent
    width, height = grid.width, grid.height
    return Affine.scale(width * width / (width + 1) / x_max, height * height / (height + 1) / y_min)


def scene_group(scene: str) -> str:
    """Return the group of a scene: its own name, or the joined names of all scenes of the same area.

    >>> scene_group("6140_1_2"), scene_group("6010_1_2")
    ('6110_1_2+6140_1_2', '6010_1_2')
    """
    return next(("+".join(group) for group in DUPLICATE_SCENES if scene in group), scene)


def class_names(classes: Sequence[int]) -> tuple[str, ...]:
    """Return the names of DSTL's classes.

    Raises:
        SettingError: for an unknown or repeated number, or an empty list.
    """
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(CLASS_NAMES):
        table = ", ".join(f"{number} {name}" for number, name in CLASS_NAMES.items())
        raise SettingError(
            f"--classes {','.join(map(str, classes)) or 'none'} is not valid for DSTL. Choose from: {table}."
        )
    return tuple(CLASS_NAMES[number] for number in classes)


def read_dstl_labels(folder: Path, classes: Sequence[int]) -> DstlLabels:
    """Return the polygons of the given classes in all labelled scenes. Invalid polygons are repaired.

    Raises:
        InputError: if the file is missing or is not DSTL's table.
    """
    found, repaired = read_wkt(labels_table(folder), classes)
    parts = {scene: [by_class.get(number, NO_POLYGONS) for number in classes] for scene, by_class in found.items()}
    values = {scene: [np.full(len(part), i, np.uint8) for i, part in enumerate(of, 1)] for scene, of in parts.items()}
    return DstlLabels(
        {scene: np.concatenate(of) for scene, of in parts.items()},
        {scene: np.concatenate(of) for scene, of in values.items()},
        repaired,
    )


def labels_table(path: Path) -> Path:
    """Return the path of the label table in Kaggle's folder; `path` itself if it is a file.

    Raises:
        InputError: if there is none.
    """
    return _find(path, "train_wkt*.csv*", "train_wkt_v4.csv, zipped or not")


def read_wkt(path: Path, classes: Sequence[int]) -> tuple[dict[str, dict[int, ndarray]], int]:
    """Return the polygons of a WKT table (labels or a submission) by scene and class, and the number of repairs.

    Scenes without a polygon of these classes are included.

    Raises:
        InputError: if the file is missing or is not such a table.
    """
    found: dict[str, dict[int, ndarray]] = {}
    repaired = 0
    with _reading(path):
        for row in _rows(path, ("ImageId", "ClassType", "MultipolygonWKT")):
            by_class = found.setdefault(row["ImageId"], {})
            if int(row["ClassType"]) in classes:
                by_class[int(row["ClassType"])], repairs = _polygons(path, row)
                repaired += repairs
    return found, repaired


def read_extents(path_or_folder: Path) -> dict[str, tuple[float, float]]:
    """Return (Xmax, Ymin) by scene from grid_sizes.csv, zipped or not, or from its folder.

    Raises:
        InputError: if the file is missing or is not DSTL's table, or has an Xmax or Ymin of the wrong sign.
    """
    path = _find(path_or_folder, "grid_sizes.csv*", "grid_sizes.csv, zipped or not")
    with _reading(path):
        # The column of scene names has an empty header.
        extents = {
            str(row.get("ImageId") or row.get("")): (float(row["Xmax"]), float(row["Ymin"]))
            for row in _rows(path, ("Xmax", "Ymin"))
        }
    for scene, (x_max, y_min) in extents.items():
        for name, value, side in (("Xmax", x_max, "above"), ("Ymin", y_min, "below")):
            if not 1 / MAX_EXTENT < abs(value) < MAX_EXTENT or (value > 0) != (side == "above"):
                raise InputError(
                    f"{path}: {name} of {scene} is {value}; it must be {side} 0 and of ordinary size, such as 0.009. "
                    "Download the file again."
                )
    return extents


def image_paths(folder: Path, scenes: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the image of each scene that has one, and the scenes without an image.

    Uses the three-band images, in a folder or a zip file, or the eight-band ones if there are none.

    Raises:
        InputError: if no scene has an image.
    """
    three, eight = folder / "three_band", folder / "sixteen_band"
    paths = {scene: three / f"{scene}.tif" for scene in scenes if (three / f"{scene}.tif").is_file()}
    if not paths and (folder / "three_band.zip").is_file():
        paths = _members(folder / "three_band.zip", scenes)
    if not paths:
        paths = {scene: eight / f"{scene}_A.tif" for scene in scenes if (eight / f"{scene}_A.tif").is_file()}
    if not paths:
        raise InputError(
            f"{folder} contains no image of the {len(scenes)} labelled scenes. "
            "Add three_band.zip, or the folder three_band or sixteen_band."
        )
    return paths, tuple(scene for scene in scenes if scene not in paths)


NO_POLYGONS = np.array([], object)


def _polygons(path: Path, row: dict[str, str]) -> tuple[ndarray, int]:
    try:
        parts = shapely.get_parts(shapely.from_wkt(row["MultipolygonWKT"] or ""))
    except ShapelyError as error:
        where = f"scene {row['ImageId']}, class {row['ClassType']}"
        raise InputError(f"{path}: {where}: the geometry cannot be read: {error}. Download the file again.") from error
    farthest = np.abs(shapely.get_coordinates(parts)).max(initial=0)
    if not farthest < MAX_EXTENT:
        where = f"scene {row['ImageId']}, class {row['ClassType']}"
        raise InputError(f"{path}: {where}: coordinates up to {farthest:.3g}. Download the file again.")
    shapes, repaired = repair_polygons(parts)
    return shapes[~shapely.is_empty(shapes)], repaired


def _members(archive: Path, scenes: Sequence[str]) -> dict[str, Path]:
    with _reading(archive), zipfile.ZipFile(archive) as file:
        stems = {Path(name).stem: name for name in file.namelist() if name.endswith(".tif") and "__MACOSX" not in name}
    # GDAL's path of a member of a zip archive.
    return {scene: Path(f"/vsizip/{{{archive.resolve()}}}/{stems[scene]}") for scene in scenes if scene in stems}


def _find(folder: Path, pattern: str, what: str) -> Path:
    if folder.is_file():
        return folder
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} contains no {what}. Pass the folder of the competition's files.")
    return found[0]


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with _text(path) as file:
        reader = csv.DictReader(file)
        if not set(needed) <= set(reader.fieldnames or ()):
            raise InputError(f"{path} lacks the columns {', '.join(needed)}. Use the competition's file.")
        while (row := _next_row(reader)) is not None:
            yield row


def _next_row(reader: "csv.DictReader[str]") -> dict[str, str] | None:
    """Return the next row, with fields of up to MAX_FIELD_BYTES; None at the end.

    The limit is the process's, and so is set for this call only: another reader may be open, or closed at any time.
    """
    limit = csv.field_size_limit(MAX_FIELD_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Open a plain, gzipped or zipped text file; in a zip file, the first CSV member."""
    check_input_file(path)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if name.endswith(".csv") and "__MACOSX" not in name)
            with archive.open(member) as file:
                yield io.TextIOWrapper(file, "utf-8", newline="")
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
            yield text
    else:
        with path.open(encoding="utf-8", newline="") as text:
            yield text


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise InputError(f"{path} is damaged or truncated: {error}. Download it again.") from error
