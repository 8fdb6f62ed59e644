"""The leakage section: the audit of the split in sentences, a table and a figure."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from geograft.commands.audit import Audit, audit_figure, imbalance_lines
from geograft.commands.report.sources import TrainedRun
from geograft.commands.report.tables import Table, TableCell
from geograft.commands.report.text import DASH, NBSP, SPLIT_NAMES, capitalize_first, format_percent
from geograft.commands.report.view import PageImage, data_uri
from geograft.dataset.autocorrelation import Variogram
from geograft.dataset.leakage import HeldOutSplit
from geograft.dataset.tileset import TileSet
from geograft.text import format_distance


@dataclass
class LeakageSection:
    """The result of the audit, as shown on the page."""

    verdict: str
    leaks: bool
    sentences: list[str] = field(default_factory=list)
    table: Table | None = None
    figure: PageImage | None = None


def leakage_section(audit: Audit) -> LeakageSection:
    """Return the result of an audit for the page, with the variogram if the audit read images."""
    figure = None
    if audit.autocorrelation is not None and any(np.isfinite(one.distances).any() for one in audit.held_out):
        figure = PageImage(
            data_uri(audit_figure(audit), "image/png"),
            "Variogram of image and labels, above a histogram of the distances from held-out tiles to the nearest "
            f"training tile. {' '.join(autocorrelation_sentences(audit))}",
        )
    words = [*autocorrelation_sentences(audit), *(f"{capitalize_first(note)}." for note in audit.notes)]
    # No line break between a number and its percent sign.
    verdict = audit.conclusion.replace(" %", f"{NBSP}%")
    return LeakageSection(verdict, audit.leaks, words, _table(audit) if audit.held_out else None, figure)


def leaked_fractions(audit: Audit, tiles: TileSet, run: TrainedRun) -> dict[str, float]:
    """Return by split the fraction of its pixels that also lie in training tiles, where it is known exactly.

    It is unknown if a group of scenes is divided between splits, and for test scores from another tile set than the
    run was trained on.
    """
    if audit.divided_groups:
        return {}
    test = run.score("test")
    elsewhere = test is not None and Path(test.tiles).resolve() != tiles.folder.resolve()
    fractions = {held.split: max(held.overlap.pixel_fraction, held.duplicate_fraction) for held in audit.held_out}
    return {split: fraction for split, fraction in fractions.items() if not (split == "test" and elsewhere)}


def autocorrelation_sentences(audit: Audit) -> list[str]:
    """Return the range of spatial autocorrelation of image and labels, in sentences; empty if unknown."""
    if audit.autocorrelation is None:
        return []
    variograms = {"image": audit.autocorrelation.image, "labels": audit.autocorrelation.labels}
    texts = {name: _range_text(audit, variogram) for name, variogram in variograms.items()}
    sentences = [f"Spatial autocorrelation range of the {name}: {text}." for name, text in texts.items() if text]
    if sentences:
        sentences.append("Tiles closer than this to a training tile are easier to map than new areas.")
    return sentences


def imbalance_summary(audit: Audit) -> str:
    """Return which classes differ in proportion between training and a held-out split; empty if none does."""
    return " ".join(imbalance_lines(audit.class_fractions, audit.classes))


def _range_text(audit: Audit, variogram: Variogram) -> str:
    if variogram.model is None:
        return ""
    if variogram.resolved:
        return format_distance(audit.pixel_size * variogram.range, audit.unit)
    longest = format_distance(audit.pixel_size * float(variogram.lag[-1]), audit.unit)
    return f"more than {longest}, the longest distance measured"


def _table(audit: Audit) -> Table:
    reach = audit.autocorrelation_range
    columns = ["split", "tiles", "pixels also in training", "minimum distance", "median distance"]
    if reach:
        columns.append(f"tiles within {format_distance(reach.distance, audit.unit)}")
    rows = tuple(_row(audit, held) for held in audit.held_out)
    return Table("Overlap with training tiles and distance to the nearest one", tuple(columns), rows)


def _row(audit: Audit, held: HeldOutSplit) -> tuple[TableCell, ...]:
    minimum, median = math.inf, math.inf
    if len(held.distances):
        minimum, median = (float(np.quantile(held.distances, q, method="lower")) for q in (0, 0.5))
    texts = [
        SPLIT_NAMES[held.split],
        f"{held.overlap.tiles:,}",
        format_percent(max(held.overlap.pixel_fraction, held.duplicate_fraction)),
        *(format_distance(one, audit.unit) if math.isfinite(one) else DASH for one in (minimum, median)),
    ]
    if audit.autocorrelation_range:
        texts.append(format_percent(held.fraction_within(audit.autocorrelation_range.distance)))
    return tuple(TableCell(text) for text in texts)
