"""Polygons with class and area from a class map of any size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer
from numpy import ndarray

from tilth.config import PolygonConfig
from tilth.errors import InputError
from tilth.files import refuse_existing
from tilth.geo.grid import Grid, Window
from tilth.geo.maptags import stated_legend
from tilth.geo.measure import areas_and_perimeters, longest_side_m, method, on_ground
from tilth.geo.raster import Image, ImageInfo
from tilth.geo.shapes import Read, Region, regions, simplified
from tilth.geo.vector import Features, write_polygons
from tilth.legend import Legend
from tilth.progress import Meter, meter

BATCH = 10_000
"""Polygons measured and written at a time."""


@dataclass
class ClassTotal:
    """The polygons of one class."""

    polygons: int = 0
    area: float = 0.0


@dataclass(frozen=True)
class PolygonSummary:
    """What `polygons` wrote."""

    path: Path
    unit: str
    """Of areas: m2, or px where the map has no CRS."""
    classes: dict[str, ClassTotal]
    """By class name, in the order in which they were met."""
    left_out: int
    """Polygons smaller than the least area."""
    notes: tuple[str, ...]
    """What the user should know about the result, a line each."""

    def lines(self) -> list[str]:
        """Return the number of polygons and their area, by class and in all, as plain text."""
        count = sum(total.polygons for total in self.classes.values())
        area = sum(total.area for total in self.classes.values())
        notes = [f"Note: {note}" for note in self.notes]
        small = f"; {self.left_out:,} smaller ones left out" if self.left_out else ""
        if not count:
            return [f"{self.path}: no polygons{small}", *notes]
        wide = max(map(len, self.classes))
        rows = [f"  {name:{wide}} {t.polygons:9,} {t.area:16,.1f} {self.unit}" for name, t in self.classes.items()]
        return [f"{self.path}: {count:,} polygons, {area:,.1f} {self.unit}{small}", *rows, *notes]


def polygons(map: Path, out: Path, config: PolygonConfig | None = None) -> PolygonSummary:  # noqa: A002
    """Write every region of one class of a class map as a polygon with its area, and say how many there are.

    `out` is a GeoPackage (.gpkg) in the map's CRS or GeoJSON (.geojson) in WGS 84, with the fields class, value,
    area_m2 and perimeter_m; area_px and perimeter_px where the map has no CRS, and all settings count in pixels there.
    Figures are of the outlines as they are written. Nodata is never part of a polygon. Of two classes, the first is
    left out unless asked for; so is value 0 in a map that does not state its classes.

    Memory does not depend on the map's height: one block, and the outlines that cross from one row of blocks to the
    next. With `simplify_m`, all polygons at once; see `tilth.geo.shapes.simplified`.

    Raises:
        InputError: when `map` cannot be read or is no class map.
        OutputError: when `out` exists, is neither .gpkg nor .geojson, or cannot be written.
    """
    refuse_existing(out)
    with Image.open(map) as image:
        _check_class_map(image.info)
        grid = image.info.grid
        job = _Job(grid, stated_legend(image.info.tags), config or PolygonConfig())
        with meter(f"polygons {out.name}", grid.height * grid.width / 1e6, "Mpx") as bar:
            write_polygons(out, job.features(_reader(image, job.background, bar)), grid.crs)
    return PolygonSummary(out, job.unit, job.classes, job.left_out, tuple(job.notes(map)))


@dataclass
class _Job:
    """Regions on their way to the file, counted as they pass."""

    grid: Grid
    legend: Legend | None
    config: PolygonConfig
    classes: dict[str, ClassTotal] = field(default_factory=dict)
    left_out: int = 0

    @property
    def unit(self) -> str:
        return "m2" if self.grid.crs else "px"

    @property
    def background(self) -> int | None:
        """The value that is left out, if any."""
        if self.config.background or (self.legend and not self.legend.binary):
            return None
        return self.legend.values[0] if self.legend else 0

    def features(self, read: Read) -> Iterator[Features]:
        """Yield what is written, some thousand polygons at a time; at least once, for the fields."""
        found = regions(self.grid.height, self.grid.width, read, self.config.connectivity)
        kept: Iterator[list[Region]] = (self._large(some) for some in _batches(found))
        if self.config.simplify_m:
            kept = _batches(iter(self._simplified([region for some in kept for region in some])))
        yield self._described([])
        for some in kept:
            yield self._described(some)

    def notes(self, path: Path) -> Iterator[str]:
        """Yield what the user should know about the result."""
        if not self.grid.crs:
            yield f"{path} has no CRS: areas and lengths are in pixels, in the settings too."
        elif method(self.grid) == "geodesic":
            yield "areas and perimeters are measured on the ellipsoid, for the map's CRS does not keep areas."
        if not self.legend:
            also = "" if self.background is None else "; value 0 counts as background and is left out"
            yield f"{path} does not state its classes: they are named by their values{also}."

    def _large(self, some: list[Region]) -> list[Region]:
        if not self.config.min_area_m2:
            return some
        areas, _ = areas_and_perimeters(_shapes(some), self.grid)
        large = [region for region, area in zip(some, areas, strict=True) if area >= self.config.min_area_m2]
        self.left_out += len(some) - len(large)
        return large

    def _simplified(self, some: list[Region]) -> list[Region]:
        shapes = simplified(_shapes(some), self.config.simplify_m / longest_side_m(self.grid))
        return [Region(region.value, shape) for region, shape in zip(some, shapes, strict=True)]

    def _described(self, some: list[Region]) -> Features:
        shapes = _shapes(some)
        areas, perimeters = areas_and_perimeters(shapes, self.grid)
        names = [self._name(region.value) for region in some]
        for name, area in zip(names, areas, strict=True):
            total = self.classes.setdefault(name, ClassTotal())
            total.polygons, total.area = total.polygons + 1, total.area + float(area)
        area, perimeter = ("area_m2", "perimeter_m") if self.grid.crs else ("area_px", "perimeter_px")
        values = np.array([region.value for region in some], np.int32)
        columns = {"class": np.array(names, object), "value": values, area: areas, perimeter: perimeters}
        return Features(list(on_ground(shapes, self.grid)), columns)

    def _name(self, value: int) -> str:
        names = dict(zip(self.legend.values, self.legend.names, strict=True)) if self.legend else {}
        return names.get(value, str(value))


def _check_class_map(info: ImageInfo) -> None:
    if info.bands != 1 or np.dtype(info.dtype).kind not in "ui":
        raise InputError(
            f"{info.path} holds {info.bands} bands of {info.dtype}, and a class map is one band of whole numbers. "
            "Give a map that `tilth predict` wrote, or another class map."
        )


def _reader(image: Image, background: int | None, bar: Meter) -> Read:
    """Return a reader of a class map's values, and of which belong to a class that is wanted."""

    def read(window: Window) -> tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]:
        pixels, valid = image.read(window)
        bar.advance(window.height * window.width / 1e6)
        return pixels[0], valid if background is None else valid & (pixels[0] != background)

    return read


def _batches(found: Iterator[Region]) -> Iterator[list[Region]]:
    return iter(lambda: list(islice(found, BATCH)), [])


def _shapes(some: Sequence[Region]) -> ndarray:
    shapes = np.empty(len(some), object)
    shapes[:] = [region.shape for region in some]
    return shapes
