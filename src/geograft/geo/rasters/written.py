"""Whether what was written reached the disk, for GDAL may report a full disk to its log only."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from geograft.errors import InputError, OutputError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.gdal import RASTER_FAULTS, reason
from geograft.geo.rasters.raster import open_raster

MOST_DECODED_PX = 2**21


class Blocks:
    """The blocks of a sparse file into which something was written that is not nodata."""

    def __init__(self, grid: Grid, bands: int, block_px: int, nodata: float | None) -> None:
        self._size, self._blank = block_px, 0 if nodata is None else nodata
        """What GDAL leaves out of a sparse file: blocks of nodata, of 0 without."""
        self.filled: Bool[ndarray, "bands rows cols"] = np.zeros(
            (bands, -(-grid.height // block_px), -(-grid.width // block_px)), bool
        )

    def mark(self, pixels: Shaped[ndarray, "b h w"], window: Window) -> None:
        """Note what was written into `window`, which has pixels."""
        there = ~np.isnan(pixels) if np.isnan(self._blank) else pixels != self._blank
        rows, row_cuts = self._cuts(window.row, window.height)
        cols, col_cuts = self._cuts(window.col, window.width)
        by_rows = np.logical_or.reduceat(there, row_cuts, axis=1)
        self.filled[:, rows, cols] |= np.logical_or.reduceat(by_rows, col_cuts, axis=2)

    def _cuts(self, start: int, length: int) -> tuple[slice, list[int]]:
        """Return which blocks a range of pixels touches, and where in the range each begins."""
        blocks = range(start // self._size, -(-(start + length) // self._size))
        return slice(blocks.start, blocks.stop), [max(0, block * self._size - start) for block in blocks]


def check_written(part: Path, path: Path, blocks: Blocks | None = None) -> None:
    """Decode a file that was just written, overviews too, but for blocks that a sparse file leaves out.

    `blocks` are those that must be there; None: all. Overviews must be readable where they are.

    Raises:
        OutputError: naming `path`, when a write had failed.
    """
    try:
        with open_raster(part) as raster:
            there = _there(raster)
            missing = (~there if blocks is None else blocks.filled & ~there).sum()
            levels = len(raster.overviews(1))
            _decode(raster, there)
        for level in range(levels):
            with open_raster(part, overview_level=level) as raster:
                _decode(raster, _there(raster))
    except (*RASTER_FAULTS, InputError) as error:
        raise OutputError(refused(path, reason(error))) from error
    if missing:
        raise OutputError(refused(path, f"{missing} blocks did not reach the disk"))


def refused(path: Path, why: str) -> str:
    """Return the message of a file that cannot be written."""
    return f"{path} cannot be written: {why}. Free some space or choose another --out."


def _there(raster: DatasetReader) -> Bool[ndarray, "bands rows cols"]:
    """Return which blocks are in the file."""
    rows, cols = _blocks(raster)
    found = [
        raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index) is not None
        for index in raster.indexes
        for row in range(rows)
        for col in range(cols)
    ]
    return np.array(found, bool).reshape(raster.count, rows, cols)


def _decode(raster: DatasetReader, there: Bool[ndarray, "bands rows cols"]) -> None:
    for window in _windows(raster, np.logical_or.reduce(there)):
        raster.read(window=window)


def _windows(raster: DatasetReader, there: Bool[ndarray, "rows cols"]) -> Iterator[RasterioWindow]:
    """Yield neighbouring blocks together, as many as memory allows."""
    high, wide = raster.block_shapes[0]
    most = max(1, MOST_DECODED_PX // (high * wide * raster.count))
    for row, found in enumerate(there):
        for col in range(0, len(found), most):
            some = np.flatnonzero(found[col : col + most])
            if len(some):
                left, right = (col + int(some[0])) * wide, min((col + int(some[-1]) + 1) * wide, raster.width)
                height = min(high, raster.height - row * high)
                yield RasterioWindow(left, row * high, right - left, height)


def _blocks(raster: DatasetReader) -> tuple[int, int]:
    high, wide = raster.block_shapes[0]
    return -(-raster.height // high), -(-raster.width // wide)
