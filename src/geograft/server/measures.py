"""Figures of layers: the values of a pixel, and the area and IoU of a class at any threshold.

A file of probabilities has 251 different values: one pass counts the pixels and adds up their areas by value, and every
threshold is answered from these sums, exactly. They are kept until the file changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Float64, Int64, UInt8
from numpy import ndarray
from shapely.geometry.base import BaseGeometry

from geograft.errors import InputError
from geograft.geo.grid import Window, block_windows
from geograft.geo.measure import pixel_areas
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.rasterize import PixelShapes, last_value_at, rasterize_window, to_pixel_shapes
from geograft.geo.rasters.tags import BYTE_SCALE
from geograft.geo.webmap import TILE_PX, WebTile
from geograft.legend import IGNORE
from geograft.server.labels import Sample
from geograft.server.layers import Layer
from geograft.server.pictures import value_codes

CODES = IGNORE + 1
BLOCK_PX = 512
ROUNDING = 1e-9
"""A threshold of a whole number of steps of 1/250 counts as such."""


def pixel_values(layer: Layer, lon: float, lat: float) -> dict[str, Any] | None:
    """Return row, column, values and class of the pixel at a place; None outside the raster or where it has no value.

    Raises:
        InputError: when the raster cannot be read.
    """
    found = layer.raster.place.to_pixels(np.array([[lon, lat]]))[0]
    grid = layer.raster.info.grid
    if not np.isfinite(found).all() or not (0 <= found[0] < grid.width and 0 <= found[1] < grid.height):
        return None
    col, row = floor(found[0]), floor(found[1])
    with Image.open(layer.raster.path) as image:
        pixels, valid = image.read(Window(row, col, 1, 1))
    if not valid[0, 0]:
        return {"row": row, "col": col, "values": [], "class": None}
    values = pixels[:, 0, 0]
    if layer.in_steps and values.dtype == np.uint8:
        values = values.astype(float) / BYTE_SCALE
    named = zip(layer.raster.info.band_names, values.astype(float).tolist(), strict=True)
    # A class that is mapped or not is one band of several.
    has_names = layer.kind in ("classes", "errors") and not layer.in_steps
    own = layer.names.get(int(values[layer.bands[0] - 1])) if has_names else None
    return {"row": row, "col": col, "values": [{"name": name, "value": value} for name, value in named], "class": own}


@dataclass(frozen=True)
class CodeSums:
    """Pixels and areas by the code of their value, from 0 to 250."""

    pixels: Int64[ndarray, " 256"]
    m2: Float64[ndarray, " 256"]


def area_above(layer: Layer, threshold: float) -> dict[str, Any]:
    """Return the number of pixels whose probability reaches the threshold, and their area in m2; None without CRS.

    Raises:
        InputError: when the raster cannot be read.
    """
    sums = value_sums(layer.raster.path, layer.bands[0])
    above = slice(lowest_code(threshold), IGNORE)
    area = None if layer.raster.info.grid.crs is None else float(sums.m2[above].sum())
    return {"pixels": int(sums.pixels[above].sum()), "m2": area}


def lowest_code(threshold: float) -> int:
    """Return the lowest code of a probability that reaches the threshold.

    >>> lowest_code(0.5), lowest_code(0.501), lowest_code(0.0)
    (125, 126, 0)
    """
    return max(0, ceil(threshold * BYTE_SCALE - ROUNDING))


def value_sums(path: Path, band: int) -> CodeSums:
    """Return the pixels and areas of a band by the code of their value; of a class map by value, up to 250.

    Reads the file once, and again when it has changed.

    Raises:
        InputError: when the raster cannot be read.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Restore it.") from error
    return _value_sums(path, band, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _value_sums(path: Path, band: int, modified_ns: int, size: int) -> CodeSums:
    pixels, m2 = np.zeros(CODES, np.int64), np.zeros(CODES)
    with Image.open(path) as image:
        grid = image.info.grid
        for window in block_windows(grid.window, BLOCK_PX, 8 * BLOCK_PX):
            if image.is_empty(window):
                continue
            codes = value_codes(*image.read(window, [band])).ravel()
            pixels += np.bincount(codes, minlength=CODES)
            m2 += np.bincount(codes, pixel_areas(grid, window).ravel(), CODES)
    return CodeSums(pixels, m2)


def iou_at(layer: Layer, threshold: float, sample: Sample) -> dict[str, Any]:
    """Return the IoU of the class at a threshold over all pixels of labelled scoring areas, and the number of areas.

    As in a tile set, a pixel belongs to the last polygon that contains its centre. IoU is None without pixels.

    Raises:
        InputError: when the raster cannot be read.
    """
    grid = layer.raster.info.grid
    inside, truth = _truth_shapes(layer, sample, {layer.class_name: 1}, 0)
    counts = np.zeros((2, CODES), np.int64)
    with Image.open(layer.raster.path) as image:
        for window in block_windows(grid.window, BLOCK_PX, BLOCK_PX):
            if len(inside.tree.query(window.outline)):
                counted = rasterize_window(inside, window, fill=0).astype(bool)
                positive = rasterize_window(truth, window, fill=0).astype(bool)
                codes = value_codes(*image.read(window, list(layer.bands)))
                counts += [np.bincount(codes[counted & (positive == own)], minlength=CODES) for own in (False, True)]
    low = lowest_code(threshold)
    hits, false, missed = counts[1, low:IGNORE].sum(), counts[0, low:IGNORE].sum(), counts[1, :low].sum()
    union = int(hits + false + missed)
    scored = sum(bool(shapely.intersects(grid.footprint(), area)) for area in sample.areas)
    return {"iou": float(hits) / union if union else None, "n_scored": scored}


def truth_in_tile(layer: Layer, tile: WebTile, sample: Sample) -> UInt8[ndarray, "256 256"]:
    """Return the value that the labels give to the pixel of a raster that each pixel of a tile shows.

    A value of `layer.names`; its first one that is no class to map where no polygon is; 255 outside of the labelled
    scoring areas.
    """
    values = {name: value for value, name in layer.names.items()}
    background = next((value for value in layer.names if value not in layer.colours), 0)
    if layer.in_steps:
        background = 0
    areas, labels = _truth_shapes(layer, sample, values, background)
    centres = np.floor(tile.pixels_of(layer.raster.place).reshape(2, -1)) + 0.5
    counted = last_value_at(areas, centres, IGNORE)
    at = counted != IGNORE
    found = np.full(centres.shape[1], IGNORE, np.uint8)
    found[at] = last_value_at(labels, centres[:, at], background)
    return found.reshape(TILE_PX, TILE_PX)


def _truth_shapes(
    layer: Layer, sample: Sample, values: Mapping[str, int], other: int
) -> tuple[PixelShapes, PixelShapes]:
    """Return scoring areas, and labels with the values of their classes, in pixel coordinates."""
    transform = layer.raster.info.grid.transform
    areas = _pixel_shapes(sample.areas, [1] * len(sample.areas), transform)
    return areas, _pixel_shapes(sample.shapes, [values.get(name, other) for name in sample.classes], transform)


def _pixel_shapes(shapes: Sequence[BaseGeometry], values: Sequence[int], transform: Affine) -> PixelShapes:
    array = np.empty(len(shapes), object)
    array[:] = list(shapes)
    return to_pixel_shapes(array, np.array(values, np.uint8), ~transform)
