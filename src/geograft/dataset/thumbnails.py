"""Small pictures of large rasters: an image with the splits of its tiles, and a class map in its colours.

Rasters are read block by block: memory grows with the picture, not with the raster.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray

from geograft.figures.pictures import (
    Picture,
    class_picture,
    downsample_factor,
    split_picture,
    stretch,
    stretch_limits,
)
from geograft.figures.style import NO_DATA_COLOUR, rgb
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import has_band_per_class
from geograft.legend import IGNORE, SPLIT_COLOURS, Legend

MAX_SCENE_PIXELS = 400_000_000
"""Larger scenes are drawn without their image, because a thumbnail reads every pixel."""
BLOCK_PX = 512


def split_thumbnail(image: Image, windows: Mapping[Any, Sequence[Window]], longest_px: int) -> Picture:
    """Return an image with the area of its training, validation and test tiles, whose windows are given by split.

    Reads every pixel of the image once; no pixel of images over MAX_SCENE_PIXELS.

    Raises:
        InputError: when the image cannot be read.
    """
    grid = image.info.grid
    shape, factor = _thumbnail_size(grid.height, grid.width, longest_px)
    picture = np.full((*shape, 3), rgb(NO_DATA_COLOUR), np.uint8)
    if grid.height * grid.width <= MAX_SCENE_PIXELS:
        pixels, valid = read_thumbnail(image, [1, 2, 3] if image.info.bands >= 3 else [1], shape, factor)
        picture = stretch(pixels, valid, stretch_limits([pixels], [valid]))
    covered = {split: np.zeros(shape, bool) for split in SPLIT_COLOURS}
    for split, some in windows.items():
        for window in some:
            rows = slice(max(window.row, 0) // factor, -(-window.stop_row // factor))
            covered[split][rows, max(window.col, 0) // factor : -(-window.stop_col // factor)] = True
    return split_picture(picture, covered, SPLIT_COLOURS)


def read_thumbnail(
    image: Image, bands: Sequence[int], shape: tuple[int, int], factor: int
) -> tuple[Float32[ndarray, "b h w"], Bool[ndarray, "h w"]]:
    """Return the mean of the valid pixels of every `factor` x `factor` square, and the mask of squares that have any.

    Memory grows with the thumbnail, not with the image.
    """
    pixels = np.zeros((len(bands), *shape), np.float32)
    known = np.zeros(shape, bool)
    step = max(BLOCK_PX // factor, 1)
    for row in range(0, shape[0], step):
        for col in range(0, shape[1], step):
            height, width = min(step, shape[0] - row), min(step, shape[1] - col)
            block, valid = image.read(Window(row * factor, col * factor, height * factor, width * factor), bands)
            counts = _square_sums(valid[None], factor)[0]
            here = (slice(row, row + height), slice(col, col + width))
            pixels[:, *here] = _square_sums(block, factor) / np.maximum(counts, 1)
            known[here] = counts > 0
    return pixels, known


def _square_sums(pixels: ndarray, factor: int) -> Float32[ndarray, "b h w"]:
    bands, height, width = pixels.shape
    squares = pixels.reshape(bands, height // factor, factor, width // factor, factor)
    sums: ndarray = squares.sum(axis=(2, 4), dtype=np.float64)
    return sums.astype(np.float32)


def map_thumbnail(image: Image, legend: Legend, longest_px: int) -> Picture:
    """Return a map in the colours of its classes, at most `longest_px` a side; the negative class is light grey."""
    shape, factor = _thumbnail_size(image.info.grid.height, image.info.grid.width, longest_px)
    if has_band_per_class(image.info):
        classes = np.stack([majority(image, band, (0, 1), shape, factor) for band in range(1, image.info.bands + 1)])
        known = (classes != IGNORE).any(axis=0)
    else:
        classes = majority(image, 1, legend.values, shape, factor)
        known = classes != IGNORE
    picture = np.where(known[..., None], np.uint8(255), np.array(rgb(NO_DATA_COLOUR), np.uint8) // 2)
    return class_picture(picture, classes, legend.colours)


def majority(
    image: Image, band: int, values: Sequence[int], shape: tuple[int, int], factor: int
) -> UInt8[ndarray, "h w"]:
    """Return the index of the most frequent of `values` in every `factor` x `factor` square; IGNORE where none occurs.

    Of several, the first. Memory grows with the thumbnail, not with the map.
    """
    found = np.full(shape, IGNORE, np.uint8)
    step = max(BLOCK_PX // factor, 1)
    for row in range(0, shape[0], step):
        for col in range(0, shape[1], step):
            height, width = min(step, shape[0] - row), min(step, shape[1] - col)
            window = Window(row * factor, col * factor, height * factor, width * factor)
            pixels, valid = image.read(window, [band])
            squares = np.stack([(pixels[0] == value) & valid for value in values])
            counts = squares.reshape(len(values), height, factor, width, factor).sum(axis=(2, 4))
            best = np.where(counts.max(axis=0) > 0, counts.argmax(axis=0), IGNORE)
            found[row : row + height, col : col + width] = best
    return found


def _thumbnail_size(height: int, width: int, longest_px: int) -> tuple[tuple[int, int], int]:
    """Return rows and columns of the thumbnail of a raster, and the side of the squares that become its pixels."""
    factor = downsample_factor(height, width, longest_px)
    return (max(height // factor, 1), max(width // factor, 1)), factor
