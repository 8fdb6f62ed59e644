"""New raster files, written by windows: label masks, maps, and tiled copies of images that cannot be read by windows.

Every file is read back before it takes its name, for GDAL may report a full disk to its log only.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from jaxtyping import Shaped
from numpy import ndarray
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window as RasterioWindow

from tilth.errors import InputError, OutputError
from tilth.files import replacing_with_scratch
from tilth.geo.gdal import RASTER_FAULTS, quietly, reason
from tilth.geo.grid import Grid, Window
from tilth.geo.raster import Image, open_raster
from tilth.legend import IGNORE, Legend

BLOCK_PX = 512
"""Edge of a block of a mask or map. Windows that begin and end on blocks are written fastest."""
IMAGE_BLOCK_PX = 256
"""Edge of a block of a copied image: small, for training reads windows at any place."""
TILED: dict[str, Any] = {"tiled": True, "compress": "deflate", "bigtiff": "if_safer"}
MOST_READ_PX = 2**22


@dataclass(frozen=True)
class MapLayout:
    """The bands of a new map and how a GIS shows them."""

    bands: int = 1
    dtype: str = "uint8"
    nodata: float | None = None
    colours: Mapping[int, str] = field(default_factory=dict)
    """#RRGGBB by value, for a map of classes."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Metadata of the file."""
    band_names: tuple[str, ...] = ()
    overviews: Literal["mode", "average", "nearest"] = "mode"
    """How overviews are made: mode for classes, average for probabilities."""


class MapWriter:
    """A raster file that is being written; windows in any order, each pixel once."""

    def __init__(self, path: Path, raster: DatasetWriter) -> None:
        self._path = path
        self._raster = raster

    def write(self, pixels: Shaped[ndarray, "b h w"], window: Window) -> None:
        """Write the pixels of `window`, which lies inside the grid.

        Raises:
            OutputError: when the disk is full.
        """
        with _refusals(self._path):
            self._raster.write(pixels, window=window.to_rasterio())


@contextmanager
def create_map(path: Path, grid: Grid, layout: MapLayout) -> Iterator[MapWriter]:
    """Give a writer; when the block ends, a Cloud-Optimised GeoTIFF with overviews is at `path`, whole or not at all.

    Needs about twice the map's compressed size on disk while it works, and little memory. Pixels that are never
    written are nodata (0 without).

    Raises:
        OutputError: when it cannot be written (disk full, no permission).
    """
    with replacing_with_scratch(path) as part, _refusals(path):
        plain = part.with_name(f"{part.name}.plain")
        with _writer(path, plain, grid, layout, zlevel=1) as writer:
            yield writer
        _check_readable(plain, path)
        rasterio.shutil.copy(plain, part, driver="COG", **_cog_options(layout))
        _check_readable(part, path)


@contextmanager
def create_labels(path: Path, grid: Grid, legend: Legend) -> Iterator[MapWriter]:
    """Give a writer for a mask of class indices, (1, h, w) uint8 with 255 for pixels without a label.

    A tiled GeoTIFF at `path` when the block ends, whole or not at all. Pixels that are never written are 255.

    Raises:
        OutputError: when it cannot be written (disk full, no permission).
    """
    colours = dict(enumerate(legend.colours))
    tags = {f"CLASS_{index}": name for index, name in enumerate(legend.names)}
    layout = MapLayout(nodata=IGNORE, colours=colours, tags=tags, band_names=("class",))
    with replacing_with_scratch(path) as part, _refusals(path):
        with _writer(path, part, grid, layout, zlevel=6) as writer:
            yield writer
        _check_readable(part, path)


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
            _check_readable(part, path)
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


def _check_readable(part: Path, path: Path) -> None:
    """Decode a file that was just written, overviews too; raise OutputError, naming `path`, when a write had failed."""
    try:
        with open_raster(part) as raster:
            missing = _missing_blocks(raster)
            levels = len(raster.overviews(1))
            _decode_blocks(raster)
        for level in range(levels):
            with open_raster(part, overview_level=level) as raster:
                _decode_blocks(raster)
    except (*RASTER_FAULTS, InputError) as error:
        raise OutputError(_refused(path, reason(error))) from error
    if missing:
        raise OutputError(_refused(path, f"{missing} blocks did not reach the disk"))


@contextmanager
def _writer(path: Path, part: Path, grid: Grid, layout: MapLayout, zlevel: int) -> Iterator[MapWriter]:
    profile = {
        "driver": "GTiff",
        "height": grid.height,
        "width": grid.width,
        "count": layout.bands,
        "dtype": layout.dtype,
    }
    place = {"transform": grid.transform, "crs": grid.crs.to_wkt() if grid.crs else None, "nodata": layout.nodata}
    blocks = {"blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "band", "zlevel": zlevel}
    with quietly():
        raster = rasterio.open(part, "w", **profile, **place, **TILED, **blocks)
    with raster:
        _describe(raster, layout)
        yield MapWriter(path, raster)


def _describe(raster: DatasetWriter, layout: MapLayout) -> None:
    raster.update_tags(**layout.tags)
    for band, name in enumerate(layout.band_names, start=1):
        raster.set_band_description(band, name)
    if layout.colours:
        raster.write_colormap(1, {value: _rgba(colour) for value, colour in layout.colours.items()})
    elif layout.bands in (3, 4):
        # GDAL would take these for a photograph.
        raster.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (layout.bands - 1)


def _cog_options(layout: MapLayout) -> dict[str, Any]:
    predictor = {"u": "STANDARD", "i": "STANDARD", "f": "FLOATING_POINT"}[np.dtype(layout.dtype).kind]
    return {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "NO" if layout.colours else predictor,
        "BLOCKSIZE": BLOCK_PX,
        "OVERVIEW_RESAMPLING": layout.overviews.upper(),
        "BIGTIFF": "IF_SAFER",
    }


def _packing(dtype: np.dtype[Any]) -> dict[str, Any]:
    # Images of fewer bits than their format would otherwise keep these, and predictors know whole bytes only.
    whole = {"predictor": 3} if dtype.kind == "f" else {"predictor": 2, "nbits": dtype.itemsize * 8}
    return {"interleave": "pixel", **whole}


def _rgba(colour: str) -> tuple[int, int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue, 255


def _missing_blocks(raster: DatasetReader) -> int:
    blocks = [(index, row, col) for index in raster.indexes for (row, col), _ in raster.block_windows(index)]
    return sum(
        raster.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=index) is None for index, row, col in blocks
    )


def _decode_blocks(raster: DatasetReader) -> None:
    rows, width = raster.block_shapes[0][0], raster.width
    for row in range(0, raster.height, rows):
        for col in range(0, width, 4 * BLOCK_PX):
            raster.read(window=RasterioWindow(col, row, min(4 * BLOCK_PX, width - col), min(rows, raster.height - row)))


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn GDAL's failures to write `path` into one line."""
    try:
        yield
    except RASTER_FAULTS as error:
        raise OutputError(_refused(path, reason(error))) from error


def _refused(path: Path, why: str) -> str:
    return f"{path} cannot be written: {why}. Free some space or choose another --out."
