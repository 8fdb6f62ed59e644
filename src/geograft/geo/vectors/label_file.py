"""labels.gpkg: the polygons that people draw, and the areas in which they have labelled everything.

A GeoPackage with two layers:

    labels   class, origin (drawn, suggested), note
    areas    role (training, scoring), origin (drawn, random, suggested), labelled, rank, scene, note

Only areas with `labelled` count: a pixel inside one that no polygon covers is background, a pixel outside of all is
ignored. Scores come from scoring areas of random origin alone, because only they are a sample of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas
from jaxtyping import Bool
from numpy import ndarray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.errors import InputError
from geograft.files import atomic_write
from geograft.geo.formats import read_header
from geograft.geo.vectors.reader import Features, PolygonLayer, Polygons, class_names, layer_fields, read_layer
from geograft.geo.vectors.writer import NO_DATE, Layer, add_layer, fixed_date, output_errors, write_geopackage

LABELS_LAYER, AREAS_LAYER = "labels", "areas"
CLASS, ROLE, ORIGIN, LABELLED, RANK, SCENE, NOTE = "class", "role", "origin", "labelled", "rank", "scene", "note"
LABEL_FIELDS = (CLASS, ORIGIN, NOTE)
AREA_FIELDS = (ROLE, ORIGIN, LABELLED, RANK, SCENE, NOTE)
Role: TypeAlias = Literal["training", "scoring"]
Origin: TypeAlias = Literal["drawn", "random", "suggested"]
"""How an area or a polygon came about: drawn by a person, at a random place, or suggested by a model."""
ROLES: tuple[Role, ...] = ("training", "scoring")
AREA_ORIGINS: tuple[Origin, ...] = ("drawn", "random", "suggested")
LABEL_ORIGINS: tuple[Origin, ...] = ("drawn", "suggested")
MAX_LISTED = 5
LABELS = Layer(
    LABELS_LAYER, "Labels", "Outlines of the classes. Pixels of a labelled area outside of them are background."
)
AREAS = Layer(
    AREAS_LAYER,
    "Labelled areas",
    "Areas for training or scoring. Set labelled where everything inside is labelled; other areas do not count.",
)


@dataclass(frozen=True)
class Area:
    """A feature of the layer `areas`."""

    shape: BaseGeometry
    """Polygon or MultiPolygon in the layer's CRS."""
    role: Role | Literal[""]
    """Empty only if the area is not labelled."""
    origin: Origin = "drawn"
    labelled: bool = False
    """Whether everything inside is labelled."""
    rank: int | None = None
    """Order of the random draw or of the suggestion, from 1."""
    scene: str = ""
    """Name of the only scene that it belongs to; empty: all scenes that it lies on."""
    note: str = ""
    id: int = 0
    """Feature id, which a GIS shows as fid."""

    @property
    def is_sample(self) -> bool:
        """Whether the area is for scoring and at a random place: one of the units of a score."""
        return self.role == "scoring" and self.origin == "random"


@dataclass(frozen=True)
class Label:
    """A feature of the layer `labels`, to write."""

    shape: BaseGeometry
    class_name: str
    origin: Origin = "drawn"
    note: str = ""


@dataclass(frozen=True)
class LabelFile:
    """The content of labels.gpkg."""

    path: Path
    areas: tuple[Area, ...]
    """All areas, labelled or not, in file order, in the CRS of their layer."""
    _labels: PolygonLayer = field(repr=False)
    _areas: PolygonLayer = field(repr=False)

    @property
    def labelled_areas(self) -> tuple[Area, ...]:
        """The areas that count."""
        return tuple(area for area in self.areas if area.labelled)

    @property
    def crs(self) -> CRS | None:
        """The CRS of the areas."""
        return self._areas.crs

    @cached_property
    def suggested(self) -> Bool[ndarray, " n"]:
        """Which of the polygons that `polygons_in` returns a model has suggested and nobody has checked."""
        origins = np.array([origin == "suggested" for origin in self._origins], bool)
        suggested: Bool[ndarray, " n"] = origins[self._labels.kept]
        return suggested

    def polygons_in(self, crs: CRS | None) -> Polygons:
        """Return the polygons of the layer `labels`, reprojected to `crs` (None: as they are); there may be none.

        Raises:
            InputError: when the layer has no CRS, or a polygon has no class.
        """
        kept = self._labels.kept
        classes = class_names(self.path, self._labels.frame[kept][CLASS], CLASS)
        shapes = self._labels.shapes_in(crs)[kept]
        repaired, dropped = self._labels.repaired_count, int((~kept).sum())
        return Polygons(shapes, classes, crs or self._labels.crs, repaired, dropped)

    def areas_in(self, crs: CRS | None) -> tuple[Area, ...]:
        """Return the areas reprojected to `crs` (None: as they are).

        Raises:
            InputError: when the layer has no CRS.
        """
        shapes = self._areas.shapes_in(crs)[self._areas.kept]
        return tuple(replace(area, shape=shape) for area, shape in zip(self.areas, shapes, strict=True))

    @property
    def _origins(self) -> list[str]:
        return _choices(self._labels, ORIGIN, LABEL_ORIGINS, "drawn", "polygon")


def is_label_file(path: Path) -> bool:
    """Return whether a path is a GeoPackage that has a layer `areas` with a field `role`.

    Raises:
        InputError: when it is a GeoPackage that cannot be read.
    """
    if not path.is_file() or not read_header(path).startswith(b"SQLite format 3"):
        return False
    return ROLE in layer_fields(path).get(AREAS_LAYER, ())


def read_label_file(path: Path) -> LabelFile:
    """Return the polygons and areas of labels.gpkg. Both layers may be empty; features without area are left out.

    Missing values are read as `drawn` and as not labelled.

    Raises:
        InputError: when the file is missing, damaged, or lacks a layer or a field, or a value is not one of those
            above; when a labelled area has no role.
    """
    layers = layer_fields(path)
    for name in (LABELS_LAYER, AREAS_LAYER):
        if name not in layers:
            raise InputError(f"{path} has no layer {name!r}. It has: {', '.join(layers) or 'none at all'}. Restore it.")
    optional = [name for name in (RANK, SCENE, NOTE) if name in layers[AREAS_LAYER]]
    areas = read_layer(path, [ROLE, ORIGIN, LABELLED, *optional], AREAS_LAYER)
    labels = read_layer(path, [CLASS, ORIGIN], LABELS_LAYER)
    content = LabelFile(path, _areas(areas), labels, areas)
    _ = content._origins  # an unknown origin is an error
    return content


def write_label_file(
    path: Path,
    areas: Sequence[Area],
    labels: Sequence[Label],
    crs: CRS | None,
    styles: tuple[str, str] = ("", ""),
) -> None:
    """Write labels.gpkg, atomically. Feature ids follow the order of `areas` and `labels`, from 1.

    `styles` are the default styles (QML) of the layers `labels` and `areas`, with their forms; empty: none.

    Raises:
        OutputError: when the file cannot be written.
    """
    label_columns: dict[str, Any] = {
        CLASS: _text_column([one.class_name for one in labels]),
        ORIGIN: _text_column([one.origin for one in labels]),
        NOTE: _text_column([one.note for one in labels]),
    }
    area_columns: dict[str, Any] = {
        ROLE: _text_column([area.role for area in areas]),
        ORIGIN: _text_column([area.origin for area in areas]),
        LABELLED: np.array([area.labelled for area in areas], bool),
        RANK: pandas.array([area.rank for area in areas], dtype="Int32") if areas else np.array([], np.int32),
        SCENE: _text_column([area.scene for area in areas]),
        NOTE: _text_column([area.note for area in areas]),
    }
    with atomic_write(path) as part, output_errors(path), fixed_date(NO_DATE):
        layer = replace(LABELS, style=styles[0])
        write_geopackage(part, [Features([one.shape for one in labels], label_columns)], crs, layer)
        add_layer(part, Features([area.shape for area in areas], area_columns), crs, replace(AREAS, style=styles[1]))


def _text_column(values: Sequence[str]) -> ndarray:
    """Return text for a column: NULL where it is empty."""
    column = np.empty(len(values), object)
    column[:] = [value or None for value in values]
    return column


def _areas(layer: PolygonLayer) -> tuple[Area, ...]:
    frame, kept = layer.frame, layer.kept
    columns: dict[str, list[Any]] = {
        "role": _choices(layer, ROLE, ROLES, "", "area"),
        "origin": _choices(layer, ORIGIN, AREA_ORIGINS, "drawn", "area"),
        "labelled": _values(layer, LABELLED, (0, 1), "true or false", 0),
        "rank": _values(layer, RANK, None, "a whole number", None),
        "scene": [_text(value) for value in frame[SCENE]] if SCENE in frame else [""] * len(frame),
        "note": [_text(value) for value in frame[NOTE]] if NOTE in frame else [""] * len(frame),
        "id": [int(number) for number in frame.index],
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    areas = tuple(
        Area(shape, **row | {"labelled": bool(row["labelled"])})
        for shape, row, whole in zip(layer.shapes, rows, kept, strict=True)
        if whole
    )
    if missing := [area.id for area in areas if area.labelled and not area.role]:
        raise InputError(
            f"{layer.path}: {_listed('area', missing)} {'is' if len(missing) == 1 else 'are'} labelled but without "
            f"{ROLE}. Set it to {' or '.join(ROLES)}."
        )
    return areas


def _listed(noun: str, ids: Sequence[int]) -> str:
    """Return the ids of features as text.

    >>> _listed("area", [7]), _listed("area", [1, 2])
    ('area 7', 'areas 1, 2')
    """
    shown = ", ".join(map(str, ids[:MAX_LISTED])) + (f" and {len(ids) - MAX_LISTED} more" if ids[MAX_LISTED:] else "")
    return f"{noun}{'' if len(ids) == 1 else 's'} {shown}"


def list_areas(areas: Sequence[Area]) -> str:
    """Return areas as text for a message, by their feature ids."""
    return _listed("area", [area.id for area in areas])


def _choices(layer: PolygonLayer, name: str, allowed: Sequence[str], default: str, noun: str) -> list[str]:
    values = [_text(value) or default for value in layer.frame[name]]
    for number, value in zip(layer.frame.index, values, strict=True):
        if value not in (*allowed, default):
            raise InputError(
                f"{layer.path}: {name} of {noun} {number} is {value!r}, not {', '.join(allowed)}. Correct it."
            )
    return values


def _values(
    layer: PolygonLayer, name: str, allowed: Sequence[int] | None, needed: str, default: int | None
) -> list[int | None]:
    """Return the whole numbers of a field, `default` where there is none."""
    if name not in layer.frame:
        return [default] * len(layer.frame)
    found: list[int | None] = []
    for number, value in zip(layer.frame.index, layer.frame[name], strict=True):
        if value is None or value != value:  # noqa: PLR0124 (only NaN differs from itself)
            found.append(default)
            continue
        fits = isinstance(value, (bool, int, float, np.bool_, np.number)) and float(value).is_integer()
        if not fits or (allowed is not None and int(value) not in allowed):
            raise InputError(f"{layer.path}: {name} of area {number} is {value!r}, not {needed}. Correct it.")
        found.append(int(value))
    return found


def _text(value: Any) -> str:
    """Return a text value stripped of surrounding whitespace; empty for NULL."""
    return "" if value is None or value != value else str(value).strip()  # noqa: PLR0124 (only NaN differs from itself)
