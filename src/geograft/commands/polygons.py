"""Polygons with class, area and certainty from a class map of any size.

What polygons are found in: a class map, its classes and their probabilities.

Finished polygons on their way to a file.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer
from numpy import ndarray

from geograft.config import PolygonConfig
from geograft.errors import SettingError
from geograft.files import json_digest, refuse_existing
from geograft.geo.grid import Window
from geograft.geo.measure import method
from geograft.geo.rasters.raster import Image, raster_state
from geograft.geo.rasters.tags import beside, check_class_map, has_band_a_class, map_legend
from geograft.geo.vectors.reader import Features
from geograft.legend import Legend
from geograft.mapping.polygons.ledger import Arrays, PolygonLedger
from geograft.mapping.polygons.outlines import Outlines, swallowed
from geograft.mapping.polygons.regions import BLOCK_PX, Source
from geograft.mapping.polygons.shapes import as_array, unpacked
from geograft.mapping.polygons.writer import Target, check_target, write_into
from geograft.mapping.polygons.zonal import Probabilities, fitting
from geograft.progress import meter
from geograft.resume import is_complete, keeping


@dataclass(frozen=True)
class Finding:
    """A class map and what is known of it.

    It has one layer of regions; of overlapping classes one for each, which no other class's regions cut.
    """

    image: Image
    legend: Legend | None
    settings: PolygonConfig
    probabilities: Probabilities | None

    @property
    def background(self) -> int | None:
        """The value that is left out, if any."""
        if self.settings.background or (self.legend and not self.legend.binary):
            return None
        return self.legend.values[0] if self.legend else 0

    @property
    def layers(self) -> int:
        """How often the map is gone through."""
        return len(self.legend.names) if self.legend and self.legend.overlapping else 1

    def name(self, value: int) -> str:
        """Return the name of a class."""
        names = dict(zip(self.legend.values, self.legend.names, strict=True)) if self.legend else {}
        return names.get(value, str(value))


def class_map(finding: Finding, layer: int, seen: Callable[[Window], None]) -> Source:
    """Return a layer of a class map as a source of regions; every window that is done with is `seen`."""
    image, background = finding.image, finding.background

    def read(window: Window) -> tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]:
        pixels, valid = image.read(window, [layer + 1])
        if finding.layers > 1 and finding.legend:
            return np.full(pixels[0].shape, finding.legend.values[layer]), valid & (pixels[0] == 1)
        return pixels[0], valid if background is None else valid & (pixels[0] != background)

    def empty(window: Window) -> bool:
        seen(window)
        return image.empty(window)

    def sums(window: Window, labels: Int32[ndarray, "h w"], owners: Int64[ndarray, " n"]) -> Int64[ndarray, "n k"]:
        if finding.probabilities:
            return finding.probabilities.sums(window, labels, owners)
        return np.zeros((len(owners), 3), np.int64)

    return Source(image.info.grid.height, image.info.grid.width, read, empty, sums)


BATCH = 10_000
"""Polygons written at a time."""


@dataclass
class ClassTotal:
    """The polygons of one class."""

    polygons: int = 0
    area: float = 0.0


@dataclass(frozen=True)
class Result:
    """The polygons that a ledger holds, but for those in filled holes; can be gone through more than once."""

    ledger: PolygonLedger
    finding: Finding
    settings: PolygonConfig

    @property
    def unit(self) -> str:
        """The unit of areas."""
        return "m2" if self.finding.image.info.grid.crs else "px"

    def batches(self) -> Iterator[Features]:
        """Yield the polygons in pixels with their columns, some thousand at a time; at least once, for the fields."""
        yield self._features(
            as_array([]), {name: np.zeros(0) for name in ("value", "area", "perimeter")}, np.zeros((0, 3))
        )
        for row, part in self.ledger.parts():
            kept = np.flatnonzero(self._kept(part, self._layer(row)))
            shapes = unpacked(part["wkb"], part["wkb_ends"])
            columns = {name: part[name] for name in ("value", "area", "perimeter")}
            sums = part["sums"]
            for start in range(0, len(kept), BATCH):
                some = kept[start : start + BATCH]
                yield self._features(shapes[some], {name: side[some] for name, side in columns.items()}, sums[some])

    def classes(self) -> dict[str, ClassTotal]:
        """Return the number and area of polygons by class, in the order in which classes are met."""
        found: dict[str, ClassTotal] = {}
        for row, part in self.ledger.parts():
            kept = self._kept(part, self._layer(row))
            for value, area in zip(part["value"][kept].tolist(), part["area"][kept].tolist(), strict=True):
                total = found.setdefault(self.finding.name(value), ClassTotal())
                total.polygons, total.area = total.polygons + 1, total.area + area
        return found

    def left_out(self) -> int:
        """Return how many polygons were smaller than the least area."""
        return sum(int(part["left_out"]) for _, part in self.ledger.parts())

    def notes(self) -> Iterator[str]:
        """Yield what the user should know about the result."""
        info = self.finding.image.info
        if not self.finding.probabilities:
            missing = beside(info.path, "probabilities").name
            yield (
                f"{missing} does not lie beside the map, so polygons have no mean probability and no uncertain share. "
                "`geograft predict --probabilities uint8` writes it."
            )
        if not info.grid.crs:
            yield f"{info.path} has no CRS: areas and lengths are in pixels, in the settings too."
        elif method(info.grid) == "geodesic":
            yield "areas and perimeters are measured on the ellipsoid, for the map's CRS does not keep areas."
        if not self.finding.legend:
            also = "" if self.finding.background is None else "; value 0 counts as background and is left out"
            yield f"{info.path} does not state its classes: they are named by their values{also}."

    def _features(self, shapes: ndarray, columns: dict[str, ndarray], sums: ndarray) -> Features:
        area, perimeter = ("area_m2", "perimeter_m") if self.unit == "m2" else ("area_px", "perimeter_px")
        values = columns["value"].astype(np.int64)
        names = np.array([self.finding.name(value) for value in values.tolist()], object)
        fields = {"class": names, "value": values, area: columns["area"], perimeter: columns["perimeter"]}
        if self.finding.probabilities:
            fields["mean_probability"], fields["uncertain_share"] = self.finding.probabilities.figures(
                sums.astype(np.int64)
            )
        return Features(shapes, fields)

    def _layer(self, row: int) -> int:
        return row // self.finding.image.info.grid.height

    def _kept(self, part: Arrays, layer: int) -> Bool[ndarray, " n"]:
        """Return which polygons do not lie in a hole that was filled in their own layer."""
        first: Int64[ndarray, "n 2"] = part["first"]
        kept = np.ones(len(first), bool)
        if self.settings.fill_holes_m2:
            rows = first[:, 1] // BLOCK_PX
            for row in np.unique(rows).tolist():
                here = rows == row
                kept[here] = ~swallowed(first[here], self._holes(row, layer))
        return kept

    def _holes(self, row: int, layer: int) -> ndarray:
        """Return all filled holes of a layer that reach into a row of blocks."""
        name = f"holes_{row}"
        found = [
            unpacked(part[name], part[f"{name}_ends"])
            for begin, part in self.ledger.parts()
            if self._layer(begin) == layer and name in part.names
        ]
        return np.concatenate([as_array([]), *found])


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


def polygons(
    map: Path,  # noqa: A002 (the word on the command line)
    out: Path,
    config: PolygonConfig | None = None,
    dstl_grid: Path | None = None,
) -> PolygonSummary:
    """Write every region of one class of a class map as a polygon with its figures, and say how many there are.

    The format goes by the suffix of `out`: see `polygonfile`. Fields: class, value, area_m2 and perimeter_m;
    mean_probability and uncertain_share where MAP.probabilities.tif lies beside the map. Without a CRS it is area_px
    and perimeter_px, and all settings count in pixels. Areas and perimeters are of the outlines as they are written;
    probabilities of the region's pixels in the map. Nodata is never part of a polygon. Of two classes, the first is
    left out unless asked for; so is value 0 in a map that does not state its classes. Of a map of overlapping classes,
    which has a band for each, the regions of every class are found by themselves: polygons lie over each other.
    `dstl_grid` is DSTL's grid_sizes.csv, for its submission format.

    Steps, in this order: regions, holes filled, small ones left out, simplified, smoothed, squared, measured.

    A job that was killed goes on where it stopped when it is called again. Memory does not depend on the map's height:
    one row of blocks' finished outlines, and the outlines that cross from one row of blocks to the next.

    Raises:
        InputError: when `map` cannot be read or is no class map, or what a killed job left is of something else.
        SettingError: when settings contradict each other.
        OutputError: when `out` exists, has an unknown suffix, or cannot be written.
    """
    settings = config or PolygonConfig()
    _check_settings(settings)
    folder = out.with_name(f".{out.name}.part")
    if not is_complete(folder):
        refuse_existing(out)
    with ExitStack() as files:
        image = files.enter_context(Image.open(map))
        if not has_band_a_class(image.info):
            check_class_map(image.info)
        target = Target(out, image.info.grid, map.stem, dstl_grid, _changed(map))
        check_target(target)
        finding = _finding(image, settings, files)
        ledger = PolygonLedger(folder, _origin(finding, settings), image.info.grid.height * finding.layers)
        with keeping(folder, lambda: _held(ledger)):
            _find(finding, settings, ledger, out.name)
            result = Result(ledger, finding, settings)
            summary = PolygonSummary(out, result.unit, result.classes(), result.left_out(), tuple(result.notes()))
            write_into(folder, target, result.batches())
    ledger.remove()
    return summary


def _finding(image: Image, settings: PolygonConfig, files: ExitStack) -> Finding:
    """Return what polygons are made from: the map, its classes, and their probabilities where there are any."""
    legend, path = map_legend(image.info), beside(image.info.path, "probabilities")
    if not path.exists():
        return Finding(image, legend, settings, None)
    names = dict(zip(legend.values, legend.names, strict=True)) if legend else {}
    likely = files.enter_context(Image.open(path))
    return Finding(image, legend, settings, fitting(likely, image.info.grid, names, settings.uncertain_below))


def _find(finding: Finding, settings: PolygonConfig, ledger: PolygonLedger, name: str) -> None:
    """Add the rows of blocks that the ledger does not hold yet, and note that all are there."""
    mpx = finding.image.info.grid.width / 1e6
    with meter(f"polygons {name}", ledger.rows * mpx, "Mpx") as bar:
        bar.advance(ledger.rows_done * mpx)
        for layer in range(finding.layers):
            source = class_map(finding, layer, lambda window: bar.advance(window.height * window.width / 1e6))
            _find_layer(source, Outlines(finding.image.info.grid, settings), ledger, layer * source.height)
    ledger.finish()


def _find_layer(source: Source, outlines: Outlines, ledger: PolygonLedger, before: int) -> None:
    """Add what is missing of one layer; `before` are the rows of all layers before it."""
    if ledger.rows_done >= before + source.height:
        return
    # Nothing is open where a layer ends.
    seams = outlines.seams(ledger.state() if ledger.rows_done > before else None)
    for row in source.rows(start_row=ledger.rows_done - before):
        ended, open_below = outlines.of_row(source, seams, row), seams.state()
        # Rows without anything are done again sooner than noted.
        if len(ended["value"]) or ended["left_out"] or len(open_below["roots"]) or row.stop_row == source.height:
            ledger.add(before + row.stop_row, ended, open_below)


def _check_settings(settings: PolygonConfig) -> None:
    if settings.smooth and settings.square:
        raise SettingError("--smooth rounds corners and --square makes right angles. Give one of them.")


def _origin(finding: Finding, settings: PolygonConfig) -> dict[str, Any]:
    """Return everything that decides what the polygons are."""
    info = finding.image.info
    files = {"map": raster_state(info.path) | {"metadata": json_digest(info.tags)}}
    if finding.probabilities:
        files["probabilities"] = raster_state(finding.probabilities.image.info.path)
    return {"settings": asdict(settings), **files}


def _changed(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _held(ledger: PolygonLedger) -> str:
    """Return how many rows of the map are done, in words; nothing before the first."""
    return f"{ledger.rows_done} of {ledger.rows} rows are" if ledger.rows_done else ""
