"""Rasterisation of polygon labels: whole or fractional pixels, exclusive or overlapping classes.

Polygons are reprojected to the CRS of each image and transformed to its pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Float32, Int, UInt8
from numpy import ndarray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.dataset.scenes import LabelReader
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, block_windows, transform_points
from geograft.geo.rasters.raster import ImageInfo
from geograft.geo.rasters.rasterize import PixelShapes, rasterize_window, to_pixel_shapes
from geograft.geo.vectors.reader import Polygons, read_polygons
from geograft.labels import MAX_CODE, encode_exclusive_fractions, encode_fractions
from geograft.legend import IGNORE, Legend
from geograft.text import pluralise

BACKGROUND = "background"
"""Name of class 0: pixels outside all polygons, and polygons of this class."""
EDGE_TOLERANCE = 0.01
"""Fraction of a pixel by which the edge of an area may miss that of a pixel."""
SUBPIXELS = 8
"""Subpixels per row and column of a pixel, from which fractions are computed: the bits of a byte."""
LABEL_BLOCK = (512, 512)
"""Rows and columns of pixels that are processed at a time: 17 MB per class."""


@dataclass(frozen=True)
class LabelEncoding:
    """How polygons become labels."""

    legend: Legend
    by_area: bool = False
    """Whether labels are the fraction of each pixel inside polygons, instead of the class at its centre."""

    @property
    def fractional(self) -> bool:
        """Whether labels are class fractions, not class indices."""
        return self.by_area or self.legend.overlapping


Rasterizer: TypeAlias = Callable[[Window, int], UInt8[ndarray, "rows cols"]]
"""Returns the class values of a window whose pixels are split into n x n subpixels; 0 outside all labels."""


def polygon_reader(shapes: PixelShapes, aoi: PixelShapes | None, encoding: LabelEncoding) -> LabelReader:
    """Return a reader of the labels of one scene; 255 in pixels whose centre is outside the `aoi` polygons.

    The values of `shapes` are 1 for the first class with polygons, 2 for the second, and so on: class indices, or one
    more than these if classes overlap. Pixels outside all polygons are 0.
    """
    values = range(1, len(encoding.legend.names) + 1)
    layers = [shapes.of_class(value) for value in values] if encoding.legend.overlapping else [shapes]
    outside = None if aoi is None else lambda window: rasterize_window(aoi, window, fill=0) == 0
    return rasterized_label_reader([partial(_rasterize, layer) for layer in layers], outside, encoding)


def rasterized_label_reader(
    layers: Sequence[Rasterizer],
    unknown: Callable[[Window], Bool[ndarray, "h w"]] | None,
    encoding: LabelEncoding,
) -> LabelReader:
    """Return a reader of the labels that `layers` draw: one for all classes, or one per class if classes overlap.

    Pixels in the mask that `unknown` returns are 255.
    """

    def label(window: Window) -> UInt8[ndarray, "h w"] | UInt8[ndarray, "o h w"]:
        if not encoding.fractional:
            labels = layers[0](window, 1)
        elif encoding.by_area:
            labels = _fractions(layers, window, encoding.legend)
        else:
            labels = np.stack([layer(window, 1) > 0 for layer in layers]) * np.uint8(MAX_CODE)
        if unknown is not None:
            labels[..., unknown(window)] = IGNORE
        return labels

    return label


def _rasterize(shapes: PixelShapes, window: Window, oversampling: int) -> UInt8[ndarray, "rows cols"]:
    return rasterize_window(shapes, window, fill=0, oversampling=oversampling)


def _fractions(layers: Sequence[Rasterizer], window: Window, legend: Legend) -> UInt8[ndarray, "o h w"]:
    """Return the fraction of each output's class in 250ths."""
    labels = np.empty((legend.outputs, window.height, window.width), np.uint8)
    for cell in block_windows(window, *LABEL_BLOCK):
        fine = (layer(cell, SUBPIXELS) for layer in layers)
        if legend.overlapping:
            codes = encode_fractions(np.stack([_subpixel_fraction(part > 0) for part in fine]))
        else:
            codes = _exclusive_fractions(next(fine), legend)
        labels[:, *cell.relative_to(window).slices] = codes
    return labels


def _exclusive_fractions(fine: UInt8[ndarray, "fine_h fine_w"], legend: Legend) -> UInt8[ndarray, "o h w"]:
    """Return the fractions of exclusive classes, from the classes of the subpixels."""
    if legend.binary:
        return encode_fractions(_subpixel_fraction(fine == 1)[None])
    return encode_exclusive_fractions(
        np.stack([_subpixel_fraction(fine == value) for value in range(len(legend.names))])
    )


def _subpixel_fraction(inside: Bool[ndarray, "fine_h fine_w"]) -> Float32[ndarray, "h w"]:
    """Return the fraction of each pixel's subpixels that are inside."""
    # Eight subpixels of a row form a byte, whose bits are counted in one operation.
    rows = np.bitwise_count(np.packbits(inside, axis=1))
    fractions: Float32[ndarray, "h w"] = (
        rows.reshape(-1, SUBPIXELS, rows.shape[1]).sum(axis=1, dtype=np.float32) / SUBPIXELS**2
    )
    return fractions


@dataclass(frozen=True)
class PlacedPolygons:
    """The polygons of one layer on one image."""

    polygons: Polygons
    """The whole layer, in the image's CRS."""
    hits: Int[ndarray, " n"]
    """Indices of the polygons that touch the image, in file order."""
    to_pixels: Affine

    def shapes(self, index_of: Mapping[str, int]) -> PixelShapes:
        """Return the polygons in pixel coordinates, with their class indices; 1 in a layer without classes."""
        classes = self.polygons.classes
        values = [index_of[classes[hit]] if classes else 1 for hit in self.hits]
        return to_pixel_shapes(self.polygons.shapes[self.hits], np.array(values, np.uint8), self.to_pixels)


def place_polygons(
    path: Path, infos: Sequence[ImageInfo], class_field: str | None = None
) -> tuple[PlacedPolygons, ...]:
    """Return the polygons of a file on each image. Keeps one copy of the layer per CRS of the images.

    Raises:
        InputError: if the file cannot be used, if only one of the file and an image has a CRS, or if no polygon lies on
            an image.
    """
    layers: dict[str, Polygons] = {}
    placed = []
    for info in infos:
        crs = info.grid.crs
        key = crs.to_wkt() if crs else ""
        if key not in layers:
            layers[key] = read_polygons(path, crs, class_field)
        check_crs(path, layers[key].crs, info)
        placed.append(place(layers[key], info.grid))
    if not any(len(placement.hits) for placement in placed):
        raise InputError(_no_overlap_message(path, placed[0].polygons, infos))
    return tuple(placed)


def placed_polygon_reader(
    labels: PlacedPolygons, aoi: PlacedPolygons | None, index_of: Mapping[str, int], encoding: LabelEncoding
) -> LabelReader:
    """Return a reader of the labels of one image, from polygons with class values `index_of`; see `polygon_reader`.

    Pixels outside the `aoi` polygons are 255.
    """
    return polygon_reader(labels.shapes(index_of), aoi.shapes({}) if aoi else None, encoding)


def layer_summary(path: Path, placed: Sequence[PlacedPolygons]) -> str:
    """Return a note on the polygons of a layer, repairs, and images without polygons."""
    layer = placed[0].polygons
    parts = [f"{pluralise(len(layer.shapes), 'polygon')} in {path}"]
    parts += [f"{layer.repaired_count} of them repaired"] if layer.repaired_count else []
    parts += [f"{pluralise(layer.dropped_count, 'feature')} without area skipped"] if layer.dropped_count else []
    empty = sum(len(placement.hits) == 0 for placement in placed)
    parts += [f"none on {empty} of {len(placed)} images"] if empty else []
    return ", ".join(parts)


def place(polygons: Polygons, grid: Grid) -> PlacedPolygons:
    """Return the polygons of a layer, in the CRS of `grid`, on its image."""
    to_pixels = pixel_transform(grid, polygons.bounds)
    corners = [~to_pixels @ corner for corner in ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))]
    hits = np.sort(polygons.tree.query(shapely.Polygon(corners), predicate="intersects"))
    return PlacedPolygons(polygons, hits, to_pixels)


def pixel_transform(grid: Grid, bounds: tuple[float, float, float, float]) -> Affine:
    """Return the transform to pixels of a layer with these bounds: minimum x, minimum y, maximum x, maximum y."""
    to_pixels: Affine = ~grid.transform
    if grid.crs is None and bounds[3] <= 0 and grid.transform.e > 0:
        # A GIS draws an image that is not georeferenced below y = 0, and polygons over it.
        to_pixels @= Affine.scale(1, -1)
    return to_pixels


def pixel_windows(shapes: ndarray, to_pixels: Affine) -> list[Window]:
    """Return the window around each of (n,) shapes that contains all pixels whose centre is inside."""
    points, owners = shapely.get_coordinates(shapes, return_index=True)
    columns_rows = transform_points(points, to_pixels)
    low, high = np.full((len(shapes), 2), np.inf), np.full((len(shapes), 2), -np.inf)
    np.minimum.at(low, owners, columns_rows)
    np.maximum.at(high, owners, columns_rows)
    # A shape that a CRS cannot represent is empty.
    low[~np.isfinite(low)] = high[~np.isfinite(high)] = 0
    first = np.floor(low + EDGE_TOLERANCE).astype(np.int64)
    stop = np.ceil(high - EDGE_TOLERANCE).astype(np.int64)
    return [
        Window(row, col, max(stop_row - row, 0), max(stop_col - col, 0))
        for (col, row), (stop_col, stop_row) in zip(first.tolist(), stop.tolist(), strict=True)
    ]


def check_crs(path: Path, crs: CRS | None, info: ImageInfo) -> None:
    """Raise InputError if polygons have a CRS, but the image has none."""
    if info.grid.crs is None and crs is not None:
        raise InputError(
            f"{info.path} has no CRS, but {path} has one ({crs.name}), so the polygons cannot be placed. "
            "Assign a CRS to the image, or use polygons without CRS in its pixel coordinates."
        )


def _no_overlap_message(path: Path, polygons: Polygons, infos: Sequence[ImageInfo]) -> str:
    frames = [info.grid.footprint() for info in infos if info.grid.crs == infos[0].grid.crs]
    place = infos[0].grid.crs.name if infos[0].grid.crs else "pixels"
    return (
        f"no polygon of {path} lies on any image: in {place} the polygons span {_extent(polygons.shapes)}, "
        f"the images {_extent(frames)}. Check that both show the same area and have the correct CRS."
    )


def _extent(shapes: Sequence[BaseGeometry] | ndarray) -> str:
    left, bottom, right, top = shapely.total_bounds(shapes)
    return f"x {left:.10g} to {right:.10g} and y {bottom:.10g} to {top:.10g}"
