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

from geograft.dataset.scenes import counted
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Grid
from geograft.geo.rasters.rasterize import PixelShapes, in_pixels
from geograft.geo.vectors.reader import valid_polygons

NAMES = {
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
"""Pixels of three-band images have 11 bits, those of the eight bands of short-wave infrared 14."""
SAME_GROUND = (("6110_1_2", "6140_1_2"), ("6110_3_1", "6140_3_1"))
"""Scenes that show the same ground at different times, which a split must not part."""
FAULTS = (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError, csv.Error, ValueError, TypeError)
"""What damaged archives and tables raise."""
# A scene's polygons of one class are one field of up to several megabytes.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class DstlLabels:
    """The polygons of some classes in DSTL's own units, a scene after the other."""

    shapes: dict[str, ndarray]
    """(n,) polygons by scene, those of a class named later after those of an earlier one."""
    values: dict[str, UInt8[ndarray, " n"]]
    """Class indices by scene: 1 for the class named first."""
    repaired: int

    def summary(self) -> str:
        """Return in words how many polygons there are and how many were repaired."""
        total = sum(map(len, self.shapes.values()))
        repaired = f", {self.repaired} of them repaired" if self.repaired else ""
        return f"{counted(total, 'polygon')} in {counted(len(self.shapes), 'scene')}{repaired}"

    def in_pixels(self, scene: str, extent: tuple[float, float], grid: Grid) -> PixelShapes:
        """Return the polygons of a scene in the pixels of an image of it, of any resolution."""
        return in_pixels(self.shapes[scene], self.values[scene], to_pixels(extent, grid))


def to_pixels(extent: tuple[float, float], grid: Grid) -> Affine:
    """Return what takes DSTL's (x, y) to (column, row): x·W·W/(W+1)/Xmax and y·H·H/(H+1)/Ymin, as its rules state.

    `extent` is (Xmax, Ymin) of the scene.
    """
    x_max, y_min = extent
    width, height = grid.width, grid.height
    return Affine.scale(width * width / (width + 1) / x_max, height * height / (height + 1) / y_min)


def group(scene: str) -> str:
    """Return the group of a scene: its own name, or those of all scenes of the same ground.

    >>> group("6140_1_2"), group("6010_1_2")
    ('6110_1_2+6140_1_2', '6010_1_2')
    """
    return next(("+".join(group) for group in SAME_GROUND if scene in group), scene)


def class_names(classes: Sequence[int]) -> tuple[str, ...]:
    """Return the names of DSTL's classes.

    Raises:
        SettingError: for a number that is no class, no number at all, or one given twice.
    """
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(NAMES):
        table = ", ".join(f"{number} {name}" for number, name in NAMES.items())
        raise SettingError(f"DSTL's classes cannot be {', '.join(map(str, classes)) or 'none'}. Name some of: {table}.")
    return tuple(NAMES[number] for number in classes)


def read_labels(folder: Path, classes: Sequence[int]) -> DstlLabels:
    """Return the polygons of some classes in all labelled scenes, each repaired where it was not valid.

    Raises:
        InputError: when the file is missing or is not DSTL's table.
    """
    found, repaired = read_wkt(labels_table(folder), classes)
    parts = {scene: [by_class.get(number, NOTHING) for number in classes] for scene, by_class in found.items()}
    values = {scene: [np.full(len(part), i, np.uint8) for i, part in enumerate(of, 1)] for scene, of in parts.items()}
    return DstlLabels(
        {scene: np.concatenate(of) for scene, of in parts.items()},
        {scene: np.concatenate(of) for scene, of in values.items()},
        repaired,
    )


def labels_table(place: Path) -> Path:
    """Return the table of labels in Kaggle's folder; `place` itself when it is a file.

    Raises:
        InputError: when there is none.
    """
    return _find(place, "train_wkt*.csv*", "train_wkt_v4.csv, zipped or not")


def read_wkt(path: Path, classes: Sequence[int]) -> tuple[dict[str, dict[int, ndarray]], int]:
    """Return the polygons of a table of WKT, labels or a submission, by scene and class, and how many were repaired.

    Scenes without a polygon of these classes are there too.

    Raises:
        InputError: when the file is missing or is no such table.
    """
    found: dict[str, dict[int, ndarray]] = {}
    repaired = 0
    with _reading(path):
        for row in _rows(path, ("ImageId", "ClassType", "MultipolygonWKT")):
            by_class = found.setdefault(row["ImageId"], {})
            if int(row["ClassType"]) in classes:
                by_class[int(row["ClassType"])], mended = _polygons(path, row)
                repaired += mended
    return found, repaired


def read_extents(place: Path) -> dict[str, tuple[float, float]]:
    """Return (Xmax, Ymin) by scene from grid_sizes.csv, zipped or not, or from the folder that holds it.

    Raises:
        InputError: when the file is missing or is not DSTL's table.
    """
    path = _find(place, "grid_sizes.csv*", "grid_sizes.csv, zipped or not")
    with _reading(path):
        # The column of names has none of its own.
        return {
            str(row.get("ImageId") or row.get("")): (float(row["Xmax"]), float(row["Ymin"]))
            for row in _rows(path, ("Xmax", "Ymin"))
        }


def image_paths(folder: Path, scenes: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the image of every scene that has one, and the scenes that have none.

    Three-band images, in a folder or a zip file; where there are none, the eight-band ones.

    Raises:
        InputError: when there is no image of any of the scenes.
    """
    three, eight = folder / "three_band", folder / "sixteen_band"
    paths = {scene: three / f"{scene}.tif" for scene in scenes if (three / f"{scene}.tif").is_file()}
    if not paths and (folder / "three_band.zip").is_file():
        paths = _members(folder / "three_band.zip", scenes)
    if not paths:
        paths = {scene: eight / f"{scene}_A.tif" for scene in scenes if (eight / f"{scene}_A.tif").is_file()}
    if not paths:
        raise InputError(
            f"{folder} holds no image of the {len(scenes)} labelled scenes. "
            "Put three_band.zip there, or its folder three_band, or sixteen_band."
        )
    return paths, tuple(scene for scene in scenes if scene not in paths)


NOTHING = np.array([], object)


def _polygons(path: Path, row: dict[str, str]) -> tuple[ndarray, int]:
    try:
        parts = shapely.get_parts(shapely.from_wkt(row["MultipolygonWKT"] or ""))
    except ShapelyError as error:
        where = f"scene {row['ImageId']}, class {row['ClassType']}"
        raise InputError(f"{path}: {where}: the geometry cannot be read: {error}. Get the file again.") from error
    shapes, repaired = valid_polygons(parts)
    return shapes[~shapely.is_empty(shapes)], repaired


def _members(archive: Path, scenes: Sequence[str]) -> dict[str, Path]:
    with _reading(archive), zipfile.ZipFile(archive) as file:
        stems = {Path(name).stem: name for name in file.namelist() if name.endswith(".tif") and "__MACOSX" not in name}
    # GDAL's way to say: this member of that archive.
    return {scene: Path(f"/vsizip/{{{archive.resolve()}}}/{stems[scene]}") for scene in scenes if scene in stems}


def _find(folder: Path, pattern: str, what: str) -> Path:
    if folder.is_file():
        return folder
    found = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not found:
        raise InputError(f"{folder} holds no {what}. Give the folder with Kaggle's files.")
    return found[0]


def _rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    with _text(path) as file:
        reader = csv.DictReader(file)
        if not set(needed) <= set(reader.fieldnames or ()):
            raise InputError(f"{path} lacks the columns {', '.join(needed)}. It is not the competition's file.")
        yield from reader


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Open a plain, gzipped or zipped text file; of a zip file its first member."""
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
    except FAULTS as error:
        raise InputError(f"{path} cannot be read: {error}. It is damaged or cut short; get it again.") from error
