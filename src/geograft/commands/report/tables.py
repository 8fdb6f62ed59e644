"""The tables and bars of a report, as text for the template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from geograft.commands.audit import Audit
from geograft.commands.report.intervals import (
    format_estimate_interval,
    format_signed,
    interval_of,
    reported_difference,
    reported_iou,
    score_tables_of,
)
from geograft.commands.report.scores import (
    AreaFile,
    BoundaryScore,
    BoundaryScores,
    Interval,
    IntervalEstimate,
    ObjectScores,
    Score,
    ScoreTable,
)
from geograft.commands.report.sources import NetworkRuns, Subject, finite_values
from geograft.commands.report.text import (
    DASH,
    NBSP,
    SPLIT_NAMES,
    format_duration,
    format_mean_std,
    format_number,
    format_percent,
    format_percent_range,
)
from geograft.figures.style import DARK, LIGHT, line_colour
from geograft.legend import Legend
from geograft.text import pluralise

HECTARE, MIN_AREA_IN_HECTARES = 10_000.0, 10_000.0
"""In square metres: one hectare, and the total area from which areas are given in hectares."""


class TableCell(NamedTuple):
    """A cell of a table: its text, and a confidence interval in small print below it."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text; the first cell of a row is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


@dataclass(frozen=True)
class Bar:
    """A stacked bar: its heading, a note, and its parts as (name, colour, fraction, percentage as text)."""

    name: str
    note: str
    parts: tuple[tuple[str, str, float, str], ...]


@dataclass(frozen=True)
class NetworkRow:
    """One row of the comparison."""

    name: str
    colour: str
    colour_dark: str
    is_best: bool
    cells: tuple[tuple[str, str, str], ...]
    """(heading, text, small print)."""
    seed_ious: tuple[float, ...]
    """Validation IoU of every seed."""
    made_map: bool = False
    """Whether the map on the page is by this network."""


def network_rows(subject: Subject) -> list[NetworkRow]:
    """Return the rows of the comparison, with a column for every score file that any run has."""
    names = dict.fromkeys(table.name for variant in subject.variants for run in variant.runs for table in run.scores)
    extra = [name for name in names if name not in ("val", "train")]
    best = subject.leader
    return [
        NetworkRow(
            variant.name,
            line_colour(LIGHT, index),
            line_colour(DARK, index),
            variant is best,
            (
                *_cells(subject, variant, extra),
                *_difference_to_best(subject, variant, extra),
                ("training time", format_duration(variant.mean("seconds")), ""),
            ),
            tuple(variant.ious("val")),
        )
        for index, variant in enumerate(subject.variants)
    ]


def score_tables(table: ScoreTable) -> list[Table]:
    """Return the tables of a score file: by class, place and scene, overall, confusion matrix, boundaries, objects."""
    by_class = _scores("By class", "class", table.per_class)
    tables = [
        Table(by_class.caption, by_class.columns, (*by_class.rows, *_means(table))),
        _places(table),
        _overall(table),
        _confusion(table),
        *([_boundaries(table.boundary, table.scheme.binary)] if table.boundary else []),
        *([_objects(table.objects)] if table.objects else []),
        _scores("By scene", "scene", table.per_scene if len(table.per_scene) > 1 else ()),
    ]
    return [each for each in tables if each.rows]


def _confusion(table: ScoreTable) -> Table:
    """Return the confusion matrix in percent of the labelled pixels; for overlapping classes, one row per class."""
    counts = np.array(table.confusion, np.int64)
    total = np.maximum(counts.sum(axis=(-2, -1), keepdims=True), 1)
    caption, columns = "Confusion matrix in % of pixels: label (rows), map (columns)", table.classes
    if table.scheme.overlapping:
        counts = counts[:, [1, 1, 0, 0], [1, 0, 1, 0]]
        total = total[:, 0]
        caption = "Confusion matrix of each class in % of pixels"
        columns = ("true positive", "false negative", "false positive", "true negative")
    rows = zip(table.classes, (counts / total).tolist(), strict=True)
    return Table(
        caption,
        ("", *columns),
        tuple((TableCell(name), *(TableCell(format_percent(fraction)) for fraction in row)) for name, row in rows),
    )


def area_table(file: AreaFile) -> Table:
    """Return the mapped area, the area estimated from reference points, and the accuracies of each class."""
    total = sum(one.mapped_area for one in file.classes)
    unit, scale = ("ha", HECTARE) if file.unit == "m2" and total >= MIN_AREA_IN_HECTARES else (file.unit, 1.0)
    unit = unit.replace("m2", "m²")

    def area(value: float) -> str:
        return f"{value / scale:,.1f}"

    rows = tuple(
        (
            TableCell(one.name),
            TableCell(area(one.mapped_area)),
            TableCell(DASH if one.area.estimate is None else area(one.area.estimate), _bounds(one.area, area)),
            TableCell(format_percent(one.producers_accuracy.estimate), _bounds(one.producers_accuracy, format_percent)),
            TableCell(format_percent(one.users_accuracy.estimate), _bounds(one.users_accuracy, format_percent)),
        )
        for one in file.classes
    )
    caption = f"{pluralise(file.labelled, 'reference point')} on {file.map}"
    columns = ("class", f"mapped area, {unit}", f"estimated area, {unit}", "producer’s accuracy", "user’s accuracy")
    return Table(caption, columns, rows)


def class_bars(audit: Audit, legend: Legend) -> list[Bar]:
    """Return the class proportions of each split as bars; overlapping classes have a bar each."""
    bars = []
    for split, fractions in audit.class_fractions.items():
        classes = zip(legend.names, legend.colours, fractions, strict=True) if fractions else ()
        parts = tuple((name, colour, fraction, format_percent(fraction)) for name, colour, fraction in classes)
        groups = [(part,) for part in parts] if legend.overlapping else [parts] if parts else []
        bars += [Bar(SPLIT_NAMES[split], pluralise(audit.tiles[split], "tile"), group) for group in groups]
    return bars


def _cells(subject: Subject, variant: NetworkRuns, extra: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    rows = variant.rows
    epochs = ", ".join(str(row.best_epoch) for row in rows)
    return (
        ("parameters", f"{rows[0].parameters:,}", f"{rows[0].trainable:,} trainable"),
        ("lowest validation loss", format_mean_std([row.best_val_loss for row in rows], 3), f"epoch {epochs}"),
        ("gap to training loss", format_mean_std([row.gap for row in rows], 3), ""),
        ("validation IoU", format_mean_std(variant.ious("val")), ""),
        *(
            (
                _iou_heading(subject, name),
                format_mean_std(variant.ious(name)),
                format_estimate_interval(interval_of(reported_iou(subject, variant, name))),
            )
            for name in extra
            if not (name == "test" and subject.folds and subject.folds.places)
        ),
        *_place_cells(subject, variant),
    )


def _iou_heading(subject: Subject, name: str) -> str:
    """Return the heading of the IoU in score files of a name, with where their tiles are, if that is one for all."""
    tables = [table for variant in subject.variants for table in score_tables_of(variant, name)]
    (where, *others) = dict.fromkeys(table.where for table in tables) or ("",)
    return f"{name} IoU, {where}" if where and not others else f"{name} IoU"


def _place_cells(subject: Subject, variant: NetworkRuns) -> list[tuple[str, str, str]]:
    """Return the test IoU elsewhere and in place; empty if the test tiles of all networks are in one of them."""
    if subject.folds and subject.folds.places:
        here = subject.folds.in_place_scores(variant.name)
        elsewhere = reported_iou(subject, variant, "test")
        known = [("in place", here.overall.get("iou"), here.overall_intervals.get("iou"))] if here else []
        cells = [("elsewhere", elsewhere.value, interval_of(elsewhere)), *known]
        return [(f"IoU {name}", format_number(iou), format_estimate_interval(ends)) for name, iou, ends in cells]
    parts = [table.places.parts for table in score_tables_of(variant, "test")]
    if not parts or any(len(each) < 2 for each in parts):
        return []
    return [
        (
            f"test IoU, {where}",
            format_mean_std(finite_values([each[where].overall.get("iou") for each in parts])),
            format_estimate_interval(parts[0][where].overall_intervals.get("iou")) if len(parts) == 1 else "",
        )
        for where in parts[0]
    ]


def _difference_to_best(subject: Subject, variant: NetworkRuns, extra: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the test IoU of a network minus that of the best one; empty if it is unknown for all networks."""
    others = [other for other in subject.variants if other is not subject.leader]
    if "test" not in extra or not any(reported_difference(subject, other, subject.leader, "test") for other in others):
        return []
    difference = None if variant is subject.leader else reported_difference(subject, variant, subject.leader, "test")
    text = DASH if difference is None else ("+" if difference.value >= 0.005 else "") + format_signed(difference.value)
    return [("test IoU, difference to best", text, format_estimate_interval(interval_of(difference)))]


def _scores(caption: str, kind: str, scores: Sequence[Score]) -> Table:
    rows = tuple(
        (TableCell(one.name), _number(one.iou, one.intervals.get("iou")), *_f1_cells(one), TableCell(f"{one.pixels:,}"))
        for one in scores
    )
    return Table(caption, (kind, "IoU", "F1", "recall", "precision", "labelled pixels"), rows)


def _f1_cells(score: Score | BoundaryScore | ObjectScores) -> tuple[TableCell, TableCell, TableCell]:
    """Return the cells of F1, recall and precision."""
    ends = score.intervals
    recall, precision = _percent(score.recall, ends.get("recall")), _percent(score.precision, ends.get("precision"))
    return _number(score.f1, ends.get("f1")), recall, precision


def _number(value: float | None, ends: Interval) -> TableCell:
    return TableCell(format_number(value), format_estimate_interval(ends))


def _percent(value: float | None, ends: Interval) -> TableCell:
    return TableCell(format_percent(value), format_percent_range(ends))


def _means(table: ScoreTable) -> list[tuple[TableCell, ...]]:
    """Return the rows of the mean and the area-weighted mean over the classes, if the score file has them."""
    values, ends = table.overall, table.overall_intervals
    return [
        (
            TableCell(name),
            *(_number(values.get(f"{kind}_{s}"), ends.get(f"{kind}_{s}")) for s in ("iou", "f1")),
            *(_percent(values.get(f"{kind}_{s}"), ends.get(f"{kind}_{s}")) for s in ("recall", "precision")),
            TableCell(""),
        )
        for kind, name in (("macro", "mean over classes"), ("weighted", "mean weighted by area"))
        if f"{kind}_iou" in values
    ]


def _places(table: ScoreTable) -> Table:
    """Return the scores in place and elsewhere, and by place if there are several; empty if all tiles are in one."""
    parts = list(table.places.parts.items())
    each = [(f"{one.place}, {one.where}", one) for one in table.places.per_place]
    shown = parts + each if len({one.place for _, one in each}) > 1 else parts if len(parts) > 1 else []
    rows = tuple(
        (
            TableCell(name),
            *(_number(one.overall.get(score), one.overall_intervals.get(score)) for score in ("iou", "f1")),
            TableCell(f"{one.tiles:,}"),
        )
        for name, one in shown
    )
    return Table("By place", ("place", "IoU", "F1", "tiles"), rows)


def _overall(table: ScoreTable) -> Table:
    values, ends = table.overall, table.overall_intervals
    name = "accuracy over pixels and classes" if table.scheme.overlapping else "overall accuracy"
    accuracy = (TableCell(name), _percent(values.get("accuracy"), ends.get("accuracy")))
    kappa = (TableCell("Cohen’s kappa"), _number(values.get("kappa"), ends.get("kappa")))
    return Table("All classes", ("", "value"), (accuracy, kappa) if "kappa" in values else ())


def _boundaries(scores: BoundaryScores, binary: bool) -> Table:
    caption = f"Boundaries, tolerance {scores.tolerance_m:g}{NBSP}m"
    # Both classes of a binary legend have the same boundaries, except next to unlabelled pixels.
    shown = scores.per_class[1:] if binary else scores.per_class
    rows = tuple((TableCell(one.name), *_f1_cells(one)) for one in shown)
    return Table(caption, ("class", "F1", "recall", "precision"), rows)


def _objects(scores: ObjectScores) -> Table:
    counts = (TableCell(f"{count:,}") for count in (scores.labelled, scores.mapped, scores.matched))
    row = (TableCell(scores.name), *counts, *_f1_cells(scores))
    columns = ("class", "labelled", "mapped", "matched", "F1", "recall", "precision")
    return Table("Objects, matched at an IoU above 0.5", columns, (row,))


def _bounds(one: IntervalEstimate, write: Callable[[float], str]) -> str:
    return "" if one.low is None or one.high is None else f"{write(one.low)} to {write(one.high)}"
