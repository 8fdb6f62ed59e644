"""Rasters on a web map: where their pixels lie in longitude and latitude, and the pixels of a square tile.

Web maps have tiles of 256 x 256 pixels in Web Mercator, 4 to the power of z at zoom z. Each pixel of a tile shows the
nearest pixel of the raster, so that no value is a mixture of others, and in particular not with nodata. Rotated and
south-up rasters and all CRSs are treated alike. A raster without CRS lies in the middle of the Mercator square, where
one of its pixels is as large as one of the tile at some zoom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TypeGuard

import numpy as np
import shapely
from jaxtyping import Bool, Float64, Shaped
from numpy import ndarray
from pyproj import CRS, Transformer
from shapely.geometry.base import BaseGeometry

from geograft.geo.grid import Grid, Window, block_windows, transform_points
from geograft.geo.measure import gis_transform
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.resample import Resampler
from geograft.geo.rasters.writer import BLOCK_PX, MapLayout, create_map
from geograft.geo.vectors.reader import WGS84
from geograft.progress import track

TILE_PX = 256
MAX_ZOOM = 26
STEP_PX = 8
"""Coordinates are computed at every eighth pixel of a tile and interpolated linearly: exact to 0.01 pixels from zoom 4
on, where 8 pixels are at most 80 km."""
MAX_LATITUDE = 85.0511287798066
"""Where Web Mercator ends."""
LARGE_PX, REDUCTION, REDUCED_ZOOMS = 2**24, 8, 3
"""Images of more pixels need overviews. Without any, a copy at an eighth of the resolution, 2 to the power of 3, serves
the zooms that are at least 3 below the finest."""
SQUARE_SHARE = 8
"""The Mercator square is at least this many times as wide as a raster without CRS in it."""


@dataclass(frozen=True)
class Plane:
    """Coordinates of rasters and layers, in a CRS or without one, and their longitude and latitude in WGS 84."""

    crs: CRS | None
    centre: tuple[float, float] = (0.0, 0.0)
    """Without CRS: the x and y in the middle of the map."""
    side: float = 1.0
    """Without CRS: the length of the sides of the Mercator square, in units of x and y."""

    @cached_property
    def _transformers(self) -> tuple[Transformer, Transformer]:
        return _transformer(self.crs, WGS84), _transformer(WGS84, self.crs)

    def to_lonlat(self, points: Float64[ndarray, "n 2"]) -> Float64[ndarray, "n 2"]:
        """Return (x, y) as (longitude, latitude); infinite where there is none."""
        if self.crs is not None:
            return np.stack(self._transformers[0].transform(*points.T), axis=1)
        u, v = ((points - self.centre) * (1, -1) / self.side + 0.5).T
        return mercator_to_lonlat(u, v)

    def from_lonlat(self, lonlat: Float64[ndarray, "n 2"]) -> Float64[ndarray, "n 2"]:
        """Return (longitude, latitude) as (x, y); infinite where there is none."""
        if self.crs is not None:
            return np.stack(self._transformers[1].transform(*lonlat.T), axis=1)
        square = np.stack(lonlat_to_mercator(lonlat), axis=1)
        return (square - 0.5) * self.side * (1, -1) + self.centre

    def shape_to_lonlat(self, shape: BaseGeometry) -> BaseGeometry:
        """Return a shape in longitude and latitude, rounded to nine decimals (0.1 mm)."""
        moved: BaseGeometry = shapely.transform(shape, lambda points: self.to_lonlat(points).round(9))
        return moved

    def shape_from_lonlat(self, shape: BaseGeometry) -> BaseGeometry:
        """Return a shape in longitude and latitude in the coordinates of the plane."""
        moved: BaseGeometry = shapely.transform(shape, self.from_lonlat)
        return moved


# Making a transformer takes milliseconds. pyproj's are safe to share between threads.
@lru_cache(maxsize=64)
def _transformer(source: CRS, target: CRS) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def is_on_earth(crs: CRS | None) -> TypeGuard[CRS]:
    """Return whether coordinates of a CRS have a longitude and latitude; those of a local one do not."""
    return crs is not None and bool(crs.is_geographic or crs.is_projected)


def plane_of(grids: Sequence[Grid]) -> Plane:
    """Return the plane of grids that share a CRS, or have none; then they lie together in the middle of the map."""
    if is_on_earth(grids[0].crs):
        return Plane(grids[0].crs)
    left, bottom, right, top = shapely.total_bounds([_outline(grid) for grid in grids])
    first = gis_transform(grids[0])
    pixel = math.hypot(first.a, first.d)
    needed = SQUARE_SHARE * max(right - left, top - bottom) / (pixel * TILE_PX)
    side = pixel * TILE_PX * 2 ** math.ceil(math.log2(max(1.0, needed)))
    return Plane(None, ((left + right) / 2, (bottom + top) / 2), side)


def _outline(grid: Grid) -> BaseGeometry:
    return Grid(grid.height, grid.width, gis_transform(grid), None).footprint()


@dataclass(frozen=True)
class Place:
    """Where a raster lies on the web map."""

    grid: Grid
    plane: Plane

    def to_pixels(self, lonlat: Float64[ndarray, "n 2"]) -> Float64[ndarray, "n 2"]:
        """Return (longitude, latitude) as (column, row), fractions of pixels included; infinite where there is none."""
        with np.errstate(invalid="ignore"):
            return transform_points(self.plane.from_lonlat(lonlat), ~gis_transform(self.grid))

    def to_lonlat(self, pixels: Float64[ndarray, "n 2"]) -> Float64[ndarray, "n 2"]:
        """Return (column, row) as (longitude, latitude)."""
        return self.plane.to_lonlat(transform_points(pixels, gis_transform(self.grid)))

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north of the raster, in degrees, along its edges; within the map's latitudes."""
        steps = np.linspace(0, 1, 33)
        edge = np.concatenate(
            [np.stack([steps, np.full(33, side)], axis=1)[:, order] for side in (0, 1) for order in ([0, 1], [1, 0])]
        )
        lonlat = self.to_lonlat(edge * (self.grid.width, self.grid.height))
        lonlat = lonlat[np.isfinite(lonlat).all(axis=1)]
        if not len(lonlat):
            return (-180.0, -MAX_LATITUDE, 180.0, MAX_LATITUDE)
        (west, south), (east, north) = lonlat.min(axis=0), lonlat.max(axis=0).clip(-np.inf, MAX_LATITUDE)
        return float(west), max(float(south), -MAX_LATITUDE), float(east), float(north)

    @cached_property
    def zooms(self) -> tuple[int, int]:
        """The zooms at which the raster is about an eighth of a tile, and at which a tile's pixels are no larger."""
        middle = np.array([[self.grid.width / 2, self.grid.height / 2]])
        ends = self.to_lonlat(np.concatenate([middle, np.add(middle, (1, 0)), np.add(middle, (0, 1))]))
        square = np.stack(lonlat_to_mercator(ends), axis=1)
        sizes = np.linalg.norm(square[1:] - square[0], axis=1)
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            return 0, MAX_ZOOM
        finest = math.ceil(-math.log2(sizes.min() * TILE_PX) - 1e-6)
        coarsest = math.floor(-math.log2(sizes.max() * max(self.grid.height, self.grid.width))) - 3
        finest = min(max(finest, 0), MAX_ZOOM)
        return min(max(coarsest, 0), finest), finest


def mercator_to_lonlat(u: Float64[ndarray, " n"], v: Float64[ndarray, " n"]) -> Float64[ndarray, "n 2"]:
    """Return positions in the Mercator square, from 0 at the west and north to 1, as (longitude, latitude).

    Snyder (1987), "Map projections: a working manual", USGS Professional Paper 1395, eq. 7-4 on a sphere.
    """
    # Outside the square the latitude stays below 90 degrees, but the hyperbolic sine would overflow.
    north = (np.pi * (1 - 2 * v)).clip(-20, 20)
    return np.stack([u * 360 - 180, np.degrees(np.arctan(np.sinh(north)))], axis=1)


def lonlat_to_mercator(lonlat: Float64[ndarray, "n 2"]) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return (longitude, latitude) as positions in the Mercator square; Snyder (1987), eq. 7-2 on a sphere."""
    longitude, latitude = lonlat.T
    clipped = np.radians(latitude.clip(-89.9999999, 89.9999999))
    return longitude / 360 + 0.5, 0.5 - np.arcsinh(np.tan(clipped)) / (2 * np.pi)


@dataclass(frozen=True)
class WebTile:
    """A tile of the web map: zoom, column from the west, row from the north."""

    z: int
    x: int
    y: int

    def is_on_map(self) -> bool:
        """Return whether there is such a tile."""
        return 0 <= self.z <= MAX_ZOOM and min(self.x, self.y) >= 0 and max(self.x, self.y) < 2**self.z

    def pixels_of(self, place: Place) -> Float64[ndarray, "2 256 256"]:
        """Return the column and the row in the raster of the centre of each pixel of the tile."""
        edges = np.arange(0, TILE_PX + 1, STEP_PX) / TILE_PX
        v, u = np.meshgrid((self.y + edges) / 2**self.z, (self.x + edges) / 2**self.z, indexing="ij")
        nodes = place.to_pixels(mercator_to_lonlat(u.ravel(), v.ravel())).T.reshape(2, *u.shape)
        centres = (np.arange(TILE_PX) + 0.5) / STEP_PX
        low, part = centres.astype(np.intp), centres % 1
        with np.errstate(invalid="ignore"):
            rows = nodes[:, low] * (1 - part[:, None]) + nodes[:, low + 1] * part[:, None]
            found: ndarray = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
        return found


def read_tile(
    image: Image, place: Place, tile: WebTile, bands: Sequence[int] | None = None
) -> tuple[Shaped[ndarray, "b 256 256"], Bool[ndarray, "256 256"]] | None:
    """Return the nearest pixel of an image for each pixel of a tile, and the valid ones; None if the tile misses it.

    Memory: a few times the tile, for any zoom. Where the file has no overviews, a tile of a low zoom reads as much of
    the image as it shows.

    Raises:
        InputError: when the image cannot be read.
    """
    grid = image.info.grid
    cols, rows = exact = tile.pixels_of(place)
    with np.errstate(invalid="ignore"):
        inside = (cols >= 0) & (cols < grid.width) & (rows >= 0) & (rows < grid.height)
    if not inside.any():
        return None
    cols, rows = np.where(inside, cols, 0).astype(np.intp), np.where(inside, rows, 0).astype(np.intp)
    (top, bottom), (left, right) = ((axis[inside].min(), axis[inside].max()) for axis in (rows, cols))
    window = Window(int(top), int(left), int(bottom - top + 1), int(right - left + 1))
    step = _pixels_per_pixel(exact, inside, window)
    shape = math.ceil(window.height / step), math.ceil(window.width / step)
    pixels, valid = image.read_reduced(window, shape, bands)
    at = (
        ((rows - window.row).clip(0) * shape[0] // window.height).clip(0, shape[0] - 1),
        ((cols - window.col).clip(0) * shape[1] // window.width).clip(0, shape[1] - 1),
    )
    return pixels[:, at[0], at[1]], valid[at] & inside


def _pixels_per_pixel(exact: Float64[ndarray, "2 h w"], inside: Bool[ndarray, "h w"], window: Window) -> float:
    """Return the side of a tile's pixel in pixels of the raster, the mean over those inside; at least 1."""
    with np.errstate(invalid="ignore"):
        (col_x, row_x), (col_y, row_y) = np.diff(exact, axis=2)[:, :-1], np.diff(exact, axis=1)[:, :, :-1]
        areas = np.abs(col_x * row_y - row_x * col_y)
    areas = areas[inside[:-1, :-1] & np.isfinite(areas)]
    mean = areas.mean() if len(areas) else window.height * window.width / inside.sum()
    return max(1.0, math.sqrt(mean))


def needs_reduction(path: Path) -> bool:
    """Return whether tiles of low zooms of an image would be slow: it is large and has no overviews.

    Raises:
        InputError: when the image cannot be opened.
    """
    with Image.open(path) as image:
        grid = image.info.grid
        return grid.height * grid.width > LARGE_PX and not image.has_overviews and not image.info.palette


def write_reduced(path: Path, out: Path) -> None:
    """Write a copy of an image at an eighth of its resolution, the means of its valid pixels, with overviews.

    Reads every pixel once; memory does not grow with the image. A mask band is not copied.

    Raises:
        InputError: when the image cannot be read.
        OutputError: when the copy cannot be written.
    """
    with Image.open(path) as image:
        info = image.info
        resampler = Resampler(info.grid, REDUCTION, REDUCTION)
        usual = float("nan") if info.dtype.startswith("float") else 0 if info.alpha else None
        nodata = usual if image.nodata[0] is None else image.nodata[0]
        layout = MapLayout(info.bands, info.dtype, nodata, band_names=info.band_names, overviews="average")
        windows = list(block_windows(resampler.grid.window, BLOCK_PX, BLOCK_PX))
        with create_map(out, resampler.grid, layout) as writer:
            for window in track(windows, len(windows), f"Overviews of {path.name}", "blocks"):
                pixels, valid = resampler.read(image.read, window)
                pixels[:, ~valid] = 0 if nodata is None else nodata
                writer.write(pixels, window)
