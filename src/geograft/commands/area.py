"""`geograft area`: estimate class areas and map accuracy from a labelled sample of the map's pixels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray

from geograft.errors import InputError
from geograft.files import StrPath, optional_path, refuse_existing, write_json
from geograft.geo.grid import Grid
from geograft.geo.measure import measurement_method
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.tags import has_band_per_class
from geograft.geo.vectors.points import REFERENCE, LabelledPoints, read_points
from geograft.locations import Location, Place, to_place
from geograft.locks import locks_output
from geograft.mapping.strata import Strata, areas_at, pixels_at, read_strata, stratum_at
from geograft.metrics.estimation import AccuracyEstimates, ErrorMatrix, Estimate, estimate_accuracy, undersampled_strata
from geograft.text import format_table

HECTARE, MIN_AREA_IN_HECTARES = 1e4, 1e5
"""A hectare in m2, and the minimum total area in m2 that is shown in hectares."""


@dataclass(frozen=True)
class AreaReport:
    """Areas and accuracies of the classes of a map, estimated from a sample."""

    map: Place
    points: Path
    unit: str
    """Unit of areas: m2, or px if the map has no CRS."""
    strata: Strata
    error_matrix: ErrorMatrix
    estimates: AccuracyEstimates
    unlabelled: int
    """Number of points without a label."""
    notes: tuple[str, ...]
    """Limitations of the result, one per line."""

    @property
    def headline(self) -> str:
        """The main result in one or two sentences."""
        value, low, high = (f"{100 * x[0]:.0f}" for x in _interval(self.estimates.overall, 1))
        accuracy = f"Overall accuracy is {value} % (95 % CI {low} to {high} %)."
        return f"{self._positive_class()} {accuracy}" if len(self.strata.names) == 2 else f"{accuracy} {self._bias()}"

    def content(self) -> dict[str, Any]:
        """Return the content of the JSON file: areas in `unit`, proportions from 0 to 1, None for undefined values."""
        estimates, total = self.estimates, float(self.strata.areas.sum())
        columns = {
            "area": _to_json(estimates.area, total),
            "users_accuracy": _to_json(estimates.users, 1),
            "producers_accuracy": _to_json(estimates.producers, 1),
        }
        return {
            "map": str(self.map),
            "points": str(self.points),
            "headline": self.headline,
            "unit": self.unit,
            "labelled": int(self.error_matrix.points.sum()),
            "unlabelled": self.unlabelled,
            "overall_accuracy": _to_json(estimates.overall, 1)[0],
            "classes": [
                {
                    "class": name,
                    "value": self.strata.values[i],
                    "pixels": int(self.strata.pixels[i]),
                    "mapped_area": float(self.strata.areas[i]),
                }
                | {key: column[i] for key, column in columns.items()}
                for i, name in enumerate(self.strata.names)
            ],
            "error_matrix": {
                "points": self.error_matrix.points.tolist(),
                "proportions": estimates.proportions.tolist(),
            },
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the headline, a table of classes, the error matrix of the sample and the notes, as plain text."""
        unit, scale = self._display_unit
        estimates, names = self.estimates, self.strata.names
        mapped = [_number(area / scale) for area in self.strata.areas]
        columns = (
            names,
            mapped,
            _with_margin(estimates.area, 1 / scale, 1),
            _with_margin(estimates.users, 100, 0),
            _with_margin(estimates.producers, 100, 0),
        )
        header = ("class", f"mapped {unit}", f"estimated {unit}", "user's accuracy %", "producer's accuracy %")
        matrix = [(name, *(f"{n:,}" for n in row)) for name, row in zip(names, self.error_matrix.points, strict=True)]
        return [
            self.headline,
            *format_table([header, *zip(*columns, strict=True)]),
            f"Error matrix of {self.error_matrix.points.sum():,} points: map in rows, reference in columns. "
            "± is the 95 % CI.",
            *format_table([("", *names), *matrix]),
            *(f"Note: {note}" for note in self.notes),
        ]

    @property
    def _display_unit(self) -> tuple[str, float]:
        """The unit of displayed areas, and its size in `unit`."""
        return (
            ("ha", HECTARE) if self.unit == "m2" and self.strata.areas.sum() >= MIN_AREA_IN_HECTARES else (self.unit, 1)
        )

    def _positive_class(self) -> str:
        unit, scale = self._display_unit
        value, low, high = (_number(x[1] / scale) for x in _interval(self.estimates.area, self.strata.areas.sum()))
        mapped, name = _number(self.strata.areas[1] / scale), self.strata.names[1]
        if np.isnan(self.estimates.area.standard_error[1]):
            return f"No reference point is {name}; its mapped area is {mapped} {unit}."
        return f"{name} covers {value} {unit} (95 % CI {low} to {high} {unit}); its mapped area is {mapped} {unit}."

    def _bias(self) -> str:
        """Return which classes have a mapped area outside the confidence interval."""
        area, mapped = self.estimates.area, self.strata.areas
        outside = np.flatnonzero(np.abs(mapped - area.value) > area.margin)
        biased = [
            f"{self.strata.names[i]} ({'over' if mapped[i] > area.value[i] else 'under'}estimated)" for i in outside
        ]
        if not biased:
            return "The mapped area of every class is within its confidence interval."
        return f"Mapped areas outside their confidence intervals: {', '.join(biased)}."


def _interval(estimate: Estimate, maximum: float) -> tuple[Float64[ndarray, " k"], ...]:
    """Return values and the bounds of their 95 % confidence intervals, clipped to 0 and `maximum`."""
    low, high = estimate.value - estimate.margin, estimate.value + estimate.margin
    return estimate.value, np.maximum(low, 0), np.minimum(high, maximum)


def _to_json(estimate: Estimate, maximum: float) -> list[dict[str, float | None]]:
    """Return an estimate per class for JSON."""
    names = ("estimate", "low", "high", "standard_error")
    columns = (*_interval(estimate, maximum), estimate.standard_error)
    rows = zip(*columns, strict=True)
    return [{n: None if np.isnan(x) else float(x) for n, x in zip(names, row, strict=True)} for row in rows]


def _with_margin(estimate: Estimate, scale: float, decimals: int) -> list[str]:
    """Return values with their margins as text; "-" for undefined values."""
    pairs = zip(estimate.value * scale, estimate.margin * scale, strict=True)
    return [
        "-"
        if np.isnan(value)
        else f"{value:,.{decimals}f}" + ("" if np.isnan(margin) else f" ± {margin:,.{decimals}f}")
        for value, margin in pairs
    ]


def _number(value: float) -> str:
    return f"{value:,.1f}"


@locks_output
def area(map: StrPath | Location, points: StrPath, out: StrPath | None = None) -> AreaReport:  # noqa: A002
    """Return the area of each class and the accuracies of a map, with 95 % confidence intervals, from labelled points.

    `points` is the output of `sample` for `map`, with the field `reference` filled in with class names or values of the
    map. The estimators are those of Olofsson et al. (2014), see `geograft.metrics.estimation`. Points without a
    reference are left out; a note gives their number. With `out`, the result is also written as JSON.

    Reads the map once, in constant memory, and one block of it per point.

    Raises:
        InputError: when `map` or `points` cannot be read or do not match, when a reference is not a class, or when a
            class of the map has fewer than two labelled points.
        OutputError: when `out` exists or cannot be written.
    """
    map, points, out = to_place(map), Path(points), optional_path(out)  # noqa: A001
    if out is not None:
        refuse_existing(out)
    with Image.open(map) as image:
        grid = image.info.grid
        sample = read_points(points, grid.crs)
        strata = read_strata(image, _band_of(image.info, sample))
        _check_same_map(map, points, strata, sample)
        labels = _labels(points, strata, sample)
        labelled = labels >= 0
        pixels = pixels_at(grid, sample.coordinates[labelled])
        mapped = stratum_at(image, strata, pixels)
    _check_on_map(map, points, mapped)
    error_matrix = ErrorMatrix.from_points(mapped, labels[labelled], areas_at(grid, pixels), len(strata.names))
    complete = error_matrix.points.sum(axis=1) == strata.pixels
    _check_enough_points(points, strata, undersampled_strata(error_matrix, strata.areas, complete))
    estimates = estimate_accuracy(error_matrix, strata.areas, complete)
    notes = (
        *_sample_notes(points, sample, labelled),
        *_class_notes(strata, error_matrix, complete),
        *_area_notes(map, grid, strata),
    )
    unit, unlabelled = "m2" if grid.crs else "px", int((~labelled).sum())
    report = AreaReport(map, points, unit, strata, error_matrix, estimates, unlabelled, notes)
    if out is not None:
        write_json(out, report.content())
    return report


def _band_of(info: ImageInfo, sample: LabelledPoints) -> str:
    """Return the overlapping class that the sample was drawn from; "" for a map of exclusive classes."""
    if not has_band_per_class(info):
        return ""
    return next((name for name in info.band_names if name in (sample.strata or {})), "")


def _labels(path: Path, strata: Strata, sample: LabelledPoints) -> Int64[ndarray, " n"]:
    """Return the class index of each reference; -1 for points without one."""
    index = {str(value): i for i, value in enumerate(strata.values)}
    index |= {name: i for i, name in enumerate(strata.names)} | {"": -1}
    unknown = sorted({label for label in sample.references if label not in index})
    if unknown:
        names = ", ".join(strata.names)
        raise InputError(
            f"{path}: unknown classes in {REFERENCE}: {', '.join(unknown[:5])}. Use the classes of the map: {names}."
        )
    if not any(sample.references):
        raise InputError(
            f"{path}: none of {len(sample.references):,} points has a {REFERENCE}. Label the points first."
        )
    return np.array([index[label] for label in sample.references], np.int64)


def _check_same_map(map_path: Place, path: Path, strata: Strata, sample: LabelledPoints) -> None:
    counts = dict(zip(strata.names, strata.pixels.tolist(), strict=True))
    for name, pixels in (sample.strata or {}).items():
        if counts.get(name) != pixels:
            raise InputError(
                f"{path} was drawn from another map: it has {pixels:,} pixels of {name}, {map_path} has "
                f"{counts.get(name, 0):,}. Give the map of the sample, or draw a sample from this map."
            )


def _check_on_map(map_path: Place, path: Path, mapped: Int64[ndarray, " n"]) -> None:
    outside = int((mapped < 0).sum())
    if outside:
        raise InputError(
            f"{path}: {outside:,} of {len(mapped):,} labelled points lie where {map_path} has no class. "
            "Give the map that the sample was drawn from."
        )


def _check_enough_points(path: Path, strata: Strata, undersampled: Bool[ndarray, " k"]) -> None:
    if undersampled.any():
        names = ", ".join(np.array(strata.names)[undersampled])
        raise InputError(f"{path}: fewer than 2 labelled points for {names}. Label more points of each.")


def _sample_notes(path: Path, sample: LabelledPoints, labelled: Bool[ndarray, " n"]) -> Iterator[str]:
    """Yield limitations of the sample."""
    missing, count = int((~labelled).sum()), len(labelled)
    if missing and not labelled[: count - missing].all():
        yield (
            f"{missing:,} of {count:,} points have no {REFERENCE} and are left out, some of them between labelled "
            "points. If they were skipped because they are difficult, accuracy is overestimated: label them too."
        )
    elif missing:
        yield (
            f"{missing:,} of {count:,} points are not labelled yet. The first {count - missing:,} are a random sample "
            "too; labelling all points makes the confidence intervals narrower."
        )
    if sample.strata is None:
        yield f"{path} has no layer of strata: it is assumed to be a random sample of each class of this map."


def _class_notes(strata: Strata, error_matrix: ErrorMatrix, complete: Bool[ndarray, " k"]) -> Iterator[str]:
    """Yield the classes that the sample gives no interval for."""
    rows, columns = error_matrix.points.sum(axis=1), error_matrix.points.sum(axis=0)
    for i, name in enumerate(strata.names):
        if columns[i] == 0 and strata.pixels[i]:
            yield f"no reference point is {name}: its area cannot be estimated from this sample."
        elif rows[i] and error_matrix.points[i, i] == rows[i] and not complete[i]:
            # The rule of three: Hanley & Lippman-Hand (1983), JAMA 249, 1743-1745.
            yield (
                f"all {rows[i]:,} points mapped as {name} are correct, so its user's accuracy has no interval; "
                f"its error rate may still be up to {min(3 / rows[i], 1):.0%} (rule of three)."
            )


def _area_notes(path: Place, grid: Grid, strata: Strata) -> Iterator[str]:
    """Yield how areas are measured, and which pixels are left out."""
    if not grid.crs:
        yield f"{path} has no CRS: areas are in pixels."
    elif measurement_method(grid) == "geodesic":
        yield "areas are geodesic, computed per pixel on the ellipsoid, because the CRS of the map is not equal-area."
    if strata.unknown:
        fraction = strata.unknown / (grid.height * grid.width)
        yield f"{fraction:.1%} of the raster has no class and is left out of all estimates."
