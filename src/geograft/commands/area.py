"""`geograft area`: how much of each class there is, and how right the map is, from a labelled sample of its pixels.

What `geograft area` found, for people and for programs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import refuse_existing, write_json
from geograft.geo.grid import Grid
from geograft.geo.measure import method
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.tags import has_band_a_class
from geograft.geo.vectors.points import REFERENCE, LabelledPoints, read_points
from geograft.mapping.strata import Strata, areas_at, places_of, strata_of, stratum_at
from geograft.metrics.estimation import Estimates, Figures, Tally, estimates, short
from geograft.text import table

HECTARE, LEAST_IN_HECTARES = 1e4, 1e5
"""In m2; and from what area on hectares are shown."""


@dataclass(frozen=True)
class AreaReport:
    """Areas and accuracies of a map's classes, estimated from a sample."""

    map: Path
    points: Path
    unit: str
    """Of areas: m2, or px where the map has no CRS."""
    strata: Strata
    tally: Tally
    estimates: Estimates
    left: int
    """Points that are not labelled."""
    notes: tuple[str, ...]
    """What the user should know about the result, a line each."""

    @property
    def headline(self) -> str:
        """The result in a sentence or two."""
        right, low, high = (f"{100 * x[0]:.0f}" for x in _interval(self.estimates.overall, 1))
        accuracy = f"{right} % of the map is right (95 % interval {low} to {high} %)."
        return f"{self._class_of_interest()} {accuracy}" if len(self.strata.names) == 2 else f"{accuracy} {self._off()}"

    def content(self) -> dict[str, Any]:
        """Return what the JSON file holds: areas in `unit`, shares from 0 to 1, null where a figure does not exist."""
        found, total = self.estimates, float(self.strata.areas.sum())
        figures = {
            "area": _plain(found.area, total),
            "users_accuracy": _plain(found.users, 1),
            "producers_accuracy": _plain(found.producers, 1),
        }
        return {
            "map": str(self.map),
            "points": str(self.points),
            "headline": self.headline,
            "unit": self.unit,
            "labelled": int(self.tally.points.sum()),
            "left": self.left,
            "overall_accuracy": _plain(found.overall, 1)[0],
            "classes": [
                {
                    "class": name,
                    "value": self.strata.values[i],
                    "pixels": int(self.strata.pixels[i]),
                    "mapped_area": float(self.strata.areas[i]),
                }
                | {key: figure[i] for key, figure in figures.items()}
                for i, name in enumerate(self.strata.names)
            ],
            "error_matrix": {"points": self.tally.points.tolist(), "shares": found.shares.tolist()},
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the headline, a table by class, the sample's error matrix and the notes, as plain text."""
        unit, scale = self._shown
        found, names = self.estimates, self.strata.names
        mapped = [_number(area / scale) for area in self.strata.areas]
        columns = (
            names,
            mapped,
            _with_margin(found.area, 1 / scale, 1),
            _with_margin(found.users, 100, 0),
            _with_margin(found.producers, 100, 0),
        )
        header = ("class", f"mapped {unit}", f"estimated {unit}", "user's accuracy %", "producer's accuracy %")
        matrix = [(name, *(f"{n:,}" for n in row)) for name, row in zip(names, self.tally.points, strict=True)]
        return [
            self.headline,
            *table([header, *zip(*columns, strict=True)]),
            f"{self.tally.points.sum():,} points, map classes in rows, what is there in columns; ± is a 95 % interval:",
            *table([("", *names), *matrix]),
            *(f"Note: {note}" for note in self.notes),
        ]

    @property
    def _shown(self) -> tuple[str, float]:
        """The unit of areas that people read, and its size in the unit of figures."""
        return ("ha", HECTARE) if self.unit == "m2" and self.strata.areas.sum() >= LEAST_IN_HECTARES else (self.unit, 1)

    def _class_of_interest(self) -> str:
        unit, scale = self._shown
        value, low, high = (_number(x[1] / scale) for x in _interval(self.estimates.area, self.strata.areas.sum()))
        mapped, name = _number(self.strata.areas[1] / scale), self.strata.names[1]
        if np.isnan(self.estimates.area.error[1]):
            return f"No point is {name} on the ground; the map shows {mapped} {unit}."
        return f"{name} covers {value} {unit} (95 % interval {low} to {high} {unit}); the map shows {mapped} {unit}."

    def _off(self) -> str:
        """Return which classes the map shows too much or too little of."""
        found, mapped = self.estimates.area, self.strata.areas
        off = np.flatnonzero(np.abs(mapped - found.value) > found.margin)
        ways = [f"{'much' if mapped[i] > found.value[i] else 'little'} {self.strata.names[i]}" for i in off]
        if not ways:
            return "No class has a mapped area outside its interval."
        return f"It shows too {', too '.join(ways)}: more than the sample's chance explains."


def _interval(figures: Figures, most: float) -> tuple[Float64[ndarray, " k"], ...]:
    """Return values and 95 % intervals, which end at 0 and at `most`."""
    low, high = figures.value - figures.margin, figures.value + figures.margin
    return figures.value, np.maximum(low, 0), np.minimum(high, most)


def _plain(figures: Figures, most: float) -> list[dict[str, float | None]]:
    """Return figures as JSON holds them."""
    names = ("estimate", "low", "high", "standard_error")
    columns = (*_interval(figures, most), figures.error)
    rows = zip(*columns, strict=True)
    return [{n: None if np.isnan(x) else float(x) for n, x in zip(names, row, strict=True)} for row in rows]


def _with_margin(figures: Figures, scale: float, decimals: int) -> list[str]:
    """Return figures with their margins, as text; - where there is none."""
    pairs = zip(figures.value * scale, figures.margin * scale, strict=True)
    return [
        "-"
        if np.isnan(value)
        else f"{value:,.{decimals}f}" + ("" if np.isnan(margin) else f" ± {margin:,.{decimals}f}")
        for value, margin in pairs
    ]


def _number(value: float) -> str:
    return f"{value:,.1f}"


def area(map: Path, points: Path, out: Path | None = None) -> AreaReport:  # noqa: A002
    """Return the area of each class with its 95 % interval, and the map's accuracies, from a labelled sample.

    `points` is what `sample` drew from `map`, with the field `reference` filled in: names of classes, or the map's
    values. Estimators: Olofsson et al. (2014), see
    `geograft.metrics.estimation`. Points without a reference are left out,
    and a note says how many. With `out`, all figures are also written as JSON.

    Reads the map once, in constant memory, and one block of it a point.

    Raises:
        InputError: when `map` or `points` cannot be read or do not belong together, when a reference is no class, or
            when a class of the map has fewer than two labelled points.
        OutputError: when `out` exists or cannot be written.
    """
    if out is not None:
        refuse_existing(out)
    with Image.open(map) as image:
        grid = image.info.grid
        sample = read_points(points, grid.crs)
        strata = strata_of(image, _band_of(image.info, sample))
        _check_same_map(map, points, strata, sample)
        labels = _labels(points, strata, sample)
        done = labels >= 0
        places = places_of(grid, sample.places[done])
        mapped = stratum_at(image, strata, places)
    _check_on_map(map, points, mapped)
    tally = Tally.of(mapped, labels[done], areas_at(grid, places), len(strata.names))
    complete = tally.points.sum(axis=1) == strata.pixels
    _check_enough(points, strata, short(tally, strata.areas, complete))
    found = estimates(tally, strata.areas, complete)
    notes = (*_sampled(points, sample, done), *_unseen(strata, tally, complete), *_measured(map, grid, strata))
    report = AreaReport(map, points, "m2" if grid.crs else "px", strata, tally, found, int((~done).sum()), notes)
    if out is not None:
        write_json(out, report.content())
    return report


def _band_of(info: ImageInfo, sample: LabelledPoints) -> str:
    """Return which of a map's overlapping classes the sample was drawn of; nothing for a map of one band."""
    if not has_band_a_class(info):
        return ""
    return next((name for name in info.band_names if name in (sample.strata or {})), "")


def _labels(path: Path, strata: Strata, sample: LabelledPoints) -> Int64[ndarray, " n"]:
    """Return the index of the class of each reference; -1 where there is none yet."""
    index = {str(value): i for i, value in enumerate(strata.values)}
    index |= {name: i for i, name in enumerate(strata.names)} | {"": -1}
    unknown = sorted({label for label in sample.references if label not in index})
    if unknown:
        names = ", ".join(strata.names)
        raise InputError(
            f"{path}: {REFERENCE} has {', '.join(unknown[:5])}. The map's classes are: {names}. Use these."
        )
    if not any(sample.references):
        raise InputError(f"{path}: none of {len(sample.references):,} points has a {REFERENCE}. Label them first.")
    return np.array([index[label] for label in sample.references], np.int64)


def _check_same_map(map_path: Path, path: Path, strata: Strata, sample: LabelledPoints) -> None:
    now = dict(zip(strata.names, strata.pixels.tolist(), strict=True))
    for name, pixels in (sample.strata or {}).items():
        if now.get(name) != pixels:
            raise InputError(
                f"{path} was drawn from another map: one with {pixels:,} pixels of {name}, where {map_path} has "
                f"{now.get(name, 0):,}. Give that map; another map needs a sample of its own."
            )


def _check_on_map(map_path: Path, path: Path, mapped: Int64[ndarray, " n"]) -> None:
    lost = int((mapped < 0).sum())
    if lost:
        raise InputError(
            f"{path}: {lost:,} of {len(mapped):,} labelled points lie where {map_path} has no class. "
            "Give the map that the sample was drawn from."
        )


def _check_enough(path: Path, strata: Strata, lacking: Bool[ndarray, " k"]) -> None:
    if lacking.any():
        names = ", ".join(np.array(strata.names)[lacking])
        raise InputError(f"{path}: every class of the map needs at least two labelled points; {names} has fewer.")


def _sampled(path: Path, sample: LabelledPoints, done: Bool[ndarray, " n"]) -> Iterator[str]:
    """Yield what weakens the sample."""
    left, count = int((~done).sum()), len(done)
    if left and not done[: count - left].all():
        yield (
            f"{left:,} of {count:,} points have no {REFERENCE}, some of them between labelled ones, and are left out. "
            "If those are the hard ones, the map looks better here than it is: label them too."
        )
    elif left:
        yield (
            f"{left:,} of {count:,} points are left to be labelled. The first {count - left:,} are a random sample "
            "too; all of them make the intervals narrower."
        )
    if sample.strata is None:
        yield f"{path} does not say how it was drawn; it is taken for a random sample of each class of this map."


def _unseen(strata: Strata, tally: Tally, complete: Bool[ndarray, " k"]) -> Iterator[str]:
    """Yield what the sample cannot tell."""
    rows, columns = tally.points.sum(axis=1), tally.points.sum(axis=0)
    for i, name in enumerate(strata.names):
        if columns[i] == 0 and strata.pixels[i]:
            yield f"no point is {name} on the ground: how little of it there is, this sample cannot say."
        elif rows[i] and tally.points[i, i] == rows[i] and not complete[i]:
            # The rule of three: Hanley & Lippman-Hand (1983), JAMA 249, 1743-1745.
            yield (
                f"all {rows[i]:,} points mapped as {name} are right, so its user's accuracy has no interval; "
                f"up to {min(3 / rows[i], 1):.0%} of it may be wrong all the same."
            )


def _measured(path: Path, grid: Grid, strata: Strata) -> Iterator[str]:
    """Yield how areas are measured, and of what."""
    if not grid.crs:
        yield f"{path} has no CRS: areas are in pixels."
    elif method(grid) == "geodesic":
        yield "areas are measured on the ellipsoid, pixel by pixel, for the map's CRS does not keep areas."
    if strata.unknown:
        share = strata.unknown / (grid.height * grid.width)
        yield f"{share:.1%} of the raster has no class; all figures are of the rest."
