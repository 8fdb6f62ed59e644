"""`geograft curve`: plot a learning curve, the score of one or more networks against the number of training tiles."""

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
from geograft.commands.train import DEFAULT_RECIPE, check_trainings
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
from geograft.files import StrPath, write_bytes, write_json, write_text
from geograft.geo.coverage import tile_overlap
from geograft.locks import lock_output
from geograft.mapping.scoring import BootstrapEstimator, MetricFunction, Metrics
from geograft.metrics.confusion import nanmean, overall_scores
from geograft.metrics.intervals import LEVEL, few_units_warning
from geograft.progress import announce
from geograft.text import format_table, pluralise
from geograft.training.distributed import rank_of

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
    """All seeds of one network at one number of training tiles."""

    variant: str
    size: SubsetSize
    runs: tuple[ScoredRun, ...]

    @cached_property
    def measure(self) -> BootstrapEstimator:
        """Estimator of the mean score over the seeds, from counts (u, seeds, ...)."""
        counts = np.stack([run.confusion for run in self.runs], axis=1)
        return BootstrapEstimator(counts, partial(seed_means, overall=self.runs[0].scheme.overall))

    @cached_property
    def figures(self) -> Metrics:
        """Mean metrics over the seeds, with confidence intervals over the units."""
        return self.measure.estimate()

    @property
    def area_fraction(self) -> float:
        """Fraction of the area of all training tiles that these tiles cover, mean over the seeds."""
        return float(np.mean([run.area_fraction for run in self.runs]))

    def by_seed(self, score: str) -> list[float]:
        """Return the score of each seed; NaN if undefined."""
        return [float(run.scheme.overall(run.confusion.sum(axis=0))[score]) for run in self.runs]


@dataclass(frozen=True)
class Curve:
    """Result of `curve`: scores against the number of training tiles."""

    folder: Path
    title: str
    tiles: Path
    split: Split
    classes: tuple[str, ...]
    runs: tuple[ScoredRun, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def points(self) -> tuple[CurvePoint, ...]:
        """The runs grouped over seeds: by network in the recipe's order, then by number of tiles."""
        grouped: dict[tuple[str, SubsetSize], list[ScoredRun]] = {}
        for run in self.runs:
            grouped.setdefault((run.job.variant, run.job.size), []).append(run)
        return tuple(CurvePoint(variant, size, tuple(runs)) for (variant, size), runs in grouped.items())

    @property
    def by_variant(self) -> dict[str, list[CurvePoint]]:
        """The points of each network."""
        names = dict.fromkeys(point.variant for point in self.points)
        return {name: [point for point in self.points if point.variant == name] for name in names}

    @cached_property
    def differences(self) -> dict[str, list[Metrics]]:
        """Paired differences of the first network and each other one, by its name, at each number of tiles."""
        (_, first), *others = self.by_variant.items()
        return {
            name: [one.measure.difference(other.measure) for one, other in zip(first, points, strict=True)]
            for name, points in others
        }

    @property
    def score(self) -> str:
        """Name of the plotted score."""
        return f"IoU of {self.classes[1]}" if self.runs[0].scheme.binary else "mean IoU"

    def lines(self) -> list[str]:
        """Return the lines to print: scores by number of tiles, differences between networks, notes."""
        names = list(self.by_variant)
        columns = [[point.figures["iou"].format() for point in points] for points in self.by_variant.values()]
        tables = [
            format_table([("tiles", "per cent", "of the area", *_two_column_headers(names)), *self._rows(columns)])
        ]
        if self.differences:
            headers = _two_column_headers([f"{names[0]} - {name}" for name in self.differences])
            better = [[figures["iou"].format("+.3f") for figures in found] for found in self.differences.values()]
            tables.append(format_table([("tiles", "per cent", "of the area", *headers), *self._rows(better)]))
        seeds = len(self.points[0].runs)
        units = self.runs[0]
        words = f"{self.score} on the {self.split} split, mean of {pluralise(seeds, 'seed')}"
        warning = " ".join(filter(None, (few_units_warning(len(units.units)), units.caveat)))
        return [
            f"{words}. In brackets: 95 % confidence interval over {units.words}. {warning}".strip(),
            *(line for lines in tables for line in lines),
            *self.savings(),
            *(f"Note: {note}" for note in self.notes),
            f"curve: {self.folder}",
        ]

    def savings(self) -> list[str]:
        """Return, for each other network, how few labels the first one needs to reach its score on all labels."""
        (name, points), *others = self.by_variant.items()
        found = []
        for other, theirs in others:
            aim = theirs[-1].figures["iou"].value
            enough = [point for point in points if point.figures["iou"].value >= aim]
            if enough and theirs[-1].size.percent == 100 and enough[0].size.percent < 100:
                mine = f"{name} with {enough[0].area_fraction:.1%} of the labelled area reaches {_iou(enough[0])}"
                found.append(f"{mine}; {other} with all of it {_iou(theirs[-1])}.")
        return found

    def content(self) -> dict[str, Any]:
        """Return the content of curve.json, with null for undefined scores."""
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
                {"variant": point.variant, **_head(point), **_values(point.figures), "seeds": _seeds(point)}
                for point in self.points
            ],
            "differences": [
                {"first": names[0], "second": name, **_size(point.size), **_values(figures)}
                for name, found in self.differences.items()
                for point, figures in zip(self.by_variant[name], found, strict=True)
            ],
            "notes": list(self.notes),
        }

    def write(self) -> None:
        """Write curve.csv, the figures and curve.json into the folder, each atomically."""
        text = io.StringIO()
        rows = [_row(point) for point in self.points]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / TABLE, text.getvalue())
        for name, (theme, image_format) in PICTURES.items():
            write_bytes(self.folder / name, self.figure(theme, image_format))
        write_json(self.folder / CONTENT, self.content())

    def figure(self, theme: Theme, image_format: ImageFormat) -> bytes:
        """Return the figure of the scores, and of the paired differences if there are several networks."""
        return learning_curve_figure(self.plot_lines(), self.score, theme, image_format, self.difference_lines())

    def difference_lines(self) -> list[LearningCurve]:
        """Return the paired differences of the first network and each other one, as lines of the figure."""
        first, *others = self.plot_lines()
        ends = ("value", "low", "high")
        return [
            replace(
                other,
                values=ScoreSeries(*(np.array([getattr(each["iou"], end) for each in found]) for end in ends)),
                seeds=first.seeds - other.seeds,
            )
            for other, found in zip(others, self.differences.values(), strict=True)
        ]

    def plot_lines(self) -> list[LearningCurve]:
        """Return the lines of the figure."""
        return [
            LearningCurve(
                name,
                np.array([point.size.tiles for point in points]),
                ScoreSeries(*(_column(points, end) for end in ("value", "low", "high"))),
                np.array([point.by_seed("iou") for point in points]),
            )
            for name, points in self.by_variant.items()
        ]

    def _rows(self, columns: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, ...]]:
        points = next(iter(self.by_variant.values()))
        heads = [
            (f"{point.size.tiles:,}", f"{point.size.percent:g} %", f"{point.area_fraction:.1%}") for point in points
        ]
        return [(*head, *(cell for column in columns for cell in column[row])) for row, head in enumerate(heads)]


def seed_means(counts: ndarray, overall: MetricFunction = overall_scores) -> dict[str, ndarray]:
    """Return the means over the seeds of the scores of `overall`, from counts (n, seeds, ...)."""
    scores = overall(counts)
    return {name: nanmean(scores[name]) for name in SCORES}


def _head(point: CurvePoint) -> dict[str, Any]:
    return {**_size(point.size), "area_fraction": round(point.area_fraction, 6), "steps": point.runs[0].steps}


def _size(size: SubsetSize) -> dict[str, Any]:
    return {"percent": size.percent, "tiles": size.tiles}


def _values(figures: Metrics) -> dict[str, Any]:
    return {
        key: value
        for name, figure in figures.items()
        for key, value in ((name, figure.json_value), (f"{name}_interval", figure.interval))
    }


def _seeds(point: CurvePoint) -> list[dict[str, Any]]:
    columns = {name: point.by_seed(name) for name in SCORES}
    return [
        {"seed": run.job.seed, "run": run.job.run, "epoch": run.epoch}
        | {name: None if np.isnan(values[index]) else values[index] for name, values in columns.items()}
        for index, run in enumerate(point.runs)
    ]


def _row(point: CurvePoint) -> dict[str, Any]:
    row = {"variant": point.variant, **_head(point), "seeds": len(point.runs)}
    for name, figure in point.figures.items():
        known = [value for value in point.by_seed(name) if not np.isnan(value)]
        row |= {name: figure.json_value, f"{name}_low": None, f"{name}_high": None}
        if figure.interval:
            row |= {f"{name}_low": figure.low, f"{name}_high": figure.high}
        row |= {f"{name}_lowest_seed": min(known, default=None), f"{name}_highest_seed": max(known, default=None)}
    return row


def _column(points: Sequence[CurvePoint], end: str) -> ndarray:
    return np.array([getattr(point.figures["iou"], end) for point in points])


def _two_column_headers(names: Sequence[str]) -> list[str]:
    """Return table headers for `names`, each over two columns."""
    return [cell for name in names for cell in (name, "")]


def _iou(point: CurvePoint) -> str:
    return f"{point.figures['iou'].value:.3f}"


MAX_OVERLAP = 1.05
"""Mean number of tiles per pixel above which a fraction of the tiles differs much from that fraction of the labels."""


def curve(
    tiles: StrPath,
    out: StrPath,
    recipe: Recipe = DEFAULT_RECIPE,
    percent: Sequence[float] = PERCENTS,
    min_steps: int = MIN_STEPS,
) -> Curve:
    """Train on increasing numbers of training tiles, score the networks on the same tiles, and write `out`.

    `percent` are percentages of the training tiles. Each seed of the recipe draws its own nested subsets, on which all
    variants train; without variants, the recipe's network is trained with pretrained weights and from scratch. All runs
    are scored on the whole test split, or on val if test is empty. Runs with few tiles repeat them, to take as many
    steps as the run with all tiles, or `min_steps` if that is fewer. Trains one network per variant, percentage and
    seed. Resumable: finished runs are kept, and an interrupted one is resumed.

    Raises:
        SettingError: for percentages that give no tile, variants with the same name, or runs in `out` with other
            settings.
        InputError, WeightsError, OutputError: as in `train`.
    """
    out = Path(out)
    tile_set = TileSet.open(tiles)
    tile_set.check_masks()
    recipe = replace(recipe, variants=variants_of(recipe))
    check_variants(recipe)
    if not recipe.seeds or min_steps < 0:
        raise SettingError(
            f"{len(recipe.seeds)} seeds, --min-steps {min_steps}: give at least one seed, and 0 or more steps."
        )
    jobs = _jobs(tile_set, recipe, percent, min_steps)
    check_trainings(tile_set, (recipe.variant(variant, recipe.seeds[0]) for variant in recipe.variants))
    # Of the processes that torchrun or Slurm started, rank 0 holds the lock for all.
    with lock_output(out, enabled=rank_of(recipe.train) == 0):
        learning_curve = _curve(tile_set, out, recipe, jobs)
        learning_curve.write()
    return learning_curve


def _curve(tile_set: TileSet, out: Path, recipe: Recipe, jobs: Sequence[CurveJob]) -> Curve:
    done = {job.run: read_scored_run(job, tile_set, out) for job in jobs}
    runs = []
    for number, job in enumerate(jobs, start=1):
        result = done[job.run]
        if result is None:
            where = f"{job.variant}, {job.size.tiles:,} tiles, seed {job.seed}"
            announce(f"{number} of {len(jobs)}: {where}")
            result = train_and_score(job, tile_set, out)
        runs.append(result)
    # Jobs run by number of tiles, so that the start of the curve is available early.
    order = [variant.name for variant in recipe.variants]
    runs.sort(key=lambda run: (order.index(run.job.variant), run.job.size.tiles))
    split = _scored_split(tile_set)
    notes = _notes(tile_set, recipe)
    whole = tile_set.folder.resolve()
    return Curve(out, recipe.title, whole, split, tile_set.meta.legend.names, tuple(runs), notes)


def _jobs(tile_set: TileSet, recipe: Recipe, percents: Sequence[float], min_steps: int) -> list[CurveJob]:
    total = len(tile_set.split("train"))
    if not total or not tile_set.split("val"):
        raise InputError(
            f"{tile_set.folder} has no train or no val tiles. Prepare it again with other --val and --test fractions."
        )
    jobs = []
    for size in subset_sizes(percents, total):
        for seed in dict.fromkeys(recipe.seeds):
            for variant in recipe.variants:
                own = recipe.variant(variant, seed)
                repeat = repeats(size.tiles, total, own.train, min_steps)
                run = f"{slug(variant.name)}/percent{size.percent:g}/seed{seed}"
                repeated = replace(own.with_settings(train={"repeat": repeat}), variants=())
                jobs.append(CurveJob(variant.name, size, repeated, _scored_split(tile_set), run))
    return jobs


def _scored_split(tile_set: TileSet) -> Split:
    return "test" if tile_set.split("test") else "val"


def _notes(tile_set: TileSet, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if _scored_split(tile_set) == "val":
        notes.append("no test split: val also chose each run's epoch, so the scores are slightly optimistic.")
    if len(set(recipe.seeds)) == 1:
        notes.append("one seed: the choice of few tiles is random. Give --seeds 0 1 2 or more.")
    overlap = tile_overlap([(tile.scene, tile.window) for tile in tile_set.split("train")], ())
    tiles_per_pixel = overlap.pixels / overlap.unique_pixels
    if tiles_per_pixel > MAX_OVERLAP:
        notes.append(
            f"training tiles overlap (each pixel lies in {tiles_per_pixel:.1f} of them on average), so a fraction of "
            "the tiles covers a larger fraction of the area. Amounts of labels are given by area."
        )
    return tuple(notes)
