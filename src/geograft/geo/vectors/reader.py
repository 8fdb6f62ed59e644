"""The outlines of a tile index, read back.

Features on their way to a vector file.

Polygons and tile indices, read. With `vectorout`, which writes them, the only file that opens layers.
"""

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
from jaxtyping import Shaped
from numpy import ndarray
from pyogrio.errors import DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from pyproj import CRS
from pyproj.exceptions import CRSError, ProjError
from shapely import STRtree
from shapely.geometry.base import BaseGeometry

from geograft.errors import InputError
from geograft.geo.grid import Window


@dataclass(frozen=True)
class Features:
    """Some features to write: shapes with columns of the same length."""

    shapes: Sequence[BaseGeometry] | ndarray
    columns: Mapping[str, Sequence[Any] | ndarray]
    """Numbers as arrays, so that a batch without features still states their kind; text in lists or as objects."""


TILES_LAYER = "tiles"
WGS84 = CRS.from_epsg(4326)
LONGEST_EDGE_M = 500.0
"""Longer edges get points in between before they are reprojected; a 500 m chord strays 5 mm from the earth's curve."""
SHARE = "share_"
FAULTS = (DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError, ProjError, CRSError)
"""What reading and writing layers raises."""


@dataclass(frozen=True)
class Polygons:
    """Valid polygons of one layer, in file order, with the class of each."""

    shapes: ndarray
    """(n,) shapely Polygon or MultiPolygon."""
    classes: tuple[str, ...]
    """(n,) values of the class attribute; empty without one."""
    crs: CRS | None
    repaired: int
    """Polygons that were invalid and are repaired."""
    dropped: int
    """Features left out: empty, of no area, or not polygons."""

    @cached_property
    def tree(self) -> STRtree:
        """The index of the shapes; its answers are positions in `shapes`."""
        return STRtree(self.shapes)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Least x, least y, greatest x, greatest y."""
        left, bottom, right, top = shapely.total_bounds(self.shapes)
        return float(left), float(bottom), float(right), float(top)


@contextmanager
def reading(path: Path, what: str = "a vector layer", faults: tuple[type[Exception], ...] = FAULTS) -> Iterator[None]:
    """Turn a failure to read `path`, or that it is not there, into one line; `what` says what it should be.

    Raises:
        InputError: when one of `faults` comes up inside.
    """
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist. Check the path.")
        yield
    except faults as error:
        raise InputError(f"{path} cannot be read as {what}: {error}. Check or replace it.") from error


def read_polygons(path: Path, crs: CRS | None = None, class_field: str | None = None) -> Polygons:
    """Return the polygons of a vector file, repaired and brought to `crs` (None: left in the layer's own).

    All polygons are held in memory: about 1 kB each plus 16 bytes a vertex.

    Raises:
        InputError: when the file is missing, unreadable or without polygons; has several layers of polygons, no CRS
            to bring to `crs`, no such class field, or features without a class.
    """
    frame, own_crs = _read_layer(path, class_field)
    shapes, repaired = valid_polygons(frame.geometry.to_numpy())
    kept = np.array([not shape.is_empty for shape in shapes], bool)
    if not kept.any():
        raise InputError(f"{path} holds no polygons: {_census(frame)}. Give a layer with at least one polygon.")
    classes = _classes(path, frame[kept][class_field], class_field) if class_field else ()
    shapes = shapes[kept]
    if crs is not None and own_crs is None:
        raise InputError(
            f"{path} has no CRS, but the image has one ({crs.name}). Assign the layer its CRS in your GIS."
        )
    if crs is not None and own_crs is not None and not crs.equals(own_crs, ignore_axis_order=True):
        shapes = reprojected(shapes, own_crs, crs)
    return Polygons(shapes, classes, crs or own_crs, repaired, int((~kept).sum()))


def valid_polygons(shapes: ndarray) -> tuple[ndarray, int]:
    """Return (n,) valid two-dimensional polygons, empty where there was no area, and how many had to be repaired.

    Repair is shapely's make_valid, of which the polygonal parts are kept.
    """
    shapes = np.array(shapely.force_2d(shapes), object)
    shapes[~np.isin(shapely.get_type_id(shapes), (3, 6, 7))] = shapely.Polygon()
    invalid = ~shapely.is_valid(shapes)
    mixed = invalid | (shapely.get_type_id(shapes) == 7)
    shapes[mixed] = [_polygonal(shape) for shape in shapely.make_valid(shapes[mixed])]
    return shapes, int((invalid & ~shapely.is_empty(shapes)).sum())


def reprojected(shapes: ndarray, source: CRS, target: CRS) -> ndarray:
    """Return the shapes in the CRS `target`; long edges stay straight on the ground of `source`.

    What cannot be expressed in `target` becomes an empty polygon.
    """
    unit_m = source.axis_info[0].unit_conversion_factor * (6371000 if source.is_geographic else 1)
    dense = geopandas.GeoSeries(shapely.segmentize(shapes, LONGEST_EDGE_M / unit_m), crs=source)
    there = np.array(dense.to_crs(target), object)
    there[~np.isfinite(shapely.bounds(there)).all(axis=1)] = shapely.Polygon()
    return there


def read_tiles(path: Path) -> list[tuple[Any, ...]]:
    """Return the rows of a tile index in file order: scene, Window, split, valid share, class shares.

    Raises:
        InputError: when the file is missing or no tile index.
    """
    try:
        frame = pyogrio.read_dataframe(path, layer=TILES_LAYER, read_geometry=False)
        windows = [Window(*map(int, row)) for row in frame[["row", "col", "height", "width"]].to_numpy()]
        shares = frame[[name for name in frame.columns if name.startswith(SHARE)]].to_numpy(float).tolist()
        columns = (frame["scene"].tolist(), windows, frame["split"].tolist(), frame["valid"].tolist())
    except (*FAULTS, KeyError) as error:
        raise InputError(f"{path} is not a tile index: {error}. Prepare the tile set again.") from error
    return list(zip(*columns, map(tuple, shares), strict=True))


def _read_layer(path: Path, class_field: str | None) -> tuple[geopandas.GeoDataFrame, CRS | None]:
    with reading(path):
        layer = _polygon_layer(path)
        info = pyogrio.read_info(path, layer=layer)
        if class_field is not None and class_field not in info["fields"]:
            fields = ", ".join(info["fields"]) or "none at all"
            raise InputError(f"{path} has no field {class_field!r}. It has: {fields}. Name one of them as class field.")
        columns = [class_field] if class_field else []
        frame = pyogrio.read_dataframe(path, layer=layer, columns=columns)
    if not isinstance(frame, geopandas.GeoDataFrame) or not len(frame):
        raise InputError(f"{path} is empty: it holds no features. Give a layer with at least one polygon.")
    return frame, _stated_crs(frame, info["driver"])


def _polygon_layer(path: Path) -> str:
    layers = pyogrio.list_layers(path)
    spatial = [str(name) for name, kind in layers if kind is not None]
    polygons = [str(name) for name, kind in layers if kind is not None and ("Polygon" in kind or kind == "Unknown")]
    if len(polygons) > 1:
        names = ", ".join(polygons)
        raise InputError(
            f"{path} has {len(polygons)} layers of polygons: {names}. Export the one you mean to its own file."
        )
    if not spatial:
        raise InputError(f"{path} is empty: it has no layer with geometry. Give a layer with at least one polygon.")
    return (polygons or spatial)[0]


def _stated_crs(frame: geopandas.GeoDataFrame, driver: str) -> CRS | None:
    """Return the layer's CRS. GeoJSON is always said to be WGS 84, which its coordinates may belie."""
    left, bottom, right, top = frame.total_bounds
    on_earth = left >= -360 and right <= 360 and bottom >= -90 and top <= 90
    own = None if frame.crs is None else CRS.from_user_input(frame.crs)
    return None if own == WGS84 and driver.startswith("GeoJSON") and not on_earth else own


def _classes(path: Path, column: Any, class_field: str) -> tuple[str, ...]:
    missing = int(column.isna().sum())
    if missing:
        raise InputError(
            f"{path}: {missing} of {len(column)} polygons have no value in {class_field!r}. "
            "Fill them in, or remove these polygons."
        )
    return tuple(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in column)


def _polygonal(shape: BaseGeometry) -> BaseGeometry:
    """Return the parts of a shape that have an area, as one polygon or multipolygon; empty when none has."""
    if shapely.get_type_id(shape) in (3, 6):
        return shape
    parts = [part for part in shapely.get_parts(shape) if shapely.get_type_id(part) in (3, 6)]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def _census(frame: geopandas.GeoDataFrame) -> str:
    counts = frame.geom_type.fillna("no geometry").value_counts()
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def read_outlines(path: Path) -> tuple[Shaped[ndarray, " n"], CRS | None]:
    """Return the outline of every tile of an index in file order, and their CRS; None where tiles have no such place.

    100,000 tiles take a second.

    Raises:
        InputError: when the file is missing or no tile index.
    """
    try:
        meta, _, shapes, _ = pyogrio.raw.read(path, layer=TILES_LAYER, columns=[])
        return np.array(shapely.from_wkb(shapes), object), CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    except (DataLayerError, DataSourceError, shapely.errors.ShapelyError) as error:
        raise InputError(f"{path} is not a tile index: {error}. Prepare the tile set again.") from error
