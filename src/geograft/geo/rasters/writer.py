"""Windowed writing of label masks and maps, and tiled copies of images that cannot be read by windows.

Maps are Cloud-Optimised GeoTIFFs. Their overviews are computed here, since GDAL's take time and memory for the empty
part of a sparse raster too. Every file is read back before it gets its final name, because GDAL may report a full disk
to its log only.
"""

from collections.abc import Iterator, Mapping, Sequence
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
from geograft.files import atomic_write
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.rasters.gdal import RASTER_ERRORS, error_reason, ignore_not_georeferenced
from geograft.geo.rasters.opening import open_raster, open_whole
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.resample import WindowReader
from geograft.geo.rasters.scene_image import open_image
from geograft.geo.rasters.styles import VIRIDIS, aux_xml, classes_style, has_gaps, ramp_style, sidecar_paths
from geograft.labels import MAX_CODE
from geograft.legend import IGNORE, Legend
from geograft.locations import Place

OverviewMethod = Literal["mode", "average"]
"""How an overview combines 2 x 2 pixels: by their most frequent value (classes) or their mean (numbers)."""


def downsample_2x(
    pixels: Shaped[ndarray, "b h w"], method: OverviewMethod, nodata: float | None
) -> Shaped[ndarray, "b hh hw"]:
    """Return pixels at half the resolution, (b, ceil(h / 2), ceil(w / 2)); nodata pixels are ignored.

    Ties between equally frequent values go to the first in row-major order. Means of integers are rounded half up.
    """
    blank = np.asarray(0 if nodata is None else nodata, pixels.dtype)
    bands, height, width = pixels.shape
    padded = np.full((bands, height + height % 2, width + width % 2), blank, pixels.dtype)
    padded[:, :height, :width] = pixels
    valid = np.zeros(padded.shape, bool)
    valid[:, :height, :width] = True if nodata is None else ~_equals(pixels, blank)
    values, known = _stack_2x2(padded), _stack_2x2(valid)
    combined = _mean(values, known) if method == "average" else _mode(values, known)
    return np.where(known.any(axis=0), combined, blank)


def overview_blocks(nonempty: Bool[ndarray, "rows cols"]) -> Bool[ndarray, "r c"]:
    """Return which blocks of the next overview overlap a non-empty block."""
    rows, cols = nonempty.shape
    padded = np.zeros((1, rows + rows % 2, cols + cols % 2), bool)
    padded[0, :rows, :cols] = nonempty
    combined: Bool[ndarray, "1 r c"] = np.logical_or.reduce(_stack_2x2(padded))
    return combined.reshape(combined.shape[1:])


def _equals(pixels: Shaped[ndarray, "b h w"], value: Shaped[ndarray, ""]) -> Bool[ndarray, "b h w"]:
    same: ndarray = np.isnan(pixels) if np.isnan(value) else pixels == value
    return same


def _stack_2x2(pixels: Shaped[ndarray, "b h w"]) -> Shaped[ndarray, "4 b hh hw"]:
    return np.stack([pixels[:, row::2, col::2] for row in (0, 1) for col in (0, 1)])


def _mean(values: Shaped[ndarray, "4 b h w"], known: Bool[ndarray, "4 b h w"]) -> Shaped[ndarray, "b h w"]:
    integer = values.dtype.kind in "ui"
    count = np.maximum(known.sum(axis=0), 1)
    total = np.where(known, values, 0).sum(axis=0, dtype=np.int64 if integer else np.float64)
    mean: ndarray = (2 * total + count) // (2 * count) if integer else total / count
    return mean.astype(values.dtype)


def _mode(values: Shaped[ndarray, "4 b h w"], known: Bool[ndarray, "4 b h w"]) -> Shaped[ndarray, "b h w"]:
    votes = np.stack([(known & (values == value)).sum(axis=0, dtype=np.uint8) for value in values])
    votes[~known] = 0
    mode: ndarray = np.take_along_axis(values, votes.argmax(axis=0)[None], axis=0)
    return mode.reshape(mode.shape[1:])


MAX_DECODED_PX = 2**21


class WrittenBlocks:
    """The blocks of a sparse file into which pixels other than nodata were written."""

    def __init__(self, grid: Grid, bands: int, block_px: int, nodata: float | None) -> None:
        self._size, self._blank = block_px, 0 if nodata is None else nodata
        """GDAL omits blocks of this value from a sparse file: nodata, or 0 without nodata."""
        self.nonempty: Bool[ndarray, "bands rows cols"] = np.zeros(
            (bands, -(-grid.height // block_px), -(-grid.width // block_px)), bool
        )

    def mark(self, pixels: Shaped[ndarray, "b h w"], window: Window) -> None:
        """Record the pixels written into `window`, which is not empty."""
        nonempty = ~np.isnan(pixels) if np.isnan(self._blank) else pixels != self._blank
        rows, row_offsets = self._touched_blocks(window.row, window.height)
        cols, col_offsets = self._touched_blocks(window.col, window.width)
        by_rows = np.logical_or.reduceat(nonempty, row_offsets, axis=1)
        self.nonempty[:, rows, cols] |= np.logical_or.reduceat(by_rows, col_offsets, axis=2)

    def _touched_blocks(self, start: int, length: int) -> tuple[slice, list[int]]:
        """Return the blocks that a range of pixels touches, and the offset in the range at which each begins."""
        blocks = range(start // self._size, -(-(start + length) // self._size))
        return slice(blocks.start, blocks.stop), [max(0, block * self._size - start) for block in blocks]


def verify_file(part: Path, path: Path, blocks: WrittenBlocks | None = None) -> None:
    """Decode all blocks of a file that was just written, with its overviews, to check that they reached the disk.

    `blocks` are those that must be in the file; None: all. `path` is the final name, for messages.

    Raises:
        OutputError: when a block is missing or cannot be decoded.
    """
    try:
        with open_raster(part) as raster:
            on_disk = _blocks_on_disk(raster)
            missing = (~on_disk if blocks is None else blocks.nonempty & ~on_disk).sum()
            levels = len(raster.overviews(1))
            _decode(raster, on_disk)
        for level in range(levels):
            with open_raster(part, overview_level=level) as raster:
                _decode(raster, _blocks_on_disk(raster))
    except (*RASTER_ERRORS, InputError) as error:
        raise OutputError(write_error_message(path, error_reason(error))) from error
    if missing:
        raise OutputError(write_error_message(path, f"{missing} blocks are missing from the file"))


def write_error_message(path: Path, why: str) -> str:
    """Return the error message for a file that cannot be written."""
    return f"{path} cannot be written: {why}. Free some space or choose another --out."


def _blocks_on_disk(raster: DatasetReader) -> Bool[ndarray, "bands rows cols"]:
    """Return which blocks the file contains."""
    rows, cols = _blocks(raster)
    on_disk = [
        raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index) is not None
        for index in raster.indexes
        for row in range(rows)
        for col in range(cols)
    ]
    return np.array(on_disk, bool).reshape(raster.count, rows, cols)


def _decode(raster: DatasetReader, on_disk: Bool[ndarray, "bands rows cols"]) -> None:
    for window in _adjacent_blocks(raster, np.logical_or.reduce(on_disk)):
        raster.read(window=window)


def _adjacent_blocks(raster: DatasetReader, on_disk: Bool[ndarray, "rows cols"]) -> Iterator[RasterioWindow]:
    """Yield windows of adjacent blocks, as many as memory allows."""
    high, wide = raster.block_shapes[0]
    count = max(1, MAX_DECODED_PX // (high * wide * raster.count))
    for row, row_blocks in enumerate(on_disk):
        for col in range(0, len(row_blocks), count):
            present = np.flatnonzero(row_blocks[col : col + count])
            if len(present):
                left, right = (col + int(present[0])) * wide, min((col + int(present[-1]) + 1) * wide, raster.width)
                height = min(high, raster.height - row * high)
                yield RasterioWindow(left, row * high, right - left, height)


def _blocks(raster: DatasetReader) -> tuple[int, int]:
    high, wide = raster.block_shapes[0]
    return -(-raster.height // high), -(-raster.width // wide)


BLOCK_PX = 512
"""Block size of masks and maps. Windows aligned with blocks are written fastest."""
IMAGE_BLOCK_PX = 256
"""Block size of copied images; small, because training reads windows at any position."""
TILED_OPTIONS: dict[str, Any] = {"tiled": True, "compress": "deflate", "bigtiff": "if_safer"}
MAX_READ_PX = 2**22
HALF_FLOAT = "float16"


@dataclass(frozen=True)
class MapLayout:
    """The bands of a new map, and how a GIS displays them."""

    bands: int = 1
    dtype: str = "uint8"
    """A numpy dtype."""
    nodata: float | None = None
    colours: Mapping[int, str] = field(default_factory=dict)
    """Colour #RRGGBB of each value, for a class map."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata tags of the file."""
    band_names: tuple[str, ...] = ()
    overviews: OverviewMethod = "mode"
    """How overviews are computed: mode for classes, average for probabilities."""
    categories: tuple[Mapping[int, str], ...] = ()
    """Names of the values of each band, for the file MAP.tif.aux.xml; none without names."""
    style: str = ""
    """Style for QGIS, the file MAP.qml; none where GDAL's names and colours are enough."""


def class_layout(legend: Legend, values: Sequence[int], tags: Mapping[str, str]) -> MapLayout:
    """Return the layout of one band with the classes of `legend` as `values`: names and colours for every GIS."""
    names, colours = dict(zip(values, legend.names, strict=True)), dict(zip(values, legend.colours, strict=True))
    style = classes_style(names, colours) if has_gaps(values) else ""
    return MapLayout(1, "uint8", IGNORE, colours, tags, ("class",), categories=(names,), style=style)


class MapWriter:
    """A raster file open for writing. Windows come in any order; each pixel is written once."""

    def __init__(self, path: Path, raster: DatasetWriter, blocks: WrittenBlocks | None) -> None:
        self._path = path
        self._raster = raster
        self.blocks = blocks
        """The non-empty blocks of a sparse file."""

    def write(self, pixels: Shaped[ndarray, "b h w"], window: Window) -> None:
        """Write the pixels of `window`, which lies inside the grid. Pixels of a float16 map are passed as float32.

        Raises:
            OutputError: when the disk is full.
        """
        with _output_errors(self._path):
            self._raster.write(pixels, window=window.to_rasterio())
        if self.blocks:
            self.blocks.mark(pixels, window)


@contextmanager
def create_map(path: Path, grid: Grid, layout: MapLayout) -> Iterator[MapWriter]:
    """Yield a writer of a map that becomes a Cloud-Optimised GeoTIFF with overviews at `path`, atomically, on exit.

    Needs about twice the map's compressed size on disk, and little memory. Pixels that are never written are nodata (0
    without nodata); blocks of nodata alone are omitted from the file. The files with names and style appear just before
    the map (see `sidecar_paths`); where the layout has none, older ones of that name are removed.

    Raises:
        OutputError: when the file cannot be written (disk full, no permission).
    """
    with atomic_write(path) as part, _output_errors(path):
        plain = part.with_name(f"{part.name}.plain")
        with _writer(path, plain, grid, layout, sparse=True) as writer:
            yield writer
        assert writer.blocks is not None
        verify_file(plain, path, writer.blocks)
        _write_overviews(path, plain, grid, layout, writer.blocks)
        if layout.dtype == HALF_FLOAT:
            _copy_half(plain, part)
        else:
            _copy_cog(plain, part, layout)
        verify_file(part, path, writer.blocks)
        _write_sidecars(part, path, layout)


@contextmanager
def create_labels(path: Path, grid: Grid, legend: Legend, fractional: bool = False) -> Iterator[MapWriter]:
    """Yield a writer of a label mask, a tiled GeoTIFF that appears at `path`, atomically, on exit.

    The mask is (1, h, w) uint8 class indices, 255 for pixels without a label. With `fractional` it has one band per
    output of the legend, with class fractions coded as 0 to 250. Pixels that are never written are 255.

    Raises:
        OutputError: when the file cannot be written (disk full, no permission).
    """
    tags = {f"CLASS_{index}": name for index, name in enumerate(legend.names)}
    layout = class_layout(legend, range(len(legend.names)), tags)
    if fractional:
        names, style = legend.names[-legend.outputs :], ramp_style(1, MAX_CODE, VIRIDIS)
        tags = {"FRACTION_SCALE": str(MAX_CODE)}
        layout = MapLayout(len(names), nodata=IGNORE, tags=tags, band_names=names, style=style)
    with atomic_write(path) as part, _output_errors(path):
        with _writer(path, part, grid, layout) as writer:
            yield writer
        verify_file(part, path)
        _write_sidecars(part, path, layout)


def copy_tiled(source: Place, path: Path) -> None:
    """Write a compressed copy of an image, with the same pixels and metadata, tiled for windowed reading.

    Memory: one block of `source`, which for some formats is the whole image.

    Raises:
        InputError: when `source` cannot be decoded, or is remote and changes.
        OutputError: when the copy cannot be written.
    """
    options = {"driver": "GTiff", "blockxsize": IMAGE_BLOCK_PX, "blockysize": IMAGE_BLOCK_PX, **TILED_OPTIONS}
    with Image.open(source) as image:
        options |= _packing(np.dtype(image.info.dtype))
    with atomic_write(path) as part, _output_errors(path):
        try:
            with open_whole(source) as raster, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                rasterio.shutil.copy(raster, part, strict=False, **options)
            verify_file(part, path)
        except (*RASTER_ERRORS, OutputError):
            read_all(source)  # raises an error that names the window when the source is damaged
            raise


def write_local_copy(info: ImageInfo, path: Path) -> None:
    """Write a scene, or a raster that is remote or slow to read in windows, as a GeoTIFF with the pixels of `info`.

    Raises:
        InputError: when it cannot be read, or is remote and has changed since it was described.
        OutputError: when the copy cannot be written.
    """
    if info.scene:
        with open_image(info) as image:
            write_image(image.info, image.read, path)
    else:
        copy_tiled(info.path, path)
        open_image(info).close()  # raises an error if a remote one has changed


def write_image(info: ImageInfo, read: WindowReader, path: Path) -> None:
    """Write the image of `info` as a compressed GeoTIFF, tiled for windowed reading; `read` returns its pixels.

    Invalid pixels are 0: nodata where pixels are from 1 to 65535, as those of a scene in units of reflectance are, and
    otherwise by a mask in the file.

    Raises:
        InputError: when pixels cannot be read.
        OutputError: when the file cannot be written.
    """
    grid, options = info.grid, TILED_OPTIONS | _packing(np.dtype(info.dtype))
    profile = {"driver": "GTiff", "height": grid.height, "width": grid.width, "count": info.bands, "dtype": info.dtype}
    place = {"transform": grid.transform, "crs": grid.crs.to_wkt() if grid.crs else None}
    scaled = info.scene is not None and all(band.scale is not None for band in info.scene.bands)
    blocks = {"blockxsize": IMAGE_BLOCK_PX, "blockysize": IMAGE_BLOCK_PX, "nodata": 0 if scaled else None}
    with atomic_write(path) as part, _output_errors(path), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with ignore_not_georeferenced():
            raster = rasterio.open(part, "w", **profile, **place, **options, **blocks)
        with raster:
            raster.update_tags(**info.tags)
            for band, name in enumerate(info.band_names, start=1):
                raster.set_band_description(band, name)
            raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (info.bands - 1)
            for window in block_windows(grid.window, IMAGE_BLOCK_PX, 8 * IMAGE_BLOCK_PX):
                pixels, valid = read(window)
                raster.write(pixels, window=window.to_rasterio())
                if not scaled:
                    raster.write_mask(valid, window=window.to_rasterio())
        verify_file(part, path)


def read_all(path: Place) -> None:
    """Decode every pixel of an image and discard it.

    Raises:
        InputError: when a window cannot be decoded; the message names the first one.
    """
    with Image.open(path) as image:
        grid = image.info.grid
        rows = max(1, min(grid.height, MAX_READ_PX // grid.width))
        for row in range(0, grid.height, rows):
            image.read(Window(row, 0, min(rows, grid.height - row), grid.width))


def _write_sidecars(part: Path, path: Path, layout: MapLayout) -> None:
    """Write the files with names and style of the map at `part`, and move them to their places next to `path`."""
    names = aux_xml(layout.categories, layout.colours) if layout.categories else ""
    for text, own, final in zip((names, layout.style), sidecar_paths(part), sidecar_paths(path), strict=True):
        if text:
            own.write_text(text, encoding="utf-8", newline="\n")
            own.replace(final)
        else:
            final.unlink(missing_ok=True)


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
    # Sparse files are intermediate and will be copied, so they are compressed fast.
    packing = {"sparse_ok": True, "zlevel": 1} if sparse else {"zlevel": 6}
    with ignore_not_georeferenced():
        raster = rasterio.open(part, "w", **profile, **place, **TILED_OPTIONS, **blocks, **packing)
    with raster:
        _describe(raster, layout)
        yield MapWriter(path, raster, WrittenBlocks(grid, layout.bands, BLOCK_PX, layout.nodata) if sparse else None)


def _describe(raster: DatasetWriter, layout: MapLayout) -> None:
    raster.update_tags(**layout.tags)
    for band, name in enumerate(layout.band_names, start=1):
        raster.set_band_description(band, name)
    if layout.colours:
        raster.write_colormap(1, {value: _rgba(colour) for value, colour in layout.colours.items()})
    elif layout.bands in (3, 4):
        # GDAL would interpret these as RGB or RGBA.
        raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (layout.bands - 1)


def _write_overviews(path: Path, plain: Path, grid: Grid, layout: MapLayout, blocks: WrittenBlocks) -> None:
    """Write external overviews of `plain`: an .ovr file of half its size next to it, which has an .ovr of its own.

    GDAL's overviews of a sparse raster of 60,000 x 60,000 pixels of classes take ten times as long, since GDAL also
    visits the empty part, and break ties between classes differently.
    """
    layout = replace(layout, colours={}, tags={}, band_names=())
    while max(grid.height, grid.width) > BLOCK_PX:
        half = Grid(-(-grid.height // 2), -(-grid.width // 2), grid.transform @ Affine.scale(2), grid.crs)
        above = plain.with_name(f"{plain.name}.ovr")
        with Image.open(plain) as below, _writer(path, above, half, layout, sparse=True) as writer:
            for row, col in np.argwhere(overview_blocks(np.logical_or.reduce(blocks.nonempty))).tolist():
                window = Window(row * BLOCK_PX, col * BLOCK_PX, BLOCK_PX, BLOCK_PX).intersection(half.window)
                under = Window(2 * row * BLOCK_PX, 2 * col * BLOCK_PX, 2 * BLOCK_PX, 2 * BLOCK_PX).intersection(
                    grid.window
                )
                if window and under:
                    writer.write(downsample_2x(below.read_raw(under), layout.overviews, layout.nodata), window)
        assert writer.blocks is not None
        verify_file(above, path, writer.blocks)
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
    """Write a Cloud-Optimised GeoTIFF of half floats, band-interleaved.

    The COG driver interleaves by pixel and leaves uninitialised bytes in blocks beyond the raster's edge (GDAL 3.10),
    so two files with the same pixels differ.
    """
    blocks = {"blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "band", "nbits": 16, "sparse_ok": True}
    with rasterio.Env(GDAL_TIFF_OVR_BLOCKSIZE=BLOCK_PX):
        rasterio.shutil.copy(
            plain, part, driver="GTiff", copy_src_overviews=True, predictor=3, **TILED_OPTIONS, **blocks
        )


def _format(layout: MapLayout) -> dict[str, Any]:
    """Return the GTiff options for the dtype; half floats are float32 stored in 16 bits."""
    return {"dtype": "float32", "nbits": 16} if layout.dtype == HALF_FLOAT else {"dtype": layout.dtype}


def _packing(dtype: np.dtype[Any]) -> dict[str, Any]:
    # The copy of an image with fewer bits than its dtype would keep NBITS, but predictors need whole bytes.
    predictor = {"predictor": 3} if dtype.kind == "f" else {"predictor": 2, "nbits": dtype.itemsize * 8}
    return {"interleave": "pixel", **predictor}


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    """Convert GDAL errors while writing `path` to OutputError."""
    try:
        yield
    except RASTER_ERRORS as error:
        raise OutputError(write_error_message(path, error_reason(error))) from error
