"""Styles for QGIS (QML) of vector layers: symbols by class or rank, names of fields, and values to choose from.

A GeoPackage has them in its table layer_styles, see `geograft.geo.vectors.writer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from geograft.text import xml_attribute

RANK_COLOURS = ("#B2182B", "#D55E00", "#E69F00", "#C9B458")
"""Colours from the first to the last rank."""

Shape = Literal["outline", "area", "point"]
"""Polygons as outlines; polygons with a fill of 25 % opacity; points as circles."""


@dataclass(frozen=True)
class Entry:
    """A line of a legend: the value of features, its label and its colour #RRGGBB."""

    value: str
    label: str
    colour: str


@dataclass(frozen=True)
class FieldForm:
    """How a GIS shows the fields of a layer."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """What a field is, in words, by its name."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values to choose from when a field is edited, by its name."""
    label: str = ""
    """Field that is written beside each feature; none if empty."""


def categorized_style(expression: str, entries: Sequence[Entry], shape: Shape, form: FieldForm) -> str:
    """Return a style that colours features by the value of a field or expression."""
    lines = "".join(
        f'<category value={xml_attribute(entry.value)} symbol="{i}" label={xml_attribute(entry.label)} render="true"/>'
        for i, entry in enumerate(entries)
    )
    attributes = f'type="categorizedSymbol" attr={xml_attribute(expression)}'
    inner = f"<categories>{lines}</categories>{_symbols([entry.colour for entry in entries], shape)}"
    return _style(attributes, inner, form, shape)


def ranked_style(rank: str, count: int, form: FieldForm) -> str:
    """Return a style for the ranks 1 to `count` in a field: up to four steps, as equal in size as possible."""
    number = min(len(RANK_COLOURS), count)
    cuts = [count * i // number for i in range(number + 1)] if number else []
    lines = "".join(
        f'<range lower="{first + 0.5}" upper="{last + 0.5}" symbol="{i}" label="{_ranks(first + 1, last)}" '
        'render="true"/>'
        for i, (first, last) in enumerate(pairwise(cuts))
    )
    attributes = f'type="graduatedSymbol" attr={xml_attribute(rank)} graduatedMethod="GraduatedColor"'
    return _style(attributes, f"<ranges>{lines}</ranges>{_symbols(RANK_COLOURS[:number], 'area')}", form, "area")


def _ranks(first: int, last: int) -> str:
    return str(first) if first == last else f"{first} to {last}"


def _style(renderer: str, content: str, form: FieldForm, shape: Shape) -> str:
    labelled = int(bool(form.label))
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        f'<qgis version="3.22.0" styleCategories="Symbology|Labeling|Fields|Forms" labelsEnabled="{labelled}">'
        f'<renderer-v2 {renderer} symbollevels="0" enableorderby="0" forceraster="0">{content}</renderer-v2>'
        f"{_label(form.label, shape) if form.label else ''}{_fields(form)}</qgis>"
    )


def _symbols(colours: Sequence[str], shape: Shape) -> str:
    kind = "marker" if shape == "point" else "fill"
    each = (
        f'<symbol type="{kind}" name="{i}" alpha="1" clip_to_extent="1" force_rhr="0">{_symbol(colour, shape)}</symbol>'
        for i, colour in enumerate(colours)
    )
    return f"<symbols>{''.join(each)}</symbols>"


def _symbol(colour: str, shape: Shape) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    line = {"outline_style": "solid", "outline_width_unit": "MM"}
    if shape == "point":
        name = "SimpleMarker"
        own = {"name": "circle", "size": "3", "color": f"{red},{green},{blue},255", "outline_color": "255,255,255,255"}
        line |= {"outline_width": "0.4"}
    else:
        name = "SimpleFill"
        own = {"color": f"{red},{green},{blue},64", "outline_color": f"{red},{green},{blue},255"}
        own |= {"style": "no" if shape == "outline" else "solid"}
        line |= {"outline_width": "0.7"}
    inner = "".join(f'<Option type="QString" name="{key}" value="{value}"/>' for key, value in (own | line).items())
    return f'<layer class="{name}" enabled="1" pass="0" locked="0"><Option type="Map">{inner}</Option></layer>'


def _label(name: str, shape: Shape) -> str:
    # Around a point, or over the middle of a polygon.
    place = 'placement="0" dist="1" distUnits="MM"' if shape == "point" else 'placement="1" quadOffset="4"'
    return (
        '<labeling type="simple"><settings>'
        f'<text-style fieldName={xml_attribute(name)} isExpression="0" fontFamily="Sans" fontSize="11" '
        'fontSizeUnit="Point" textColor="0,0,0,255" textOpacity="1">'
        '<text-buffer bufferDraw="1" bufferSize="1" bufferSizeUnits="MM" bufferColor="255,255,255,255" '
        'bufferOpacity="1"/></text-style>'
        f"<placement {place}/></settings></labeling>"
    )


def _fields(form: FieldForm) -> str:
    aliases = "".join(
        f"<alias field={xml_attribute(name)} name={xml_attribute(text)}/>" for name, text in form.aliases.items()
    )
    widgets = "".join(f"<field name={xml_attribute(name)}>{_choice(v)}</field>" for name, v in form.choices.items())
    return f"<fieldConfiguration>{widgets}</fieldConfiguration><aliases>{aliases}</aliases>"


def _choice(values: Sequence[str]) -> str:
    options = "".join(
        f'<Option type="Map"><Option type="QString" name={xml_attribute(value)} value={xml_attribute(value)}/></Option>'
        for value in values
    )
    config = f'<Option type="Map"><Option type="List" name="map">{options}</Option></Option>'
    return f'<editWidget type="ValueMap"><config>{config}</config></editWidget>'
