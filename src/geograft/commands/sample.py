"""`geograft sample`: draw a stratified random sample of the pixels of a map, to be labelled."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.config import SampleConfig
from geograft.errors import SettingError
from geograft.files import StrPath, refuse_existing
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.points import REFERENCE, write_points
from geograft.locations import Location, Place, to_place
from geograft.mapping.strata import Strata, draw_pixels, pixel_centres, read_strata
from geograft.metrics.estimation import allocate_points, sample_size
from geograft.outputs import writes_output
from geograft.text import format_table

MAX_POINTS = 1_000_000
"""Maximum number of points of a sample, which are in memory; nobody labels more."""


@dataclass(frozen=True)
class SampleSummary:
    """The sample written by `sample`."""

    map: Place
    path: Place
    strata: Strata
    points: Int64[ndarray, " k"]
    """Number of points per class."""

    def lines(self) -> list[str]:
        """Return the number of points per class and the next steps, as plain text."""
        proportions = self.strata.areas / self.strata.areas.sum()
        rows = zip(self.strata.names, self.strata.pixels, proportions, self.points, strict=True)
        cells = [(name, f"{pixels:,}", f"{proportion:.2%}", f"{points:,}") for name, pixels, proportion, points in rows]
        return [
            f"{self.path}: {self.points.sum():,} points in random order, stratified by the classes of {self.map}",
            *format_table([("class", "pixels", "of the map", "points"), *cells]),
            f"Fill in the field {REFERENCE!r} of the points with their true class, in the order of the points. "
            f"Then run: geograft area {self.map} {self.path}",
        ]


@writes_output
def sample(map: StrPath | Location, out: StrPath, config: SampleConfig | None = None) -> SampleSummary:  # noqa: A002
    """Draw a stratified random sample of the pixels of a class map, and write their centres as a GeoPackage.

    The strata are the classes of the map; all pixels of a class are equally likely. The layer `points` has an id and an
    empty field `reference`. It does not contain the class of the map, so that the labels are not biased by it. The
    layer `strata` records the classes and pixel counts of the map, by which `area` checks that it gets the same map.
    Points are in random order, so the first n of them are a random sample too. For a map of overlapping classes the
    strata are the pixels inside and outside the class `config.band`.

    The number and allocation of points follow Olofsson et al. (2014), eq. 13 and section 5.1.1 (see
    `geograft.metrics.estimation`). The result is deterministic for the same map, settings and seed.

    Reads the map twice, in constant memory.

    Raises:
        InputError: when `map` cannot be read or is not a class map, or has a band per class and none is selected.
        SettingError: when the sample would have more than MAX_POINTS points.
        OutputError: when `out` exists, is not a .gpkg, or cannot be written.
    """
    map, out = to_place(map), Path(out)  # noqa: A001
    refuse_existing(out)
    config = config or SampleConfig()
    with Image.open(map) as image:
        strata = read_strata(image, config.band)
        sizes = _points_per_class(strata, config)
        rng = np.random.default_rng(config.seed)
        pixels, _ = draw_pixels(image, strata, sizes, rng)
        points = pixel_centres(image.info.grid, pixels)[rng.permutation(len(pixels.rows))]
        write_points(out, points, _strata_table(strata, sizes, image), image.info.grid.crs)
    return SampleSummary(map, out, strata, sizes)


def _points_per_class(strata: Strata, config: SampleConfig) -> Int64[ndarray, " k"]:
    """Return the number of points per class."""
    weights = strata.areas / strata.areas.sum()
    accuracy = np.full(len(weights), config.expected_accuracy)
    points = config.points or sample_size(weights, accuracy, config.standard_error, int(strata.pixels.sum()))
    if max(points, len(weights) * config.min_points) > MAX_POINTS:
        raise SettingError(
            f"--points {points:,} with --min-points {config.min_points:,}: a sample may have at most {MAX_POINTS:,} "
            "points. Lower them, or raise --standard-error."
        )
    return allocate_points(weights, strata.pixels, points, config.min_points)


def _strata_table(strata: Strata, sizes: Int64[ndarray, " k"], image: Image) -> dict[str, list[str] | ndarray]:
    """Return the columns of the layer `strata`, the strata of the sample."""
    area = "area_m2" if image.info.grid.crs else "area_px"
    values = np.array(strata.values, np.int32)
    return {
        "class": list(strata.names),
        "value": values,
        "pixels": strata.pixels,
        area: strata.areas,
        "points": sizes,
    }
