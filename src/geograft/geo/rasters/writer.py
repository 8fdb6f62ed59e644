"""New raster files, written by windows: label masks, maps, and tiled copies of images that cannot be read by windows.

Every file is read back before it takes its name, for GDAL may report a full disk to its log only.

Rasters at half their resolution, for viewers that zoom out. Pixels of nodata have no say.

Whether what was written reached the disk, for GDAL may report a full disk to its log only.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from jaxtyping import Bool, Shaped
from numpy import ndarray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window as RasterioWindow

from geograft.errors import InputError, OutputError
from geograft.files import replacing_with_scratch
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.gdal import RASTER_FAULTS, quietly, reason
from geograft.geo.rasters.raster import Image, open_raster
from geograft.labels import FULL
from geograft.legend import IGNORE, Legend

Rule = Literal["mode", "average"]
"""How four pixels become one: the most frequent value, for classes; the mean, for numbers."""


def halved(pixels: Shaped[ndarray, "b h w"], rule: Rule, nodata: float | None) -> Shaped[ndarray, "b hh hw"]:
    """Return (b, ceil(h / 2), ceil(w / 2)) pixels, each from the two by two under it that are not nodata.

    Of values that are equally frequent the first counts, in the order of reading. Means of whole numbers are rounded
    half up.
    """
    blank = np.asarray(0 if nodata is None else nodata, pixels.dtype)
    bands, height, width = pixels.shape
    even = np.full((bands, height + height % 2, width + width % 2), blank, pixels.dtype)
    even[:, :height, :width] = pixels
    known = np.zeros(even.shape, bool)
    known[:, :height, :width] = True if nodata is None else ~_is(pixels, blank)
    fours, there = _fours(even), _fours(known)
    found = _mean(fours, there) if rule == "average" else _most_frequent(fours, there)
    return np.where(there.any(axis=0), found, blank)


def blocks_above(filled: Bool[ndarray, "rows cols"]) -> Bool[ndarray, "r c"]:
    """Return which blocks of the halved raster lie over a filled one."""
    rows, cols = filled.shape
    even = np.zeros((1, rows + rows % 2, cols + cols % 2), bool)
    even[0, :rows, :cols] = filled
    above: Bool[ndarray, "1 r c"] = np.logical_or.reduce(_fours(even))
    return above.reshape(above.shape[1:])


def _is(pixels: Shaped[ndarray, "b h w"], value: Shaped[ndarray, ""]) -> Bool[ndarray, "b h w"]:
    same: ndarray = np.isnan(pixels) if np.isnan(value) else pixels == value
    return same


def _fours(pixels: Shaped[ndarray, "b h w"]) -> Shaped[ndarray, "4 b hh hw"]:
    return np.stack([pixels[:, row::2, col::2] for row in (0, 1) for col in (0, 1)])


def _mean(fours: Shaped[ndarray, "4 b h w"], there: Bool[ndarray, "4 b h w"]) -> Shaped[ndarray, "b h w"]:
    whole = fours.dtype.kind in "ui"
    count = np.maximum(there.sum(axis=0), 1)
    total = np.where(there, fours, 0).sum(axis=0, dtype=np.int64 if whole else np.float64)
    mean: ndarray = (2 * total + count) // (2 * count) if whole else total / count
    return mean.astype(fours.dtype)


def _most_frequent(fours: Shaped[ndarray, "4 b h w"], there: Bool[ndarray, "4 b h w"]) -> Shaped[ndarray, "b h w"]:
    votes = np.stack([(there & (fours == value)).sum(axis=0, dtype=np.uint8) for value in fours])
    votes[~there] = 0
    chosen: ndarray = np.take_along_axis(fours, votes.argmax(axis=0)[None], axis=0)
    return chosen.reshape(chosen.shape[1:])


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


BLOCK_PX = 512
"""Edge of a block of a mask or map. Windows that begin and end on blocks are written fastest."""
IMAGE_BLOCK_PX = 256
"""Edge of a block of a copied image: small, for training reads windows at any place."""
TILED: dict[str, Any] = {"tiled": True, "compress": "deflate", "bigtiff": "if_safer"}
MOST_READ_PX = 2**22
HALF = "float16"


@dataclass(frozen=True)
class MapLayout:
    """The bands of a new map and how a GIS shows them."""

    bands: int = 1
    dtype: str = "uint8"
    """As numpy names it."""
    nodata: float | None = None
    colours: Mapping[int, str] = field(default_factory=dict)
    """#RRGGBB by value, for a map of classes."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the file."""
    band_names: tuple[str, ...] = ()
    overviews: Rule = "mode"
    """How overviews are made: mode for classes, average for probabilities."""


class MapWriter:
    """A raster file that is being written; windows in any order, each pixel once."""

    def __init__(self, path: Path, raster: DatasetWriter, blocks: Blocks | None) -> None:
        self._path = path
        self._raster = raster
        self.blocks = blocks
        """Which blocks hold something, for a sparse file."""

    def write(self, pixels: Shaped[ndarray, "b h w"], window: Window) -> None:
        """Write the pixels of `window`, which lies inside the grid; half floats are given as float32.

        Raises:
            OutputError: when the disk is full.
        """
        with _refusals(self._path):
            self._raster.write(pixels, window=window.to_rasterio())
        if self.blocks:
            self.blocks.mark(pixels, window)


@contextmanager
def create_map(path: Path, grid: Grid, layout: MapLayout) -> Iterator[MapWriter]:
    """Give a writer; when the block ends, a Cloud-Optimised GeoTIFF with overviews is at `path`, whole or not at all.

    Needs about twice the map's compressed size on disk while it works, and little memory. Pixels that are never
    written are nodata (0 without); blocks of nothing else are left out of the file.

    Raises:
        OutputError: when it cannot be written (disk full, no permission).
    """
    with replacing_with_scratch(path) as part, _refusals(path):
        plain = part.with_name(f"{part.name}.plain")
        with _writer(path, plain, grid, layout, sparse=True) as writer:
            yield writer
        assert writer.blocks is not None
        check_written(plain, path, writer.blocks)
        _write_overviews(path, plain, grid, layout, writer.blocks)
        if layout.dtype == HALF:
            _copy_half(plain, part)
        else:
            _copy_cog(plain, part, layout)
        check_written(part, path, writer.blocks)


@contextmanager
def create_labels(path: Path, grid: Grid, legend: Legend, shares: bool = False) -> Iterator[MapWriter]:
    """Give a writer for a mask of class indices, (1, h, w) uint8 with 255 for pixels without a label.

    With `shares`, of one band an output of the legend, that hold 0 to 250 for the share of its class. A tiled GeoTIFF
    at `path` when the block ends, whole or not at all. Pixels that are never written are 255.

    Raises:
        OutputError: when it cannot be written (disk full, no permission).
    """
    tags = {f"CLASS_{index}": name for index, name in enumerate(legend.names)}
    layout = MapLayout(nodata=IGNORE, colours=dict(enumerate(legend.colours)), tags=tags, band_names=("class",))
    if shares:
        names = legend.names[-legend.outputs :]
        layout = MapLayout(len(names), nodata=IGNORE, tags={"FULL_SHARE": str(FULL)}, band_names=names)
    with replacing_with_scratch(path) as part, _refusals(path):
        with _writer(path, part, grid, layout) as writer:
            yield writer
        check_written(part, path)


def copy_tiled(source: Path, path: Path) -> None:
    """Write a copy of an image that can be read by windows: same grid, pixels, nodata, mask and alpha; compressed.

    Memory: one block of `source`, which for some files is all of it.

    Raises:
        InputError: when `source` cannot be decoded.
        OutputError: when the copy cannot be written.
    """
    options = {"driver": "GTiff", "blockxsize": IMAGE_BLOCK_PX, "blockysize": IMAGE_BLOCK_PX, **TILED}
    with Image.open(source) as image:
        options |= _packing(np.dtype(image.info.dtype))
    with replacing_with_scratch(path) as part, _refusals(path):
        try:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                rasterio.shutil.copy(source, part, strict=False, **options)
            check_written(part, path)
        except (*RASTER_FAULTS, OutputError):
            read_all(source)  # names the window when the source is at fault
            raise


def read_all(path: Path) -> None:
    """Decode every pixel of an image and drop it.

    Raises:
        InputError: naming the first window that cannot be decoded.
    """
    with Image.open(path) as image:
        grid = image.info.grid
        rows = max(1, min(grid.height, MOST_READ_PX // grid.width))
        for row in range(0, grid.height, rows):
            image.read(Window(row, 0, min(rows, grid.height - row), grid.width))


@contextmanager
def _writer(path: Path, part: Path, grid: Grid, layout: MapLayout, sparse: bool = False) -> Iterator[MapWriter]:
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": layout.bands,
        **_format(layout),
    }
    place = {"transform": grid.transform, "crs": grid.crs.to_wkt() if grid.crs else None, "nodata": layout.nodata}
    blocks = {"blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "band"}
    # What is sparse here is written once more, so it is packed fast.
    packing = {"sparse_ok": True, "zlevel": 1} if sparse else {"zlevel": 6}
    with quietly():
        raster = rasterio.open(part, "w", **profile, **place, **TILED, **blocks, **packing)
    with raster:
        _describe(raster, layout)
        yield MapWriter(path, raster, Blocks(grid, layout.bands, BLOCK_PX, layout.nodata) if sparse else None)


def _describe(raster: DatasetWriter, layout: MapLayout) -> None:
    raster.update_tags(**layout.tags)
    for band, name in enumerate(layout.band_names, start=1):
        raster.set_band_description(band, name)
    if layout.colours:
        raster.write_colormap(1, {value: _rgba(colour) for value, colour in layout.colours.items()})
    elif layout.bands in (3, 4):
        # GDAL would take these for a photograph.
        raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (layout.bands - 1)


def _write_overviews(path: Path, plain: Path, grid: Grid, layout: MapLayout, blocks: Blocks) -> None:
    """Write what GDAL takes for the overviews of `plain`: a file of half its size beside it, with one of its own.

    GDAL's own way costs as much where nothing is as where something is, and memory for a thousand whole rows.
    """
    layout = replace(layout, colours={}, tags={}, band_names=())
    while max(grid.height, grid.width) > BLOCK_PX:
        half = Grid(-(-grid.height // 2), -(-grid.width // 2), grid.transform @ Affine.scale(2), grid.crs)
        above = plain.with_name(f"{plain.name}.ovr")
        with Image.open(plain) as below, _writer(path, above, half, layout, sparse=True) as writer:
            for row, col in np.argwhere(blocks_above(np.logical_or.reduce(blocks.filled))).tolist():
                window = Window(row * BLOCK_PX, col * BLOCK_PX, BLOCK_PX, BLOCK_PX).overlap(half.window)
                under = Window(2 * row * BLOCK_PX, 2 * col * BLOCK_PX, 2 * BLOCK_PX, 2 * BLOCK_PX).overlap(grid.window)
                if window and under:
                    writer.write(halved(below.values(under), layout.overviews, layout.nodata), window)
        assert writer.blocks is not None
        check_written(above, path, writer.blocks)
        plain, grid, blocks = above, half, writer.blocks


def _copy_cog(plain: Path, part: Path, layout: MapLayout) -> None:
    predictor = {"u": "STANDARD", "i": "STANDARD", "f": "FLOATING_POINT"}[np.dtype(layout.dtype).kind]
    options = {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "NO" if layout.colours else predictor,
        "BLOCKSIZE": BLOCK_PX,
        "OVERVIEWS": "FORCE_USE_EXISTING",
        "BIGTIFF": "IF_SAFER",
        "SPARSE_OK": True,
    }
    rasterio.shutil.copy(plain, part, driver="COG", **options)


def _copy_half(plain: Path, part: Path) -> None:
    """Make a Cloud-Optimised GeoTIFF of half floats, each band by itself.

    The COG driver puts the bands into one block and leaves chance bytes beyond the raster's edge in it (GDAL 3.10), so
    that no two files are the same.
    """
    blocks = {"blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "band", "nbits": 16, "sparse_ok": True}
    with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK_PX):
        rasterio.shutil.copy(plain, part, driver="GTiff", copy_src_overviews=True, predictor=3, **TILED, **blocks)


def _format(layout: MapLayout) -> dict[str, Any]:
    """Return how the driver is told the number format; half floats are float32 of which 16 bits are kept."""
    return {"dtype": "float32", "nbits": 16} if layout.dtype == HALF else {"dtype": layout.dtype}


def _packing(dtype: np.dtype[Any]) -> dict[str, Any]:
    # Images of fewer bits than their format would otherwise keep these, and predictors know whole bytes only.
    whole = {"predictor": 3} if dtype.kind == "f" else {"predictor": 2, "nbits": dtype.itemsize * 8}
    return {"interleave": "pixel", **whole}


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn GDAL's failures to write `path` into one line."""
    try:
        yield
    except RASTER_FAULTS as error:
        raise OutputError(refused(path, reason(error))) from error
