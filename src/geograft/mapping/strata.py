"""The classes of a map as strata: how much of each there is, places drawn in each, and the class at a place."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, Shaped
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, transformed
from geograft.geo.measure import areas_on_ellipsoid, ground_transform, method, pixel_areas
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.tags import band_legend, check_class_map, has_band_a_class, map_legend
from geograft.legend import Legend
from geograft.progress import meter

STRIP_PX, MOST_ROWS = 2**22, 512
"""A strip of a map that is read at once has at most so many pixels and rows."""
VALUES = 256
"""Values that a class map may have: 0 to 255."""


@dataclass(frozen=True)
class Strata:
    """The k classes of a map: those that it states, and any other value that it holds."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    """What the map calls them; its values where it does not say."""
    pixels: Int64[ndarray, " k"]
    areas: Float64[ndarray, " k"]
    """In m2; in pixels where the map has no CRS."""
    unknown: int
    """Pixels without a class."""
    strips: Int64[ndarray, "strips 256"]
    """Pixels by value in each strip of rows, from the top."""
    band: int = 1
    """Of the map, the one that holds them."""


@dataclass(frozen=True)
class Pixels:
    """Pixels of a map."""

    rows: Int64[ndarray, " n"]
    cols: Int64[ndarray, " n"]


def strata_of(image: Image, of: str = "") -> Strata:
    """Return the classes of a class map with their pixels and areas.

    Of a map of overlapping classes, which has a band for each, the pixels of the class `of` and those without it.
    Reads the map once. Memory: one strip of some 4 million pixels, and 2 kB for each of them.

    Raises:
        InputError: when the image is no class map, has no pixel with a class, or cannot be read; when `of` is not one
            of its bands.
    """
    band, legend = _band(image.info, of)
    grid, alike = image.info.grid, method(image.info.grid) != "geodesic"
    counts, areas = [], np.zeros(VALUES)
    for window, values, valid in _strips(image, "counting classes", band):
        present = values[valid].astype(np.uint8)
        counts.append(np.bincount(present, minlength=VALUES))
        areas += counts[-1] if alike else np.bincount(present, pixel_areas(grid, window)[valid], VALUES)
    strips = np.array(counts, np.int64)
    pixels = strips.sum(axis=0)
    if not pixels.any():
        raise InputError(f"{image.info.path} has no pixel with a class. Give another class map.")
    if alike:
        areas *= float(pixel_areas(grid, Window(0, 0, 1, 1))[0, 0])
    classes, names = _classes(legend, pixels)
    chosen = np.array(classes)
    unknown = grid.height * grid.width - int(pixels.sum())
    return Strata(classes, names, pixels[chosen], areas[chosen], unknown, strips, band)


def drawn(
    image: Image, strata: Strata, sizes: Integer[ndarray, " k"], rng: np.random.Generator
) -> tuple[Pixels, Int64[ndarray, " n"]]:
    """Return pixels drawn at random without replacement, so many in each stratum, and the index of their stratum.

    They come in the order of rows and columns. Every set of that size of a stratum's pixels is equally likely. What is
    drawn depends on the map's values and the generator only, not on how the file is laid out: ranks in the order of
    rows and columns are drawn first, then found. Reads the map once.
    """
    ranks = [np.sort(rng.choice(int(n), int(m), replace=False)) for n, m in zip(strata.pixels, sizes, strict=True)]
    before = np.zeros(VALUES, np.int64)
    found: list[tuple[int, Int64[ndarray, " m"]]] = []
    for (window, values, valid), counts in zip(
        _strips(image, "drawing points", strata.band), strata.strips, strict=True
    ):
        for index, value in enumerate(strata.values):
            first, last = np.searchsorted(ranks[index], [before[value], before[value] + counts[value]])
            if last > first:
                there = np.flatnonzero((values == value) & valid)
                chosen = there[ranks[index][first:last] - before[value]]
                found.append((index, chosen + window.row * image.info.grid.width))
        before += counts
    flat = np.concatenate([pixels for _, pixels in found])
    strata_drawn = np.repeat([index for index, _ in found], [len(pixels) for _, pixels in found])
    order = np.argsort(flat)
    rows, cols = np.divmod(flat[order], image.info.grid.width)
    return Pixels(rows, cols), strata_drawn[order]


def stratum_at(image: Image, strata: Strata, places: Pixels) -> Int64[ndarray, " n"]:
    """Return the index of the stratum of each place; -1 outside the map and where it has no class.

    Decodes one block of the file a place.
    """
    index = {value: i for i, value in enumerate(strata.values)}
    found = np.full(len(places.rows), -1, np.int64)
    for n, (row, col) in enumerate(zip(places.rows.tolist(), places.cols.tolist(), strict=True)):
        pixels, valid = image.read(Window(row, col, 1, 1), [strata.band])
        if valid[0, 0]:
            found[n] = index[int(pixels[0, 0, 0])]
    return found


def centres(grid: Grid, places: Pixels) -> Float64[ndarray, "n 2"]:
    """Return x and y of the centres of pixels, on the ground as `measure.on_ground` has it."""
    return transformed(np.stack([places.cols + 0.5, places.rows + 0.5], axis=1), ground_transform(grid))


def places_of(grid: Grid, points: Float64[ndarray, "n 2"]) -> Pixels:
    """Return the pixels that points on the ground lie in; they may lie outside the grid."""
    cols, rows = np.floor(transformed(points, ~ground_transform(grid))).astype(np.int64).T
    return Pixels(rows, cols)


def areas_at(grid: Grid, places: Pixels) -> Float64[ndarray, " n"]:
    """Return the area of each of these pixels, in m2; in pixels without a CRS."""
    if method(grid) != "geodesic":
        return np.full(len(places.rows), float(pixel_areas(grid, Window(0, 0, 1, 1))[0, 0]))
    return areas_on_ellipsoid(grid, places.rows, places.cols)


def _band(info: ImageInfo, of: str) -> tuple[int, Legend | None]:
    """Return the band that holds the classes, and what it states of them."""
    if not has_band_a_class(info):
        check_class_map(info)
        if of:
            raise InputError(f"{info.path} has no bands of overlapping classes to choose {of} from. Leave --band out.")
        return 1, map_legend(info)
    if of not in info.band_names:
        names = ", ".join(info.band_names)
        asked = f"{of!r} is none of them" if of else "one map of classes is needed"
        raise InputError(
            f"{info.path} has a band for each of {info.bands} classes that overlap, and {asked}. "
            f"Choose one with --band: {names}."
        )
    return info.band_names.index(of) + 1, band_legend(of)


def _strips(
    image: Image, doing: str, band: int
) -> Iterator[tuple[Window, Shaped[ndarray, "h w"], Bool[ndarray, "h w"]]]:
    """Yield strips of whole rows from the top, with their values and which of them are classes."""
    grid = image.info.grid
    height = max(1, min(STRIP_PX // grid.width, MOST_ROWS))
    with meter(f"{doing} of {image.info.path.name}", grid.height * grid.width / 1e6, "Mpx") as bar:
        for row in range(0, grid.height, height):
            window = Window(row, 0, min(height, grid.height - row), grid.width)
            pixels, valid = image.read(window, [band])
            if valid.any() and not 0 <= pixels[0][valid].min() <= pixels[0][valid].max() < VALUES:
                raise InputError(
                    f"{image.info.path} holds values beyond 0 to 255, too many for classes. Renumber them."
                )
            yield window, pixels[0], valid
            bar.advance(window.height * window.width / 1e6)


def _classes(legend: Legend | None, pixels: Int64[ndarray, " v"]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return values and names of the classes that a map states, and of all others that it holds."""
    stated = dict(zip(legend.values, legend.names, strict=True)) if legend else {}
    others = {value: str(value) for value in np.flatnonzero(pixels).tolist() if value not in stated}
    both = stated | others
    return tuple(both), tuple(both.values())
