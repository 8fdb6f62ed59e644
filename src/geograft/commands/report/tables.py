"""The tables and bars of a report, ready for the template: everything as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geograft.commands.audit import Audit
from geograft.commands.report.certainty import between, difference_of, ends_of, figure_of, signed
from geograft.commands.report.numbers import DASH, NBSP, duration, fixed, percent, percent_range, with_spread
from geograft.commands.report.scores import AreaFile, Edges, EdgeScore, Ends, Measured, Objects, Score, ScoreTable
from geograft.commands.report.sources import Subject, Variant
from geograft.commands.report.text import SPLIT_NAMES
from geograft.figures.style import DARK, LIGHT, line_colour
from geograft.legend import Legend
from geograft.text import counted

HECTARE, LEAST_IN_HECTARES = 10_000.0, 10_000.0
"""Square metres; areas from so many on are written in hectares."""


class Cell(NamedTuple):
    """A cell of a table: its text, and small print under it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text: one heading a column; the first cell of a row is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Bar:
    """A stacked bar: its heading, what it counts, and its parts as (name, colour, share, share as text)."""

    name: str
    note: str
    parts: tuple[tuple[str, str, float, str], ...]


@dataclass(frozen=True)
class Network:
    """One row of the comparison."""

    name: str
    colour: str
    colour_dark: str
    leads: bool
    cells: tuple[tuple[str, str, str], ...]
    """(heading, text, small print)."""
    dots: tuple[float, ...]
    """Validation IoU of every seed."""


def networks(subject: Subject) -> list[Network]:
    """Return the comparison's table; a column for every kind of scores that any run has."""
    names = dict.fromkeys(table.name for variant in subject.variants for run in variant.runs for table in run.scores)
    extra = [name for name in names if name not in ("val", "train")]
    leader = subject.leader
    return [
        Network(
            variant.name,
            line_colour(LIGHT, index),
            line_colour(DARK, index),
            variant is leader,
            (
                *_cells(subject, variant, extra),
                *_leads(subject, variant, extra),
                ("time", duration(variant.mean("seconds")), ""),
            ),
            tuple(variant.values("val")),
        )
        for index, variant in enumerate(subject.variants)
    ]


def score_tables(table: ScoreTable) -> list[Table]:
    """Return the tables of one kind of scores: by class, over all, what was taken for what, edges, objects, scenes."""
    by_class = _scores("By class", "class", table.per_class)
    tables = [
        Table(by_class.caption, by_class.columns, (*by_class.rows, *_means(table))),
        _over_all(table),
        _taken_for(table),
        *([_edges(table.boundary, table.counting.binary)] if table.boundary else []),
        *([_objects(table.objects)] if table.objects else []),
        _scores("By scene", "scene", table.per_scene if len(table.per_scene) > 1 else ()),
    ]
    return [made for made in tables if made.rows]


def _taken_for(table: ScoreTable) -> Table:
    """Return what was taken for what, in shares of all labelled pixels; of overlapping classes, each by itself."""
    counts = np.array(table.confusion, np.int64)
    total = np.maximum(counts.sum(axis=(-2, -1), keepdims=True), 1)
    caption, columns = "Labelled as (rows), mapped as (columns)", table.classes
    if table.counting.overlapping:
        counts = counts[:, [1, 1, 0, 0], [1, 0, 1, 0]]
        total = total[:, 0]
        caption, columns = "Each class by itself", ("found", "missed", "invented", "in neither")
    rows = zip(table.classes, (counts / total).tolist(), strict=True)
    return Table(
        caption, ("", *columns), tuple((Cell(name), *(Cell(percent(share)) for share in row)) for name, row in rows)
    )


def area_table(found: AreaFile) -> Table:
    """Return what the map shows of each class, and what a labelled sample of its pixels says there is."""
    total = sum(one.mapped_area for one in found.classes)
    unit, scale = ("ha", HECTARE) if found.unit == "m2" and total >= LEAST_IN_HECTARES else (found.unit, 1.0)
    unit = unit.replace("m2", "m²")

    def area(value: float) -> str:
        return f"{value / scale:,.1f}"

    rows = tuple(
        (
            Cell(one.name),
            Cell(area(one.mapped_area)),
            Cell(DASH if one.area.estimate is None else area(one.area.estimate), _around(one.area, area)),
            Cell(percent(one.producers_accuracy.estimate), _around(one.producers_accuracy, percent)),
            Cell(percent(one.users_accuracy.estimate), _around(one.users_accuracy, percent)),
        )
        for one in found.classes
    )
    caption = f"{counted(found.labelled, 'labelled point')} of {found.map}"
    return Table(caption, ("class", f"mapped, {unit}", f"there is, {unit}", "found", "right"), rows)


def class_bars(found: Audit, legend: Legend) -> list[Bar]:
    """Return by split how the labelled ground is shared out among the classes; overlapping ones have a bar each."""
    bars = []
    for split, shares in found.balance.items():
        each = zip(legend.names, legend.colours, shares, strict=True) if shares else ()
        parts = tuple((name, colour, share, percent(share)) for name, colour, share in each)
        groups = [(part,) for part in parts] if legend.overlapping else [parts] if parts else []
        bars += [Bar(SPLIT_NAMES[split], counted(found.tiles[split], "tile"), group) for group in groups]
    return bars


def _cells(subject: Subject, variant: Variant, extra: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    rows = variant.rows
    epochs = ", ".join(str(row.best_epoch) for row in rows)
    return (
        ("parameters", f"{rows[0].parameters:,}", f"{rows[0].trainable:,} trained"),
        ("best validation loss", with_spread([row.best_val_loss for row in rows], 3), f"epoch {epochs}"),
        ("gap to training loss", with_spread([row.gap for row in rows], 3), ""),
        ("validation IoU", with_spread(variant.values("val")), ""),
        *(
            (f"{name} IoU", with_spread(variant.values(name)), between(ends_of(figure_of(subject, variant, name))))
            for name in extra
        ),
    )


def _leads(subject: Subject, variant: Variant, extra: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return how far a network is behind the leader on the test tiles, where that is on file for any."""
    others = [other for other in subject.variants if other is not subject.leader]
    if "test" not in extra or not any(difference_of(subject, other, subject.leader, "test") for other in others):
        return []
    found = None if variant is subject.leader else difference_of(subject, variant, subject.leader, "test")
    text = DASH if found is None else ("+" if found.value >= 0.005 else "") + signed(found.value)
    return [("test IoU, less the best’s", text, between(ends_of(found)))]


def _scores(caption: str, kind: str, scores: Sequence[Score]) -> Table:
    rows = tuple(
        (Cell(one.name), _number(one.iou, one.intervals.get("iou")), *_rated(one), Cell(f"{one.pixels:,}"))
        for one in scores
    )
    return Table(caption, (kind, "IoU", "F1", "found", "right", "labelled pixels"), rows)


def _rated(one: Score | EdgeScore | Objects) -> tuple[Cell, Cell, Cell]:
    """Return F1, what is found and what is right."""
    ends = one.intervals
    found, right = _share(one.recall, ends.get("recall")), _share(one.precision, ends.get("precision"))
    return _number(one.f1, ends.get("f1")), found, right


def _number(value: float | None, ends: Ends) -> Cell:
    return Cell(fixed(value), between(ends))


def _share(value: float | None, ends: Ends) -> Cell:
    return Cell(percent(value), percent_range(ends))


def _means(table: ScoreTable) -> list[tuple[Cell, ...]]:
    """Return the rows under the classes: their mean, and their mean by area. None where they are not on file."""
    values, ends = table.overall, table.overall_intervals
    return [
        (
            Cell(name),
            *(_number(values.get(f"{kind}_{s}"), ends.get(f"{kind}_{s}")) for s in ("iou", "f1")),
            *(_share(values.get(f"{kind}_{s}"), ends.get(f"{kind}_{s}")) for s in ("recall", "precision")),
            Cell(""),
        )
        for kind, name in (("macro", "mean of the classes"), ("weighted", "mean by labelled area"))
        if f"{kind}_iou" in values
    ]


def _over_all(table: ScoreTable) -> Table:
    values, ends = table.overall, table.overall_intervals
    what = "answers, one a pixel and class," if table.counting.overlapping else "pixels"
    accuracy = (Cell(f"{what} that are right"), _share(values.get("accuracy"), ends.get("accuracy")))
    kappa = (Cell("kappa"), _number(values.get("kappa"), ends.get("kappa")))
    return Table("All classes together", ("", "value"), (accuracy, kappa) if "kappa" in values else ())


def _edges(edges: Edges, binary: bool) -> Table:
    caption = f"Edges, right within {edges.tolerance_m:g}{NBSP}m"
    # Of two classes the edges are the same, but for those at unlabelled ground.
    shown = edges.per_class[1:] if binary else edges.per_class
    rows = tuple((Cell(one.name), *_rated(one)) for one in shown)
    return Table(caption, ("class", "F1", "found", "right"), rows)


def _objects(found: Objects) -> Table:
    counts = (Cell(f"{count:,}") for count in (found.labelled, found.mapped, found.matched))
    row = (Cell(found.name), *counts, *_rated(found))
    columns = ("class", "labelled", "mapped", "matched", "F1", "found", "right")
    return Table("Objects, matched where they share more than half", columns, (row,))


def _around(one: Measured, write: Callable[[float], str]) -> str:
    return "" if one.low is None or one.high is None else f"{write(one.low)} to {write(one.high)}"
