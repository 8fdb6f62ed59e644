"""`geograft polygons`: polygonize a class map of any size, with class, area and mean probability of each polygon."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from geograft.config import PolygonConfig
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, json_digest, optional_path, refuse_existing, scratch_path
from geograft.geo.measure import measurement_method
from geograft.geo.rasters.opening import raster_state, remote_state
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import check_class_map
from geograft.geo.vectors.reader import Features, read_frame
from geograft.interrupts import note_kept
from geograft.legend import PALETTE
from geograft.locations import Location, Place, to_place
from geograft.mapping.polygons.ledger import LazyArrays, PolygonLedger
from geograft.mapping.polygons.outlines import PolygonBuilder, inside_holes
from geograft.mapping.polygons.regions import BLOCK_PX, ClassMapSource
from geograft.mapping.polygons.shapes import as_array, unpack_wkb
from geograft.mapping.polygons.writer import PolygonTarget, check_target, write_polygon_file
from geograft.mapping.polygons.zonal import ClassMap, class_map_source, open_class_map
from geograft.mapping.unit_ledger import JOB
from geograft.mapping.unit_outputs import INDEX_NAME
from geograft.outputs import local_file, writes_output
from geograft.progress import progress_bar
from geograft.resume import is_complete, keep_ledger_on_error
from geograft.text import html_table

LEDGER_LAYOUT = 3
"""Version of the files of partial results: those of another version cannot be resumed."""
BATCH_SIZE = 10_000
"""Number of polygons written at a time."""


@dataclass
class ClassTotal:
    """Number and total area of the polygons of one class."""

    polygons: int = 0
    area: float = 0.0


@dataclass(frozen=True)
class PolygonResult:
    """The polygons in a ledger, without those in filled holes; can be iterated more than once."""

    ledger: PolygonLedger
    class_map: ClassMap
    settings: PolygonConfig

    @property
    def unit(self) -> str:
        """The unit of areas."""
        return "m2" if self.class_map.image.info.grid.crs else "px"

    def batches(self) -> Iterator[Features]:
        """Yield batches of polygons in pixels with their columns; the first is empty and defines the fields."""
        yield self._features(
            as_array([]), {name: np.zeros(0) for name in ("value", "area", "perimeter")}, np.zeros((0, 3))
        )
        for row, part in self.ledger.parts():
            kept = np.flatnonzero(self._outside_holes(part, self._layer(row)))
            shapes = unpack_wkb(part["wkb"], part["wkb_ends"])
            columns = {name: part[name] for name in ("value", "area", "perimeter")}
            sums = part["sums"]
            for start in range(0, len(kept), BATCH_SIZE):
                batch = kept[start : start + BATCH_SIZE]
                yield self._features(shapes[batch], {name: side[batch] for name, side in columns.items()}, sums[batch])

    def classes(self) -> dict[str, ClassTotal]:
        """Return the number and area of polygons by class, in the order of first occurrence."""
        found: dict[str, ClassTotal] = {}
        for row, part in self.ledger.parts():
            kept = self._outside_holes(part, self._layer(row))
            for value, area in zip(part["value"][kept].tolist(), part["area"][kept].tolist(), strict=True):
                total = found.setdefault(self.class_map.name(value), ClassTotal())
                total.polygons, total.area = total.polygons + 1, total.area + area
        return found

    def forms(self) -> tuple[int, ...]:
        """Return the numbers of polygons left as they were, squared and made rectangles; empty without `square`."""
        if not self.settings.square:
            return ()
        counts = np.zeros(3, np.int64)
        for row, part in self.ledger.parts():
            counts += np.bincount(part["forms"][self._outside_holes(part, self._layer(row))], minlength=3)
        return tuple(counts.tolist())

    def too_small(self) -> int:
        """Return the number of polygons smaller than the minimum area."""
        return sum(int(part["left_out"]) for _, part in self.ledger.parts())

    def notes(self) -> Iterator[str]:
        """Yield notes on the result, one line each."""
        info = self.class_map.image.info
        yield from _cleaning_notes(self.class_map)
        if not self.class_map.probabilities:
            missing = f"{info.path.stem}.probabilities.tif"
            yield (
                f"{missing} is not next to the map, or the map is not a local file, so mean_probability and "
                "uncertain_fraction are not written. "
                "`geograft predict --probabilities uint8` writes it."
            )
        if not info.grid.crs:
            yield f"{info.path} has no CRS: areas and lengths, also those in the settings, are in pixels."
        elif measurement_method(info.grid) == "geodesic":
            yield "areas and perimeters are measured on the ellipsoid, because the map's CRS is not equal-area."
        if not self.class_map.legend:
            also = "" if self.class_map.background is None else ", and value 0 is background and left out"
            yield f"{info.path} has no class names: classes are named by their values{also}."

    def _features(self, shapes: ndarray, columns: dict[str, ndarray], sums: ndarray) -> Features:
        area, perimeter = ("area_m2", "perimeter_m") if self.unit == "m2" else ("area_px", "perimeter_px")
        values = columns["value"].astype(np.int64)
        names = np.array([self.class_map.name(value) for value in values.tolist()], object)
        fields = {"class": names, "value": values, area: columns["area"], perimeter: columns["perimeter"]}
        if self.class_map.probabilities:
            statistics = self.class_map.probabilities.statistics(sums.astype(np.int64))
            fields["mean_probability"], fields["uncertain_fraction"] = statistics
        return Features(shapes, fields)

    def _layer(self, row: int) -> int:
        return row // self.class_map.image.info.grid.height

    def _outside_holes(self, part: LazyArrays, layer: int) -> Bool[ndarray, " n"]:
        """Return which polygons are not inside a filled hole of their own layer."""
        first: Int64[ndarray, "n 2"] = part["first"]
        kept = np.ones(len(first), bool)
        if self.settings.fill_holes_m2:
            rows = first[:, 1] // BLOCK_PX
            for row in np.unique(rows).tolist():
                here = rows == row
                kept[here] = ~inside_holes(first[here], self._holes(row, layer))
        return kept

    def _holes(self, row: int, layer: int) -> ndarray:
        """Return all filled holes of a layer that intersect a row of blocks."""
        name = f"holes_{row}"
        found = [
            unpack_wkb(part[name], part[f"{name}_ends"])
            for begin, part in self.ledger.parts()
            if self._layer(begin) == layer and name in part.names
        ]
        return np.concatenate([as_array([]), *found])


@dataclass(frozen=True)
class PolygonSummary:
    """The result of `polygons`."""

    path: Place
    unit: str
    """Unit of areas: m2, or px if the map has no CRS."""
    classes: dict[str, ClassTotal]
    """Totals by class name, in the order of first occurrence."""
    too_small: int
    """Number of polygons smaller than the minimum area, which were not written."""
    forms: tuple[int, ...]
    """With `square`, the numbers of polygons that were left as they were, have right angles now, are rectangles now."""
    notes: tuple[str, ...]
    """Notes on the result, one line each."""

    def lines(self) -> list[str]:
        """Return the number and area of polygons, in total and by class, as plain text."""
        count = sum(total.polygons for total in self.classes.values())
        area = sum(total.area for total in self.classes.values())
        notes = [f"Note: {note}" for note in self.notes]
        small = f"; {self.too_small:,} smaller ones left out" if self.too_small else ""
        if not count:
            return [f"{self.path}: no polygons{small}", *notes]
        wide = max(map(len, self.classes))
        if self.forms:
            left, squared, rectangles = (f"{count:,}" for count in self.forms)
            notes.insert(0, f"  {rectangles} are rectangles, {squared} have other right angles, {left} were left.")
        rows = [f"  {name:{wide}} {t.polygons:9,} {t.area:16,.1f} {self.unit}" for name, t in self.classes.items()]
        return [f"{self.path}: {count:,} polygons, {area:,.1f} {self.unit}{small}", *rows, *notes]

    def to_geodataframe(self) -> Any:
        """Return the polygons as a GeoDataFrame with their class, area, perimeter and mean probability."""
        return read_frame(local_file(self.path))

    def plot(self, ax: Any = None) -> Any:
        """Draw the polygons in the colours of their classes; return the matplotlib Axes."""
        from geograft.figures.style import draw_legend, new_axes  # noqa: PLC0415  (imports matplotlib)

        axes, frame = new_axes(ax), self.to_geodataframe()
        colours = dict(zip(self.classes, cycle(PALETTE), strict=False))
        for name, colour in colours.items():
            frame[frame["class"] == name].plot(ax=axes, color=colour, edgecolor="black", linewidth=0.3)
        axes.set(xlabel="", ylabel="", xticks=[], yticks=[])
        draw_legend(axes, colours)
        return axes

    def _repr_html_(self) -> str:
        rows = [(name, f"{one.polygons:,}", f"{one.area:,.1f}") for name, one in self.classes.items()]
        return html_table(str(self.path), [("class", "polygons", f"area in {self.unit}"), *rows], self.notes)


@writes_output
def polygons(
    map: StrPath | Location,  # noqa: A002 (the word on the command line)
    out: StrPath,
    config: PolygonConfig | None = None,
    dstl_grid: StrPath | None = None,
) -> PolygonSummary:
    """Polygonize a class map: write each connected region of one class as a polygon, and return a summary.

    The suffix of `out` selects the format: see `geograft.mapping.polygons.writer`. Fields: class, value, area_m2 and
    perimeter_m; also mean_probability and uncertain_fraction if MAP.probabilities.tif is next to the map. Without a CRS
    the fields are area_px and perimeter_px, and all settings are in pixels. Areas and perimeters are those of the
    written polygons, probabilities those of the region's pixels in the map. Nodata is never part of a polygon.
    In a binary map the first class is background and is not written unless `config.background` is set, nor is value
    0 in a map without class names. `map` may also be the folder of a map by workers. In a map of overlapping
    classes, with a band per class, each class is polygonized by itself, and polygons may overlap. `dstl_grid` is
    DSTL's grid_sizes.csv, for the .csv submission.

    If the map's run has a cleaning chosen by `calibrate` for the objects of its positive class, that is the default of
    `config.min_area_m2`, `fill_holes_m2` and `close_px`; otherwise they are 0.

    Steps, in this order: close gaps, find regions, fill holes, drop small polygons, simplify, smooth, square, measure.

    If a job was killed, the same call resumes it. Memory does not depend on the map's height: it holds the finished
    outlines of one row of blocks, and the outlines that cross from one row of blocks to the next.

    Raises:
        InputError: when `map` cannot be read or is not a class map, or when the partial results belong to another map
            or other settings.
        SettingError: when settings contradict each other.
        OutputError: when `out` exists, has an unknown suffix, or cannot be written.
    """
    map, out, dstl_grid = map_place(map), Path(out), optional_path(dstl_grid)  # noqa: A001
    settings = config or PolygonConfig()
    folder = scratch_path(out)
    if not is_complete(folder):
        refuse_existing(out)
    with ExitStack() as files:
        task = open_task(map, out, settings, dstl_grid, files)
        return task.write(folder, lambda ledger: _find_polygons(task.class_map, ledger, out.name))


def map_place(map: StrPath | Location) -> Place:  # noqa: A002 (the word of `polygons`)
    """Return where a class map is: of a folder of workers, the index of its units."""
    place = to_place(map)
    return place / INDEX_NAME if isinstance(place, Path) and (place / JOB).is_file() else place


@dataclass(frozen=True)
class PolygonTask:
    """A map that is open, and where its polygons go."""

    class_map: ClassMap
    target: PolygonTarget

    @property
    def builder(self) -> PolygonBuilder:
        """Builds the polygons."""
        return PolygonBuilder(self.target.grid, self.class_map.settings)

    def origin(self) -> dict[str, Any]:
        """Return everything that determines the result."""
        files = [raster_state(place) for place in self.class_map.places]
        files[0] |= {"metadata": json_digest(self.class_map.image.info.tags)}
        named = dict(zip(("map", "probabilities"), files, strict=False))
        return {"layout": LEDGER_LAYOUT, "settings": asdict(self.class_map.settings), **named}

    def write(self, folder: Path, find: Callable[[PolygonLedger], None]) -> PolygonSummary:
        """Write the polygons that `find` adds to a ledger in `folder`, which is removed at the end; return a summary.

        Raises:
            InputError: when the ledger belongs to another map or other settings, or the polygons cannot be written.
            OutputError: when the file cannot be written.
        """
        class_map = self.class_map
        ledger = PolygonLedger(folder, self.origin(), self.target.grid.height * class_map.layer_count)
        progress = partial(_progress, ledger)
        with note_kept("the polygons", progress, ledger.remove), keep_ledger_on_error(folder, progress):
            find(ledger)
            result = PolygonResult(ledger, class_map, class_map.settings)
            counts = result.classes(), result.too_small(), result.forms()
            summary = PolygonSummary(self.target.path, result.unit, *counts, tuple(result.notes()))
            target = replace(self.target, colours=class_map.colours(counts[0]))
            try:
                write_polygon_file(folder, target, result.batches())
            except InputError:
                # The polygons themselves cannot be written: the same command would fail again.
                ledger.remove()
                raise
        ledger.remove()
        return summary


def open_task(
    map: Place,  # noqa: A002 (the word of `polygons`)
    out: Path,
    settings: PolygonConfig,
    dstl_grid: Path | None,
    files: ExitStack,
) -> PolygonTask:
    """Return the task of `polygons`, whose rasters are closed with `files`.

    Raises:
        InputError, SettingError, OutputError: as `polygons`, for everything that is known before any work is done.
    """
    if settings.smooth and settings.square:
        raise SettingError("--smooth and --square exclude each other: give one of them.")
    image = files.enter_context(Image.open(map))
    check_class_map(image.info)
    target = PolygonTarget(out, image.info.grid, map.stem, dstl_grid, _modified(map))
    check_target(target)
    PolygonBuilder(image.info.grid, settings).check_tolerance()
    return PolygonTask(open_class_map(image, settings, files), target)


def _cleaning_notes(class_map: ClassMap) -> Iterator[str]:
    """Yield which areas and closing come from the run, or that they are not used."""
    cleaning, settings = class_map.cleaning, class_map.settings
    if not cleaning:
        return
    if class_map.is_of_objects(cleaning):
        yield (
            f"objects of {cleaning.objects}: minimum area {settings.min_area_m2:g}, holes filled below "
            f"{settings.fill_holes_m2:g}, gaps closed by {settings.close_px} px; by default those that `geograft "
            f"calibrate` chose: {cleaning.min_area_m2:g}, {cleaning.fill_holes_m2:g}, {cleaning.close_px} px."
        )
    else:
        yield (
            f"the minimum area, holes and closing that `geograft calibrate` chose for {cleaning.objects} are not used: "
            "the polygons are of several classes."
        )


def _find_polygons(class_map: ClassMap, ledger: PolygonLedger, name: str) -> None:
    """Process the rows of blocks that are not in the ledger yet, and mark the ledger as complete."""
    mpx = class_map.image.info.grid.width / 1e6
    with progress_bar(f"polygons {name}", ledger.rows * mpx, "Mpx", done=ledger.rows_done * mpx) as bar:
        for layer in range(class_map.layer_count):
            source = class_map_source(class_map, layer, lambda window: bar.advance(window.height * window.width / 1e6))
            builder = PolygonBuilder(class_map.image.info.grid, class_map.settings)
            _find_layer(source, builder, ledger, layer * source.height)
    ledger.finish()


def _find_layer(source: ClassMapSource, builder: PolygonBuilder, ledger: PolygonLedger, rows_before: int) -> None:
    """Process the missing rows of one layer; `rows_before` is the number of rows of all layers before it."""
    if ledger.rows_done >= rows_before + source.height:
        return
    # No region is open at the end of a layer.
    merger = builder.merger(ledger.state() if ledger.rows_done > rows_before else None, ledger.row_above)
    for row in source.block_rows(BLOCK_PX, ledger.rows_done - rows_before):
        ended = builder.polygons_of_row(source, merger, row)
        continued, open_below = merger.take_parts(), merger.state()
        # Recomputing an empty row of blocks is cheaper than saving it.
        if len(ended["value"]) or ended["left_out"] or len(open_below["roots"]) or row.stop_row == source.height:
            ledger.add(rows_before + row.stop_row, {**ended, **continued}, open_below)


def _modified(place: Place) -> datetime:
    if isinstance(place, Location):
        return remote_state(place).modified or datetime.fromtimestamp(0, UTC)
    return datetime.fromtimestamp(place.stat().st_mtime, UTC)


def _progress(ledger: PolygonLedger) -> str:
    """Return the progress in words for messages; empty before the first row."""
    return f"{ledger.rows_done} of {ledger.rows} rows are" if ledger.rows_done else ""
