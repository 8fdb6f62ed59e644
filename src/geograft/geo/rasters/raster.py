"""Windowed reading of images and label masks.

`geograft.geo.rasters.writer` writes rasters; both open them by `geograft.geo.rasters.opening`.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Bool, Shaped, UInt8, UInt16
from numpy import ndarray
from pyproj import CRS
from pyproj.exceptions import CRSError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader

from geograft.errors import InputError
from geograft.files import StrPath
from geograft.geo.formats import raster_driver
from geograft.geo.grid import Grid, Window, grid_fault, is_horizontal
from geograft.geo.rasters.gdal import RASTER_ERRORS, error_reason
from geograft.geo.rasters.nodata import EmptyRegions, ValidityRule, cast_nodata, empty_regions, valid_pixels
from geograft.geo.rasters.opening import RasterFile
from geograft.geo.rasters.resample import make_resampler
from geograft.geo.scene import Scene
from geograft.legend import IGNORE
from geograft.locations import Location, Place, to_place
from geograft.memory import check_band_count

MAX_OPEN_FILES = 16
"""Label files kept open per thread."""
PROBE_PX, MAX_DECODED_PX = 256, 2**20
"""An image supports windowed reading when a window of 256 x 256 pixels decodes at most this many pixels."""
SEQUENTIAL_DRIVERS = ("PNG", "JPEG", "GIF", "WEBP", "JP2OpenJPEG")
"""Formats that decode from the start of the file, or in units of their own, for any window."""

DEFAULT_RULE = ValidityRule()
_labels = threading.local()


@dataclass(frozen=True)
class ImageInfo:
    """An image's metadata."""

    path: Place
    grid: Grid
    bands: int
    """Number of bands without alpha."""
    dtype: str
    """Numpy dtype of the pixels."""
    band_names: tuple[str, ...]
    windowed: bool
    """Whether a small window can be read without decoding much more."""
    palette: bool
    """Whether the pixels are indices into a colour table."""
    tags: dict[str, str]
    """The file's metadata tags."""
    selected: tuple[int, ...] = ()
    """Numbers of the bands in the file, counted from 1 without alpha, if they were selected; empty: all."""
    validity: ValidityRule = DEFAULT_RULE
    """How invalid pixels are recognised."""
    alpha: int = 0
    """Number of the band in the file that is a mask, because it is tagged alpha; 0: none."""
    etag: str = ""
    """ETag of a remote file, of a scene a digest of those of its files; empty for local ones."""
    scene: Scene | None = None
    """The bands of a scene of several files, which `scene_image` reads; None for a raster."""

    def select(self, bands: Sequence[int]) -> "ImageInfo":
        """Return the metadata of the same image with only these bands, in this order; all if there are none.

        Raises:
            InputError: if the image lacks one of them.
        """
        check_bands(self, bands)
        names = tuple(self.band_names[band - 1] for band in bands)
        return replace(self, bands=len(bands), band_names=names, selected=tuple(bands)) if bands else self


def check_bands(info: ImageInfo, bands: Sequence[int]) -> None:
    """Raise InputError if an image lacks one of `bands`."""
    wrong = [band for band in bands if not 1 <= band <= info.bands]
    if wrong:
        available = f"{info.bands} bands ({', '.join(info.band_names)})" if info.bands > 1 else "one band"
        raise InputError(
            f"{info.path} has {available}, but band {wrong[0]} was requested. "
            f"Choose bands from 1 to {info.bands}; an alpha band does not count."
        )


class Image:
    """An open image. Not thread-safe; a forked process reopens the file."""

    def __init__(
        self,
        file: RasterFile,
        resolution_m: float | None = None,
        bands: Sequence[int] = (),
        validity: ValidityRule = DEFAULT_RULE,
    ) -> None:
        path, raster = file.place, file.dataset
        if not raster.count:
            raise InputError(f"{path} has no bands. Export one of its data sets as GeoTIFF.")
        check_band_count(str(path), raster.count)
        self._file = file
        self._indexes = [
            i
            for i, kind in zip(raster.indexes, raster.colorinterp, strict=True)
            if kind != ColorInterp.alpha or not validity.alpha
        ]
        self._alpha = next((i for i in raster.indexes if i not in self._indexes), None)
        flags = raster.mask_flag_enums[0]
        self._masked = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags and self._alpha is None
        info = replace(_info(path, raster, self._indexes), validity=validity, alpha=self._alpha or 0).select(bands)
        info = replace(info, etag=file.state.etag) if file.state else info
        self._indexes = [self._indexes[band - 1] for band in bands] if bands else self._indexes
        self.nodata = [cast_nodata(raster.nodatavals[i - 1], info.dtype) for i in self._indexes]
        """Per band; None without a nodata value that the dtype can represent."""
        self._window = info.grid.window
        self._scaling = make_resampler(info.grid, resolution_m, str(path)) if resolution_m else None
        self.info = replace(info, grid=self._scaling.grid) if self._scaling else info

    @classmethod
    def open(
        cls,
        path: StrPath | Location,
        *,
        resolution_m: float | None = None,
        bands: Sequence[int] = (),
        validity: ValidityRule = DEFAULT_RULE,
        threads: int = 1,
    ) -> "Image":
        """Open an image; with `resolution_m`, resample it to that pixel size while it is read.

        With `bands`, counted from 1 without alpha, it has only these, in this order. `validity` tells how invalid
        pixels are recognised. The blocks of a GeoTIFF are decoded by as many `threads`.

        `info.grid` is then the resampled grid: same CRS, orientation and upper left corner, with square pixels of
        `resolution_m` metres at the image's centre (see `geograft.geo.rasters.resample`).

        Raises:
            InputError: when the file is missing, corrupt or not an image, when its dtype is not real, when it lacks
                one of `bands`, or when `resolution_m` is given and it has no CRS.
        """
        place = to_place(path)
        # With several threads, GDAL 3.10 does not repeat requests.
        several = threads > 1 and isinstance(place, Path) and raster_driver(place) == "GTiff"
        file = RasterFile(place, **({"num_threads": threads} if several else {}))
        try:
            return cls(file, resolution_m, bands, validity)
        except InputError:
            file.close()
            raise

    def read(
        self, window: Window, bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window` in the image's dtype, and the mask of valid pixels.

        The window may extend beyond the image. A pixel is invalid outside the image, where the alpha or mask band is 0,
        where bands equal their nodata value (any or all of those that are read, see `geograft.geo.rasters.nodata`), and
        where any band is not finite. Invalid pixels are 0 in all bands. `bands` are counted from 1 without the alpha
        band; default: all.

        Raises:
            InputError: when the pixels cannot be decoded; the message names the file and the window.
        """
        if self._scaling:
            return self._scaling.read(partial(self._read, bands=bands), window)
        return self._read(window, bands)

    def read_counted(
        self, window: Window
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"], Bool[ndarray, "h w"]]:
        """Return what `read` returns, and the mask of pixels that have nodata in some bands, but not in all.

        Raises:
            InputError: as `read`.
            ValueError: when the image is resampled.
        """
        if self._scaling:
            raise ValueError("a resampled image has no nodata values")
        pixels, valid, missing = self._read_missing(window)
        return pixels, valid, (missing > 0) & (missing < len(self._indexes))

    def read_alpha(self, window: Window) -> Shaped[ndarray, "h w"]:
        """Return the alpha band of `window`, which lies inside the image, as stored. The image must have one.

        Raises:
            InputError: as `read`.
        """
        assert self._alpha is not None
        alpha: ndarray = self._decode(window, [self._alpha])[0]
        return alpha

    def is_empty(self, window: Window) -> bool:
        """Return whether `window` is known to have no valid pixel; False when that would require decoding pixels.

        True outside the image, in missing blocks of a sparse GeoTIFF and between the sources of a VRT. Costs about a
        microsecond per block the first time, and almost nothing after that.
        """
        needed = self._scaling.source_window(window) if self._scaling else window
        inside = needed.intersection(self._window)
        if inside is None or self._gaps is None:
            return inside is None
        gaps = self._gaps
        return self._file.read(lambda raster: gaps.is_empty(raster, inside), _describe(inside))

    def read_reduced(
        self, window: Window, shape: tuple[int, int], bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return `window`, which lies inside the image, as (height, width) = `shape` pixels, and the valid ones.

        Nearest pixels, from the file's overviews where it has any. Otherwise as `read`.

        Raises:
            InputError: as `read`.
            ValueError: when the image is resampled.
        """
        if self._scaling:
            raise ValueError("a resampled image has no overviews")
        chosen = [self._indexes[band - 1] for band in bands] if bands else self._indexes
        nodata = [self.nodata[band - 1] for band in bands] if bands else self.nodata
        pixels = self._decode(window, chosen, shape=shape)
        valid = valid_pixels(pixels, nodata, self.info.validity.nodata)[0] & self._unmasked(window, shape)
        pixels[:, ~valid] = 0
        return pixels, valid

    @property
    def has_overviews(self) -> bool:
        """Whether the file has overviews."""
        return bool(self._file.dataset.overviews(1))

    def read_raw(self, window: Window) -> Shaped[ndarray, "b h w"]:
        """Return the stored pixels of `window`, which lies inside the image, ignoring nodata and masks.

        Raises:
            InputError: as `read`.
            ValueError: when the image is resampled.
        """
        if self._scaling:
            raise ValueError("a resampled image has no stored pixels")
        return self._decode(window, self._indexes)

    def colour_table(self) -> UInt8[ndarray, "256 3"]:
        """Return red, green and blue of each value of an image with a colour table; black for values that it lacks."""
        table = np.zeros((256, 3), np.uint8)
        for value, colour in self._file.dataset.colormap(1).items():
            if 0 <= value < len(table):
                table[value] = colour[:3]
        return table

    def close(self) -> None:
        """Close the file, which must not be read afterwards."""
        self._file.close()

    def __enter__(self) -> "Image":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _gaps(self) -> EmptyRegions | None:
        return empty_regions(self._file.dataset, self._indexes, self._alpha, self._masked)

    def _read(
        self, window: Window, bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        return self._read_missing(window, bands)[:2]

    def _read_missing(
        self, window: Window, bands: Sequence[int] | None = None
    ) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"], UInt16[ndarray, "h w"]]:
        """Return the pixels, the mask of valid ones, and the number of bands with nodata, 0 where masked."""
        chosen = [self._indexes[band - 1] for band in bands] if bands else self._indexes
        nodata = [self.nodata[band - 1] for band in bands] if bands else self.nodata
        pixels = np.zeros((len(chosen), window.height, window.width), self.info.dtype)
        valid = np.zeros((window.height, window.width), bool)
        missing = np.zeros((window.height, window.width), np.uint16)
        inside = window.intersection(self._window)
        if inside is not None:
            rows, cols = inside.relative_to(window).slices
            pixels[:, rows, cols] = self._decode(inside, chosen)
            known, nodata_bands = valid_pixels(pixels[:, rows, cols], nodata, self.info.validity.nodata)
            unmasked = self._unmasked(inside)
            valid[rows, cols], missing[rows, cols] = known & unmasked, nodata_bands * unmasked
            pixels[:, ~valid] = 0
        return pixels, valid, missing

    def _unmasked(self, window: Window, shape: tuple[int, int] | None = None) -> Bool[ndarray, "h w"]:
        visible = np.ones(shape or (window.height, window.width), bool)
        if self._alpha is not None:
            visible[:] = self._decode(window, [self._alpha], shape=shape)[0]
        elif self._masked:
            visible[:] = self._decode(window, [1], masks=True, shape=shape)[0]
        return visible

    def _decode(
        self, window: Window, indexes: list[int], masks: bool = False, shape: tuple[int, int] | None = None
    ) -> Shaped[ndarray, "b h w"]:
        out_shape = None if shape is None else (len(indexes), *shape)

        def read(raster: DatasetReader) -> ndarray:
            decode = raster.read_masks if masks else raster.read
            pixels: ndarray = decode(indexes, window=window.to_rasterio(), out_shape=out_shape)
            return pixels

        return self._file.read(read, _describe(window))


def _describe(window: Window) -> str:
    return f"rows {window.row} to {window.stop_row}, columns {window.col} to {window.stop_col}"


def read_mask(path: Path, window: Window) -> UInt8[ndarray, "o h w"]:
    """Return all bands of `window` of a label mask, class indices or class fractions; 255 outside the file.

    Each thread keeps its last few files open.

    Raises:
        InputError: when the mask is missing or cannot be decoded.
    """
    image = _label_image(path)
    inside = window.intersection(image.info.grid.window)
    bands = np.full((image.info.bands, window.height, window.width), IGNORE, np.uint8)
    if inside is not None:
        bands[:, *inside.relative_to(window).slices] = image.read_raw(inside)
    return bands


def close_labels() -> None:
    """Close the files that `read_mask` cached in this thread. Some systems cannot move a folder with open files."""
    cache: dict[object, Image] = _labels.__dict__.setdefault("files", {})
    while cache:
        cache.popitem()[1].close()


def _label_image(path: Path) -> Image:
    # The key includes the modification time, since a tile set may be prepared again under the same name.
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}. Prepare the tile set again.") from error
    key = (str(path), state.st_mtime_ns, state.st_size)
    cache: dict[tuple[str, int, int], Image] = _labels.__dict__.setdefault("files", {})
    if key not in cache:
        if len(cache) >= MAX_OPEN_FILES:
            cache.pop(next(iter(cache))).close()
        cache[key] = Image.open(path)
    return cache[key]


def _info(path: Place, raster: DatasetReader, indexes: list[int]) -> ImageInfo:
    if not indexes:
        raise InputError(f"{path} has only an alpha band. Provide an image with at least one other band.")
    dtypes = {raster.dtypes[i - 1] for i in indexes}
    # GDAL's complex integers have no numpy dtype.
    real = len(dtypes) == 1 and not any(name.startswith("complex") for name in dtypes)
    dtype = np.dtype(next(iter(dtypes)) if real else "object")
    if dtype.kind not in "uif":
        raise InputError(
            f"{path} has dtype {', '.join(sorted(dtypes))}; all bands must have the same real dtype. Convert it."
        )
    grid = Grid(raster.height, raster.width, raster.transform, _crs(path, raster))
    if fault := grid_fault(grid):
        raise InputError(f"{path} has no usable position: {fault}. Correct its transform or CRS (gdal_edit).")
    return ImageInfo(
        path=path,
        grid=grid,
        bands=len(indexes),
        dtype=dtype.name,
        band_names=tuple(_band_name(raster, i) for i in indexes),
        windowed=_windowed(raster),
        palette=raster.colorinterp[0] == ColorInterp.palette,
        tags=raster.tags(),
    )


def _crs(path: Place, raster: DatasetReader) -> CRS | None:
    try:
        crs = _parsed_crs(raster.crs.to_wkt()) if raster.crs else None
    except (CRSError, *RASTER_ERRORS) as error:
        raise InputError(f"{path} has an invalid CRS: {error_reason(error)}. Assign a valid CRS.") from error
    if crs is not None and not is_horizontal(crs):
        raise InputError(
            f"{path} has the CRS {crs.name} ({crs.type_name}), which is not horizontal. Assign a projected CRS."
        )
    return crs


@lru_cache(maxsize=64)
def _parsed_crs(wkt: str) -> CRS:
    # Parsing takes two milliseconds, ten times as long as opening the file.
    return CRS.from_wkt(wkt)


def _band_name(raster: DatasetReader, index: int) -> str:
    kind = raster.colorinterp[index - 1]
    if raster.descriptions[index - 1]:
        return str(raster.descriptions[index - 1])
    return str(kind.name) if kind in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) else f"band {index}"


def _windowed(raster: DatasetReader) -> bool:
    rows, cols = raster.block_shapes[0]
    decoded_px = -(-PROBE_PX // rows) * rows * -(-PROBE_PX // cols) * cols
    sequential = raster.driver in SEQUENTIAL_DRIVERS or raster.name.startswith("/vsi")
    return not sequential and decoded_px <= MAX_DECODED_PX
