"""Run a model of the designer: a class map, and its polygons. Runs under the Python that has QGIS.

usage: qgis_model.py PLUGINS RUN RASTER POLYGONS
"""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsProcessing,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingParameterFile,
    QgsProcessingParameterMultipleLayers,
)


def child(name, **sources):
    """Return the call of an algorithm; sources are the names of model inputs, or pairs of child and output."""
    call = QgsProcessingModelChildAlgorithm(f"geograft:{name}")
    call.setChildId(name)
    for parameter, source in sources.items():
        kind = QgsProcessingModelChildParameterSource
        given = kind.fromModelParameter(source) if isinstance(source, str) else kind.fromChildOutput(*source)
        call.addParameterSources(parameter, [given])
    return call


def main(plugins, run, raster, polygons):
    """Build the model, run it, and print its results."""
    application = QgsApplication([], False)
    application.initQgis()
    sys.path.insert(0, plugins)
    from geograft_processing import classFactory

    plugin = classFactory(None)
    plugin.initProcessing()
    model = QgsProcessingModelAlgorithm("loop", "tests")
    for parameter in (
        QgsProcessingParameterFile("RUN", "Run", QgsProcessingParameterFile.Folder),
        QgsProcessingParameterMultipleLayers("RASTERS", "Rasters", QgsProcessing.TypeRaster),
    ):
        model.addModelParameter(parameter, QgsProcessingModelParameter(parameter.name()))
    last = child("polygons", MAP=("predict", "OUTPUT"))
    output = QgsProcessingModelOutput("POLYGONS")
    output.setChildId("polygons")
    output.setChildOutputName("OUTPUT")
    last.setModelOutputs({"POLYGONS": output})
    model.addChildAlgorithm(child("predict", RUN="RUN", RASTERS="RASTERS"))
    model.addChildAlgorithm(last)
    model.updateDestinationParameters()
    given = {"RUN": run, "RASTERS": [raster], "polygons:POLYGONS": polygons}
    results, succeeded = model.run(given, QgsProcessingContext(), QgsProcessingFeedback())
    sys.stdout.write(json.dumps({"succeeded": succeeded, "polygons": results.get("polygons:POLYGONS")}))
    plugin.unload()


if __name__ == "__main__":
    main(*sys.argv[1:])
