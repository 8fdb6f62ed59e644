"""Polygons of a scene as its labels: whole pixels or parts of pixels, of classes that exclude each other or overlap.

Polygons on the ground, placed on images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float32, Int, UInt8
from numpy import ndarray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.dataset.scenes import LabelReader, counted
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, cells
from geograft.geo.rasters.raster import ImageInfo
from geograft.geo.rasters.rasterize import PixelShapes, burned, in_pixels
from geograft.geo.vectors.reader import Polygons, read_polygons
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


@dataclass(frozen=True)
class Placement:
    """The polygons of one layer that lie on one image."""

    polygons: Polygons
    """The whole layer, in the image's CRS."""
    hits: Int[ndarray, " n"]
    """Positions of those that touch the image, in file order."""
    to_pixels: Affine

    def shapes(self, index_of: Mapping[str, int]) -> PixelShapes:
        """Return the polygons in the image's pixels, with their class indices; 1 in a layer without classes."""
        classes = self.polygons.classes
        values = [index_of[classes[hit]] if classes else 1 for hit in self.hits]
        return in_pixels(self.polygons.shapes[self.hits], np.array(values, np.uint8), self.to_pixels)


def placements(path: Path, infos: Sequence[ImageInfo], class_field: str | None = None) -> tuple[Placement, ...]:
    """Return the polygons of a file as they lie on each image. One copy of them is held for every CRS of the images.

    Raises:
        InputError: when the file cannot be used, has a CRS where an image has none or the other way round, or when its
            polygons miss every image.
    """
    layers: dict[str, Polygons] = {}
    placed = []
    for info in infos:
        crs = info.grid.crs
        key = crs.to_wkt() if crs else ""
        if key not in layers:
            layers[key] = read_polygons(path, crs, class_field)
        _check_crs(path, layers[key].crs, info)
        placed.append(_placed(layers[key], info.grid))
    if not any(len(placement.hits) for placement in placed):
        raise InputError(_miss(path, placed[0].polygons, infos))
    return tuple(placed)


def placed_polygon_reader(
    labels: Placement, looked: Placement | None, index_of: Mapping[str, int], drawing: Drawing
) -> LabelReader:
    """Return what gives the labels of one image, of polygons with the values `index_of` their classes.

    See `geograft.dataset.vector_labels`; 255 outside the `looked` ones.
    """
    return polygon_reader(labels.shapes(index_of), looked.shapes({}) if looked else None, drawing)


def summary(path: Path, placed: Sequence[Placement]) -> str:
    """Return in words what a layer held, what was repaired, and how many images it touches."""
    layer = placed[0].polygons
    parts = [f"{counted(len(layer.shapes), 'polygon')} in {path}"]
    parts += [f"{layer.repaired} of them repaired"] if layer.repaired else []
    parts += [f"{counted(layer.dropped, 'feature')} without area left out"] if layer.dropped else []
    bare = sum(len(placement.hits) == 0 for placement in placed)
    parts += [f"none on {bare} of {len(placed)} images"] if bare else []
    return ", ".join(parts)


def _placed(polygons: Polygons, grid: Grid) -> Placement:
    to_pixels = ~grid.transform
    if grid.crs is None and polygons.bounds[3] <= 0 and grid.transform.e > 0:
        # Without a place on the ground a GIS draws the image below y = 0, and polygons over it.
        to_pixels @= Affine.scale(1, -1)
    corners = [~to_pixels @ corner for corner in ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))]
    hits = np.sort(polygons.tree.query(shapely.Polygon(corners), predicate="intersects"))
    return Placement(polygons, hits, to_pixels)


def _check_crs(path: Path, crs: CRS | None, info: ImageInfo) -> None:
    if info.grid.crs is None and crs is not None:
        raise InputError(
            f"{info.path} has no CRS, but {path} has one ({crs.name}), so the polygons cannot be placed. "
            "Assign the image its CRS, or give polygons without CRS in its pixels."
        )


def _miss(path: Path, polygons: Polygons, infos: Sequence[ImageInfo]) -> str:
    frames = [info.grid.footprint() for info in infos if info.grid.crs == infos[0].grid.crs]
    place = infos[0].grid.crs.name if infos[0].grid.crs else "pixels"
    return (
        f"no polygon of {path} lies on any image: in {place} the polygons span {_extent(polygons.shapes)}, "
        f"the images {_extent(frames)}. Check that both show the same place and that their CRS are right."
    )


def _extent(shapes: Sequence[BaseGeometry] | ndarray) -> str:
    left, bottom, right, top = shapely.total_bounds(shapes)
    return f"x {left:.10g} to {right:.10g} and y {bottom:.10g} to {top:.10g}"
