"""The labels and areas of a project as GeoJSON, and changes of single features, in the file that QGIS has open too.

Coordinates are longitude and latitude in WGS 84; the file keeps its own CRS. A random area is the sample from which
accuracy is estimated: it is neither moved nor removed, and nobody adds another.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from pydantic import BaseModel, ConfigDict
from pyproj import CRS
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from geograft.errors import GeograftError, InputError
from geograft.geo.rasters.tags import legend_from_tags
from geograft.geo.vectors.label_edits import LabelFileEditor, Row, Value, edit_features, read_features
from geograft.geo.vectors.label_file import (
    AREA_FIELDS,
    AREAS_LAYER,
    LABEL_FIELDS,
    LABEL_ORIGINS,
    LABELLED,
    LABELS_LAYER,
    NOTE,
    ORIGIN,
    RANK,
    ROLE,
    ROLES,
    SCENE,
)
from geograft.geo.vectors.reader import repair_polygons, reproject
from geograft.geo.webmap import Plane, is_on_earth
from geograft.server.layers import Layer, Subject, file_revision, local_plane

LayerName = Literal["labels", "areas"]
LAYERS = (LABELS_LAYER, AREAS_LAYER)
FIELDS: Mapping[str, tuple[str, ...]] = {LABELS_LAYER: LABEL_FIELDS, AREAS_LAYER: AREA_FIELDS}
MAX_TEXT = 1000
RANDOM_FIELDS = {LABELLED, NOTE}
"""What may change in a random area."""
MAX_ID = 2**63


class FeatureError(GeograftError):
    """A feature that a client sent cannot be stored."""


class MissingFeatureError(GeograftError):
    """There is no feature with this id."""


class Feature(BaseModel):
    """A GeoJSON feature. For a change, what is missing stays as it is."""

    model_config = ConfigDict(extra="ignore")
    geometry: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sample:
    """The labelled random scoring areas, and the labels in them, in the coordinates of a raster."""

    areas: tuple[BaseGeometry, ...] = ()
    shapes: tuple[BaseGeometry, ...] = ()
    classes: tuple[str, ...] = ()
    """The class of each shape."""


@dataclass(frozen=True)
class Labels:
    """The labels and areas of a project."""

    subject: Subject

    def collection(self, layer: LayerName) -> dict[str, Any]:
        """Return all features of a layer as GeoJSON, with the revision of the file.

        Raises:
            InputError: when the file cannot be read.
        """
        with read_features(self._path, LAYERS) as file:
            plane = self._plane(file, layer)
            features = [to_feature(row, plane, FIELDS[layer]) for row in file.rows(layer)]
            return {"type": "FeatureCollection", "revision": file.revision, "features": features}

    def revision(self) -> str:
        """Return the revision of the file.

        Raises:
            InputError: when the file cannot be read.
        """
        with read_features(self._path, LAYERS) as file:
            return file.revision

    def add(self, layer: LayerName, feature: Feature, revision: str) -> tuple[dict[str, Any], str]:
        """Add a feature; return it with its id, and the new revision.

        Raises:
            FeatureError: when the feature is not one of this layer.
            GeograftError: as `edit_features`.
        """
        values = self._checked(layer, feature.properties or {}, {})
        with edit_features(self._path, LAYERS, revision) as file:
            plane = self._plane(file, layer)
            if feature.geometry is None:
                raise FeatureError("The feature has no geometry.")
            identity = file.insert(layer, parse_geometry(feature.geometry, plane), values)
            return self._answer(file, layer, identity, plane)

    def change(self, layer: LayerName, identity: int, feature: Feature, revision: str) -> tuple[dict[str, Any], str]:
        """Change the geometry or properties of a feature; return it as it is then, and the new revision.

        Raises:
            MissingFeatureError: when there is none with this id.
            GeograftError: as `add`.
        """
        with edit_features(self._path, LAYERS, revision) as file:
            plane, row = self._plane(file, layer), _row(file, layer, identity)
            given = feature.properties or {}
            refuse_if_random(layer, row, {name for name, value in given.items() if value != row.values.get(name)})
            if feature.geometry is not None:
                refuse_if_random(layer, row, {"geometry"})
            shape = None if feature.geometry is None else parse_geometry(feature.geometry, plane)
            file.update(layer, identity, shape, self._checked(layer, given, row.values))
            return self._answer(file, layer, identity, plane)

    def remove(self, layer: LayerName, identity: int, revision: str) -> str:
        """Delete a feature and return the new revision.

        Raises:
            GeograftError: as `change`.
        """
        with edit_features(self._path, LAYERS, revision) as file:
            refuse_if_random(layer, _row(file, layer, identity), {"geometry"})
            file.delete(layer, identity)
            return file.revision

    def subtract(self, identity: int, geometry: dict[str, Any], revision: str) -> tuple[list[dict[str, Any]], str]:
        """Cut a polygon out of a label; return the features that remain of it, one for each part, and the revision.

        Raises:
            GeograftError: as `change`.
        """
        layer: LayerName = "labels"
        with edit_features(self._path, LAYERS, revision) as file:
            plane, row = self._plane(file, layer), _row(file, layer, identity)
            left = shapely.difference(row.shape, parse_geometry(geometry, plane))
            parts = [part for part in shapely.get_parts(left) if shapely.get_type_id(part) == 3 and part.area > 0]
            ids = [identity, *(file.insert(layer, part, row.values) for part in parts[1:])]
            if parts:
                file.update(layer, identity, parts[0], {})
            else:
                file.delete(layer, identity)
            rows = [_row(file, layer, each) for each in ids] if parts else []
            return [to_feature(each, plane, FIELDS[layer]) for each in rows], file.revision

    def sample(self, layer: Layer) -> Sample:
        """Return the labelled random scoring areas, and the labels in them, in the coordinates of a layer's raster.

        Without areas in which a model's outlines were not checked; without labels of other classes if classes overlap;
        empty for a run.

        Raises:
            InputError: when the file cannot be read.
        """
        if self.subject.label_file is None or not self.subject.label_file.is_file():
            return Sample()
        found = _read_sample(self._path, self.state(), layer.raster.info.grid.crs)
        legend = legend_from_tags(layer.raster.info.tags)
        if legend is None or not legend.overlapping:
            return found
        pairs = zip(found.shapes, found.classes, strict=True)
        own = tuple(shape for shape, name in pairs if name == layer.class_name)
        return Sample(found.areas, own, (layer.class_name,) * len(own))

    def state(self) -> str:
        """Return a text that changes whenever the file does; empty without one. The file is not opened."""
        path = self.subject.label_file
        return file_revision(path, path.with_name(f"{path.name}-wal")) if path and path.is_file() else ""

    @property
    def _path(self) -> Path:
        path = self.subject.label_file
        if path is None:
            raise InputError("A run has no labels. Open the project that they belong to.")
        return path

    def _plane(self, file: LabelFileEditor, layer: str) -> Plane:
        crs = file.crs(layer)
        return Plane(crs) if is_on_earth(crs) else local_plane(self.subject)

    def _answer(
        self, file: LabelFileEditor, layer: LayerName, identity: int, plane: Plane
    ) -> tuple[dict[str, Any], str]:
        return to_feature(_row(file, layer, identity), plane, FIELDS[layer]), file.revision

    def _checked(self, layer: LayerName, given: Mapping[str, Any], before: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values to store, those of a new feature with their defaults.

        Raises:
            FeatureError: for a value that the field cannot have.
        """
        if layer == LABELS_LAYER:
            known = {**LABEL_DEFAULTS, **before} | _only(given, LABEL_FIELDS)
            _check_choice("class", known["class"], [each.name for each in self.subject.classes])
            _check_choice(ORIGIN, known[ORIGIN], LABEL_ORIGINS)
        else:
            known = {**AREA_DEFAULTS, **before} | _only(given, AREA_FIELDS)
            _check_area(known, before)
        _check_text(known)
        return {name: known[name] for name in FIELDS[layer] if not before or name in given}


@lru_cache(maxsize=8)
def _read_sample(path: Path, state: str, target: CRS | None) -> Sample:
    """Return the sample in a file; `state` changes when the file does."""
    with read_features(path, LAYERS) as file:
        areas, labels = (_in_crs(file.rows(name), file.crs(name), target) for name in (AREAS_LAYER, LABELS_LAYER))
    unchecked = shapely.union_all([shape for shape, values in labels if values.get(ORIGIN) == "suggested"])
    kept = [shape for shape, values in areas if _is_scored(values) and not shapely.intersects(unchecked, shape)]
    scored = shapely.union_all(kept)
    shapely.prepare(scored)
    inside = [(shape, str(values["class"])) for shape, values in labels if shapely.intersects(scored, shape)]
    return Sample(tuple(kept), tuple(shape for shape, _ in inside), tuple(name for _, name in inside))


def _is_scored(values: Mapping[str, Value]) -> bool:
    return values.get(ROLE) == "scoring" and values.get(ORIGIN) == "random" and bool(values.get(LABELLED))


def _in_crs(rows: list[Row], own: CRS | None, target: CRS | None) -> list[tuple[BaseGeometry, Mapping[str, Value]]]:
    """Return shapes and values of rows, reprojected if both CRSs are on the earth and differ."""
    shapes = np.empty(len(rows), object)
    shapes[:] = [row.shape for row in rows]
    if len(rows) and is_on_earth(own) and is_on_earth(target) and not own.equals(target, ignore_axis_order=True):
        shapes = reproject(shapes, own, target)
    return [(shape, row.values) for shape, row in zip(shapes, rows, strict=True) if not shape.is_empty]


LABEL_DEFAULTS: Mapping[str, Value] = {"class": None, ORIGIN: "drawn", NOTE: None}
AREA_DEFAULTS: Mapping[str, Value] = {
    ROLE: None,
    ORIGIN: "drawn",
    LABELLED: False,
    RANK: None,
    SCENE: None,
    NOTE: None,
}


def _only(given: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _check_choice(name: str, value: Any, allowed: Any) -> None:
    if not isinstance(value, str) or value not in allowed:
        shown = str(value)[:60]
        raise FeatureError(f"{name} is {shown!r}, not one of {', '.join(allowed)}.")


def _check_area(known: Mapping[str, Any], before: Mapping[str, Value]) -> None:
    _check_choice(ROLE, known[ROLE], ROLES)
    is_random = before.get(ORIGIN) == "random"
    _check_choice(ORIGIN, known[ORIGIN], ("random",) if is_random else LABEL_ORIGINS)
    if known[ROLE] == "scoring" and not is_random:
        raise FeatureError("Scoring areas are drawn at random when the project is made; choose training for this one.")
    if known[LABELLED] not in (True, False, 0, 1):
        raise FeatureError(f"{LABELLED} is neither true nor false.")
    rank = known[RANK]
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < 2**31):
        raise FeatureError(f"{RANK} is not a whole number from 0.")


def _check_text(known: Mapping[str, Any]) -> None:
    for name in (SCENE, NOTE):
        value = known.get(name)
        if value is not None and (not isinstance(value, str) or len(value) > MAX_TEXT or not _is_text(value)):
            raise FeatureError(f"{name} is not a text of up to {MAX_TEXT} characters.")


def _is_text(value: str) -> bool:
    """Return whether a text has neither a null character, which ends it in a database, nor half of a surrogate pair."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def refuse_if_random(layer: str, row: Row, changed: set[str]) -> None:
    """Raise FeatureError if more than its label state would change in a random area."""
    if layer == AREAS_LAYER and row.values.get(ORIGIN) == "random" and changed - RANDOM_FIELDS:
        raise FeatureError(
            f"Area {row.id} belongs to the random sample that scores rest on: it can be labelled, but not moved, "
            "changed or removed."
        )


def _row(file: LabelFileEditor, layer: str, identity: int) -> Row:
    rows = file.rows(layer, identity) if abs(identity) < MAX_ID else []
    if not rows:
        raise MissingFeatureError(f"There is no feature {identity} in {layer}.")
    return rows[0]


def to_feature(row: Row, plane: Plane, fields: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a row as a GeoJSON feature with these properties, by default all."""
    properties = {name: row.values.get(name) for name in fields or row.values}
    if LABELLED in properties:
        properties[LABELLED] = bool(properties[LABELLED])
    # Layers of a GIS have multipolygons, mostly of one part; pages draw polygons.
    parts = shapely.get_parts(row.shape)
    geometry = json.loads(shapely.to_geojson(plane.shape_to_lonlat(parts[0] if len(parts) == 1 else row.shape)))
    return {"type": "Feature", "id": row.id, "geometry": geometry, "properties": properties}


def parse_geometry(content: Mapping[str, Any], plane: Plane) -> BaseGeometry:
    """Return a polygon or multipolygon of GeoJSON in the coordinates of a plane; crossing edges are repaired.

    Raises:
        FeatureError: when it is none, or lies outside the earth or the plane's CRS, or has no area.
    """
    if content.get("type") not in ("Polygon", "MultiPolygon"):
        raise FeatureError("The geometry is neither a Polygon nor a MultiPolygon.")
    try:
        shape = shapely.force_2d(shapely.from_geojson(json.dumps(content, allow_nan=False)))
        points = shapely.get_coordinates(shape)
        if not len(points) or not (np.abs(points) <= (180, 90)).all():
            raise FeatureError("The geometry is empty or has coordinates that are no longitudes and latitudes.")
        moved = plane.shape_from_lonlat(shape)
        if not np.isfinite(shapely.get_coordinates(moved)).all():
            raise FeatureError("The geometry lies outside the area of the labels' CRS.")
        repaired: BaseGeometry = repair_polygons(np.array([moved], object))[0][0]
    except (ShapelyError, ValueError, TypeError, RecursionError) as error:
        raise FeatureError("The geometry is not valid GeoJSON.") from error
    if not repaired.area > 0:
        raise FeatureError("The geometry has no area.")
    return repaired


def suggestions(subject: Subject) -> dict[str, Any]:
    """Return the areas to label next as GeoJSON, the most useful first; none before there are any.

    Raises:
        InputError: when the file cannot be read.
    """
    path = subject.suggestions
    if path is None or not path.is_file():
        return {"type": "FeatureCollection", "features": []}
    with read_features(path, None) as file:
        found = []
        for layer in file.layers:
            crs = file.crs(layer)
            plane = Plane(crs) if is_on_earth(crs) else local_plane(subject)
            found += [to_feature(row, plane) for row in file.rows(layer)]
    for feature in found:
        properties = feature["properties"]
        feature["properties"] = {"rank": properties.get("rank"), "role": "training", "reason": _reason(properties)}
    found.sort(key=lambda feature: feature["properties"]["rank"] or 0)
    return {"type": "FeatureCollection", "features": found}


def _reason(properties: Mapping[str, Any]) -> str:
    """Return in words why an area was suggested."""
    parts = []
    if isinstance(uncertainty := properties.get("uncertainty"), (int, float)):
        parts.append(f"mean uncertainty {uncertainty:.2f} of 1")
    if isinstance(score := properties.get("score"), (int, float)):
        parts.append(f"stands for {score:.0%} of the uncertainty of the images")
    if isinstance(dissimilarity := properties.get("dissimilarity"), (int, float)) and dissimilarity > 1:
        parts.append(f"unlike the training data ({dissimilarity:.1f}; above 1 is outside)")
    return "; ".join(parts)
