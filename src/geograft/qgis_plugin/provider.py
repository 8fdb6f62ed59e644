"""The plugin and its Processing provider."""

from qgis.core import QgsApplication, QgsProcessingProvider

from .algorithms import ALGORITHMS


class Plugin:
    """What QGIS loads: adds the provider to Processing, and removes it."""

    def __init__(self):
        self._provider = None

    def initProcessing(self):  # noqa: N802
        """Add the provider; QGIS's desktop calls `initGui`, qgis_process this."""
        self._provider = GeograftProvider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self):  # noqa: N802
        """Add the provider."""
        self.initProcessing()

    def unload(self):
        """Remove the provider."""
        QgsApplication.processingRegistry().removeProvider(self._provider)


class GeograftProvider(QgsProcessingProvider):
    """The algorithms of Geograft."""

    def id(self):
        """Return the prefix of the algorithms' names: `geograft:predict`."""
        return "geograft"

    def name(self):
        """Return the name in the toolbox."""
        return "Geograft"

    def loadAlgorithms(self):  # noqa: N802
        """Add all algorithms."""
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def supportedOutputRasterLayerExtensions(self):  # noqa: N802
        """Return the suffixes of maps."""
        return ["tif"]

    def supportedOutputVectorLayerExtensions(self):  # noqa: N802
        """Return the suffixes of polygons and tiles."""
        return ["gpkg", "geojson"]

    def defaultVectorFileExtension(self, hasGeometry=True):  # noqa: N802, N803
        """Return the suffix of a new vector layer."""
        return "gpkg"

    def supportsNonFileBasedOutput(self):  # noqa: N802
        """Return that outputs are files: geograft writes no databases and no memory layers."""
        return False
