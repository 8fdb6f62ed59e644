"""Polygons with class, area and certainty from a class map of any size."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geograft.config import PolygonConfig
from geograft.errors import SettingError
from geograft.files import json_digest, refuse_existing
from geograft.geo.polygons.polygonfile import Target, check_target, write_into
from geograft.geo.polygons.polygonledger import PolygonLedger
from geograft.geo.polygons.regions import Source
from geograft.geo.polygons.zonal import fitting
from geograft.geo.rasters.maptags import beside, check_class_map, has_band_a_class, map_legend
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.state import raster_state
from geograft.making import is_complete, keeping
from geograft.progress import meter
from geograft.verbs.polygons.finding import Finding, class_map
from geograft.verbs.polygons.making import Outlines
from geograft.verbs.polygons.result import ClassTotal, Result

__all__ = ["ClassTotal", "PolygonSummary", "polygons"]


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
