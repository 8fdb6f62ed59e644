"""Whether the test was fair: the audit of the split in words, a table and a figure."""

import math
from dataclasses import dataclass, field

import numpy as np

from geograft.commands.audit import Audit, draw, length, unlike
from geograft.commands.report.numbers import DASH, NBSP, percent
from geograft.commands.report.tables import Cell, Table
from geograft.commands.report.text import SPLIT_NAMES, capital
from geograft.commands.report.view import Shown, data_uri
from geograft.dataset.autocorrelation import Variogram
from geograft.dataset.leakage import Held


@dataclass
class Fairness:
    """What the page shows of the audit."""

    verdict: str
    leaks: bool
    words: list[str] = field(default_factory=list)
    table: Table | None = None
    figure: Shown | None = None


def fairness(found: Audit) -> Fairness:
    """Return what an audit found, for the page; the figure where it knows how far the ground resembles itself."""
    figure = None
    if found.likeness is not None and any(np.isfinite(one.distances).any() for one in found.held):
        figure = Shown(
            data_uri(draw(found), "image/png"),
            "How unlike two pixels are by their distance, over the distances of held-out tiles to the nearest training "
            f"tile. {' '.join(reach_in_words(found))}",
        )
    words = [*reach_in_words(found), *(f"{capital(note)}." for note in found.notes)]
    # Of a number and its sign neither stands alone at the end of a line.
    verdict = found.verdict.replace(" %", f"{NBSP}%")
    return Fairness(verdict, found.leaks, words, _table(found) if found.held else None, figure)


def reach_in_words(found: Audit) -> list[str]:
    """Return how far image and labels resemble themselves, a sentence each; nothing where that is not known."""
    if found.likeness is None:
        return []
    parts = (
        ("The image resembles itself", found.likeness.image),
        ("The labels resemble themselves", found.likeness.labels),
    )
    told = [f"{what} {so_far}." for what, one in parts if (so_far := _so_far(found, one))]
    if told:
        told.append("A tile that lies nearer to training than that is an easier test than new ground.")
    return told


def unlike_in_words(found: Audit) -> str:
    """Return which classes have another share in a held-out part than in training; nothing where none has."""
    return " ".join(unlike(found.balance, found.classes))


def _so_far(found: Audit, one: Variogram) -> str:
    if one.model is None:
        return ""
    if one.resolved:
        return f"over {length(found.pixel * one.range, found.unit)}"
    return f"over more than {length(found.pixel * float(one.lag[-1]), found.unit)}, the longest distance looked at"


def _table(found: Audit) -> Table:
    reach = found.reach
    columns = ["part", "tiles", "pixels also in training", "nearest training tile", "half of the tiles within"]
    if reach:
        columns.append(f"nearer than {length(reach.distance, found.unit)}")
    rows = tuple(_row(found, held) for held in found.held)
    return Table("Distance to the ground that trains", tuple(columns), rows)


def _row(found: Audit, held: Held) -> tuple[Cell, ...]:
    least, half = math.inf, math.inf
    if len(held.distances):
        least, half = (float(np.quantile(held.distances, share, method="lower")) for share in (0, 0.5))
    texts = [
        SPLIT_NAMES[held.split],
        f"{held.overlap.tiles:,}",
        percent(max(held.overlap.pixel_share, held.seen_elsewhere)),
        *(length(one, found.unit) if math.isfinite(one) else DASH for one in (least, half)),
    ]
    if found.reach:
        texts.append(percent(held.nearer(found.reach.distance)))
    return tuple(Cell(text) for text in texts)
