"""Which pixels of a raster mean something: the one rule, applied to pixels that were read.

Where a file holds nothing: blocks of a GeoTIFF that were never written, gaps between the sources of a VRT.

A file is asked only when GDAL's stand-in for what is missing (nodata, else 0) is not valid there.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray
from rasterio.enums import Interleaving
from rasterio.io import DatasetReader

from geograft.geo.grid import Places, Window
from geograft.geo.rasters.gdal import RASTER_FAULTS


def nodata_as(value: float | None, dtype: str) -> float | int | None:
    """Return the nodata value as numbers of `dtype` hold it; None when they cannot, or it is not finite."""
    if value is None or not np.isfinite(value):
        return None
    kind = np.dtype(dtype)
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            rounded = float(kind.type(value))
        return rounded if np.isfinite(rounded) else None
    limits = np.iinfo(kind)
    return int(value) if limits.min <= value <= limits.max and value == int(value) else None


def known(pixels: Shaped[ndarray, "b h w"], nodata: list[float | int | None]) -> Bool[ndarray, "h w"]:
    """Return which pixels are finite in every band and differ from nodata in at least one."""
    finite = np.ones(pixels.shape[1:], bool)
    if pixels.dtype.kind == "f":
        np.isfinite(pixels).all(axis=0, out=finite)
    if None in nodata:
        return finite
    present = np.zeros_like(finite)
    for band, value in zip(pixels, nodata, strict=True):
        present |= band != value
    return finite & present


MOST_ROWS = 512
"""Rows of blocks whose state is remembered."""


class TiffGaps:
    """A GeoTIFF's missing blocks. Asking costs a microsecond a block the first time."""

    def __init__(self, shape: tuple[int, int], asked: Sequence[int], masked: bool) -> None:
        self._block = shape
        self._asked = asked
        """Bands of which all must miss the block."""
        self._masked = masked
        """Whether the mask must hide it too."""
        self._rows: dict[int, Bool[ndarray, " blocks"]] = {}

    def empty(self, raster: DatasetReader, window: Window) -> bool:
        """Return whether all blocks under `window` are missing."""
        high, wide = self._block
        rows = range(window.row // high, -(-window.stop_row // high))
        cols = slice(window.col // wide, -(-window.stop_col // wide))
        return not any(self._present(raster, row)[cols].any() for row in rows)

    def _present(self, raster: DatasetReader, row: int) -> Bool[ndarray, " blocks"]:
        if row not in self._rows:
            if len(self._rows) >= MOST_ROWS:
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
        block = Window(row * high, col * wide, high, wide).overlap(Window(0, 0, raster.height, raster.width))
        try:
            return block is not None and bool(raster.read_masks(1, window=block.to_rasterio()).any())
        except RASTER_FAULTS:
            return True  # reading the pixels will say what is wrong


class VrtGaps:
    """The rectangles that a VRT's sources fill. Asking costs microseconds, whatever their number."""

    def __init__(self, filled: Sequence[Window]) -> None:
        self._filled = Places(filled)

    def empty(self, raster: DatasetReader, window: Window) -> bool:
        """Return whether `window` lies between the sources."""
        return not self._filled.near(window)


Gaps: TypeAlias = TiffGaps | VrtGaps
"""What is known of a file without decoding its pixels."""


def gaps(raster: DatasetReader, bands: Sequence[int], alpha: int | None, masked: bool) -> Gaps | None:
    """Return what tells where `raster` is empty; None where that cannot be told.

    `bands` are those of the image, `alpha` the one that says which pixels are valid; `masked` when a mask does.
    """
    by_nodata = all(_hides(raster.nodatavals[band - 1], raster.dtypes[band - 1]) for band in bands)
    by_alpha = alpha is not None and raster.nodatavals[alpha - 1] in (None, 0)
    if not (by_nodata or by_alpha or masked) or raster.driver not in ("GTiff", "VRT"):
        return None
    asked = list(bands) if by_nodata or alpha is None else [alpha]
    by_mask = masked and not by_nodata
    if raster.driver == "VRT":
        filled = _filled(Path(raster.name), [] if by_mask else asked)
        return None if filled is None else VrtGaps(filled)
    together = raster.interleaving == Interleaving.pixel
    return TiffGaps(raster.block_shapes[0], asked[:1] if together else asked, by_mask)


def _hides(nodata: float | None, dtype: str) -> bool:
    """Return whether pixels of nodata are not valid."""
    not_finite = nodata is not None and not np.isfinite(nodata) and np.dtype(dtype).kind == "f"
    return not_finite or nodata_as(nodata, dtype) is not None


def _filled(path: Path, bands: Sequence[int]) -> list[Window] | None:
    """Return where the sources of some bands of a VRT lie, of its mask without; None for other than plain mosaics."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    own = {int(band.get("band", 0)): band for band in root.findall("VRTRasterBand")}
    found = [own.get(band) for band in bands] or [root.find("MaskBand/VRTRasterBand")]
    if root.get("subClass") or any(band is None or band.get("subClass") for band in found):
        return None
    sources = [part for band in found if band is not None for part in band if part.tag.endswith("Source")]
    places = [_place(source) for source in sources]
    return None if None in places else [place for place in places if place is not None]


def _place(source: ElementTree.Element) -> Window | None:
    rectangle = source.find("DstRect")
    if rectangle is None:
        return None
    left, top, wide, high = (float(rectangle.get(side, "nan")) for side in ("xOff", "yOff", "xSize", "ySize"))
    if not all(map(math.isfinite, (left, top, wide, high))):
        return None
    row, col = math.floor(top), math.floor(left)
    return Window(row, col, max(1, math.ceil(top + high) - row), max(1, math.ceil(left + wide) - col))
