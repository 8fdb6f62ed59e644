"""Sample points for labelling in a GIS: a GeoPackage of points and of the strata that they were sampled from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely
from jaxtyping import Float64
from numpy import ndarray
from pyproj import CRS

from geograft.errors import InputError, OutputError
from geograft.files import atomic_write
from geograft.geo.formats import vector_source
from geograft.geo.vectors.reader import VECTOR_ERRORS, input_errors
from geograft.geo.vectors.styles import Entry, FieldForm, categorized_style
from geograft.geo.vectors.writer import (
    GEOPACKAGE,
    NO_DATE,
    Layer,
    check_count,
    fixed_date,
    ignore_gdal_warnings,
    output_errors,
    write_style,
    write_table,
)

POINTS_LAYER, STRATA_LAYER = "points", "strata"
REFERENCE = "reference"
"""The field for the reference class, filled in by a person."""
STRATA = Layer(STRATA_LAYER, "Strata", "The classes of the map that the points were sampled from, with their pixels.")


@dataclass(frozen=True)
class LabelledPoints:
    """The points of a sample in file order, with their reference classes."""

    coordinates: Float64[ndarray, "n 2"]
    """x and y in the requested CRS."""
    references: tuple[str, ...]
    """As in the file, stripped of surrounding whitespace; empty where there is none."""
    strata: Mapping[str, int] | None
    """Pixels per class of the map that was sampled; None when the file has no strata."""


def write_points(
    path: Path, coordinates: Float64[ndarray, "n 2"], strata: Mapping[str, Sequence[Any] | ndarray], crs: CRS | None
) -> None:
    """Write a sample as a GeoPackage: points with an id and an empty reference field, and a table of the strata.

    `strata` holds the table's columns; QGIS offers the values of its column `class` as references. The file does not
    contain the map's class at the points, so that it cannot influence the person who labels them.

    Raises:
        OutputError: when the file cannot be written, or its suffix is not .gpkg.
    """
    if path.suffix.lower() != ".gpkg":
        raise OutputError(f"{path}: a sample is written as GeoPackage. Choose a file name that ends in .gpkg.")
    count = len(coordinates)
    points = geopandas.GeoDataFrame(
        {"id": np.arange(1, count + 1), REFERENCE: np.full(count, None, object)},
        geometry=geopandas.GeoSeries.from_xy(*coordinates.T, crs=crs),
    )
    layer = _points([str(name) for name in strata["class"]])
    kind = GEOPACKAGE | {"layer": layer.name, "layer_options": layer.options}
    with atomic_write(path) as part, output_errors(path), fixed_date(NO_DATE):
        with ignore_gdal_warnings():
            pyogrio.write_dataframe(points, part, geometry_type="Point", **kind)
        write_table(part, dict(strata), STRATA)
        write_style(part, layer)
        check_count(part, POINTS_LAYER, count)


def read_points(path: Path, crs: CRS | None) -> LabelledPoints:
    """Return the points of a labelled sample in `crs`, from the layer `points`, or else from the only layer of points.

    Raises:
        InputError: when the file is missing or unreadable, has no points or no field `reference`, or when only one of
            sample and map has a CRS.
    """
    with input_errors(path, "a sample of points", (*VECTOR_ERRORS, KeyError, ValueError, OverflowError)):
        source = vector_source(path)
        layers = {str(name): kind for name, kind in pyogrio.list_layers(source)}
        frame = pyogrio.read_dataframe(source, layer=_points_layer(path, layers))
        if REFERENCE not in frame.columns:
            fields = ", ".join(name for name in frame.columns if name != "geometry") or "none at all"
            raise InputError(f"{path} has no field {REFERENCE!r}. It has: {fields}. Rename the field of the labels.")
        own = None if frame.crs is None else CRS.from_user_input(frame.crs)
        if (own is None) != (crs is None):
            without, other = ("the sample", "the map") if own is None else ("the map", "the sample")
            raise InputError(f"{path}: {without} has no CRS, but {other} has one. Assign it in your GIS.")
        if crs is not None and own is not None and not crs.equals(own, ignore_axis_order=True):
            frame = frame.to_crs(crs)
        shapes = frame.geometry.to_numpy()
        if not len(shapes) or not (shapely.get_type_id(shapes) == 0).all():
            raise InputError(f"{path}: its point layer is empty or has other geometries. Use a layer of points only.")
        located = np.isfinite(shapely.get_x(shapes)) & np.isfinite(shapely.get_y(shapes))
        if not located.all():
            missing = f"{(~located).sum()} of {len(shapes)} points"
            raise InputError(f"{path}: {missing} have no coordinates, or NaN or infinite ones. Remove them.")
        strata = pyogrio.read_dataframe(source, layer=STRATA_LAYER) if STRATA_LAYER in layers else None
        known = None if strata is None else dict(zip(strata["class"], map(int, strata["pixels"]), strict=True))
    return LabelledPoints(shapely.get_coordinates(shapes), tuple(map(_label, frame[REFERENCE])), known)


def _points_layer(path: Path, layers: Mapping[str, str | None]) -> str:
    if POINTS_LAYER in layers:
        return POINTS_LAYER
    points = [name for name, kind in layers.items() if kind is not None and "Point" in kind]
    if len(points) != 1:
        raise InputError(
            f"{path} has {len(points)} layers of points; one is needed, or one with the name {POINTS_LAYER!r}."
        )
    return points[0]


def _label(value: Any) -> str:
    """Return a field's value as text: integers without decimals, missing values as an empty string."""
    if value is None or value != value:  # noqa: PLR0124 (only NaN differs from itself)
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _points(names: Sequence[str]) -> Layer:
    """Return the layer of points: those without a reference are red, and QGIS offers `names` as references."""
    states = [Entry("no", "without a reference", "#D55E00"), Entry("yes", "with a reference", "#009E73")]
    form = FieldForm({"id": "Point", REFERENCE: "Reference class"}, {REFERENCE: names}, label="id")
    # Text, as the values of categories are: QGIS draws none of the features if the types differ.
    has_reference = f"if(coalesce(\"{REFERENCE}\", '') = '', 'no', 'yes')"
    return Layer(
        POINTS_LAYER,
        "Points to label",
        "A stratified random sample of the pixels of a map, in random order. Fill in the field reference.",
        categorized_style(has_reference, states, "point", form),
    )
