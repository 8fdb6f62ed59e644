"""Print as JSON what QGIS reads from a project. Runs under the Python that has QGIS, not under that of the tests.

usage: qgis_project.py PROJECT [--add] [--paste FROM=TO,...] [--save COPY] [--picture FILE [--extent X,Y,X,Y]]

--add draws a square in each layer of labels.gpkg, as a person would: with the default values of the layer.
--paste copies the first feature of a layer to another, as Edit > Paste Features does, without saving it.
--save writes the project to a copy, and reads that.
"""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsFeatureSink,
    QgsGeometry,
    QgsLayerTreeLayer,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
    QgsVectorLayerUtils,
)
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtGui import QColor

PICTURE_PX = 640


def describe_layer(layer):
    """Return how a layer of the project is shown and edited."""
    nodes = layer.legend().createLayerTreeModelLegendNodes(QgsLayerTreeLayer(layer)) if layer.isValid() else []
    found = {
        "name": layer.name(),
        "valid": layer.isValid(),
        "crs": layer.crs().authid(),
        "shown": QgsProject.instance().layerTreeRoot().findLayer(layer.id()).isVisible(),
        "legend": [node.data(Qt.DisplayRole) for node in nodes],
    }
    if isinstance(layer, QgsVectorLayer) and layer.isValid():
        fields = list(enumerate(layer.fields()))
        form = layer.editFormConfig()
        found["features"] = layer.featureCount()
        found["read_only"] = layer.readOnly()
        found["widgets"] = {field.name(): layer.editorWidgetSetup(i).type() for i, field in fields}
        found["choices"] = {
            field.name(): [next(iter(each)) for each in layer.editorWidgetSetup(i).config().get("map", [])]
            for i, field in fields
            if layer.editorWidgetSetup(i).type() == "ValueMap"
        }
        found["defaults"] = {
            field.name(): layer.defaultValueDefinition(i).expression()
            for i, field in fields
            if layer.defaultValueDefinition(i).expression()
        }
        found["fixed"] = [field.name() for i, field in fields if form.readOnly(i)]
        found["repeated"] = [field.name() for i, field in fields if form.reuseLastValue(i)]
        found["form_hidden"] = form.suppress() == form.SuppressOn
        found["labels"] = layer.labelsEnabled()
        found["constants"] = {field.name(): layer.expressionField(i) for i, field in fields if layer.expressionField(i)}
    return found


def add_features(project):
    """Add a square to each layer of labels.gpkg and return the values of its fields as they were stored."""
    added = {}
    for layer in project.mapLayers().values():
        if not (isinstance(layer, QgsVectorLayer) and "labels.gpkg" in layer.source()):
            continue
        x, y = project.viewSettings().defaultViewExtent().center()
        square = QgsGeometry.fromRect(QgsRectangle(x, y, x + 1, y + 1))
        layer.startEditing()
        layer.addFeature(QgsVectorLayerUtils.createFeature(layer, square, {}))
        if not layer.commitChanges():
            raise SystemExit(str(layer.commitErrors()))
        newest = max(layer.getFeatures(), key=lambda feature: feature.id())
        added[layer.name()] = plain_values(layer, newest)
    return added


def paste(project, pairs):
    """Return the values that the first feature of a layer would have in another layer, by the name of that."""
    layers, pasted = {layer.name(): layer for layer in project.mapLayers().values()}, {}
    for source, target in (pair.split("=") for pair in pairs.split(",")):
        layer = layers[target]
        copied = [next(layers[source].getFeatures())]
        (fitting,) = QgsVectorLayerUtils.makeFeaturesCompatible(copied, layer, QgsFeatureSink.RegeneratePrimaryKey)
        data = QgsVectorLayerUtils.QgsFeatureData(fitting.geometry(), dict(enumerate(fitting.attributes())))
        (new,) = QgsVectorLayerUtils.createFeatures(layer, [data], layer.createExpressionContext())
        pasted[target] = plain_values(layer, new)
    return pasted


def plain_values(layer, feature):
    """Return the texts and numbers of a feature by the name of their field; None for NULL."""
    values = zip(layer.fields().names(), feature.attributes(), strict=True)
    return {name: value if isinstance(value, (str, bool, int)) else None for name, value in values}


def describe(project):
    """Return the layers from top to bottom, the groups, and the settings of the project."""
    root, snapping = project.layerTreeRoot(), project.snappingConfig()
    view = project.viewSettings().defaultViewExtent()
    return {
        "title": project.title(),
        "crs": project.crs().authid(),
        "groups": {group.name(): [node.name() for node in group.findLayers()] for group in root.findGroups()},
        "layers": {layer.name(): describe_layer(layer) for layer in root.layerOrder()},
        "not_shown": [layer.name() for layer in project.mapLayers().values() if layer not in root.layerOrder()],
        "snapping": [snapping.enabled(), int(snapping.mode()), snapping.tolerance(), int(snapping.units())],
        "topological": project.topologicalEditing(),
        "extent": [view.xMinimum(), view.yMinimum(), view.xMaximum(), view.yMaximum()],
    }


def draw(project, file, extent):
    """Write a picture of the layers that are checked, as the canvas shows them."""
    root, settings = project.layerTreeRoot(), QgsMapSettings()
    shown = [layer for layer in root.layerOrder() if root.findLayer(layer.id()).isVisible()]
    settings.setLayers(shown)
    settings.setDestinationCrs(project.crs())
    settings.setTransformContext(project.transformContext())
    settings.setExtent(QgsRectangle(*extent))
    ratio = (extent[3] - extent[1]) / (extent[2] - extent[0])
    settings.setOutputSize(QSize(PICTURE_PX, max(1, round(PICTURE_PX * ratio))))
    settings.setBackgroundColor(QColor(255, 255, 255))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(file)


def main(arguments):
    """Read the project and do what the arguments ask for."""
    application = QgsApplication([], False)
    application.initQgis()
    names = ("--save", "--picture", "--extent", "--paste")
    options = {name: arguments[arguments.index(name) + 1] for name in names if name in arguments}
    project = QgsProject.instance()
    if not project.read(arguments[0]):
        raise SystemExit(project.error())
    if "--save" in options and not (project.write(options["--save"]) and project.read(options["--save"])):
        raise SystemExit(project.error())
    added = add_features(project) if "--add" in arguments else {}
    pasted = paste(project, options["--paste"]) if "--paste" in options else {}
    found = describe(project)
    sys.stdout.write(json.dumps({**found, "added": added, "pasted": pasted}))
    if "--picture" in options:
        extent = [float(side) for side in options.get("--extent", "").split(",") if side] or found["extent"]
        draw(project, options["--picture"], extent)


if __name__ == "__main__":
    main(sys.argv[1:])
