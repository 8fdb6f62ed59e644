"""Several rasters that lie on one grid, read as if they were one."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Places, Window
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.resample import scaled_to
from geograft.indices import Index, with_indices

MOST_OPEN = 64
"""Files kept open at a time: a row of sheets beside each other, so that none is opened and decoded again and again."""
OFF_PX = 0.01
"""How far, in pixels, a raster's corners may lie from the first one's grid."""


class Mosaic:
    """Rasters of one kind on one grid. Where they overlap, a pixel is the first one's that has it valid.

    With `resolution_m` the mosaic as a whole is resampled, so that no seam shows where rasters meet: its upper left
    corner stays, and the asked resolution holds at its centre. Not to be shared between threads.
    """

    def __init__(
        self,
        infos: Sequence[ImageInfo],
        bands: Sequence[int] = (),
        resolution_m: float | None = None,
        indices: Sequence[Index] = (),
    ) -> None:
        """Place the rasters of `infos` on the grid of the first.

        `bands` are those to read, in this order, counted from 1 without alpha; default: all. `indices` are computed
        from these, as they are after resampling, and follow them. Opens no file.

        Raises:
            InputError: naming the first raster that does not fit the first one, and how; when a raster has not the
                bands, or `resolution_m` is given and there is no CRS.
        """
        first = infos[0]
        for info in infos:
            _check_bands(info, bands)
        corners = [_corner(first, info, bands) for info in infos]
        top, left = min(row for row, _ in corners), min(col for _, col in corners)
        self.places = tuple(
            Window(row - top, col - left, info.grid.height, info.grid.width)
            for (row, col), info in zip(corners, infos, strict=True)
        )
        """Where the rasters lie, in pixels of their own."""
        height, width = max(place.stop_row for place in self.places), max(place.stop_col for place in self.places)
        native = first.grid.crop(Window(top, left, height, width))
        self._infos, self._bands, self._index = tuple(infos), tuple(bands), Places(self.places)
        self._indices = tuple(indices)
        self._scaling = scaled_to(native, resolution_m, self.name) if resolution_m else None
        self.grid: Grid = self._scaling.grid if self._scaling else native
        """The grid of the whole, resampled if that was asked for."""
        self._open: dict[int, Image] = {}

    @property
    def name(self) -> str:
        """The path of the first raster, and how many more there are."""
        more = f" and {len(self._infos) - 1} more" if len(self._infos) > 1 else ""
        return f"{self._infos[0].path}{more}"

    @property
    def bands(self) -> int:
        """Number of bands that `read` returns, indices included."""
        return self._own + len(self._indices)

    @property
    def dtype(self) -> str:
        """Number format of what `read` returns, as numpy names it: the rasters' own, or float32 with indices."""
        return "float32" if self._indices else self._infos[0].dtype

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window`, 0 where they are not valid, and which are.

        An index is NaN in valid pixels where it has no value. The window may reach beyond the grid. Costs what the
        rasters under it cost, however many there are besides.

        Raises:
            InputError: naming the file and the window, when the pixels cannot be decoded.
        """
        pixels, valid = self._scaling.read(self._read, window) if self._scaling else self._read(window)
        return with_indices(pixels, valid, self._indices), valid

    def empty(self, window: Window) -> bool:
        """Return True only when it is known, without decoding pixels, that no pixel of `window` is valid."""
        needed = self._scaling.needs(window) if self._scaling else window
        return all(self._image(number).empty(needed.within(self.places[number])) for number in self._index.near(needed))

    def close(self) -> None:
        """Close all files. Reading afterwards opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        pixels = np.zeros((self._own, window.height, window.width), self._infos[0].dtype)
        valid = np.zeros((window.height, window.width), bool)
        for number in self._index.near(window):
            place = self.places[number]
            part = window.overlap(place)
            if part is None or valid[part.within(window).slices].all():
                continue
            found, known = self._image(number).read(part.within(place), self._bands or None)
            rows, cols = part.within(window).slices
            new = known & ~valid[rows, cols]
            pixels[:, rows, cols][:, new] = found[:, new]
            valid[rows, cols] |= new
        return pixels, valid

    @property
    def _own(self) -> int:
        """Number of bands without indices."""
        return len(self._bands) or self._infos[0].bands

    def _image(self, number: int) -> Image:
        image = self._open.pop(number, None)
        if image is None:
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            image = Image.open(self._infos[number].path)
        self._open[number] = image  # the last one used is the last to go
        return image


def _check_bands(info: ImageInfo, bands: Sequence[int]) -> None:
    wrong = [band for band in bands if not 1 <= band <= info.bands]
    if wrong:
        have = f"{info.bands} bands ({', '.join(info.band_names)})" if info.bands > 1 else "one band"
        raise InputError(
            f"{info.path} has {have}; band {wrong[0]} was asked for. Name bands from 1 to {info.bands}, without alpha."
        )


def _corner(first: ImageInfo, other: ImageInfo, bands: Sequence[int]) -> tuple[int, int]:
    """Return the row and column of `first` at which the upper left pixel of `other` lies."""
    fault = _misfit(first, other, bands)
    if fault:
        raise InputError(
            f"{other.path} does not continue {first.path}: {fault}. Rasters become one map when they lie on one grid; "
            "give --out a folder for one map each."
        )
    col, row = ~first.grid.transform @ (other.grid.transform.c, other.grid.transform.f)
    return round(row), round(col)


def _misfit(first: ImageInfo, other: ImageInfo, bands: Sequence[int]) -> str | None:
    a, b = first.grid, other.grid
    if first is not other and a.crs is None and a.transform.is_identity:
        return "they have no place on the ground"
    if a.crs is not b.crs and a.crs != b.crs:
        return f"its CRS is {_crs_name(b)}, not {_crs_name(a)}"
    if first.dtype != other.dtype or (first.bands != other.bands and not bands):
        return f"it has {other.bands} bands of {other.dtype}, not {first.bands} of {first.dtype}"
    corners = ((0, 0), (b.width, 0), (0, b.height))
    here = np.array([~a.transform @ (b.transform @ corner) for corner in corners])
    if np.abs(here - here[0] - corners).max() > OFF_PX:
        return "its pixels have another size or direction"
    if np.abs(here[0] - np.rint(here[0])).max() > OFF_PX:
        return "its pixels lie between those of the first"
    return None


def _crs_name(grid: Grid) -> str:
    return "missing" if grid.crs is None else str(grid.crs.name)
