"""Reading of polygon layers and of tile indices, and the type of features to write."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely
from jaxtyping import Bool, Shaped
from numpy import ndarray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from pyproj import CRS
from pyproj.exceptions import CRSError, ProjError
from shapely import STRtree
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from geograft.errors import InputError
from geograft.geo.formats import vector_source
from geograft.geo.grid import MAX_LONGITUDE, Window, is_horizontal


@dataclass(frozen=True)
class Features:
    """A batch of features: shapes, and columns of the same length."""

    shapes: Sequence[BaseGeometry] | ndarray
    columns: Mapping[str, Sequence[Any] | ndarray]
    """Numbers as arrays, so that an empty batch still defines their dtype; text as lists or object arrays."""


TILES_LAYER = "tiles"
WGS84 = CRS.from_epsg(4326)
MAX_EXTENT = 1e9
"""Largest coordinate in a projected CRS."""
MAX_EDGE_M = 500.0
"""Longer edges are densified before reprojection; a chord of 500 m deviates by 5 mm from the earth's curve."""
WINDOW_FIELDS = ("row", "col", "height", "width")
FRACTION_PREFIX = "fraction_"
AREA_FIELD = "area"
VECTOR_ERRORS = (
    DataLayerError,
    DataSourceError,
    FeatureError,
    FieldError,
    GeometryError,
    ProjError,
    CRSError,
    ShapelyError,
)
"""The exceptions that reading and writing of layers raises."""


@dataclass(frozen=True)
class Polygons:
    """The valid polygons of a layer in file order, with their classes."""

    shapes: ndarray
    """(n,) shapely Polygon or MultiPolygon."""
    classes: tuple[str, ...]
    """(n,) values of the class field; empty without a class field."""
    crs: CRS | None
    repaired_count: int
    """Number of polygons that were invalid and have been repaired."""
    dropped_count: int
    """Number of features omitted: empty, of zero area, or not polygons."""

    @cached_property
    def tree(self) -> STRtree:
        """Spatial index of `shapes`."""
        return STRtree(self.shapes)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Minimum x, minimum y, maximum x, maximum y."""
        left, bottom, right, top = shapely.total_bounds(self.shapes)
        return float(left), float(bottom), float(right), float(top)


@contextmanager
def input_errors(
    path: Path, what: str = "a vector layer", errors: tuple[type[Exception], ...] = VECTOR_ERRORS
) -> Iterator[None]:
    """Convert `errors` while reading `path` to InputError; `what` is the expected content, for the message.

    Warnings are ignored: those of GDAL and shapely about geometries, which are checked here.

    Raises:
        InputError: when the block raises one of `errors`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except errors as error:
        raise InputError(f"{path} cannot be read as {what}: {str(error).rstrip('.')}. Check or replace it.") from error


def read_polygons(path: Path, crs: CRS | None = None, class_field: str | None = None) -> Polygons:
    """Return the polygons of a vector file, repaired and reprojected to `crs` (None: the layer's own CRS).

    Memory: about 1 kB per polygon plus 16 bytes per vertex.

    Raises:
        InputError: when the file is missing or unreadable, has no polygons or several layers of polygons, lacks the CRS
            needed for `crs` or the class field, or has features without a class.
    """
    layer = read_layer(path, [class_field] if class_field else [])
    frame, kept = layer.frame, layer.kept
    if not kept.any():
        raise InputError(f"{path} has no polygons: {_type_counts(frame)}. Use a layer with at least one polygon.")
    classes = class_names(path, frame[kept][class_field], class_field) if class_field else ()
    shapes = layer.shapes_in(crs)[kept]
    return Polygons(shapes, classes, crs or layer.crs, layer.repaired_count, int((~kept).sum()))


@dataclass(frozen=True)
class PolygonLayer:
    """The features of a layer of polygons, with their fields; the geometry of `frame` is not repaired."""

    path: Path
    frame: geopandas.GeoDataFrame
    crs: CRS | None
    shapes: ndarray
    """(n,) valid polygons in `crs`, empty where a feature has no area."""
    repaired_count: int

    @property
    def kept(self) -> Bool[ndarray, " n"]:
        """Which features have an area."""
        return ~shapely.is_empty(self.shapes)

    def shapes_in(self, crs: CRS | None) -> ndarray:
        """Return the shapes reprojected to `crs` (None: as they are).

        Raises:
            InputError: when the layer has no CRS, or coordinates that are impossible in it.
        """
        if crs is not None and self.crs is None:
            raise InputError(
                f"{self.path} has no CRS, but the image has one ({crs.name}). Assign the layer its CRS in your GIS."
            )
        if crs is None or self.crs is None or not self.kept.any():
            return self.shapes
        _check_extent(self.path, self.shapes[self.kept], self.crs)
        if crs.equals(self.crs, ignore_axis_order=True):
            return self.shapes
        with input_errors(self.path, f"polygons in {crs.name}"):
            moved = self.shapes.copy()
            moved[self.kept] = reproject(self.shapes[self.kept], self.crs, crs, str(self.path))
        return moved


def _check_extent(path: Path, shapes: ndarray, crs: CRS) -> None:
    """Raise InputError for coordinates that are impossible in `crs`. Their edges would be densified without end."""
    largest, limit = (
        float(np.abs(shapely.total_bounds(shapes)).max()),
        MAX_LONGITUDE if crs.is_geographic else MAX_EXTENT,
    )
    if largest > limit:
        raise InputError(
            f"{path} has coordinates of up to {largest:.6g}, which are impossible in its CRS ({crs.name}). "
            "Assign the correct CRS, or repair the layer."
        )


def repair_polygons(shapes: ndarray, name: str = "the layer") -> tuple[ndarray, int]:
    """Return (n,) valid two-dimensional polygons, empty where a shape has no area, and the number of repaired ones.

    Invalid polygons become the polygonal parts of shapely's make_valid.

    Raises:
        InputError: when polygons of the layer `name` have NaN or infinite coordinates.
    """
    shapes = np.array(shapely.force_2d(shapes), object)
    shapes[~np.isin(shapely.get_type_id(shapes), (3, 6, 7))] = shapely.Polygon()
    invalid = ~shapely.is_valid(shapes)
    coordinates, owner = shapely.get_coordinates(shapes[invalid], return_index=True)
    unplaced = len(set(owner[~np.isfinite(coordinates).all(axis=1)]))
    if unplaced:
        raise InputError(
            f"{name}: {unplaced} of {len(shapes)} polygons have NaN or infinite coordinates. Repair or remove them."
        )
    mixed = invalid | (shapely.get_type_id(shapes) == 7)
    shapes[mixed] = [_polygonal_parts(shape) for shape in shapely.make_valid(shapes[mixed])]
    return shapes, int((invalid & ~shapely.is_empty(shapes)).sum())


def reproject(shapes: ndarray, source: CRS, target: CRS, name: str = "the layer") -> ndarray:
    """Return the shapes of the layer `name` in `target`, densified so that long edges stay straight in `source`.

    A shape that `target` cannot represent becomes an empty polygon.

    Raises:
        InputError: when there is no transformation, as from a CRS of a building site.
    """
    unit_m = source.axis_info[0].unit_conversion_factor * (6371000 if source.is_geographic else 1)
    dense = geopandas.GeoSeries(shapely.segmentize(shapes, MAX_EDGE_M / unit_m), crs=source)
    try:
        projected = np.array(dense.to_crs(target), object)
    except ProjError as error:
        raise InputError(
            f"{name}: there is no transformation from the CRS {source.name} to {target.name}. Give all inputs in CRSs "
            "with a place on the Earth."
        ) from error
    projected[~np.isfinite(shapely.bounds(projected)).all(axis=1)] = shapely.Polygon()
    return projected


def read_tiles(path: Path) -> list[tuple[Any, ...]]:
    """Return the rows of a tile index in file order: scene, Window, split, valid fraction, class fractions, area.

    The area is the name of a labelled area; empty if there is none.

    Raises:
        InputError: when the file is missing or not a tile index, or has windows that are not whole numbers.
    """
    source = vector_source(path)
    with _index_errors(path):
        frame = pyogrio.read_dataframe(source, layer=TILES_LAYER, read_geometry=False)
        names = [name for name in frame.columns if name.startswith(FRACTION_PREFIX)]
        numbers = dict.fromkeys(WINDOW_FIELDS, "integer") | dict.fromkeys(["valid", *names], "real")
        texts = [name for name in ("scene", "split", AREA_FIELD) if name != AREA_FIELD or AREA_FIELD in frame.columns]
        _check_types(path, source, dict.fromkeys(texts, "text") | numbers)
        windows = [Window(*map(int, row)) for row in frame[list(WINDOW_FIELDS)].to_numpy()]
        fractions = frame[names].to_numpy(float).tolist()
        columns = (frame["scene"].tolist(), windows, frame["split"].tolist(), frame["valid"].tolist())
        areas = frame[AREA_FIELD].tolist() if AREA_FIELD in frame.columns else [""] * len(frame)
    return list(zip(*columns, map(tuple, fractions), areas, strict=True))


@contextmanager
def _index_errors(path: Path) -> Iterator[None]:
    """Convert errors while reading a tile index to InputError, without warnings of GDAL."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    except (*VECTOR_ERRORS, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a tile index: {error}. Prepare the tile set again.") from error


def _check_types(path: Path, source: str, types: Mapping[str, str]) -> None:
    """Raise InputError if a tile has a value of another type than SQLite's `types` by field: GDAL would read it as 0.

    SQLite stores text in a numeric field, and a whole number in a field of real numbers as an integer.
    """
    allowed = {name: ("integer", "real") if kind == "real" else (kind,) for name, kind in types.items()}
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in types}
    wrong = " OR ".join(
        f"typeof({quoted[name]}) NOT IN ({', '.join(map(repr, kinds))})" for name, kinds in allowed.items()
    )
    shown = ", ".join(f"typeof({name}) || ' ' || ifnull({name}, '') AS {name}" for name in quoted.values())
    found = pyogrio.read_dataframe(source, sql=f"SELECT {shown} FROM {TILES_LAYER} WHERE {wrong} LIMIT 1")
    for row in found.to_dict("records"):
        name = next(name for name, kinds in allowed.items() if row[name].split(" ")[0] not in kinds)
        raise InputError(f"{path}: {name} of a tile is {row[name]}, not {types[name]}. Prepare the tile set again.")


def read_layer(path: Path, fields: Sequence[str], name: str = "") -> PolygonLayer:
    """Return the layer `name` of a vector file, or by default its only layer of polygons, with some of its fields.

    The index of the frame has the feature ids. Only a named layer may be empty.

    Raises:
        InputError: when the file is missing or unreadable, has no features, several layers of polygons or none, lacks
            a field, or has a CRS that is not horizontal or polygons with NaN coordinates.
    """
    with input_errors(path):
        source = vector_source(path)
        layer = name or _polygon_layer(path, source)
        info = pyogrio.read_info(source, layer=layer)
        for field in fields:
            if field not in info["fields"]:
                found = ", ".join(info["fields"]) or "none at all"
                where = f"{path}, layer {name}," if name else path
                raise InputError(f"{where} has no field {field!r}. It has: {found}. {FIELD_REMEDY[bool(name)]}")
        frame, closed = _read_closed(source, layer, list(fields))
    if not isinstance(frame, geopandas.GeoDataFrame) or not (len(frame) or name):
        raise InputError(f"{path} is empty: it has no features. Use a layer with at least one polygon.")
    with input_errors(path):
        crs = _stated_crs(frame, info["driver"])
    if crs is not None and not is_horizontal(crs):
        raise InputError(
            f"{path} has the CRS {crs.name} ({crs.type_name}), which is not horizontal. Assign a projected CRS."
        )
    with input_errors(path):
        shapes, repaired = repair_polygons(frame.geometry.to_numpy(), str(path))
    return PolygonLayer(path, frame, crs, shapes, repaired + closed)


FIELD_REMEDY = {False: "Choose one of them as class field.", True: "Restore it, or copy the features to a new file."}


def _read_closed(source: str, layer: str, columns: list[str]) -> tuple[geopandas.GeoDataFrame, int]:
    """Return the features of a layer with closed rings, and the number of those that had to be closed."""
    options: dict[str, Any] = {"layer": layer, "columns": columns, "fid_as_index": True}
    try:
        return pyogrio.read_dataframe(source, **options), 0
    except ShapelyError:
        frames = [pyogrio.read_dataframe(source, on_invalid=mode, **options) for mode in ("ignore", "fix")]
        missing, still_missing = (int(frame.geometry.isna().sum()) for frame in frames)
        return frames[1], missing - still_missing


def vector_drivers() -> set[str]:
    """Return the names of the drivers of pyogrio's GDAL."""
    return set(pyogrio.list_drivers())


def layer_fields(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the fields of each layer of a vector file, by name.

    Raises:
        InputError: when the file is missing or cannot be read.
    """
    with input_errors(path):
        source = vector_source(path)
        names = [str(name) for name, _ in pyogrio.list_layers(source)]
        return {name: tuple(pyogrio.read_info(source, layer=name)["fields"]) for name in names}


def describe_polygons(path: Path, name: str = "") -> tuple[tuple[str, ...], int]:
    """Return the fields of the layer `name` of a vector file, or of its only layer of polygons, and its feature count.

    Raises:
        InputError: when the file is missing or unreadable, or has no such layer.
    """
    with input_errors(path):
        source = vector_source(path)
        layer = name or _polygon_layer(path, source)
        info = pyogrio.read_info(source, layer=layer, force_feature_count=True)
        return tuple(info["fields"]), int(info["features"])


def _polygon_layer(path: Path, source: str) -> str:
    layers = pyogrio.list_layers(source)
    spatial = [str(name) for name, kind in layers if kind is not None]
    polygons = [str(name) for name, kind in layers if kind is not None and ("Polygon" in kind or kind == "Unknown")]
    if len(polygons) > 1:
        names = ", ".join(polygons)
        raise InputError(f"{path} has {len(polygons)} layers of polygons: {names}. Export one of them to its own file.")
    if not spatial:
        raise InputError(f"{path} is empty: it has no layer with geometry. Use a layer with at least one polygon.")
    return (polygons or spatial)[0]


def _stated_crs(frame: geopandas.GeoDataFrame, driver: str) -> CRS | None:
    """Return the layer's CRS; None for GeoJSON (always WGS 84 to GDAL) with coordinates that are not degrees."""
    left, bottom, right, top = frame.total_bounds
    on_earth = left >= -360 and right <= 360 and bottom >= -90 and top <= 90
    own = None if frame.crs is None else CRS.from_user_input(frame.crs)
    return None if own == WGS84 and driver.startswith("GeoJSON") and not on_earth else own


def class_names(path: Path, column: Any, class_field: str) -> tuple[str, ...]:
    """Return the values of a class field as text: whole numbers without decimals.

    Raises:
        InputError: when a value is missing.
    """
    missing = int(column.isna().sum())
    if missing:
        raise InputError(
            f"{path}: {missing} of {len(column)} polygons have no value in {class_field!r}. "
            "Fill them in, or remove these polygons."
        )
    return tuple(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in column)


def _polygonal_parts(shape: BaseGeometry) -> BaseGeometry:
    """Return the polygonal parts of a shape as one polygon or multipolygon; empty without any."""
    if shapely.get_type_id(shape) in (3, 6):
        return shape
    parts = [part for part in shapely.get_parts(shape) if shapely.get_type_id(part) in (3, 6)]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def _type_counts(frame: geopandas.GeoDataFrame) -> str:
    counts = frame.geom_type.fillna("no geometry").value_counts()
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def read_frame(path: Path) -> geopandas.GeoDataFrame:
    """Return the features of a vector file that we wrote as a GeoDataFrame, with all fields; styles are left out.

    Raises:
        InputError: when the file is missing or cannot be read.
    """
    with input_errors(path, errors=(*VECTOR_ERRORS, OSError)):
        if path.suffix == ".parquet":
            return geopandas.read_parquet(path)
        layer = next((name for name, kind in pyogrio.list_layers(path) if kind is not None), None)
        return pyogrio.read_dataframe(path, layer=layer)


def read_outlines(path: Path) -> tuple[Shaped[ndarray, " n"], CRS | None]:
    """Return the outlines of the tiles of an index in file order, and their CRS (None: not georeferenced).

    100,000 tiles take a second.

    Raises:
        InputError: when the file is missing or not a tile index, or a tile has no outline.
    """
    with _index_errors(path):
        meta, _, content, _ = pyogrio.raw.read(vector_source(path), layer=TILES_LAYER, columns=[])
        shapes = np.array(shapely.from_wkb(content), object)
        crs = CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    missing = np.flatnonzero(~(shapely.area(shapes) > 0))
    if len(missing):
        raise InputError(f"{path}: tile {missing[0] + 1} has no outline. Prepare the tile set again.")
    return shapes, crs
