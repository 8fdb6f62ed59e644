"""Edit the layer `labels` of a GeoPackage in QGIS while another program changes it. Runs under QGIS's Python.

usage: qgis_edit.py labels.gpkg X Y

Adds a polygon to the layer's edit buffer, prints "editing", waits for a line on standard input, saves the edits, and
prints as JSON what QGIS then sees: whether it could save, the number of features, and the ids of those at (X, Y).
"""

import json
import sys

from qgis.core import QgsApplication, QgsFeature, QgsFeatureRequest, QgsGeometry, QgsRectangle, QgsVectorLayer


def main(path, x, y):
    """Edit the layer and report."""
    application = QgsApplication([], False)
    application.initQgis()
    layer = QgsVectorLayer(f"{path}|layername=labels", "labels")
    feature = QgsFeature(layer.fields())
    feature.setGeometry(QgsGeometry.fromRect(layer.extent()))
    feature["class"] = "trees"
    layer.startEditing()
    layer.addFeature(feature)
    sys.stdout.write("editing\n")
    sys.stdout.flush()
    sys.stdin.readline()
    saved = layer.commitChanges()
    layer.dataProvider().reloadData()
    at = QgsFeatureRequest().setFilterRect(QgsRectangle(x - 0.01, y - 0.01, x + 0.01, y + 0.01))
    ids = [each.id() for each in layer.getFeatures(at)]
    found = {"saved": saved, "features": sum(1 for _ in layer.getFeatures()), "at": ids}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
