"""`geograft sample`: a random sample of a map's pixels, drawn by class, for a person to label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.config import SampleConfig
from geograft.files import refuse_existing
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.points import REFERENCE, write_points
from geograft.mapping.strata import Strata, centres, drawn, strata_of
from geograft.metrics.estimation import allocation, sample_size
from geograft.text import table


@dataclass(frozen=True)
class SampleSummary:
    """What `sample` wrote."""

    map: Path
    path: Path
    strata: Strata
    points: Int64[ndarray, " k"]
    """By class."""

    def lines(self) -> list[str]:
        """Return the number of points by class, and what to do with them, as plain text."""
        shares = self.strata.areas / self.strata.areas.sum()
        rows = zip(self.strata.names, self.strata.pixels, shares, self.points, strict=True)
        cells = [(name, f"{pixels:,}", f"{share:.2%}", f"{points:,}") for name, pixels, share, points in rows]
        return [
            f"{self.path}: {self.points.sum():,} points in random order, drawn by class of {self.map}",
            *table([("class", "pixels", "of the map", "points"), *cells]),
            f"Fill in the field {REFERENCE!r} of each point with the class that is really there, the first points "
            f"first; then: geograft area {self.map} {self.path}",
        ]


def sample(map: Path, out: Path, config: SampleConfig | None = None) -> SampleSummary:  # noqa: A002
    """Draw a stratified random sample of the pixels of a class map, and write their centres as a GeoPackage.

    The map's classes are the strata, and every pixel of a class is as likely as any other. The layer `points` has an id
    and an empty field `reference`; the map's class is not in it, so that who labels a point does not know it. The
    layer `strata` records the map's classes, from which `area` knows the map again. Points are in random order: the
    first so many of them are a random sample too. Of a map of overlapping classes one is looked at, `config.band`:
    where it is and where it is not are the strata.

    Number and allocation of points follow Olofsson et al. (2014), eq. 13 and section 5.1.1 (see
    `geograft.metrics.estimation`). The same map, settings and seed give the same points.

    Reads the map twice, in constant memory.

    Raises:
        InputError: when `map` cannot be read or is no class map; when it has a band for each class and none is chosen.
        OutputError: when `out` exists, is no .gpkg, or cannot be written.
    """
    refuse_existing(out)
    chosen = config or SampleConfig()
    with Image.open(map) as image:
        strata = strata_of(image, chosen.band)
        sizes = _sizes(strata, chosen)
        rng = np.random.default_rng(chosen.seed)
        places, _ = drawn(image, strata, sizes, rng)
        points = centres(image.info.grid, places)[rng.permutation(len(places.rows))]
        write_points(out, points, _record(strata, sizes, image), image.info.grid.crs)
    return SampleSummary(map, out, strata, sizes)


def _sizes(strata: Strata, config: SampleConfig) -> Int64[ndarray, " k"]:
    """Return the number of points by class."""
    weights = strata.areas / strata.areas.sum()
    accuracy = np.full(len(weights), config.expected_accuracy)
    points = config.points or sample_size(weights, accuracy, config.standard_error, int(strata.pixels.sum()))
    return allocation(weights, strata.pixels, points, config.least)


def _record(strata: Strata, sizes: Int64[ndarray, " k"], image: Image) -> dict[str, list[str] | ndarray]:
    """Return the table that goes with the points: the strata that they were drawn from."""
    area = "area_m2" if image.info.grid.crs else "area_px"
    values = np.array(strata.values, np.int32)
    return {
        "class": list(strata.names),
        "value": values,
        "pixels": strata.pixels,
        area: strata.areas,
        "points": sizes,
    }
