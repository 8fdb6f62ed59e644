"""Several rasters on one grid, read as a single raster."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, WindowIndex
from geograft.geo.measure import check_on_earth
from geograft.geo.rasters.raster import Image, ImageInfo, check_bands
from geograft.geo.rasters.resample import make_resampler
from geograft.geo.rasters.scene_image import SceneImage, image_state, open_image
from geograft.indices import Index, append_indices

MAX_OPEN_FILES = 64
"""Files kept open at a time. Enough for one row of adjacent rasters, so that none is reopened for every window."""
ALIGNMENT_TOLERANCE_PX = 0.01
"""Largest offset of a raster's corners from the grid of the first raster."""


class Mosaic:
    """Rasters with the same bands and dtype on one grid. Where they overlap, the first one with a valid pixel wins.

    With `resolution_m` the mosaic is resampled as a whole, so no seam appears where rasters meet. The upper left corner
    is kept, and the pixel size holds at the centre. Not thread-safe.
    """

    def __init__(
        self,
        infos: Sequence[ImageInfo],
        bands: Sequence[int] = (),
        resolution_m: float | None = None,
        indices: Sequence[Index] = (),
        threads: int = 1,
    ) -> None:
        """Align the rasters of `infos` with the grid of the first. Opens no file. Their rules of validity hold.

        `bands` are the bands to read, in this order, counted from 1 without alpha; default: all. `indices` (spectral
        indices) are computed from them after resampling and appended. GeoTIFFs are decoded by as many `threads`.

        Raises:
            InputError: when a raster does not match the first, or lacks one of the bands, or when `resolution_m` is
                given and the rasters have no CRS.
        """
        first = infos[0]
        for info in infos:
            check_bands(info, bands)
        corners = [_corner(first, info, bands) for info in infos]
        top, left = min(row for row, _ in corners), min(col for _, col in corners)
        self.windows = tuple(
            Window(row - top, col - left, info.grid.height, info.grid.width)
            for (row, col), info in zip(corners, infos, strict=True)
        )
        """The window of each raster on their common grid, before resampling."""
        height, width = max(place.stop_row for place in self.windows), max(place.stop_col for place in self.windows)
        native = first.grid.crop(Window(top, left, height, width))
        check_on_earth(str(first.path), native)
        self._infos, self._bands, self._index = tuple(infos), tuple(bands), WindowIndex(self.windows)
        self._indices, self._threads = tuple(indices), threads
        self._scaling = make_resampler(native, resolution_m, self.name) if resolution_m else None
        self.grid: Grid = self._scaling.grid if self._scaling else native
        """The grid of the mosaic, after resampling."""
        self._open: dict[int, Image | SceneImage] = {}

    @property
    def name(self) -> str:
        """The path of the first raster, and the number of the others."""
        more = f" and {len(self._infos) - 1} more" if len(self._infos) > 1 else ""
        return f"{self._infos[0].path}{more}"

    @property
    def bands(self) -> int:
        """Number of bands that `read` returns, including indices."""
        return self._band_count + len(self._indices)

    @property
    def dtype(self) -> str:
        """Numpy dtype of the pixels that `read` returns: that of the rasters, or float32 with indices."""
        return "float32" if self._indices else self._infos[0].dtype

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window`, 0 where invalid, and the mask of valid pixels.

        An index is NaN at valid pixels where it is undefined. The window may extend beyond the grid. The cost is that
        of the rasters under the window, however many others there are.

        Raises:
            InputError: when the pixels cannot be decoded; the message names the file and the window.
        """
        pixels, valid = self._scaling.read(self._read, window) if self._scaling else self._read(window)
        return append_indices(pixels, valid, self._indices), valid

    def is_empty(self, window: Window) -> bool:
        """Return whether `window` is known to have no valid pixel; False when that would require decoding pixels."""
        needed = self._scaling.source_window(window) if self._scaling else window
        return all(
            self._image(number).is_empty(needed.relative_to(self.windows[number]))
            for number in self._index.query(needed)
        )

    @property
    def acquired(self) -> tuple[str, ...]:
        """When the scenes among the rasters were acquired, in ISO 8601."""
        return tuple(sorted({info.scene.acquired for info in self._infos if info.scene} - {""}))

    def states(self) -> list[dict[str, Any]]:
        """Return the state of each raster or scene, from which a change is recognised.

        Raises:
            InputError: when a file is missing.
        """
        return [image_state(info) for info in self._infos]

    def close(self) -> None:
        """Close all files. A later read opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        pixels = np.zeros((self._band_count, window.height, window.width), self._infos[0].dtype)
        valid = np.zeros((window.height, window.width), bool)
        for number in self._index.query(window):
            position = self.windows[number]
            part = window.intersection(position)
            if part is None or valid[part.relative_to(window).slices].all():
                continue
            bands = self._bands or self._infos[number].selected or None
            part_pixels, part_valid = self._image(number).read(part.relative_to(position), bands)
            rows, cols = part.relative_to(window).slices
            new = part_valid & ~valid[rows, cols]
            pixels[:, rows, cols][:, new] = part_pixels[:, new]
            valid[rows, cols] |= new
        return pixels, valid

    @property
    def _band_count(self) -> int:
        """Number of bands, excluding indices."""
        return len(self._bands) or self._infos[0].bands

    def _image(self, number: int) -> Image | SceneImage:
        image = self._open.pop(number, None)
        if image is None:
            if len(self._open) >= MAX_OPEN_FILES:
                self._open.pop(next(iter(self._open))).close()
            info = self._infos[number]
            image = open_image(info, self._threads)
        self._open[number] = image  # least recently used first
        return image


def _corner(first: ImageInfo, other: ImageInfo, bands: Sequence[int]) -> tuple[int, int]:
    """Return the row and column of the upper left pixel of `other` on the grid of `first`."""
    fault = _mismatch(first, other, bands)
    if fault:
        raise InputError(
            f"{other.path} does not match {first.path}: {fault}. A single map needs rasters on one grid; "
            "for one map per raster, set --out to a folder."
        )
    col, row = ~first.grid.transform @ (other.grid.transform.c, other.grid.transform.f)
    return round(row), round(col)


def _mismatch(first: ImageInfo, other: ImageInfo, bands: Sequence[int]) -> str | None:
    a, b = first.grid, other.grid
    if first is not other and a.crs is None and a.transform.is_identity:
        return "they are not georeferenced"
    if a.crs is not b.crs and a.crs != b.crs:
        return f"its CRS is {_crs_name(b)}, not {_crs_name(a)}"
    if first.dtype != other.dtype or (first.bands != other.bands and not bands):
        return f"it has {other.bands} bands of {other.dtype}, not {first.bands} of {first.dtype}"
    corners = ((0, 0), (b.width, 0), (0, b.height))
    here = np.array([~a.transform @ (b.transform @ corner) for corner in corners])
    if np.abs(here - here[0] - corners).max() > ALIGNMENT_TOLERANCE_PX:
        return "its pixels differ in size or orientation"
    if np.abs(here[0] - np.rint(here[0])).max() > ALIGNMENT_TOLERANCE_PX:
        return "its pixels are not aligned with those of the first"
    return None


def _crs_name(grid: Grid) -> str:
    return "missing" if grid.crs is None else str(grid.crs.name)
