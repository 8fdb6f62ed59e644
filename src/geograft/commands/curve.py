"""`geograft curve`: how good a network is with how many labels, pretrained and from scratch.

What a curve found: figures by network and number of tiles, their differences, tables and files.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.commands.compare import check_variants, slug
from geograft.commands.train import DEFAULT_RECIPE
from geograft.commands.trials import (
    MIN_STEPS,
    PERCENTS,
    CurveJob,
    ScoredRun,
    SubsetSize,
    read_scored_run,
    repeats,
    subset_sizes,
    train_and_score,
    variants_of,
)
from geograft.config import Recipe
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import InputError, SettingError
from geograft.figures.curves import LearningCurve, ScoreSeries, learning_curve_figure
from geograft.figures.style import DARK, LIGHT, ImageFormat, Theme
from geograft.files import atomic_write, write_json, write_text
from geograft.geo.coverage import tile_overlap
from geograft.mapping.scoring import BootstrapEstimator, MetricFunction, Metrics
from geograft.metrics.intervals import LEVEL, few_units_warning
from geograft.metrics.scores import nanmean, overall_scores
from geograft.progress import announce
from geograft.text import format_table, pluralise

CONTENT = "curve.json"
TABLE = "curve.csv"
PICTURES: dict[str, tuple[Theme, ImageFormat]] = {
    "curve.png": (LIGHT, "png"),
    "curve.svg": (LIGHT, "svg"),
    "curve-dark.svg": (DARK, "svg"),
}
SCORES = ("iou", "f1")


@dataclass(frozen=True)
class CurvePoint:
    """All seeds of one network on one number of tiles."""

    variant: str
    size: SubsetSize
    runs: tuple[ScoredRun, ...]

    @cached_property
    def measure(self) -> BootstrapEstimator:
        """Counts (u, seeds, ...), and the mean over the seeds of the scores that are taken of them."""
        counts = np.stack([point.confusion for point in self.runs], axis=1)
        return BootstrapEstimator(counts, partial(seed_means, overall=self.runs[0].counting.overall))

    @cached_property
    def figures(self) -> Metrics:
        """Means over the seeds with their intervals over the units."""
        return self.measure.estimate()

    @property
    def area_fraction(self) -> float:
        """Share of the ground of all training tiles that these hold, mean over the seeds."""
        return float(np.mean([point.area_fraction for point in self.runs]))

    def by_seed(self, score: str) -> list[float]:
        """Return a score of every seed; NaN where it does not exist."""
        return [float(point.counting.overall(point.confusion.sum(axis=0))[score]) for point in self.runs]


@dataclass(frozen=True)
class Curve:
    """Scores over the number of training tiles."""

    folder: Path
    title: str
    tiles: Path
    split: Split
    classes: tuple[str, ...]
    runs: tuple[ScoredRun, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def points(self) -> tuple[CurvePoint, ...]:
        """The points with their seeds together: by network in the recipe's order, then by number of tiles."""
        grouped: dict[tuple[str, SubsetSize], list[ScoredRun]] = {}
        for point in self.runs:
            grouped.setdefault((point.job.variant, point.job.size), []).append(point)
        return tuple(CurvePoint(variant, size, tuple(points)) for (variant, size), points in grouped.items())

    @property
    def by_variant(self) -> dict[str, list[CurvePoint]]:
        """The spots of each network."""
        names = dict.fromkeys(spot.variant for spot in self.points)
        return {name: [spot for spot in self.points if spot.variant == name] for name in names}

    @cached_property
    def differences(self) -> dict[str, list[Metrics]]:
        """The first network less each other one, by its name, at every number of tiles, with paired intervals."""
        (_, first), *others = self.by_variant.items()
        return {
            name: [one.measure.difference(other.measure) for one, other in zip(first, spots, strict=True)]
            for name, spots in others
        }

    @property
    def score(self) -> str:
        """What is shown, in words."""
        return f"IoU of {self.classes[1]}" if self.runs[0].counting.binary else "mean IoU"

    def lines(self) -> list[str]:
        """Return what the command line prints: each network by number of tiles, how much better the first is, notes."""
        names = list(self.by_variant)
        columns = [[spot.figures["iou"].format() for spot in spots] for spots in self.by_variant.values()]
        tables = [
            format_table([("tiles", "share", "of the ground", *_two_column_headers(names)), *self._rows(columns)])
        ]
        if self.differences:
            headers = _two_column_headers([f"{names[0]} - {name}" for name in self.differences])
            better = [[figures["iou"].format("+.3f") for figures in found] for found in self.differences.values()]
            tables.append(format_table([("tiles", "share", "of the ground", *headers), *self._rows(better)]))
        seeds = len(self.points[0].runs)
        units = self.runs[0]
        words = f"{self.score} on the {self.split} part, mean of {pluralise(seeds, 'seed')}"
        warning = " ".join(filter(None, (few_units_warning(len(units.units)), units.caveat)))
        return [
            f"{words}. In brackets: 95 % interval over {units.words}. {warning}".strip(),
            *(line for lines in tables for line in lines),
            *self.savings(),
            *(f"Note: {note}" for note in self.notes),
            f"curve: {self.folder}",
        ]

    def savings(self) -> list[str]:
        """Return with how many tiles the first network is where each other one is with all of its."""
        (name, spots), *others = self.by_variant.items()
        found = []
        for other, theirs in others:
            aim = theirs[-1].figures["iou"].value
            enough = [spot for spot in spots if spot.figures["iou"].value >= aim]
            if enough and theirs[-1].size.percent == 100 and enough[0].size.percent < 100:
                mine = f"{name} with {enough[0].area_fraction:.1%} of the labelled ground reaches {_iou(enough[0])}"
                found.append(f"{mine}; {other} with all of it {_iou(theirs[-1])}.")
        return found

    def content(self) -> dict[str, Any]:
        """Return what curve.json holds: JSON, null where a figure does not exist."""
        units = self.runs[0]
        names = list(self.by_variant)
        return {
            "title": self.title,
            "tiles": str(self.tiles),
            "split": self.split,
            "classes": list(self.classes),
            "interval": {
                "level": LEVEL,
                "units": len(units.units),
                "words": units.words,
                "warning": " ".join(filter(None, (few_units_warning(len(units.units)), units.caveat))),
            },
            "points": [
                {"variant": spot.variant, **_head(spot), **_values(spot.figures), "seeds": _seeds(spot)}
                for spot in self.points
            ],
            "differences": [
                {"first": names[0], "second": name, **_size(spot.size), **_values(figures)}
                for name, found in self.differences.items()
                for spot, figures in zip(self.by_variant[name], found, strict=True)
            ],
            "notes": list(self.notes),
        }

    def write(self) -> None:
        """Write tables and pictures into the curve's folder, each whole or not at all."""
        text = io.StringIO()
        rows = [_row(spot) for spot in self.points]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / TABLE, text.getvalue())
        for name, (look, form) in PICTURES.items():
            with atomic_write(self.folder / name) as part:
                part.write_bytes(learning_curve_figure(self.plot_lines(), self.score, look, form))
        write_json(self.folder / CONTENT, self.content())

    def plot_lines(self) -> list[LearningCurve]:
        """Return what the figure shows."""
        return [
            LearningCurve(
                name,
                np.array([spot.size.tiles for spot in spots]),
                ScoreSeries(*(_column(spots, end) for end in ("value", "low", "high"))),
                np.array([spot.by_seed("iou") for spot in spots]),
            )
            for name, spots in self.by_variant.items()
        ]

    def _rows(self, columns: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, ...]]:
        spots = next(iter(self.by_variant.values()))
        heads = [(f"{spot.size.tiles:,}", f"{spot.size.percent:g} %", f"{spot.area_fraction:.1%}") for spot in spots]
        return [(*head, *(cell for column in columns for cell in column[row])) for row, head in enumerate(heads)]


def seed_means(counts: ndarray, overall: MetricFunction = overall_scores) -> dict[str, ndarray]:
    """Return the mean over the seeds of the scores that `overall` takes of counts (n, seeds, ...)."""
    found = overall(counts)
    return {name: nanmean(found[name]) for name in SCORES}


def _head(spot: CurvePoint) -> dict[str, Any]:
    return {**_size(spot.size), "ground": round(spot.area_fraction, 6), "steps": spot.runs[0].steps}


def _size(size: SubsetSize) -> dict[str, Any]:
    return {"share": size.percent, "tiles": size.tiles}


def _values(figures: Metrics) -> dict[str, Any]:
    return {
        key: value
        for name, figure in figures.items()
        for key, value in ((name, figure.json_value), (f"{name}_interval", figure.interval))
    }


def _seeds(spot: CurvePoint) -> list[dict[str, Any]]:
    columns = {name: spot.by_seed(name) for name in SCORES}
    return [
        {"seed": point.job.seed, "run": point.job.run, "epoch": point.epoch}
        | {name: None if np.isnan(values[index]) else values[index] for name, values in columns.items()}
        for index, point in enumerate(spot.runs)
    ]


def _row(spot: CurvePoint) -> dict[str, Any]:
    row = {"variant": spot.variant, **_head(spot), "seeds": len(spot.runs)}
    for name, figure in spot.figures.items():
        known = [value for value in spot.by_seed(name) if not np.isnan(value)]
        row |= {name: figure.json_value, f"{name}_low": None, f"{name}_high": None}
        if figure.interval:
            row |= {f"{name}_low": figure.low, f"{name}_high": figure.high}
        row |= {f"{name}_least_seed": min(known, default=None), f"{name}_best_seed": max(known, default=None)}
    return row


def _column(spots: Sequence[CurvePoint], end: str) -> ndarray:
    return np.array([getattr(spot.figures["iou"], end) for spot in spots])


def _two_column_headers(names: Sequence[str]) -> list[str]:
    """Return names as headers of two columns each."""
    return [cell for name in names for cell in (name, "")]


def _iou(spot: CurvePoint) -> str:
    return f"{spot.figures['iou'].value:.3f}"


MAX_OVERLAP = 1.05
"""Tiles in which a pixel lies, in the mean, from where a share of tiles is far from that share of the labels."""


def curve(
    tiles: Path,
    out: Path,
    recipe: Recipe = DEFAULT_RECIPE,
    percent: Sequence[float] = PERCENTS,
    min_steps: int = MIN_STEPS,
) -> Curve:
    """Train on ever more of the training tiles, and return how good each network is on the same ground; writes `out`.

    `percent` are percentages of the training tiles. Every seed of the recipe draws subsets of its own, the smaller inside the larger, and every
    variant trains on the same ones; without variants, the recipe's network pretrained and from scratch. All are scored
    on the whole test part, or on val where there is none. Points with few tiles take as many steps as that with all,
    or `min_steps` where that is fewer. Takes variants x shares x seeds trainings. Given again after a stop, it goes
    on: finished points stay, an unfinished one is resumed.

    Raises:
        SettingError: for shares that give no tile, variants of one name, or points in `out` of other settings.
        InputError, WeightsError, OutputError: as `train` does.
    """
    whole = TileSet.open(tiles)
    named = replace(recipe, variants=variants_of(recipe))
    check_variants(named)
    if not recipe.seeds or min_steps < 0:
        raise SettingError(f"{len(recipe.seeds)} seeds, --min-steps {min_steps}: give a seed, and 0 steps or more.")
    jobs = _jobs(whole, named, percent, min_steps)
    done = {job.run: read_scored_run(job, whole, out) for job in jobs}
    points = []
    for number, job in enumerate(jobs, start=1):
        found = done[job.run]
        if found is None:
            where = f"{job.variant}, {job.size.tiles:,} tiles, seed {job.seed}"
            announce(f"{number} of {len(jobs)}: {where}")
            found = train_and_score(job, whole, out)
        points.append(found)
    # Small numbers of tiles are computed first, for a curve that can be looked at early.
    order = [variant.name for variant in named.variants]
    points.sort(key=lambda point: (order.index(point.job.variant), point.job.size.tiles))
    split = _scored_split(whole)
    result = Curve(
        out, recipe.title, tiles.resolve(), split, whole.meta.legend.names, tuple(points), _notes(whole, named)
    )
    result.write()
    return result


def _jobs(whole: TileSet, recipe: Recipe, shares: Sequence[float], least_steps: int) -> list[CurveJob]:
    total = len(whole.split("train"))
    if not total or not whole.split("val"):
        raise InputError(f"{whole.folder} has no train or no val tiles. Prepare it again with other shares.")
    jobs = []
    for size in subset_sizes(shares, total):
        for seed in dict.fromkeys(recipe.seeds):
            for variant in recipe.variants:
                own = recipe.variant(variant, seed)
                often = repeats(size.tiles, total, own.train, least_steps)
                run = f"{slug(variant.name)}/share{size.percent:g}/seed{seed}"
                repeated = replace(own.with_settings(train={"repeat": often}), variants=())
                jobs.append(CurveJob(variant.name, size, repeated, _scored_split(whole), run))
    return jobs


def _scored_split(whole: TileSet) -> Split:
    return "test" if whole.split("test") else "val"


def _notes(whole: TileSet, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if _scored_split(whole) == "val":
        notes.append("there is no test part, and val also chose each run's epoch: all figures flatter a little.")
    if len(set(recipe.seeds)) == 1:
        notes.append("one seed: which few tiles are drawn is chance. Give --seeds 0 1 2 or more.")
    held = tile_overlap([(tile.scene, tile.window) for tile in whole.split("train")], ())
    again = held.pixels / held.unique_pixels
    if again > MAX_OVERLAP:
        notes.append(
            f"training tiles overlap, each pixel lies in {again:.1f} of them in the mean: few tiles hold more of the "
            "ground than their share says. Labels are counted by the ground."
        )
    return tuple(notes)
