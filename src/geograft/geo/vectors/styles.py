"""GeoPackage layers with an embedded QGIS style (table layer_styles)."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import geopandas
import numpy as np
import pyogrio
from pyproj import CRS

from geograft.files import atomic_write
from geograft.geo.vectors.reader import Features
from geograft.geo.vectors.writer import output_errors, write_geopackage

STYLES_LAYER = "layer_styles"


@dataclass(frozen=True)
class GraduatedStep:
    """A class of a graduated style: the colour of features with a value from `lower` to `upper`."""

    lower: float
    upper: float
    colour: str
    """#RRGGBB of the outline; the fill has the same colour at 25 % opacity."""
    label: str
    """Text in the legend."""


def write_styled(path: Path, features: Features, crs: CRS | None, layer: str, qml: str) -> int:
    """Write polygons and their style as a GeoPackage of one layer, atomically, and return their number.

    Raises:
        OutputError: when the file cannot be written.
    """
    with atomic_write(path) as part, output_errors(path):
        written = write_geopackage(part, [features], crs, layer)
        table = geopandas.GeoDataFrame(style_row(layer, qml)).drop(columns="geometry", errors="ignore")
        pyogrio.write_dataframe(table, part, layer=STYLES_LAYER, driver="GPKG", append=True)
    return written


def graduated_style(field: str, steps: Sequence[GraduatedStep]) -> str:
    """Return a QGIS style that colours features by the value of `field`, and labels them with it."""
    ranges = "".join(
        f'<range lower="{step.lower}" upper="{step.upper}" symbol="{i}" label={quoteattr(step.label)} render="true"/>'
        for i, step in enumerate(steps)
    )
    symbols = "".join(
        f'<symbol type="fill" name="{i}" alpha="1" clip_to_extent="1" force_rhr="0">{_fill(step.colour)}</symbol>'
        for i, step in enumerate(steps)
    )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        '<qgis version="3.28" styleCategories="Symbology|Labeling" labelsEnabled="1">'
        f'<renderer-v2 type="graduatedSymbol" attr={quoteattr(field)} graduatedMethod="GraduatedColor" '
        f'symbollevels="0" enableorderby="0" forceraster="0"><ranges>{ranges}</ranges><symbols>{symbols}</symbols>'
        f"</renderer-v2>{_label(field)}</qgis>"
    )


def style_row(layer: str, qml: str, description: str = "") -> dict[str, Any]:
    """Return the row of the table layer_styles that gives `layer` the style `qml`."""
    return {
        "f_table_catalog": [""],
        "f_table_schema": [""],
        "f_table_name": [layer],
        "f_geometry_column": ["geom"],
        "styleName": [layer],
        "styleQML": [qml],
        "styleSLD": [""],
        "useAsDefault": [True],
        "description": [description],
        "owner": [""],
        "ui": [""],
        "update_time": np.array([datetime.now(UTC).replace(tzinfo=None)], "datetime64[ms]"),
    }


def _fill(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    options = {
        "color": f"{red},{green},{blue},64",
        "style": "solid",
        "outline_color": f"{red},{green},{blue},255",
        "outline_style": "solid",
        "outline_width": "0.7",
        "outline_width_unit": "MM",
    }
    inner = "".join(f'<Option type="QString" name="{name}" value="{value}"/>' for name, value in options.items())
    return f'<layer class="SimpleFill" enabled="1" pass="0" locked="0"><Option type="Map">{inner}</Option></layer>'


def _label(field: str) -> str:
    return (
        '<labeling type="simple"><settings>'
        f'<text-style fieldName={quoteattr(field)} isExpression="0" fontFamily="Sans" fontSize="11" '
        'fontSizeUnit="Point" textColor="0,0,0,255" textOpacity="1">'
        '<text-buffer bufferDraw="1" bufferSize="1" bufferSizeUnits="MM" bufferColor="255,255,255,255" '
        'bufferOpacity="1"/></text-style><placement placement="1" quadOffset="4"/></settings></labeling>'
    )
