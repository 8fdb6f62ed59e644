"""Valid pixels of a raster: the nodata rule for decoded pixels, and regions known to be empty without decoding.

A pixel with nodata in any band in use is invalid: the value, such as -9999, is no measurement. Integers whose nodata is
0 or the maximum are the exception, since these are also values of dark or saturated pixels: there, all bands must have
it. `ValidityRule` overrides both.

Empty regions are the missing blocks of a sparse GeoTIFF and the gaps between the sources of a VRT. GDAL fills them with
nodata, or 0 without nodata, so they are looked up only where that fill value counts as invalid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Shaped, UInt16
from numpy import ndarray
from rasterio.enums import Interleaving
from rasterio.io import DatasetReader

from geograft.geo.grid import Window, WindowIndex
from geograft.geo.rasters.gdal import RASTER_ERRORS


def cast_nodata(value: float | None, dtype: str) -> float | int | None:
    """Return the nodata value cast to `dtype`; None when `dtype` cannot represent it or it is not finite."""
    if value is None or not np.isfinite(value):
        return None
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            rounded = float(kind.type(value))
        return rounded if np.isfinite(rounded) else None
    limits = np.iinfo(kind)
    return int(value) if limits.min <= value <= limits.max and value == int(value) else None


NodataRule = Literal["auto", "any", "all"]


MAX_FLOAT = np.finfo(np.float32).max


@dataclass(frozen=True)
class ValidityRule:
    """How invalid pixels are recognised; the same in training and prediction."""

    nodata: NodataRule = "auto"
    """Whether a pixel is invalid if any band in use is nodata, or if all are; "auto": see `needs_all_bands`."""
    alpha: bool = True
    """Whether a band tagged alpha is a mask; otherwise it is a band like the others."""


def needs_all_bands(rule: NodataRule, nodata: Sequence[float | None], dtype: str) -> bool:
    """Return whether a pixel is invalid only where all bands are nodata.

    >>> needs_all_bands("auto", [0, 0], "uint8"), needs_all_bands("auto", [-9999, -9999], "int16")
    (True, False)
    """
    if rule != "auto":
        return rule == "all"
    kind = np.dtype(dtype)
    return kind.kind in "ui" and all(value in (None, 0, np.iinfo(kind).max) for value in nodata)


def valid_pixels(
    pixels: Shaped[ndarray, "b h w"], nodata: Sequence[float | None], rule: NodataRule = "auto"
) -> tuple[Bool[ndarray, "h w"], UInt16[ndarray, "h w"]]:
    """Return the mask of pixels that are finite in every band and valid by `rule`, and the number of nodata bands."""
    valid = np.ones(pixels.shape[1:], bool)
    if pixels.dtype.kind == "f":
        # Numbers beyond float32, in which networks compute, are no measurements either.
        finite = np.isfinite(pixels) if pixels.dtype.itemsize <= MAX_FLOAT.itemsize else np.abs(pixels) <= MAX_FLOAT
        finite.all(axis=0, out=valid)
    missing = np.zeros(pixels.shape[1:], np.uint16)
    for band, value in zip(pixels, nodata, strict=True):
        if value is not None:
            missing += band == value
    enough = len(nodata) if needs_all_bands(rule, nodata, pixels.dtype.name) else 1
    valid &= missing < enough
    return valid, missing


MAX_CACHED_ROWS = 512
"""Rows of blocks whose presence is cached."""


class TiffEmptyRegions:
    """The missing blocks of a sparse GeoTIFF. A query costs a microsecond per block the first time."""

    def __init__(self, shape: tuple[int, int], asked: Sequence[int], masked: bool) -> None:
        self._block = shape
        self._asked = asked
        """The bands in which the block must be missing, in all of them."""
        self._masked = masked
        """Whether the mask band must be 0 in the block as well."""
        self._rows: dict[int, Bool[ndarray, " blocks"]] = {}

    def is_empty(self, raster: DatasetReader, window: Window) -> bool:
        """Return whether all blocks that `window` touches are missing."""
        high, wide = self._block
        rows = range(window.row // high, -(-window.stop_row // high))
        cols = slice(window.col // wide, -(-window.stop_col // wide))
        return not any(self._present(raster, row)[cols].any() for row in rows)

    def _present(self, raster: DatasetReader, row: int) -> Bool[ndarray, " blocks"]:
        if row not in self._rows:
            if len(self._rows) >= MAX_CACHED_ROWS:
                self._rows.pop(next(iter(self._rows)))
            cols = range(-(-raster.width // self._block[1]))
            self._rows[row] = np.array([self._holds(raster, row, col) for col in cols], bool)
        return self._rows[row]

    def _holds(self, raster: DatasetReader, row: int, col: int) -> bool:
        item = f"BLOCK_OFFSET_{col}_{row}"
        if any(raster.get_tag_item(item, "TIFF", bidx=band) is not None for band in self._asked):
            return True
        if not self._masked:
            return False
        high, wide = self._block
        block = Window(row * high, col * wide, high, wide).intersection(Window(0, 0, raster.height, raster.width))
        try:
            return block is not None and bool(raster.read_masks(1, window=block.to_rasterio()).any())
        except RASTER_ERRORS:
            return True  # reading the pixels will raise the error


class VrtEmptyRegions:
    """The area outside the sources of a VRT. A query costs microseconds, for any number of sources."""

    def __init__(self, filled: Sequence[Window]) -> None:
        self._filled = WindowIndex(filled)

    def is_empty(self, raster: DatasetReader, window: Window) -> bool:
        """Return whether no source touches `window`."""
        return not self._filled.query(window)


EmptyRegions: TypeAlias = TiffEmptyRegions | VrtEmptyRegions
"""Regions of a file known to be empty without decoding pixels."""


def empty_regions(raster: DatasetReader, bands: Sequence[int], alpha: int | None, masked: bool) -> EmptyRegions | None:
    """Return the empty regions of `raster`; None when they cannot be determined without decoding pixels.

    `bands` are the image's bands without alpha, `alpha` is the alpha band, `masked` tells whether the file has a mask.
    """
    by_nodata = all(_hides(raster.nodatavals[band - 1], raster.dtypes[band - 1]) for band in bands)
    by_alpha = alpha is not None and raster.nodatavals[alpha - 1] in (None, 0)
    if not (by_nodata or by_alpha or masked) or raster.driver not in ("GTiff", "VRT"):
        return None
    asked = list(bands) if by_nodata or alpha is None else [alpha]
    by_mask = masked and not by_nodata
    if raster.driver == "VRT":
        filled = _source_windows(Path(raster.name), [] if by_mask else asked)
        return None if filled is None else VrtEmptyRegions(filled)
    together = raster.interleaving == Interleaving.pixel
    return TiffEmptyRegions(raster.block_shapes[0], asked[:1] if together else asked, by_mask)


def _hides(nodata: float | None, dtype: str) -> bool:
    """Return whether `valid_pixels` treats this nodata value as invalid."""
    not_finite = nodata is not None and not np.isfinite(nodata) and np.dtype(dtype).kind == "f"
    return not_finite or cast_nodata(nodata, dtype) is not None


def _source_windows(path: Path, bands: Sequence[int]) -> list[Window] | None:
    """Return the windows of the sources of `bands` of a VRT (none: of its mask); None unless it is a plain mosaic."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    by_number = {int(band.get("band", 0)): band for band in root.findall("VRTRasterBand")}
    elements = [by_number.get(band) for band in bands] or [root.find("MaskBand/VRTRasterBand")]
    if root.get("subClass") or any(band is None or band.get("subClass") for band in elements):
        return None
    sources = [part for band in elements if band is not None for part in band if part.tag.endswith("Source")]
    places = [_source_window(source) for source in sources]
    return None if None in places else [place for place in places if place is not None]


def _source_window(source: ElementTree.Element) -> Window | None:
    rectangle = source.find("DstRect")
    if rectangle is None:
        return None
    left, top, wide, high = (float(rectangle.get(side, "nan")) for side in ("xOff", "yOff", "xSize", "ySize"))
    if not all(map(math.isfinite, (left, top, wide, high))):
        return None
    row, col = math.floor(top), math.floor(left)
    return Window(row, col, max(1, math.ceil(top + high) - row), max(1, math.ceil(left + wide) - col))
