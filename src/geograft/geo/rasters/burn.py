"""Polygons into pixels: a pixel is of the polygon that holds its centre; of several, of the last."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from affine import Affine
from jaxtyping import UInt8
from numpy import ndarray
from rasterio.features import rasterize
from shapely import STRtree

from geograft.geo.grid import Window, transformed

NUDGE = Affine.translation(1e-6 * 2**0.5, 1e-6 * 3**0.5)
"""Moves polygons by a millionth of a pixel, so that no edge drawn through a pixel's centre is left to rounding."""


@dataclass(frozen=True)
class PixelShapes:
    """Polygons of one scene in its pixel coordinates (x = column, y = row), with the class index of each."""

    parts: ndarray
    """(n,) shapely Polygons, holes included; the parts of a multipolygon one after the other."""
    values: UInt8[ndarray, " n"]

    @cached_property
    def tree(self) -> STRtree:
        """The index of the parts; its answers are positions in `parts`."""
        return STRtree(self.parts)

    def only(self, value: int) -> "PixelShapes":
        """Return the polygons of one class."""
        mine = self.values == value
        return PixelShapes(self.parts[mine], self.values[mine])


def in_pixels(shapes: ndarray, values: UInt8[ndarray, " n"], to_pixels: Affine) -> PixelShapes:
    """Return (n,) polygons or multipolygons in pixel coordinates, which `to_pixels` makes of theirs.

    For shapes on the ground `to_pixels` is the inverse of the grid's transform. Doing this once for the whole scene,
    and moving windows by whole pixels only, makes windows agree where they meet.
    """
    parts, owners = shapely.get_parts(shapes, return_index=True)
    return PixelShapes(shapely.transform(parts, lambda xy: transformed(xy, NUDGE @ to_pixels)), values[owners])


def burned(shapes: PixelShapes, window: Window, fill: int, fine: int = 1) -> UInt8[ndarray, "rows cols"]:
    """Return the class index of every pixel of `window`; `fill` where no polygon holds its centre.

    With `fine`, of every part of a pixel that is cut in so many rows and columns. Costs the vertices of the polygons
    that touch the window, whatever the scene holds besides.
    """
    hits = np.sort(shapes.tree.query(window.outline))
    size = (window.height * fine, window.width * fine)
    if not len(hits):
        return np.full(size, fill, np.uint8)
    to_window = Affine.translation(window.col, window.row) @ Affine.scale(1 / fine)
    pairs = zip(shapes.parts[hits], shapes.values[hits].tolist(), strict=True)
    labels: ndarray[Any, Any] = rasterize(pairs, size, fill=fill, transform=to_window, dtype="uint8")
    return labels
