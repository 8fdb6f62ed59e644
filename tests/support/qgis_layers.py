"""Print as JSON how QGIS shows layers. Runs under the Python that has QGIS, not under that of the tests.

usage: qgis_layers.py PATH[|layername=NAME] ... [--picture FILE.png]
"""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsFeatureRequest,
    QgsLayerTreeLayer,
    QgsMapRendererSequentialJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize, Qt
from qgis.PyQt.QtGui import QColor


def describe(layer):
    """Return how a layer is shown: its legend, and what a vector layer says of itself and its fields."""
    nodes = layer.legend().createLayerTreeModelLegendNodes(QgsLayerTreeLayer(layer))
    renderer = layer.renderer()
    described = {
        "valid": layer.isValid(),
        "renderer": renderer.type() if renderer else None,
        "legend": [node.data(Qt.DisplayRole) for node in nodes],
        "title": layer.metadata().title(),
        "abstract": layer.metadata().abstract(),
    }
    if isinstance(layer, QgsVectorLayer):
        # Features that a renderer's own filter leaves out are not drawn.
        drawn = QgsFeatureRequest().setFilterExpression(renderer.filter(layer.fields()) or "true")
        described["drawn"] = sum(1 for _ in layer.getFeatures(drawn))
        described["aliases"] = {field.name(): field.alias() for field in layer.fields() if field.alias()}
        described["features"] = layer.featureCount()
        described["widgets"] = {
            field.name(): layer.editorWidgetSetup(i).type() for i, field in enumerate(layer.fields())
        }
        described["labels"] = layer.labelsEnabled()
    return described


def open_layer(path):
    """Return a raster or vector layer with its default style."""
    name = path.split("|")[0]
    return QgsRasterLayer(name, "raster") if name.endswith(".tif") else QgsVectorLayer(path, "vector")


def draw(layers, file):
    """Write a picture of layers, the first on top."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setExtent(layers[0].extent().buffered(layers[0].extent().width() * 0.02))
    settings.setOutputSize(QSize(480, 480))
    settings.setBackgroundColor(QColor(255, 255, 255))
    job = QgsMapRendererSequentialJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(file)


def main(arguments):
    """Print the layers, and draw them if asked to."""
    application = QgsApplication([], False)
    application.initQgis()
    file = arguments.pop(arguments.index("--picture") + 1) if "--picture" in arguments else None
    layers = [open_layer(path) for path in arguments if path != "--picture"]
    sys.stdout.write(json.dumps([describe(layer) for layer in layers]))
    if file:
        draw(layers, file)


if __name__ == "__main__":
    main(sys.argv[1:])
