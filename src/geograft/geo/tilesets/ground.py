"""Polygons on the ground, placed on images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Int
from numpy import ndarray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.errors import InputError
from geograft.geo.grid import Grid
from geograft.geo.rasters.burn import PixelShapes, in_pixels
from geograft.geo.rasters.raster import ImageInfo
from geograft.geo.tilesets.drawing import Drawing, polygon_reader
from geograft.geo.tilesets.scenes import LabelReader, counted
from geograft.geo.vectors.vector import Polygons, read_polygons


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

    See `geograft.geo.tilesets.drawing`; 255 outside the `looked` ones.
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
