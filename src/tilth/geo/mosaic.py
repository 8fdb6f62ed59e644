"""Several rasters that lie on one grid, read as if they were one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from tilth.errors import InputError
from tilth.geo.grid import Grid, Window
from tilth.geo.raster import Image, ImageInfo

MOST_OPEN = 16
"""Files kept open at a time."""
OFF_PX = 0.01
"""How far, in pixels, a raster's corners may lie from the first one's grid."""


class Mosaic:
    """Rasters of one kind on one grid. Where they overlap, a pixel is the first one's that has it valid.

    Not to be shared between threads.
    """

    def __init__(self, infos: Sequence[ImageInfo]) -> None:
        """Place the rasters of `infos` on the grid of the first.

        Raises:
            InputError: naming the first raster that does not fit the first one, and how.
        """
        first = infos[0]
        corners = [_corner(first, info) for info in infos]
        top, left = min(row for row, _ in corners), min(col for _, col in corners)
        self.places = tuple(
            Window(row - top, col - left, info.grid.height, info.grid.width)
            for (row, col), info in zip(corners, infos, strict=True)
        )
        height, width = max(place.stop_row for place in self.places), max(place.stop_col for place in self.places)
        self.grid: Grid = first.grid.crop(Window(top, left, height, width))
        self._infos = tuple(infos)
        self._open: dict[Path, Image] = {}

    @property
    def name(self) -> str:
        """The path of the first raster, and how many more there are."""
        more = f" and {len(self._infos) - 1} more" if len(self._infos) > 1 else ""
        return f"{self._infos[0].path}{more}"

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of `window` in their own number format, 0 where they are not valid, and which are.

        Raises:
            InputError: naming the file and the window, when the pixels cannot be decoded.
        """
        if len(self._infos) == 1:
            return self._image(self._infos[0].path).read(window)
        pixels = np.zeros((self._infos[0].bands, window.height, window.width), self._infos[0].dtype)
        valid = np.zeros((window.height, window.width), bool)
        for info, place in zip(self._infos, self.places, strict=True):
            part = window.overlap(place)
            if part is None or valid[part.within(window).slices].all():
                continue
            found, known = self._image(info.path).read(part.within(place))
            rows, cols = part.within(window).slices
            new = known & ~valid[rows, cols]
            pixels[:, rows, cols][:, new] = found[:, new]
            valid[rows, cols] |= new
        return pixels, valid

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _image(self, path: Path) -> Image:
        if path not in self._open:
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = Image.open(path)
        return self._open[path]


def _corner(first: ImageInfo, other: ImageInfo) -> tuple[int, int]:
    """Return the row and column of `first` at which the upper left pixel of `other` lies."""
    fault = _misfit(first, other)
    if fault:
        raise InputError(
            f"{other.path} does not continue {first.path}: {fault}. Rasters become one map when they lie on one grid; "
            "give --out a folder for one map each."
        )
    col, row = ~first.grid.transform @ (other.grid.transform.c, other.grid.transform.f)
    return round(row), round(col)


def _misfit(first: ImageInfo, other: ImageInfo) -> str | None:
    a, b = first.grid, other.grid
    if first is not other and a.crs is None and a.transform.is_identity:
        return "they have no place on the ground"
    if a.crs != b.crs:
        return f"its CRS is {_crs_name(b)}, not {_crs_name(a)}"
    if (first.bands, first.dtype) != (other.bands, other.dtype):
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
