"""What polygons are found in: a class map, its classes and their probabilities."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer
from numpy import ndarray

from geograft.config import PolygonConfig
from geograft.geo.grid import Window
from geograft.geo.polygons.regions import Source
from geograft.geo.polygons.zonal import Probabilities
from geograft.geo.rasters.raster import Image
from geograft.legend import Legend


@dataclass(frozen=True)
class Finding:
    """A class map and what is known of it.

    It has one layer of regions; of overlapping classes one for each, which no other class's regions cut.
    """

    image: Image
    legend: Legend | None
    settings: PolygonConfig
    probabilities: Probabilities | None

    @property
    def background(self) -> int | None:
        """The value that is left out, if any."""
        if self.settings.background or (self.legend and not self.legend.binary):
            return None
        return self.legend.values[0] if self.legend else 0

    @property
    def layers(self) -> int:
        """How often the map is gone through."""
        return len(self.legend.names) if self.legend and self.legend.overlapping else 1

    def name(self, value: int) -> str:
        """Return the name of a class."""
        names = dict(zip(self.legend.values, self.legend.names, strict=True)) if self.legend else {}
        return names.get(value, str(value))


def class_map(finding: Finding, layer: int, seen: Callable[[Window], None]) -> Source:
    """Return a layer of a class map as a source of regions; every window that is done with is `seen`."""
    image, background = finding.image, finding.background

    def read(window: Window) -> tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]:
        pixels, valid = image.read(window, [layer + 1])
        if finding.layers > 1 and finding.legend:
            return np.full(pixels[0].shape, finding.legend.values[layer]), valid & (pixels[0] == 1)
        return pixels[0], valid if background is None else valid & (pixels[0] != background)

    def empty(window: Window) -> bool:
        seen(window)
        return image.empty(window)

    def sums(window: Window, labels: Int32[ndarray, "h w"], owners: Int64[ndarray, " n"]) -> Int64[ndarray, "n k"]:
        if finding.probabilities:
            return finding.probabilities.sums(window, labels, owners)
        return np.zeros((len(owners), 3), np.int64)

    return Source(image.info.grid.height, image.info.grid.width, read, empty, sums)
