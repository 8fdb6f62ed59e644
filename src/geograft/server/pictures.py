"""Tiles as PNG files: images with a percentile stretch, classes in their colours, and values for the page to colour."""

import io
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.styles import INFERNO, INSIDE_OUTSIDE, VIRIDIS
from geograft.geo.rasters.tags import BYTE_SCALE
from geograft.legend import IGNORE
from geograft.server.layers import FALSE_COLOUR, MISSED_COLOUR, RIGHT_COLOUR

SAMPLE_PX = 512
"""The percentiles of an image are those of at most this many rows and columns."""
Rgba = UInt8[ndarray, "h w 4"]


def png(picture: Rgba) -> bytes:
    """Return a picture as PNG, packed fast rather than small."""
    from PIL import Image as PillowImage  # noqa: PLC0415 (comes with matplotlib)

    buffer = io.BytesIO()
    PillowImage.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def sample_percentiles(image: Image, bands: tuple[int, ...], low: float, high: float) -> Float64[ndarray, "b 2"]:
    """Return two percentiles of each band over the valid pixels of a sample of the image; 0 and 1 without any.

    Raises:
        InputError: when the image cannot be read.
    """
    grid = image.info.grid
    shape = min(grid.height, SAMPLE_PX), min(grid.width, SAMPLE_PX)
    pixels, valid = image.read_reduced(Window(0, 0, grid.height, grid.width), shape, bands)
    if not valid.any():
        return np.tile(np.array([0.0, 1.0]), (len(bands), 1))
    found: ndarray = np.percentile(pixels[:, valid].astype(np.float64), (low, high), axis=1).T
    return found


def stretched(pixels: Shaped[ndarray, "b h w"], valid: Bool[ndarray, "h w"], limits: Float64[ndarray, "b 2"]) -> Rgba:
    """Return one band as grey or three as red, green and blue, scaled so that `limits` are 0 and 255; else clear."""
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    with np.errstate(over="ignore"):
        scaled = (pixels - low) / np.maximum(high - low, np.finfo(np.float32).tiny) * 255
    return _rgba(np.nan_to_num(scaled).clip(0, 255).astype(np.uint8), valid)


def class_colours(pixels: Shaped[ndarray, "1 h w"], valid: Bool[ndarray, "h w"], colours: Mapping[int, str]) -> Rgba:
    """Return the pixels of a class map in the colours #RRGGBB of their values; clear where a value has none."""
    table = np.zeros((IGNORE + 1, 4), np.uint8)
    for value, colour in colours.items():
        table[value] = [*bytes.fromhex(colour.removeprefix("#")), 255]
    values = np.where(valid & (pixels[0] >= 0) & (pixels[0] <= IGNORE), pixels[0], IGNORE).astype(np.uint8)
    return table[values]


def palette_colours(
    pixels: Shaped[ndarray, "1 h w"], valid: Bool[ndarray, "h w"], table: UInt8[ndarray, "256 3"]
) -> Rgba:
    """Return the pixels of an image with a colour table in its colours."""
    return _rgba(table[pixels[0].astype(np.uint8)].transpose(2, 0, 1), valid)


def value_codes(pixels: Shaped[ndarray, "1 h w"], valid: Bool[ndarray, "h w"]) -> UInt8[ndarray, "h w"]:
    """Return values from 0 to 1, of a file in float or in bytes of 1/250, as bytes of 1/250; 255 where not valid."""
    scale = 1 if pixels.dtype == np.uint8 else BYTE_SCALE
    with np.errstate(invalid="ignore"):
        codes = np.rint(np.nan_to_num(pixels[0].astype(np.float32)) * scale).clip(0, BYTE_SCALE).astype(np.uint8)
    return np.where(valid, codes, np.uint8(IGNORE))


def value_picture(codes: UInt8[ndarray, "h w"]) -> Rgba:
    """Return codes as red; green and blue are 0 and alpha is 255, so that no decoder mixes them."""
    picture = np.zeros((*codes.shape, 4), np.uint8)
    picture[..., 0], picture[..., 3] = codes, 255
    return picture


def truth_picture(codes: UInt8[ndarray, "h w"], truth: UInt8[ndarray, "h w"]) -> Rgba:
    """Return codes as red, and as green whether the truth is 1; 255 and 0 where a code or the truth is unknown."""
    picture = value_picture(np.where(truth == IGNORE, np.uint8(IGNORE), codes))
    picture[..., 1] = (picture[..., 0] != IGNORE) & (truth == 1)
    return picture


def error_colours(
    pixels: Shaped[ndarray, "1 h w"], valid: Bool[ndarray, "h w"], truth: UInt8[ndarray, "h w"], single: int | None
) -> Rgba:
    """Return where the values of a class map are those of the truth (255: unknown) in green, where not in orange.

    With a `single` class of this value, pixels of it that the map lacks are blue, and what neither has is clear.
    """
    known, right = valid & (truth != IGNORE), pixels[0] == truth
    chosen = np.where(right, 1, np.where(truth == single, 2, 3)) if single is not None else np.where(right, 1, 3)
    if single is not None:
        chosen = np.where(right & (truth != single), 0, chosen)
    colours = {1: RIGHT_COLOUR, 2: MISSED_COLOUR, 3: FALSE_COLOUR}
    return class_colours(chosen.astype(np.uint8)[None], known, colours)


def shaded(codes: UInt8[ndarray, "h w"], uncertainty: bool) -> Rgba:
    """Return codes of values from 0 to 1 in viridis, or in inferno for uncertainty; clear where there is none."""
    ramp = np.array([list(bytes.fromhex(colour[1:])) for colour in (INFERNO if uncertainty else VIRIDIS)])
    at = np.arange(IGNORE + 1) / BYTE_SCALE * (len(ramp) - 1)
    table = np.stack([np.interp(at, np.arange(len(ramp)), band) for band in ramp.T], axis=1).round()
    return _rgba(table.astype(np.uint8)[codes].transpose(2, 0, 1), codes != IGNORE)


def inside_outside(pixels: Shaped[ndarray, "1 h w"], valid: Bool[ndarray, "h w"]) -> Rgba:
    """Return the dissimilarity to the training data in blue up to 1 and red above."""
    bounds = np.array([float(bound) for bound, _, _ in INSIDE_OUTSIDE])
    table = np.array([list(bytes.fromhex(colour[1:])) for _, colour, _ in INSIDE_OUTSIDE], np.uint8)
    steps = np.searchsorted(bounds, np.nan_to_num(pixels[0])).clip(0, len(bounds) - 1)
    return _rgba(table[steps].transpose(2, 0, 1), valid)


def _rgba(bands: UInt8[ndarray, "b h w"], visible: Bool[ndarray, "h w"]) -> Rgba:
    """Return one or three bands as red, green and blue with an alpha band."""
    colours = np.broadcast_to(bands, (3, *bands.shape[1:])) if len(bands) == 1 else bands
    return np.dstack([*colours, visible.astype(np.uint8) * np.uint8(255)])
