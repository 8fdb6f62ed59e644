"""Project files of QGIS (.qgz, .qgs), written without QGIS: layers with their styles, groups, snapping and extent.

Paths in a project are relative to its folder. Equal content gives equal bytes. Written for QGIS 3.22 and later.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from pyproj import CRS

from geograft.files import json_digest
from geograft.text import xml_text

QGIS_VERSION = "3.22.0"
DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
NO_DATE = (1980, 1, 1, 0, 0, 0)
"""The time of writing in a zip file that must not depend on it."""
ALL_LAYERS, VERTEX_AND_SEGMENT, PIXELS = "2", "3", "1"
"""Values of QGIS for snapping."""
SNAPPING_PX = "12"
CHECKED, UNCHECKED = "Qt::Checked", "Qt::Unchecked"
PROPERTIES = (
    ("Digitizing", "TopologicalEditing", "int", "1"),
    # Drawn over each other, the later polygon wins; none is cut.
    ("Digitizing", "AvoidIntersectionsMode", "int", "0"),
    ("Paths", "Absolute", "bool", "false"),
    ("SpatialRefSys", "ProjectionsEnabled", "int", "1"),
)
"""Section, name, type and value of a project's properties."""

Extent = tuple[float, float, float, float]
"""Minimum x, minimum y, maximum x, maximum y."""


@dataclass(frozen=True)
class ProjectLayer:
    """A layer of a project."""

    name: str
    source: str
    """Path relative to the folder of the project, with forward slashes."""
    crs: CRS
    style: str = ""
    """Style (QML); QGIS's default if empty."""
    layer: str = ""
    """Layer in a GeoPackage; empty for a raster."""
    read_only: bool = False
    shown: bool = True
    """Whether the layer is drawn when the project is opened."""

    @property
    def id(self) -> str:
        """Its identifier in a project. QGIS replaces one of up to ten characters."""
        return f"layer_{json_digest([self.source, self.layer])[:32]}"

    @property
    def datasource(self) -> str:
        """The source as QGIS writes it."""
        path = self.source if self.source.startswith(("/", ".")) or ":" in self.source else f"./{self.source}"
        return f"{path}|layername={self.layer}" if self.layer else path

    @property
    def provider(self) -> str:
        """The provider of QGIS that reads it."""
        return "ogr" if self.layer else "gdal"


@dataclass(frozen=True)
class Group:
    """A group of layers, the first on top."""

    name: str
    layers: Sequence[ProjectLayer] = ()
    project: str = ""
    """Path of another project whose group of this name is shown in place of `layers`."""
    hidden: Sequence[str] = ()
    """Identifiers of layers there that are not drawn when this project is opened."""


@dataclass(frozen=True)
class View:
    """What a project shows when it is opened."""

    title: str
    crs: CRS
    extent: Extent | None = None


def project_xml(groups: Sequence[Group], view: View) -> str:
    """Return a project of groups, the first on top, with snapping and topological editing switched on."""
    root = Element("qgis", {"projectname": xml_text(view.title), "version": QGIS_VERSION})
    SubElement(root, "title").text = xml_text(view.title)
    _add_crs(SubElement(root, "projectCrs"), view.crs)
    tree = SubElement(root, "layer-tree-group")
    for group in groups:
        _add_group(tree, group)
    _add_snapping(root)
    if view.extent:
        _add_canvas(root, view.extent, view.crs)
    layers = [layer for group in groups for layer in group.layers]
    content = SubElement(root, "projectlayers")
    for layer in layers:
        content.append(_map_layer(layer))
    order = SubElement(root, "layerorder")
    for layer in layers:
        SubElement(order, "layer", {"id": layer.id})
    _add_properties(root)
    ElementTree.indent(root)
    return f"{DOCTYPE}{ElementTree.tostring(root, encoding='unicode')}\n"


def zip_project(text: str, name: str) -> bytes:
    """Return a project as the content of a .qgz file; `name` is that of the .qgs file in it."""
    entry = zipfile.ZipInfo(name, NO_DATE)
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(entry, text.encode())
    return buffer.getvalue()


def _add_crs(parent: Element, crs: CRS) -> None:
    reference = SubElement(parent, "spatialrefsys")
    SubElement(reference, "wkt").text = crs.to_wkt()
    authority = crs.to_authority(min_confidence=100)
    SubElement(reference, "authid").text = ":".join(authority) if authority else ""


def _add_group(tree: Element, group: Group) -> None:
    node = SubElement(tree, "layer-tree-group", {"name": xml_text(group.name), "expanded": "1", "checked": CHECKED})
    if group.project:
        options = SubElement(SubElement(node, "customproperties"), "Option", {"type": "Map"})
        for name, value in {"embedded": "1", "embedded_project": f"./{group.project}"}.items():
            SubElement(options, "Option", {"type": "QString", "name": name, "value": value})
        hidden = SubElement(options, "Option", {"type": "StringList", "name": "embedded-invisible-layers"})
        for identifier in group.hidden:
            SubElement(hidden, "Option", {"type": "QString", "value": identifier})
    for layer in group.layers:
        attributes = {"id": layer.id, "name": xml_text(layer.name), "source": layer.datasource}
        state = {"providerKey": layer.provider, "checked": CHECKED if layer.shown else UNCHECKED, "expanded": "1"}
        SubElement(node, "layer-tree-layer", attributes | state)


def _add_snapping(root: Element) -> None:
    attributes = {"enabled": "1", "mode": ALL_LAYERS, "type": VERTEX_AND_SEGMENT, "unit": PIXELS}
    SubElement(root, "snapping-settings", attributes | {"tolerance": SNAPPING_PX, "intersection-snapping": "0"})


def _add_canvas(root: Element, extent: Extent, crs: CRS) -> None:
    sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), (f"{side:.17g}" for side in extent), strict=True))
    canvas = SubElement(root, "mapcanvas", {"name": "theMapCanvas", "annotationsVisible": "1"})
    box = SubElement(canvas, "extent")
    for name, side in sides.items():
        SubElement(box, name).text = side
    SubElement(canvas, "rotation").text = "0"
    _add_crs(SubElement(canvas, "destinationsrs"), crs)
    settings = SubElement(root, "ProjectViewSettings", {"UseProjectScales": "0", "rotation": "0"})
    _add_crs(SubElement(settings, "DefaultViewExtent", sides), crs)


def _add_properties(root: Element) -> None:
    properties = SubElement(root, "properties")
    for group, name, kind, value in PROPERTIES:
        found = properties.find(group)
        parent = SubElement(properties, group) if found is None else found
        SubElement(parent, name, {"type": kind}).text = value


def _map_layer(layer: ProjectLayer) -> Element:
    kind = {"type": "vector", "geometry": "Polygon"} if layer.layer else {"type": "raster"}
    node = Element("maplayer", kind | ({"readOnly": "1"} if layer.read_only else {}))
    SubElement(node, "id").text = layer.id
    SubElement(node, "datasource").text = layer.datasource
    SubElement(node, "layername").text = xml_text(layer.name)
    _add_crs(SubElement(node, "srs"), layer.crs)
    SubElement(node, "provider", {"encoding": "UTF-8"} if layer.layer else {}).text = layer.provider
    if layer.style:
        style = ElementTree.fromstring(layer.style)  # a style that geograft wrote
        node.attrib |= {name: value for name, value in style.attrib.items() if name == "labelsEnabled"}
        node.extend(style)
    return node
