"""How a GIS displays a raster: names and colours of its classes for GDAL (.aux.xml), and styles for QGIS (.qml).

GDAL, and so QGIS 3.22, reads the names of classes from FILE.tif.aux.xml only. QGIS lists every entry of a colour table,
and that of a TIFF always has 256; one in the .aux.xml replaces it and ends with the highest value. Classes whose values
leave gaps, and rasters of several bands, need a style beside the file as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from geograft.geo.rasters.opening import AUX_SUFFIX
from geograft.legend import BACKGROUND_COLOUR, Legend
from geograft.text import xml_attribute, xml_text

STYLE_SUFFIX = ".qml"

# Nine of the 256 colours of each ramp, in equal steps. Viridis and inferno by van der Walt and Smith are in the public
# domain (CC0); their lightness rises evenly, also for people with colour blindness.
VIRIDIS = ("#440154", "#472D7B", "#3B528B", "#2C728E", "#21918C", "#28AE80", "#5EC962", "#ADDC30", "#FDE725")
INFERNO = ("#000004", "#210C4A", "#57106E", "#8A226A", "#BC3754", "#E45A31", "#F98E09", "#F9CB35", "#FCFFA4")
INSIDE_OUTSIDE = (
    (0.5, "#2166AC", "up to 0.5"),
    (0.75, "#67A9CF", "0.5 to 0.75"),
    (1, "#D1E5F0", "0.75 to 1"),
    (1.5, "#FDAE61", "1 to 1.5: outside"),
    (2, "#F46D43", "1.5 to 2: outside"),
    ("inf", "#B2182B", "above 2: outside"),
)
"""Upper bound, colour and label of the steps of an area of applicability, which ends at 1."""


def sidecar_paths(path: Path) -> tuple[Path, Path]:
    """Return the paths of the files next to the raster at `path`: for GDAL and for QGIS."""
    return path.with_name(f"{path.name}{AUX_SUFFIX}"), path.with_suffix(STYLE_SUFFIX)


def aux_xml(categories: Sequence[Mapping[int, str]], colours: Mapping[int, str]) -> str:
    """Return the file for GDAL: the class names of each band by value, and the colours #RRGGBB of a single band."""
    bands = "".join(
        f'  <PAMRasterBand band="{number}">\n{_colour_table(colours)}{_category_names(names)}  </PAMRasterBand>\n'
        for number, names in enumerate(categories, start=1)
    )
    return f"<PAMDataset>\n{bands}</PAMDataset>\n"


def _colour_table(colours: Mapping[int, str]) -> str:
    if not colours:
        return ""
    entries = (_entry(colours.get(value)) for value in range(max(colours) + 1))
    return f"    <ColorInterp>Palette</ColorInterp>\n    <ColorTable>\n{''.join(entries)}    </ColorTable>\n"


def _entry(colour: str | None) -> str:
    red, green, blue = bytes.fromhex(colour.removeprefix("#")) if colour else (0, 0, 0)
    return f'      <Entry c1="{red}" c2="{green}" c3="{blue}" c4="{255 if colour else 0}"/>\n'


def _category_names(names: Mapping[int, str]) -> str:
    texts = (escape(xml_text(names.get(value, ""))) for value in range(max(names) + 1))
    inner = "".join(f"      <Category>{text}</Category>\n" for text in texts)
    return f"    <CategoryNames>\n{inner}    </CategoryNames>\n"


def has_gaps(values: Sequence[int]) -> bool:
    """Return whether K values are others than 0 to K - 1, so that a table of names or colours has gaps."""
    return sorted(values) != list(range(len(values)))


def classes_style(names: Mapping[int, str], colours: Mapping[int, str]) -> str:
    """Return a style that shows the first band by the names and colours of its values, in this order."""
    entries = "".join(
        f'<paletteEntry value="{value}" color="{colours[value]}" alpha="255" label={xml_attribute(name)}/>'
        for value, name in names.items()
    )
    return _style(f'type="paletted" band="1"{_PLAIN}', f"<rasterTransparency/><colorPalette>{entries}</colorPalette>")


def overlapping_style(bands: int) -> str:
    """Return a style for bands of 0 and 1: the first three as red, green and blue; transparent where all are 0."""
    numbers = [number if number <= bands else -1 for number in (1, 2, 3)]
    attributes = " ".join(f'{colour}Band="{number}"' for colour, number in zip(_RGB, numbers, strict=True))
    black = '<pixelListEntry red="0" green="0" blue="0" percentTransparent="100"/>'
    transparency = f"<rasterTransparency><threeValuePixelList>{black}</threeValuePixelList></rasterTransparency>"
    stretch = "<minValue>0</minValue><maxValue>1</maxValue><algorithm>StretchToMinimumMaximum</algorithm>"
    stretched = "".join(
        f"<{colour}ContrastEnhancement>{stretch}</{colour}ContrastEnhancement>"
        for colour, number in zip(_RGB, numbers, strict=True)
        if number > 0
    )
    return _style(f'type="multibandcolor" {attributes}{_PLAIN}', transparency + stretched)


def image_style(bands: Sequence[int], limits: Sequence[tuple[float, float]]) -> str:
    """Return a style for an image: three bands as red, green and blue, or one as grey, each between two values."""
    tags = [f"{colour}ContrastEnhancement" for colour in _RGB] if len(bands) == len(_RGB) else ["contrastEnhancement"]
    stretched = "".join(
        f"<{tag}><minValue>{low:.17g}</minValue><maxValue>{high:.17g}</maxValue>"
        f"<algorithm>StretchToMinimumMaximum</algorithm></{tag}>"
        for tag, (low, high) in zip(tags, limits, strict=True)
    )
    if len(bands) == 1:
        attributes = f'type="singlebandgray" grayBand="{bands[0]}" gradient="BlackToWhite"{_PLAIN}'
    else:
        numbers = " ".join(f'{colour}Band="{number}"' for colour, number in zip(_RGB, bands, strict=True))
        attributes = f'type="multibandcolor" {numbers}{_PLAIN}'
    return _style(attributes, f"<rasterTransparency/>{stretched}")


def ramp_style(band: int, maximum: float, ramp: Sequence[str]) -> str:
    """Return a style that shows a band of values from 0 to `maximum` by a colour ramp; labels are 0 to 1."""
    parts = len(ramp) - 1
    items = [(maximum * i / parts, colour, f"{i / parts:g}") for i, colour in enumerate(ramp)]
    return _shaded(band, "INTERPOLATED", maximum, items)


def applicability_style() -> str:
    """Return a style for an index that is up to 1 inside the area of applicability (blue) and larger outside (red)."""
    return _shaded(1, "DISCRETE", 2, INSIDE_OUTSIDE)


def error_colours(classes: Sequence[str]) -> dict[int, str]:
    """Return the colours of an error raster of three or more classes: that of the class that a pixel is mapped as.

    Correct pixels are white.
    """
    own = [colour if colour != BACKGROUND_COLOUR else "#000000" for colour in Legend(tuple(classes)).colours]
    pairs = [(label, mapped) for label in range(len(own)) for mapped in range(len(own))]
    return {0: "#FFFFFF"} | {1 + label * len(own) + mapped: own[mapped] for label, mapped in pairs if label != mapped}


_RGB = ("red", "green", "blue")
_PLAIN = ' opacity="1" alphaBand="-1" nodataColor=""'


def _shaded(band: int, kind: str, maximum: float, items: Sequence[tuple[float | str, str, str]]) -> str:
    inner = "".join(
        f'<item value="{bound}" color="{colour}" alpha="255" label={xml_attribute(label)}/>'
        for bound, colour, label in items
    )
    limits = f'minimumValue="0" maximumValue="{maximum}"'
    shader = f'<colorrampshader colorRampType="{kind}" classificationMode="1" clip="0" {limits}>'
    # Without it, QGIS shows the two ends of a ramp only.
    legend = '<rampLegendSettings useContinuousLegend="0"/>'
    return _style(
        f'type="singlebandpseudocolor" band="{band}" classificationMin="0" classificationMax="{maximum}"{_PLAIN}',
        f"<rasterTransparency/><rastershader>{shader}{inner}{legend}</colorrampshader></rastershader>",
    )


def _style(attributes: str, content: str) -> str:
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        '<qgis version="3.22.0" styleCategories="Symbology">\n'
        f"<pipe><rasterrenderer {attributes}>{content}</rasterrenderer></pipe>\n</qgis>\n"
    )
