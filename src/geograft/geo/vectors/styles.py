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
    dashed: bool = False
    """Whether the outline is dashed."""


@dataclass(frozen=True)
class FieldForm:
    """How a GIS shows the fields of a layer."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """What a field is, in words, by its name."""
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Values to choose from when a field is edited, by its name."""
    label: str = ""
    """Field that is written beside each feature; none if empty."""
    checkboxes: Sequence[str] = ()
    """Fields of yes and no."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Values of new features, as expressions of QGIS, by field name."""
    fixed: Sequence[str] = ()
    """Fields that are shown but cannot be edited."""
    repeated: Sequence[str] = ()
    """Fields whose last value is proposed for the next feature."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Text fields that the file lacks, with one value for all features: they are copied with a feature."""
    hidden: bool = False
    """Whether new features get their defaults without a form."""


def categorized_style(expression: str, entries: Sequence[Entry], shape: Shape, form: FieldForm) -> str:
    """Return a style that colours features by the value of a field or expression."""
    lines = "".join(
        f'<category value={xml_attribute(entry.value)} symbol="{i}" label={xml_attribute(entry.label)} render="true"/>'
        for i, entry in enumerate(entries)
    )
    attributes = f'type="categorizedSymbol" attr={xml_attribute(expression)}'
    inner = f"<categories>{lines}</categories>{_symbols(entries, shape)}"
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
    entries = [Entry("", "", colour) for colour in RANK_COLOURS[:number]]
    return _style(attributes, f"<ranges>{lines}</ranges>{_symbols(entries, 'area')}", form, "area")


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


def _symbols(entries: Sequence[Entry], shape: Shape) -> str:
    kind = "marker" if shape == "point" else "fill"
    each = (
        f'<symbol type="{kind}" name="{i}" alpha="1" clip_to_extent="1" force_rhr="0">{_symbol(entry, shape)}</symbol>'
        for i, entry in enumerate(entries)
    )
    return f"<symbols>{''.join(each)}</symbols>"


def _symbol(entry: Entry, shape: Shape) -> str:
    red, green, blue = bytes.fromhex(entry.colour.removeprefix("#"))
    line = {"outline_style": "dash" if entry.dashed else "solid", "outline_width_unit": "MM"}
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
    widgets = {name: _choice(values) for name, values in form.choices.items()}
    widgets |= dict.fromkeys(form.checkboxes, '<editWidget type="CheckBox"><config><Option/></config></editWidget>')
    fields = "".join(f"<field name={xml_attribute(name)}>{widget}</field>" for name, widget in widgets.items())
    return f"<fieldConfiguration>{fields}</fieldConfiguration><aliases>{aliases}</aliases>{_behaviour(form)}"


def _behaviour(form: FieldForm) -> str:
    """Return what concerns new features and edits; empty where nothing is set."""
    parts = {
        "defaults": [
            f'<default field={xml_attribute(name)} expression={xml_attribute(text)} applyOnUpdate="0"/>'
            for name, text in form.defaults.items()
        ],
        "editable": [f'<field name={xml_attribute(name)} editable="0"/>' for name in form.fixed],
        "reuseLastValue": [f'<field name={xml_attribute(name)} reuseLastValue="1"/>' for name in form.repeated],
        "expressionfields": [
            f'<field name={xml_attribute(name)} expression={xml_attribute(quote_text(text))} type="10" length="0" '
            'precision="0" comment="" subType="0" typeName="string"/>'
            for name, text in form.constants.items()
        ],
    }
    hidden = "<featformsuppress>1</featformsuppress>" if form.hidden else ""
    return "".join(f"<{tag}>{''.join(each)}</{tag}>" for tag, each in parts.items() if each) + hidden


def quote_text(text: str) -> str:
    """Return text as a literal in an expression of QGIS.

    >>> print(quote_text("Bishop's pine"))
    'Bishop''s pine'
    """
    return "'" + text.replace("'", "''") + "'"


def _choice(values: Sequence[str]) -> str:
    options = "".join(
        f'<Option type="Map"><Option type="QString" name={xml_attribute(value)} value={xml_attribute(value)}/></Option>'
        for value in values
    )
    config = f'<Option type="Map"><Option type="List" name="map">{options}</Option></Option>'
    return f'<editWidget type="ValueMap"><config>{config}</config></editWidget>'
