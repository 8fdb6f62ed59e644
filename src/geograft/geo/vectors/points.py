"""Sample points, written to be labelled in a GIS and read back: a GeoPackage that also says how they were drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import geopandas
import numpy as np
import pyogrio
import shapely
from jaxtyping import Float64
from numpy import ndarray
from pyproj import CRS

from geograft.errors import InputError, OutputError
from geograft.files import replacing_with_scratch
from geograft.geo.vectors.reader import FAULTS, reading
from geograft.geo.vectors.styles import STYLES_LAYER, style_row
from geograft.geo.vectors.writer import check_count, quietly, refusals

POINTS_LAYER, STRATA_LAYER = "points", "strata"
REFERENCE = "reference"
"""The field that a person fills in."""


@dataclass(frozen=True)
class LabelledPoints:
    """Points of a sample in file order, with what a person says is there."""

    places: Float64[ndarray, "n 2"]
    """x and y in the CRS that was asked for."""
    references: tuple[str, ...]
    """As they stand in the file, without blanks around them; empty where there is none."""
    strata: Mapping[str, int] | None
    """Pixels by class of the map that the sample was drawn from; None where the file does not say."""


def write_points(
    path: Path, places: Float64[ndarray, "n 2"], strata: Mapping[str, Sequence[Any] | ndarray], crs: CRS | None
) -> None:
    """Write a sample as a GeoPackage: points with an id and an empty reference, and a table of its strata.

    `strata` holds columns, of which `class` names the values that QGIS offers for the reference. The class that the
    map shows at a point is not in the file, so that who labels it does not know it.

    Raises:
        OutputError: when it cannot be written, or is no .gpkg.
    """
    if path.suffix.lower() != ".gpkg":
        raise OutputError(f"{path}: a sample is written as .gpkg. Choose this suffix.")
    count = len(places)
    points = geopandas.GeoDataFrame(
        {"id": np.arange(1, count + 1), REFERENCE: np.full(count, None, object)},
        geometry=geopandas.GeoSeries.from_xy(*places.T, crs=crs),
    )
    tables = {STRATA_LAYER: dict(strata), STYLES_LAYER: _style([str(name) for name in strata["class"]])}
    with replacing_with_scratch(path) as part, refusals(path):
        with quietly():
            pyogrio.write_dataframe(points, part, layer=POINTS_LAYER, driver="GPKG", geometry_type="Point")
        for layer, columns in tables.items():
            table = geopandas.GeoDataFrame(columns).drop(columns="geometry", errors="ignore")
            pyogrio.write_dataframe(table, part, layer=layer, driver="GPKG", append=True)
        check_count(part, POINTS_LAYER, count)


def read_points(path: Path, crs: CRS | None) -> LabelledPoints:
    """Return the points of a labelled sample in `crs`, from its layer `points` or from its only layer of points.

    Raises:
        InputError: when the file is missing, unreadable, without points or without the field `reference`, or when it
            or the map has no CRS and the other has.
    """
    with reading(path, "a sample of points", (*FAULTS, KeyError, ValueError)):
        layers = {str(name): kind for name, kind in pyogrio.list_layers(path)}
        frame = pyogrio.read_dataframe(path, layer=_points_layer(path, layers))
        if REFERENCE not in frame.columns:
            fields = ", ".join(name for name in frame.columns if name != "geometry") or "none at all"
            raise InputError(f"{path} has no field {REFERENCE!r}. It has: {fields}. Name the field of labels so.")
        own = None if frame.crs is None else CRS.from_user_input(frame.crs)
        if (own is None) != (crs is None):
            lacking, having = ("The sample", "the map") if own is None else ("The map", "the sample")
            raise InputError(f"{path}: {lacking.lower()} has no CRS, but {having} has one. Assign it in your GIS.")
        if crs is not None and own is not None and not crs.equals(own, ignore_axis_order=True):
            frame = frame.to_crs(crs)
        shapes = frame.geometry.to_numpy()
        if not len(shapes) or not (shapely.get_type_id(shapes) == 0).all():
            raise InputError(f"{path}: its layer of points is empty or holds other shapes. Give points only.")
        strata = pyogrio.read_dataframe(path, layer=STRATA_LAYER) if STRATA_LAYER in layers else None
        known = None if strata is None else dict(zip(strata["class"], map(int, strata["pixels"]), strict=True))
    return LabelledPoints(shapely.get_coordinates(shapes), tuple(map(_label, frame[REFERENCE])), known)


def _points_layer(path: Path, layers: Mapping[str, str | None]) -> str:
    if POINTS_LAYER in layers:
        return POINTS_LAYER
    points = [name for name, kind in layers.items() if kind is not None and "Point" in kind]
    if len(points) != 1:
        raise InputError(f"{path} has {len(points)} layers of points. Give a file with one, or name it {POINTS_LAYER}.")
    return points[0]


def _label(value: Any) -> str:
    """Return a field's value as text: a whole number without decimals, nothing where there is none."""
    if value is None or value != value:  # noqa: PLR0124 (only NaN differs from itself)
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _style(names: Sequence[str]) -> dict[str, Any]:
    """Return a row of the table that QGIS reads styles from: a list to choose the reference from."""
    options = "".join(
        f'<Option type="Map"><Option type="QString" name={quoteattr(name)} value={quoteattr(name)}/></Option>'
        for name in names
    )
    form = (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        '<qgis version="3.28" styleCategories="Fields|Forms"><fieldConfiguration>'
        f'<field name="{REFERENCE}"><editWidget type="ValueMap"><config><Option type="Map">'
        f'<Option type="List" name="map">{options}</Option>'
        "</Option></config></editWidget></field></fieldConfiguration></qgis>"
    )
    return style_row(POINTS_LAYER, form, "Choose the reference from a list")
