"""Images and label masks, read by windows. The one way into raster files; `rasterout` is the way out.

What tells whether a raster is still the same, without reading its pixels.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from jaxtyping import Bool, Shaped, UInt8
from numpy import ndarray
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from geograft.errors import InputError
from geograft.files import json_digest
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.gdal import RASTER_FAULTS, quietly, reason
from geograft.geo.rasters.nodata import Gaps, gaps, known, nodata_as
from geograft.geo.rasters.resample import scaled_to
from geograft.legend import IGNORE

MOST_OPEN = 16
"""Files that one thread keeps open for labels."""
PROBE_PX, MOST_DECODED_PX = 256, 2**20
"""A window of 256 x 256 pixels must not need more than this many decoded."""
SEQUENTIAL = ("PNG", "JPEG", "GIF", "WEBP", "JP2OpenJPEG")
"""Formats that decode from the beginning, or in units of their own, whatever window is asked for."""

_labels = threading.local()


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image before its pixels are read."""

    path: Path
    grid: Grid
    bands: int
    """Number of bands; an alpha band is not counted."""
    dtype: str
    """Number format, as numpy names it."""
    band_names: tuple[str, ...]
    windowed: bool
    """Whether a small window can be read without decoding much else."""
    palette: bool
    """Whether the values are indices into a colour table."""
    tags: dict[str, str]
    """The file's own metadata."""


class Image:
    """An open image. Not to be shared between threads; safe to carry into a forked process, where it opens again."""

    def __init__(self, path: Path, raster: DatasetReader, resolution_m: float | None = None) -> None:
        self._opened = raster
        self._process = os.getpid()
        self._indexes = [
            i for i, kind in zip(raster.indexes, raster.colorinterp, strict=True) if kind != ColorInterp.alpha
        ]
        self._alpha = next((i for i in raster.indexes if i not in self._indexes), None)
        self._masked = MaskFlags.per_dataset in raster.mask_flag_enums[0] and self._alpha is None
        info = _info(path, raster, self._indexes)
        self.nodata = [nodata_as(raster.nodatavals[i - 1], info.dtype) for i in self._indexes]
        """By band; None where it has none that its number format can hold."""
        self._window = info.grid.window
        self._scaling = scaled_to(info.grid, resolution_m, str(path)) if resolution_m else None
        self.info = replace(info, grid=self._scaling.grid) if self._scaling else info

    @classmethod
    def open(cls, path: Path | str, *, resolution_m: float | None = None) -> "Image":
        """Open an image; with `resolution_m`, to be read at that many metres on the ground a pixel.

        Then `info.grid` is the coarser or finer grid: same CRS, directions and upper left corner, and the asked
        resolution in both directions at the image's centre (see `geograft.geo.rasters.resample`).

        Raises:
            InputError: when the file is missing, corrupt, no image, or holds numbers that are not real; when it is to
                be resampled and has no CRS.
        """
        raster = open_raster(Path(path))
        try:
            return cls(Path(path), raster, resolution_m)
        except InputError:
            raster.close()
            raise

    def read(
        self, window: Window, bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window` in their own number format, and which of them are valid.

        The window may reach beyond the image. A pixel is not valid outside the image, where the alpha or mask band is
        0, where all bands hold their nodata value, or where any band is not finite; it is 0 in all bands then.
        `bands` are counted from 1 without the alpha band; default: all.

        Raises:
            InputError: naming the file and the window, when the pixels cannot be decoded.
        """
        if self._scaling:
            return self._scaling.read(partial(self._read, bands=bands), window)
        return self._read(window, bands)

    def empty(self, window: Window) -> bool:
        """Return True only when it is known, without decoding pixels, that no pixel of `window` is valid.

        That is so outside the image, in blocks that a sparse GeoTIFF does not hold, and between the sources of a VRT.
        Costs about a microsecond a block the first time, and next to nothing after that.
        """
        needed = self._scaling.needs(window) if self._scaling else window
        inside = needed.overlap(self._window)
        return inside is None or (self._gaps is not None and self._gaps.empty(self._raster, inside))

    def values(self, window: Window) -> Shaped[ndarray, "b h w"]:
        """Return what the file holds in `window`, inside the image, whatever nodata or a mask says of it.

        For images that are not resampled.

        Raises:
            InputError: as `read`.
        """
        if self._scaling:
            raise ValueError("a resampled image has no values of its own")
        return self._decode(window, self._indexes)

    def close(self) -> None:
        """Close the file. Reading afterwards is an error of the program."""
        self._opened.close()

    def __enter__(self) -> "Image":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _gaps(self) -> Gaps | None:
        return gaps(self._raster, self._indexes, self._alpha, self._masked)

    @property
    def _raster(self) -> DatasetReader:
        if os.getpid() != self._process:
            # A forked process shares the parent's position in the file.
            self._opened, self._process = open_raster(self.info.path), os.getpid()
        return self._opened

    def _read(
        self, window: Window, bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        chosen = [self._indexes[band - 1] for band in bands] if bands else self._indexes
        nodata = [self.nodata[band - 1] for band in bands] if bands else self.nodata
        pixels = np.zeros((len(chosen), window.height, window.width), self.info.dtype)
        valid = np.zeros((window.height, window.width), bool)
        inside = window.overlap(self._window)
        if inside is not None:
            rows, cols = inside.within(window).slices
            pixels[:, rows, cols] = self._decode(inside, chosen)
            valid[rows, cols] = known(pixels[:, rows, cols], nodata)
            valid[rows, cols] &= self._unmasked(inside)
            pixels[:, ~valid] = 0
        return pixels, valid

    def _unmasked(self, window: Window) -> Bool[ndarray, "h w"]:
        visible = np.ones((window.height, window.width), bool)
        if self._alpha is not None:
            visible[:] = self._decode(window, [self._alpha])[0]
        elif self._masked:
            visible[:] = self._decode(window, [1], masks=True)[0]
        return visible

    def _decode(self, window: Window, indexes: list[int], masks: bool = False) -> Shaped[ndarray, "b h w"]:
        read = self._raster.read_masks if masks else self._raster.read
        try:
            pixels: ndarray = read(indexes, window=window.to_rasterio())
        except (*RASTER_FAULTS, OSError) as error:
            raise InputError(
                f"{self.info.path}: rows {window.row} to {window.stop_row}, columns {window.col} to {window.stop_col}, "
                f"cannot be read: {reason(error)}. "
                "The file is damaged or cut short; get it again."
            ) from error
        return pixels


def read_labels(path: Path, window: Window) -> UInt8[ndarray, "h w"]:
    """Return the class indices of `window` of a label mask; 255 outside the file. Keeps files open as `read_mask`.

    Raises:
        InputError: when the mask is missing or cannot be decoded.
    """
    labels: UInt8[ndarray, "h w"] = read_mask(path, window)[0]
    return labels


def read_mask(path: Path, window: Window) -> UInt8[ndarray, "o h w"]:
    """Return all bands of `window` of a label mask, class indices or shares; 255 outside the file.

    Keeps the last few files of every thread open.

    Raises:
        InputError: when the mask is missing or cannot be decoded.
    """
    image = _label_image(path)
    inside = window.overlap(image.info.grid.window)
    bands = np.full((image.info.bands, window.height, window.width), IGNORE, np.uint8)
    if inside is not None:
        bands[:, *inside.within(window).slices] = image.values(inside)
    return bands


def close_labels() -> None:
    """Close what `read_labels` keeps open in this thread, for some systems move no folder with open files in it."""
    cache: dict[object, Image] = _labels.__dict__.setdefault("files", {})
    while cache:
        cache.popitem()[1].close()


def open_raster(path: Path, **options: Any) -> DatasetReader:
    """Return an opened raster file.

    Raises:
        InputError: when it is missing or no raster.
    """
    try:
        with quietly():
            return rasterio.open(path, **options)
    except (*RASTER_FAULTS, OSError) as error:
        if not path.exists():
            raise InputError(f"{path} does not exist. Check the path.") from error
        raise InputError(f"{path} cannot be opened as an image: {reason(error)}. Check or replace it.") from error


def _label_image(path: Path) -> Image:
    # The file's age is in the key, for a tile set may be prepared anew under the same name.
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}. Prepare the tile set again.") from error
    key = (str(path), state.st_mtime_ns, state.st_size)
    cache: dict[tuple[str, int, int], Image] = _labels.__dict__.setdefault("files", {})
    if key not in cache:
        if len(cache) >= MOST_OPEN:
            cache.pop(next(iter(cache))).close()
        cache[key] = Image.open(path)
    return cache[key]


def _info(path: Path, raster: DatasetReader, indexes: list[int]) -> ImageInfo:
    if not indexes:
        raise InputError(f"{path} holds no band but alpha. Give an image with at least one band.")
    dtypes = {raster.dtypes[i - 1] for i in indexes}
    dtype = np.dtype(next(iter(dtypes)) if len(dtypes) == 1 else "object")
    if dtype.kind not in "uif":
        raise InputError(
            f"{path} holds numbers of kind {', '.join(sorted(dtypes))}; one real kind is needed. Convert it."
        )
    return ImageInfo(
        path=path,
        grid=Grid(raster.height, raster.width, raster.transform, _crs(path, raster)),
        bands=len(indexes),
        dtype=dtype.name,
        band_names=tuple(_band_name(raster, i) for i in indexes),
        windowed=_windowed(raster),
        palette=raster.colorinterp[0] == ColorInterp.palette,
        tags=raster.tags(),
    )


def _crs(path: Path, raster: DatasetReader) -> CRS | None:
    try:
        return _parsed_crs(raster.crs.to_wkt()) if raster.crs else None
    except (CRSError, *RASTER_FAULTS) as error:
        raise InputError(f"{path}: its CRS cannot be understood: {reason(error)}. Assign one that can.") from error


@lru_cache(maxsize=64)
def _parsed_crs(wkt: str) -> CRS:
    # Takes two milliseconds, ten times as long as opening the file.
    return CRS.from_wkt(wkt)


def _band_name(raster: DatasetReader, index: int) -> str:
    kind = raster.colorinterp[index - 1]
    if raster.descriptions[index - 1]:
        return str(raster.descriptions[index - 1])
    return str(kind.name) if kind in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) else f"band {index}"


def _windowed(raster: DatasetReader) -> bool:
    rows, cols = raster.block_shapes[0]
    decoded_px = -(-PROBE_PX // rows) * rows * -(-PROBE_PX // cols) * cols
    packed = raster.driver in SEQUENTIAL or raster.name.startswith("/vsi")
    return not packed and decoded_px <= MOST_DECODED_PX


STATISTICS = ".aux.xml"
"""Written by programs that only looked at a raster."""


def raster_state(path: Path) -> dict[str, Any]:
    """Return path, size and time of a raster, with all files that belong to it: masks, world files, a VRT's sources.

    Raises:
        InputError: when it is not there, or no raster.
    """
    with open_raster(path) as raster:
        files = sorted({Path(name) for name in raster.files if not name.endswith(STATISTICS)} | {path})
    states = [(file.name, state.st_size, state.st_mtime_ns) for file in files for state in [file.stat()]]
    several = {"files": len(files), "state": json_digest(states)[:16]} if len(files) > 1 else {}
    size, modified = sum(size for _, size, _ in states), max(time for *_, time in states)
    return {"path": str(path.resolve()), "bytes": size, "modified": _utc(modified), **several}


def _utc(ns: int) -> str:
    """Return a time in UTC to the nanosecond."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}.{ns % 10**9:09d}"
