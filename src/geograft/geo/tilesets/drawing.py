"""Polygons of a scene as its labels: whole pixels or parts of pixels, of classes that exclude each other or overlap."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray

from geograft.geo.grid import Window, cells
from geograft.geo.rasters.burn import PixelShapes, burned
from geograft.geo.tilesets.scenes import LabelReader
from geograft.labels import FULL, coded, coded_together
from geograft.legend import IGNORE, Legend

FINE = 8
"""Rows and columns that a pixel is cut in to see how much of it lies in a polygon: bits of a byte."""
CELL = (512, 512)
"""Rows and columns of pixels that are cut at a time: 17 MB a class."""


@dataclass(frozen=True)
class Drawing:
    """What becomes of polygons."""

    legend: Legend
    fractions: bool = False
    """Whether a pixel is of the classes by how much of it lies in their polygons, not by where its centre lies."""

    @property
    def shares(self) -> bool:
        """Whether labels are shares of classes, not class indices."""
        return self.fractions or self.legend.overlapping


def polygon_reader(shapes: PixelShapes, seen: PixelShapes | None, drawing: Drawing) -> LabelReader:
    """Return what gives the labels of one scene; 255 in pixels whose centre is outside the `seen` polygons.

    The polygons' values are 1 for the first class that has polygons, and so on: class indices, or one more than these
    where classes overlap. What no polygon holds has value 0.
    """
    values = range(1, len(drawing.legend.names) + 1)
    apart = [shapes.only(value) for value in values] if drawing.legend.overlapping else []

    def label(window: Window) -> UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"]:
        if not drawing.shares:
            drawn = burned(shapes, window, fill=0)
        elif drawing.fractions:
            drawn = _fractions(apart or [shapes], window, drawing.legend)
        else:
            drawn = np.stack([burned(part, window, fill=0) > 0 for part in apart]) * np.uint8(FULL)
        if seen is not None:
            drawn[..., burned(seen, window, fill=0) == 0] = IGNORE
        return drawn

    return label


def _fractions(layers: list[PixelShapes], window: Window, legend: Legend) -> UInt8[ndarray, "o h w"]:
    """Return how much of each pixel is of each output's class, in 250ths; each overlapping class has a layer."""
    drawn = np.empty((legend.outputs, window.height, window.width), np.uint8)
    for cell in cells(window, *CELL):
        fine = (burned(layer, cell, fill=0, fine=FINE) for layer in layers)
        if legend.overlapping:
            codes = coded(np.stack([_share(part > 0) for part in fine]))
        else:
            codes = _apart(next(fine), legend)
        drawn[:, *cell.within(window).slices] = codes
    return drawn


def _apart(fine: UInt8[ndarray, "fine_h fine_w"], legend: Legend) -> UInt8[ndarray, "o h w"]:
    """Return the shares of classes that exclude each other, from the class of each part of a pixel."""
    if legend.binary:
        return coded(_share(fine == 1)[None])
    return coded_together(np.stack([_share(fine == value) for value in range(len(legend.names))]))


def _share(inside: Bool[ndarray, "fine_h fine_w"]) -> Float32[ndarray, "h w"]:
    """Return the share of each pixel's parts that are inside."""
    # Eight parts of a row are a byte, whose bits are counted at once.
    rows = np.bitwise_count(np.packbits(inside, axis=1))
    shares: Float32[ndarray, "h w"] = rows.reshape(-1, FINE, rows.shape[1]).sum(axis=1, dtype=np.float32) / FINE**2
    return shares
