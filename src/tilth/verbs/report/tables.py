"""The tables and bars of a report, ready for the template: everything as text."""

from collections.abc import Sequence
from dataclasses import dataclass

from tilth.figures.colours import DARK, LIGHT, line_colour
from tilth.legend import Legend
from tilth.verbs.audit import Audit
from tilth.verbs.report.numbers import duration, fixed, percent, plural, with_spread
from tilth.verbs.report.sources import Score, ScoreTable, Subject, Variant
from tilth.verbs.report.text import SPLIT_NAMES


@dataclass(frozen=True)
class Table:
    """A table of text: one heading a column; the first cell of a row is the row's heading."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


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
            _cells(variant, extra),
            tuple(variant.values("val")),
        )
        for index, variant in enumerate(subject.variants)
    ]


def score_tables(table: ScoreTable) -> list[Table]:
    """Return the tables of one kind of scores: by class, what was taken for what, and by scene."""
    total = max(sum(map(sum, table.confusion)), 1)
    tables = [
        _scores("By class", "class", table.per_class),
        Table(
            "Labelled as (rows), mapped as (columns)",
            ("", *table.classes),
            tuple(
                (name, *(percent(pixels / total) for pixels in row))
                for name, row in zip(table.classes, table.confusion, strict=True)
            ),
        ),
        _scores("By scene", "scene", table.per_scene if len(table.per_scene) > 1 else ()),
    ]
    return [made for made in tables if made.rows]


def class_bars(found: Audit, legend: Legend) -> list[Bar]:
    """Return by split how the labelled ground is shared out among the classes."""
    return [
        Bar(
            SPLIT_NAMES[split],
            plural(found.tiles[split], "tile"),
            tuple(
                (name, colour, share, percent(share))
                for name, colour, share in zip(legend.names, legend.colours, shares, strict=True)
            ),
        )
        for split, shares in found.balance.items()
        if shares
    ]


def _cells(variant: Variant, extra: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    rows = variant.rows
    epochs = ", ".join(str(row.best_epoch) for row in rows)
    return (
        ("parameters", f"{rows[0].parameters:,}", f"{rows[0].trainable:,} trained"),
        ("best validation loss", with_spread([row.best_val_loss for row in rows], 3), f"epoch {epochs}"),
        ("gap to training loss", with_spread([row.gap for row in rows], 3), ""),
        ("validation IoU", with_spread(variant.values("val")), ""),
        *((f"{name} IoU", with_spread(variant.values(name)), "") for name in extra),
        ("time", duration(variant.mean("seconds")), ""),
    )


def _scores(caption: str, kind: str, scores: Sequence[Score]) -> Table:
    rows = tuple(
        (s.name, fixed(s.iou), fixed(s.f1), percent(s.recall), percent(s.precision), f"{s.pixels:,}") for s in scores
    )
    return Table(caption, (kind, "IoU", "F1", "found", "right", "labelled pixels"), rows)
