"""The Processing algorithms: each asks for parameters, calls one command of geograft, and returns its outputs."""

import json
from pathlib import Path

from qgis.core import (
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingOutputFolder,
    QgsProcessingOutputNumber,
    QgsProcessingOutputRasterLayer,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterEnum,
    QgsProcessingParameterField,
    QgsProcessingParameterFile,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterFolderDestination,
    QgsProcessingParameterMultipleLayers,
    QgsProcessingParameterNumber,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
    QgsProcessingParameterVectorDestination,
    QgsProcessingParameterVectorLayer,
    QgsProcessingUtils,
    QgsProviderRegistry,
    QgsVectorFileWriter,
    QgsWkbTypes,
)

from .process import ProcessError, run

OUTPUT = "OUTPUT"


class GeograftAlgorithm(QgsProcessingAlgorithm):
    """An algorithm that calls one command."""

    NAME = TITLE = HELP = ""

    def name(self):
        """Return the name after `geograft:`."""
        return self.NAME

    def displayName(self):  # noqa: N802
        """Return the name in the toolbox."""
        return self.TITLE

    def shortHelpString(self):  # noqa: N802
        """Return the text beside the dialog."""
        return self.HELP

    def createInstance(self):  # noqa: N802
        """Return a new instance."""
        return type(self)()

    def processAlgorithm(self, parameters, context, feedback):  # noqa: N802
        """Run the command and return the outputs."""
        given = Values(self, parameters, context, feedback)
        arguments, outputs = self.command(given)
        try:
            run(arguments, feedback)
        except ProcessError as error:
            raise QgsProcessingException(str(error)) from error
        return self.results(outputs)

    def command(self, given):
        """Return the arguments of geograft and the outputs by name."""
        raise NotImplementedError

    def results(self, outputs):
        """Return the outputs of a command that succeeded: those that it wrote."""
        return {name: path for name, path in outputs.items() if Path(path).exists()}

    def add(self, *parameters):
        """Declare parameters."""
        for parameter in parameters:
            self.addParameter(parameter)


class Values:
    """The values of an algorithm's parameters."""

    def __init__(self, algorithm, parameters, context, feedback):
        self._algorithm, self._parameters, self._context, self._feedback = algorithm, parameters, context, feedback

    def has(self, name):
        """Return whether a parameter was given."""
        return self._parameters.get(name) not in (None, "")

    def text(self, name):
        """Return a text, the path of a file or folder, or the name of a field."""
        return self._algorithm.parameterAsString(self._parameters, name, self._context)

    def output(self, name=OUTPUT):
        """Return the path of an output; call it once, since each call may return another temporary path."""
        return self._algorithm.parameterAsOutputLayer(self._parameters, name, self._context)

    def file(self, name=OUTPUT):
        """Return the path of an output file or folder that is no layer; once, as `output`."""
        return self._algorithm.parameterAsFileOutput(self._parameters, name, self._context)

    def choice(self, name):
        """Return the index of the chosen option."""
        return self._algorithm.parameterAsEnum(self._parameters, name, self._context)

    def flag(self, name):
        """Return a yes or no."""
        return self._algorithm.parameterAsBool(self._parameters, name, self._context)

    def run(self):
        """Return the path of the run: its folder or its bundle.

        Raises:
            QgsProcessingException: when both or none are given.
        """
        given = [self.text(name) for name in ("RUN", "BUNDLE") if self.has(name)]
        if len(given) != 1:
            raise QgsProcessingException(f"Give a run or a bundle: {len(given)} are given.")
        return given[0]

    def rasters(self, name):
        """Return the paths of rasters."""
        layers = self._algorithm.parameterAsLayerList(self._parameters, name, self._context)
        return [layer.source() for layer in layers]

    def raster(self, name):
        """Return the path of a raster."""
        return self._algorithm.parameterAsRasterLayer(self._parameters, name, self._context).source()

    def polygons(self, name):
        """Return the path of a file whose only layer of polygons is the given one; a temporary copy if needed."""
        layer = self._algorithm.parameterAsVectorLayer(self._parameters, name, self._context)
        path = layer.source().split("|")[0]
        if Path(path).is_file() and not layer.subsetString() and _polygon_layers(path) == 1:
            return path
        path = QgsProcessingUtils.generateTempFilename(f"{name.lower()}.gpkg")
        options = QgsVectorFileWriter.SaveVectorOptions()
        written = QgsVectorFileWriter.writeAsVectorFormatV3(layer, path, self._context.transformContext(), options)
        if written[0] != QgsVectorFileWriter.NoError:
            raise QgsProcessingException(f"{layer.name()} cannot be copied to {path}: {written[1]}")
        return path

    def options(self, flags):
        """Return the arguments of numbers and texts that were given, from the option by parameter name."""
        return [word for name, flag in flags.items() if self.has(name) for word in (flag, self.text(name))]


def _polygon_layers(path):
    """Return the number of layers of polygons in a file."""
    layers = QgsProviderRegistry.instance().querySublayers(path)
    return sum(QgsWkbTypes.geometryType(layer.wkbType()) == QgsWkbTypes.PolygonGeometry for layer in layers)


def _run():
    folder = QgsProcessingParameterFile.Folder
    return (
        QgsProcessingParameterFile("RUN", "Run (folder written by Train)", folder, optional=True),
        QgsProcessingParameterFile("BUNDLE", "or a bundle of a run", extension="graft", optional=True),
    )


def _rasters(text):
    return QgsProcessingParameterMultipleLayers("RASTERS", text, QgsProcessing.TypeRaster)


def _area(text):
    kind = [QgsProcessing.TypeVectorPolygon]
    return QgsProcessingParameterVectorLayer("AOI", text, kind, optional=True)


def _number(name, text, kind=QgsProcessingParameterNumber.Integer, minimum=0):
    return QgsProcessingParameterNumber(name, text, kind, None, optional=True, minValue=minimum)


class Project(GeograftAlgorithm):
    """`geograft project`."""

    NAME, TITLE = "project", "Make a project"
    HELP = (
        "Makes a folder with layers to draw labels in, random scoring areas that measure the accuracy of the map, and "
        "project.qgz: open it to draw."
    )

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters."""
        self.add(
            _rasters("Images"),
            QgsProcessingParameterString("CLASSES", "Classes, separated by commas"),
            _number("SCORING_AREAS", "Number of random scoring areas"),
            _number("AREA_M", "Length of their sides in metres", QgsProcessingParameterNumber.Double),
            QgsProcessingParameterFolderDestination(OUTPUT, "Project"),
        )

    def command(self, given):
        """Return the arguments and outputs."""
        out = given.file()
        options = given.options({"CLASSES": "--classes", "SCORING_AREAS": "--scoring-areas", "AREA_M": "--area-m"})
        return ["project", out, *given.rasters("RASTERS"), *options], {OUTPUT: out}


class Go(GeograftAlgorithm):
    """`geograft go`."""

    NAME, TITLE = "go", "Train and map a project"
    HELP = (
        "Trains on the labelled areas of a project, and refreshes its scores, maps and suggestions. Save the edits of "
        "its layers before; Project > Revert shows the results."
    )

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters and outputs."""
        self.add(
            QgsProcessingParameterFile("PROJECT", "Project (folder)", QgsProcessingParameterFile.Folder),
            _number("MINUTES", "Minutes that training may take", QgsProcessingParameterNumber.Double),
        )
        self.addOutput(QgsProcessingOutputFolder(OUTPUT, "Project"))

    def command(self, given):
        """Return the arguments and outputs."""
        folder = given.text("PROJECT")
        return ["go", folder, *given.options({"MINUTES": "--minutes"})], {OUTPUT: folder}


class Prepare(GeograftAlgorithm):
    """`geograft prepare vector`."""

    NAME, TITLE = "prepare", "Prepare a tile set"
    HELP = (
        "Makes a tile set, the input of Train, from rasters and polygons of the classes. Draw every object inside the "
        "annotated area: what has no polygon there is learned as background."
    )

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters."""
        polygons = [QgsProcessing.TypeVectorPolygon]
        self.add(
            _rasters("Images"),
            QgsProcessingParameterVectorLayer("LABELS", "Labels (polygons)", polygons),
            QgsProcessingParameterField(
                "CLASS_FIELD", "Field of the class; none: all polygons are one class", None, "LABELS", optional=True
            ),
            _area("Annotated area (polygons); none: the whole images"),
            _number("TILE_PX", "Tile size in pixels", minimum=32),
            QgsProcessingParameterFolderDestination(OUTPUT, "Tile set"),
        )

    def command(self, given):
        """Return the arguments and outputs."""
        out = given.file()
        aoi = ["--aoi", given.polygons("AOI")] if given.has("AOI") else []
        options = given.options({"CLASS_FIELD": "--class-field", "TILE_PX": "--tile-px"})
        labels = ["--labels", given.polygons("LABELS")]
        return ["prepare", "vector", *given.rasters("RASTERS"), *labels, "--out", out, *aoi, *options], {OUTPUT: out}


class Train(GeograftAlgorithm):
    """`geograft train`."""

    NAME, TITLE = "train", "Train a network"
    HELP = "Trains a pretrained network on a tile set. Without settings they are planned from the tile set. The first "
    HELP += "training downloads the pretrained weights."

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters."""
        self.add(
            QgsProcessingParameterFile("TILES", "Tile set (folder)", QgsProcessingParameterFile.Folder),
            _number("EPOCHS", "Epochs", minimum=1),
            _number("MINUTES", "Minutes that training may take", QgsProcessingParameterNumber.Double),
            QgsProcessingParameterFile("RECIPE", "Recipe (TOML)", extension="toml", optional=True),
            QgsProcessingParameterFolderDestination(OUTPUT, "Run"),
        )

    def command(self, given):
        """Return the arguments and outputs."""
        out = given.file()
        options = given.options({"EPOCHS": "--epochs", "MINUTES": "--minutes", "RECIPE": "--recipe"})
        return ["train", given.text("TILES"), "--out", out, *options], {OUTPUT: out}


class Predict(GeograftAlgorithm):
    """`geograft predict`."""

    NAME, TITLE = "predict", "Map rasters"
    HELP = (
        "Maps rasters of any size with a run. Several rasters on one grid become one map. A cancelled map is resumed "
        "by the same call with the same output file."
    )
    LAYERS = (
        ("PROBABILITIES", "probabilities", ("--probabilities", "uint8"), "Probability of each class"),
        ("UNCERTAINTY", "uncertainty", ("--uncertainty",), "Uncertainty"),
        ("APPLICABILITY", "applicability", ("--applicability",), "Dissimilarity to the training data"),
    )

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters and outputs."""
        self.add(
            *_run(),
            _rasters("Rasters"),
            _area("Map inside these polygons only"),
            *(QgsProcessingParameterBoolean(name, f"Also: {text}", False) for name, _, _, text in self.LAYERS),
            QgsProcessingParameterRasterDestination(OUTPUT, "Class map"),
        )
        for name, _, _, text in self.LAYERS:
            self.addOutput(QgsProcessingOutputRasterLayer(f"{name}_MAP", text))

    def command(self, given):
        """Return the arguments and outputs."""
        out = Path(given.output())
        arguments = ["predict", given.run(), *given.rasters("RASTERS"), "--out", str(out)]
        outputs = {OUTPUT: str(out)}
        if given.has("AOI"):
            arguments += ["--aoi", given.polygons("AOI")]
        for name, suffix, option, _ in self.LAYERS:
            if given.flag(name):
                arguments += option
                outputs[f"{name}_MAP"] = str(out.with_name(f"{out.stem}.{suffix}.tif"))
        return arguments, outputs


class Polygons(GeograftAlgorithm):
    """`geograft polygons`."""

    NAME, TITLE = "polygons", "Polygonise a class map"
    HELP = "Turns a class map into polygons with class, area and perimeter; neighbours share their outlines."

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters."""
        area = QgsProcessingParameterNumber.Double
        self.add(
            QgsProcessingParameterRasterLayer("MAP", "Class map"),
            _number("MIN_AREA_M2", "Minimum area in square metres", area),
            _number("FILL_HOLES_M2", "Fill holes below this area in square metres", area),
            _number("SIMPLIFY_M", "Simplification: distance in metres that an outline may move", area),
            QgsProcessingParameterBoolean("SQUARE", "Right angles, for buildings", False),
            QgsProcessingParameterVectorDestination(OUTPUT, "Polygons", QgsProcessing.TypeVectorPolygon),
        )

    def command(self, given):
        """Return the arguments and outputs."""
        out = given.output()
        options = {"MIN_AREA_M2": "--min-area-m2", "FILL_HOLES_M2": "--fill-holes-m2", "SIMPLIFY_M": "--simplify-m"}
        square = ["--square"] if given.flag("SQUARE") else []
        return ["polygons", given.raster("MAP"), "--out", out, *given.options(options), *square], {OUTPUT: out}


class Suggest(GeograftAlgorithm):
    """`geograft suggest`."""

    NAME, TITLE = "suggest", "Suggest what to label next"
    HELP = "Ranks the tiles of rasters that are worth labelling: those a run is uncertain of, and that many others "
    HELP += "resemble."

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters."""
        self.add(
            *_run(),
            _rasters("Rasters"),
            _area("Suggest tiles inside these polygons only"),
            _number("TILES", "Number of tiles", minimum=1),
            QgsProcessingParameterVectorDestination(OUTPUT, "Tiles to label", QgsProcessing.TypeVectorPolygon),
        )

    def command(self, given):
        """Return the arguments and outputs."""
        out = given.output()
        aoi = ["--aoi", given.polygons("AOI")] if given.has("AOI") else []
        options = given.options({"TILES": "--tiles"})
        return ["suggest", given.run(), *given.rasters("RASTERS"), "--out", out, *aoi, *options], {OUTPUT: out}


class Evaluate(GeograftAlgorithm):
    """`geograft evaluate`."""

    NAME, TITLE = "evaluate", "Score a run"
    HELP = "Scores a run on the held-out tiles of its tile set, with 95 % confidence intervals, as JSON."
    SPLITS = ("test", "val", "train")

    def initAlgorithm(self, configuration=None):  # noqa: N802
        """Declare the parameters and outputs."""
        self.add(
            *_run(),
            QgsProcessingParameterEnum("SPLIT", "Split", self.SPLITS, defaultValue=0),
            QgsProcessingParameterFileDestination(OUTPUT, "Scores", "JSON (*.json)"),
        )
        self.addOutput(QgsProcessingOutputNumber("IOU", "IoU: of the positive class, or the mean of the classes"))

    def command(self, given):
        """Return the arguments and outputs."""
        out, split = given.file(), self.SPLITS[given.choice("SPLIT")]
        return ["evaluate", given.run(), "--split", split, "--out", out], {OUTPUT: out}

    def results(self, outputs):
        """Return the path of the scores and the IoU."""
        scores = json.loads(Path(outputs[OUTPUT]).read_text(encoding="utf-8"))
        return {**outputs, "IOU": scores["overall"]["iou"]}


ALGORITHMS = (Project, Go, Prepare, Train, Predict, Polygons, Suggest, Evaluate)
