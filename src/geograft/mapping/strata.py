"""The classes of a map as strata: their areas, random pixels of each, and the stratum of a pixel."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, transform_points
from geograft.geo.measure import ellipsoidal_areas, gis_transform, measurement_method, pixel_areas
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.tags import band_legend, check_class_map, has_band_per_class, map_legend
from geograft.legend import Legend
from geograft.progress import progress_bar

STRIP_PX, MAX_ROWS = 2**22, 512
"""Maximum number of pixels and of rows of a strip that is read at once."""
VALUES = 256
"""Number of possible values of a class map: 0 to 255."""


@dataclass(frozen=True)
class Strata:
    """The k classes of a map: those of its legend, and any other value that occurs."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    """Class names from the legend, or the value as text."""
    pixels: Int64[ndarray, " k"]
    areas: Float64[ndarray, " k"]
    """In m2, or in pixels if the map has no CRS."""
    unknown: int
    """Number of pixels without a class."""
    strips: Int64[ndarray, "strips 256"]
    """Number of pixels per value in each strip of rows, from the top."""
    band: int = 1
    """Band of the map with the classes."""


@dataclass(frozen=True)
class PixelIndices:
    """Row and column indices of pixels of a map."""

    rows: Int64[ndarray, " n"]
    cols: Int64[ndarray, " n"]


def read_strata(image: Image, band_name: str = "") -> Strata:
    """Return the classes of a class map with their pixels and areas.

    For a map of overlapping classes, with a band per class, the strata are the pixels inside and outside the class
    `band_name`. Reads the map once. Memory: one strip of about 4 million pixels, and 2 kB per strip.

    Raises:
        InputError: when the image is not a class map, has no pixel with a class, or cannot be read; when `band_name`
            is not one of its bands.
    """
    band, legend = _band(image.info, band_name)
    grid, equal_area = image.info.grid, measurement_method(image.info.grid) != "geodesic"
    counts, areas = [], np.zeros(VALUES)
    for window, values, valid in _strips(image, "counting classes", band):
        classes = values[valid].astype(np.uint8)
        counts.append(np.bincount(classes, minlength=VALUES))
        areas += counts[-1] if equal_area else np.bincount(classes, pixel_areas(grid, window)[valid], VALUES)
    strips = np.array(counts, np.int64)
    pixels = strips.sum(axis=0)
    if not pixels.any():
        raise InputError(f"{image.info.path} has no pixel with a class. Give another class map.")
    if equal_area:
        areas *= float(pixel_areas(grid, Window(0, 0, 1, 1))[0, 0])
    class_values, names = _classes(legend, pixels)
    if not np.isfinite(areas).all():
        raise InputError(
            f"{image.info.path} has pixels of class {names[int(np.argmax(~np.isfinite(areas[list(class_values)])))]} "
            "outside the area of its projection, which have no area. Correct its CRS or transform, or crop it."
        )
    index = np.array(class_values)
    unknown = grid.height * grid.width - int(pixels.sum())
    return Strata(class_values, names, pixels[index], areas[index], unknown, strips, band)


def draw_pixels(
    image: Image, strata: Strata, sizes: Integer[ndarray, " k"], rng: np.random.Generator
) -> tuple[PixelIndices, Int64[ndarray, " n"]]:
    """Draw random pixels without replacement, `sizes` per stratum; return them and the index of their stratum.

    Pixels are in row-major order. Every subset of a stratum of that size is equally likely. The result depends only on
    the map's values and the generator, not on the layout of the file: ranks in row-major order are drawn first and then
    located. Reads the map once.
    """
    ranks = [np.sort(rng.choice(int(n), int(m), replace=False)) for n, m in zip(strata.pixels, sizes, strict=True)]
    before = np.zeros(VALUES, np.int64)
    drawn: list[tuple[int, Int64[ndarray, " m"]]] = []
    for (window, values, valid), counts in zip(
        _strips(image, "drawing points", strata.band), strata.strips, strict=True
    ):
        for index, value in enumerate(strata.values):
            first, last = np.searchsorted(ranks[index], [before[value], before[value] + counts[value]])
            if last > first:
                candidates = np.flatnonzero((values == value) & valid)
                chosen = candidates[ranks[index][first:last] - before[value]]
                drawn.append((index, chosen + window.row * image.info.grid.width))
        before += counts
    flat = np.concatenate([pixels for _, pixels in drawn])
    stratum = np.repeat([index for index, _ in drawn], [len(pixels) for _, pixels in drawn])
    order = np.argsort(flat)
    rows, cols = np.divmod(flat[order], image.info.grid.width)
    return PixelIndices(rows, cols), stratum[order]


def stratum_at(image: Image, strata: Strata, pixels: PixelIndices) -> Int64[ndarray, " n"]:
    """Return the index of the stratum of each pixel; -1 outside the map and for pixels without a class.

    Decodes one block of the file per pixel.
    """
    index = {value: i for i, value in enumerate(strata.values)}
    stratum = np.full(len(pixels.rows), -1, np.int64)
    for n, (row, col) in enumerate(zip(pixels.rows.tolist(), pixels.cols.tolist(), strict=True)):
        values, valid = image.read(Window(row, col, 1, 1), [strata.band])
        if valid[0, 0]:
            stratum[n] = index[int(values[0, 0, 0])]
    return stratum


def pixel_centres(grid: Grid, pixels: PixelIndices) -> Float64[ndarray, "n 2"]:
    """Return x and y of the pixel centres, in the coordinates of `measure.gis_transform`."""
    return transform_points(np.stack([pixels.cols + 0.5, pixels.rows + 0.5], axis=1), gis_transform(grid))


def pixels_at(grid: Grid, points: Float64[ndarray, "n 2"]) -> PixelIndices:
    """Return the pixels that contain the points (x, y). They may lie outside the grid."""
    cols, rows = np.floor(transform_points(points, ~gis_transform(grid))).astype(np.int64).T
    return PixelIndices(rows, cols)


def areas_at(grid: Grid, pixels: PixelIndices) -> Float64[ndarray, " n"]:
    """Return the area of each pixel, in m2, or in pixels without a CRS."""
    if measurement_method(grid) != "geodesic":
        return np.full(len(pixels.rows), float(pixel_areas(grid, Window(0, 0, 1, 1))[0, 0]))
    return ellipsoidal_areas(grid, pixels.rows, pixels.cols)


def _band(info: ImageInfo, name: str) -> tuple[int, Legend | None]:
    """Return the index of the band with the classes, and its legend."""
    check_class_map(info)
    if not has_band_per_class(info):
        if name:
            raise InputError(f"{info.path} has no bands of overlapping classes to select {name} from. Omit --band.")
        return 1, map_legend(info)
    if name not in info.band_names:
        names = ", ".join(info.band_names)
        problem = f"none is called {name!r}" if name else "none is selected"
        raise InputError(
            f"{info.path} has {info.bands} bands of overlapping classes, {problem}. Choose one with --band: {names}."
        )
    return info.band_names.index(name) + 1, band_legend(name)


def _strips(
    image: Image, task: str, band: int
) -> Iterator[tuple[Window, Shaped[ndarray, "h w"], Bool[ndarray, "h w"]]]:
    """Yield strips of whole rows from the top, with their values and a mask of pixels with a class."""
    grid = image.info.grid
    height = max(1, min(STRIP_PX // grid.width, MAX_ROWS))
    with progress_bar(f"{task} of {image.info.path.name}", grid.height * grid.width / 1e6, "Mpx") as bar:
        for row in range(0, grid.height, height):
            window = Window(row, 0, min(height, grid.height - row), grid.width)
            pixels, valid = image.read(window, [band])
            if valid.any() and not 0 <= pixels[0][valid].min() <= pixels[0][valid].max() < VALUES:
                raise InputError(f"{image.info.path} has values outside 0 to 255. Renumber the classes to 0 to 255.")
            yield window, pixels[0], valid
            bar.advance(window.height * window.width / 1e6)


def _classes(legend: Legend | None, pixels: Int64[ndarray, " v"]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return values and names of the classes in the legend, followed by all other values that occur."""
    named = dict(zip(legend.values, legend.names, strict=True)) if legend else {}
    unnamed = {value: str(value) for value in np.flatnonzero(pixels).tolist() if value not in named}
    classes = named | unnamed
    return tuple(classes), tuple(classes.values())
