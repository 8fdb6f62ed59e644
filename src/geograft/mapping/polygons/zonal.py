"""A class map to be polygonized: its regions' pixels, and zonal statistics of its probabilities.

Sums over regions are exact integers, which can be added in any order.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer
from numpy import ndarray

from geograft.config import Cleaning, PolygonConfig
from geograft.errors import InputError, SettingError
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import BYTE_SCALE, map_cleaning, map_legend, sibling_path
from geograft.legend import PALETTE, Legend
from geograft.locations import Place
from geograft.mapping.polygons.regions import ClassMapSource
from geograft.metrics.cleaning import close_mask

FLOAT_UNITS = 2**24
"""Float probabilities are rounded to multiples of 1 / FLOAT_UNITS; every float16 from 0 to 1 is one."""


@dataclass(frozen=True)
class ProbabilityRaster:
    """A raster of the probability of each class at each pixel of a map."""

    image: Image
    bands: Mapping[int, int]
    """Band number, from 1, by class value."""
    uncertain_below: float
    """A pixel is uncertain if the probability of its class is below this."""

    @property
    def units(self) -> int:
        """The integer that represents probability 1 in the sums."""
        return BYTE_SCALE if np.dtype(self.image.info.dtype).kind == "u" else FLOAT_UNITS

    def sum_by_label(
        self, window: Window, labels: Int32[ndarray, "h w"], label_values: Int64[ndarray, " n"]
    ) -> Int64[ndarray, "n 3"]:
        """Return for each label the number of pixels with a probability, its sum in units, and the uncertain pixels.

        The probability is that of the label's class, `label_values`. Sums are exact up to 2^53.
        """
        found = np.zeros((len(label_values), 3), np.int64)
        of_pixel = np.concatenate([[0], label_values])[labels]
        for value in np.unique(label_values):
            pixels, valid = self.image.read(window, [self.bands[int(value)]])
            mine = valid & (labels > 0) & (of_pixel == value)
            where, units = labels[mine] - 1, pixels[0][mine]
            if self.units == FLOAT_UNITS:
                units = np.rint(units.astype(float) * FLOAT_UNITS).astype(np.int64)
            weights = (None, units.astype(float), (units < self.uncertain_below * self.units).astype(float))
            for column, weight in enumerate(weights):
                found[:, column] += np.bincount(where, weight, len(label_values)).astype(np.int64)
        return found

    def statistics(self, sums: Int64[ndarray, "n 3"]) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
        """Return the mean probability and the fraction of uncertain pixels; NaN for regions without a probability."""
        return zonal_statistics(sums, self.units)


def zonal_statistics(sums: Int64[ndarray, "n 3"], units: int) -> tuple[Float64[ndarray, " n"], Float64[ndarray, " n"]]:
    """Return the mean probability and the fraction of uncertain pixels; NaN for regions without a probability."""
    known = np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
    return sums[:, 1] / (known * units), sums[:, 2] / known


def match_probabilities(
    image: Image, grid: Grid, names: Mapping[int, str], uncertain_below: float
) -> ProbabilityRaster:
    """Return the probability raster in `image` for a map on `grid`; `names` are the class names by value.

    Raises:
        InputError: when the image has another grid, or lacks a class.
    """
    info = image.info
    if info.grid != grid:
        raise InputError(
            f"{info.path} has another grid than the map. Move it away, or predict both again with --probabilities."
        )
    bands = {value: info.band_names.index(name) + 1 for value, name in names.items() if name in info.band_names}
    missing = [name for value, name in names.items() if value not in bands]
    if missing:
        raise InputError(
            f"{info.path} has no band {missing[0]!r}; it has: {', '.join(info.band_names)}. "
            "Move it away, or predict both again with --probabilities."
        )
    return ProbabilityRaster(image, bands, uncertain_below)


@dataclass(frozen=True)
class ClassMap:
    """A class map with its classes and, if available, their probabilities.

    It has one layer of regions; with overlapping classes, one layer per class, whose regions do not affect the others.
    """

    image: Image
    legend: Legend | None
    settings: PolygonConfig
    """With areas and closing set: see `open_class_map`."""
    cleaning: Cleaning | None
    """What the run chose for the objects of a class, whether it is used or not."""
    probabilities: ProbabilityRaster | None

    @property
    def places(self) -> tuple[Place, ...]:
        """The map, and its probabilities if it has any."""
        return (self.image.info.path, *([self.probabilities.image.info.path] if self.probabilities else []))

    @property
    def background(self) -> int | None:
        """The background value, which is not polygonized; None if there is none."""
        if self.settings.background or (self.legend and not self.legend.binary):
            return None
        return self.legend.values[0] if self.legend else 0

    def is_of_objects(self, cleaning: Cleaning) -> bool:
        """Return whether all polygons are objects of the class that `cleaning` was chosen for."""
        legend = self.legend
        return bool(legend and legend.binary and legend.names[1] == cleaning.objects and not self.settings.background)

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return len(self.legend.names) if self.legend and self.legend.overlapping else 1

    def name(self, value: int) -> str:
        """Return the name of a class."""
        names = dict(zip(self.legend.values, self.legend.names, strict=True)) if self.legend else {}
        return names.get(value, str(value))

    def colours(self, names: Iterable[str]) -> dict[str, str]:
        """Return a colour for each of the classes `names`, in the order of the legend, if there is one."""
        own = dict(zip(self.legend.names, self.legend.colours, strict=True)) if self.legend else {}
        present = sorted(names, key=[*own, *names].index)
        return {name: own.get(name, PALETTE[i % len(PALETTE)]) for i, name in enumerate(present)}


def class_map_source(class_map: ClassMap, layer: int, on_done: Callable[[Window], None]) -> ClassMapSource:
    """Return a layer of a class map as a source of regions; `on_done` is called with each window that is processed."""
    image, background, close_px = class_map.image, class_map.background, class_map.settings.close_px or 0

    def read(window: Window) -> tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]:
        wide = window.pad(2 * close_px).intersection(image.info.grid.window)
        assert wide is not None
        pixels, valid = image.read(wide, [layer + 1])
        values, kept = pixels[0], valid if background is None else valid & (pixels[0] != background)
        if class_map.layer_count > 1 and class_map.legend:
            values, kept = np.full(values.shape, class_map.legend.values[layer]), valid & (values == 1)
        if close_px:
            values, kept = _close_gaps(values, kept, valid & ~kept, close_px)
        own = window.relative_to(wide).slices
        return values[own], kept[own]

    def is_empty(window: Window) -> bool:
        on_done(window)
        return image.is_empty(window)

    def sum_pixels(
        window: Window, labels: Int32[ndarray, "h w"], label_values: Int64[ndarray, " n"]
    ) -> Int64[ndarray, "n k"]:
        if class_map.probabilities:
            return class_map.probabilities.sum_by_label(window, labels, label_values)
        return np.zeros((len(label_values), 3), np.int64)

    return ClassMapSource(image.info.grid.height, image.info.grid.width, read, is_empty, sum_pixels)


def _close_gaps(
    values: Integer[ndarray, "h w"], kept: Bool[ndarray, "h w"], free: Bool[ndarray, "h w"], close_px: int
) -> tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]:
    """Return values and kept pixels after closing each value, from the lowest; only `free` pixels are taken."""
    for value in np.unique(values[kept]):
        gaps = close_mask(kept & (values == value), close_px) & free & ~kept
        values, kept = np.where(gaps, value, values), kept | gaps
    return values, kept


CLEANED = ("min_area_m2", "fill_holes_m2", "close_px")
"""Settings that a run may have chosen for the objects of a class."""
NO_CLEANING = Cleaning("")


def open_class_map(image: Image, settings: PolygonConfig, files: ExitStack) -> ClassMap:
    """Return the map with its classes, and with their probabilities if the file exists.

    Raises:
        InputError: when the probabilities cannot be read, or belong to another map.
        SettingError: when gaps are to be closed in a map without background.
    """
    legend, own = map_legend(image.info), image.info.path
    cleaning = map_cleaning(image.info)
    found = ClassMap(image, legend, settings, cleaning, None)
    used = cleaning if cleaning and found.is_of_objects(cleaning) else NO_CLEANING
    chosen = {name: getattr(used, name) for name in CLEANED if getattr(settings, name) is None}
    found = replace(found, settings=replace(settings, **chosen))
    if found.settings.close_px and found.background is None and found.layer_count == 1:
        raise SettingError(f"--close-px fills background, and {image.info.path} has none. Leave it out.")
    # Nothing but the map is asked of a server.
    path = _probabilities_path(own) if isinstance(own, Path) else None
    if path is None:
        return found
    names = dict(zip(legend.values, legend.names, strict=True)) if legend else {}
    raster = files.enter_context(Image.open(path))
    probabilities = match_probabilities(raster, image.info.grid, names, settings.uncertain_below)
    return replace(found, probabilities=probabilities)


def _probabilities_path(own: Path) -> Path | None:
    """Return MAP.probabilities.tif, or the .vrt that workers write beside map.vrt; None if there is neither."""
    paths = (sibling_path(own, "probabilities"), own.with_name(f"{own.stem}.probabilities.vrt"))
    return next((path for path in paths if path.exists()), None)
