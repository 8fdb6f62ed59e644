"""`geograft area`: how much of each class there is, and how right the map is, from a labelled sample of its pixels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from geograft.errors import InputError
from geograft.estimation import Tally, estimates, short
from geograft.files import refuse_existing, write_json
from geograft.geo.accuracy.strata import Strata, areas_at, places_of, strata_of, stratum_at
from geograft.geo.grid import Grid
from geograft.geo.metres import method
from geograft.geo.rasters.maptags import has_band_a_class
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.vectors.vectorpoints import REFERENCE, LabelledPoints, read_points
from geograft.verbs.area.result import AreaReport


def area(map: Path, points: Path, out: Path | None = None) -> AreaReport:  # noqa: A002
    """Return the area of each class with its 95 % interval, and the map's accuracies, from a labelled sample.

    `points` is what `sample` drew from `map`, with the field `reference` filled in: names of classes, or the map's
    values. Estimators: Olofsson et al. (2014), see `geograft.estimation`. Points without a reference are left out, and
    a note says how many. With `out`, all figures are also written as JSON.

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
