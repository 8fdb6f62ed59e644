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
    LEAST_STEPS,
    SHARES,
    Job,
    Point,
    Size,
    computed,
    finished,
    repeats,
    sizes,
    variants_of,
)
from geograft.config import Recipe
from geograft.dataset.tileset import Split, TileSet
from geograft.errors import InputError, SettingError
from geograft.figures.curves import Line, Values, efficiency_figure
from geograft.figures.style import DARK, LIGHT, Form, Look
from geograft.files import replacing, write_json, write_text
from geograft.geo.coverage import overlap
from geograft.mapping.scoring import Figures, Measure, Named
from geograft.metrics.intervals import LEVEL, caveat
from geograft.metrics.scores import overall_scores, present_mean
from geograft.progress import announce
from geograft.text import counted, table

CONTENT = "curve.json"
TABLE = "curve.csv"
PICTURES: dict[str, tuple[Look, Form]] = {
    "curve.png": (LIGHT, "png"),
    "curve.svg": (LIGHT, "svg"),
    "curve-dark.svg": (DARK, "svg"),
}
SCORES = ("iou", "f1")


@dataclass(frozen=True)
class Spot:
    """All seeds of one network on one number of tiles."""

    variant: str
    size: Size
    points: tuple[Point, ...]

    @cached_property
    def measure(self) -> Measure:
        """Counts (u, seeds, ...), and the mean over the seeds of the scores that are taken of them."""
        counts = np.stack([point.confusion for point in self.points], axis=1)
        return Measure(counts, partial(seed_means, overall=self.points[0].counting.overall))

    @cached_property
    def figures(self) -> Figures:
        """Means over the seeds with their intervals over the units."""
        return self.measure.figures()

    @property
    def ground(self) -> float:
        """Share of the ground of all training tiles that these hold, mean over the seeds."""
        return float(np.mean([point.ground for point in self.points]))

    def by_seed(self, score: str) -> list[float]:
        """Return a score of every seed; NaN where it does not exist."""
        return [float(point.counting.overall(point.confusion.sum(axis=0))[score]) for point in self.points]


@dataclass(frozen=True)
class Curve:
    """Scores over the number of training tiles."""

    folder: Path
    title: str
    tiles: Path
    split: Split
    classes: tuple[str, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """The points with their seeds together: by network in the recipe's order, then by number of tiles."""
        grouped: dict[tuple[str, Size], list[Point]] = {}
        for point in self.points:
            grouped.setdefault((point.job.variant, point.job.size), []).append(point)
        return tuple(Spot(variant, size, tuple(points)) for (variant, size), points in grouped.items())

    @property
    def by_variant(self) -> dict[str, list[Spot]]:
        """The spots of each network."""
        names = dict.fromkeys(spot.variant for spot in self.spots)
        return {name: [spot for spot in self.spots if spot.variant == name] for name in names}

    @cached_property
    def differences(self) -> dict[str, list[Figures]]:
        """The first network less each other one, by its name, at every number of tiles, with paired intervals."""
        (_, first), *others = self.by_variant.items()
        return {
            name: [one.measure.less(other.measure) for one, other in zip(first, spots, strict=True)]
            for name, spots in others
        }

    @property
    def score(self) -> str:
        """What is shown, in words."""
        return f"IoU of {self.classes[1]}" if self.points[0].counting.binary else "mean IoU"

    def lines(self) -> list[str]:
        """Return what the command line prints: each network by number of tiles, how much better the first is, notes."""
        names = list(self.by_variant)
        columns = [[spot.figures["iou"].words() for spot in spots] for spots in self.by_variant.values()]
        tables = [table([("tiles", "share", "of the ground", *_spread(names)), *self._rows(columns)])]
        if self.differences:
            headers = _spread([f"{names[0]} - {name}" for name in self.differences])
            better = [[figures["iou"].words("+.3f") for figures in found] for found in self.differences.values()]
            tables.append(table([("tiles", "share", "of the ground", *headers), *self._rows(better)]))
        seeds = len(self.spots[0].points)
        units = self.points[0]
        words = f"{self.score} on the {self.split} part, mean of {counted(seeds, 'seed')}"
        warning = " ".join(filter(None, (caveat(len(units.units)), units.caveat)))
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
            if enough and theirs[-1].size.share == 100 and enough[0].size.share < 100:
                mine = f"{name} with {enough[0].ground:.1%} of the labelled ground reaches {_iou(enough[0])}"
                found.append(f"{mine}; {other} with all of it {_iou(theirs[-1])}.")
        return found

    def content(self) -> dict[str, Any]:
        """Return what curve.json holds: JSON, null where a figure does not exist."""
        units = self.points[0]
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
                "warning": " ".join(filter(None, (caveat(len(units.units)), units.caveat))),
            },
            "points": [
                {"variant": spot.variant, **_head(spot), **_values(spot.figures), "seeds": _seeds(spot)}
                for spot in self.spots
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
        rows = [_row(spot) for spot in self.spots]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder / TABLE, text.getvalue())
        for name, (look, form) in PICTURES.items():
            with replacing(self.folder / name) as part:
                part.write_bytes(efficiency_figure(self.drawn(), self.score, look, form))
        write_json(self.folder / CONTENT, self.content())

    def drawn(self) -> list[Line]:
        """Return what the figure shows."""
        return [
            Line(
                name,
                np.array([spot.size.tiles for spot in spots]),
                Values(*(_column(spots, end) for end in ("value", "low", "high"))),
                np.array([spot.by_seed("iou") for spot in spots]),
            )
            for name, spots in self.by_variant.items()
        ]

    def _rows(self, columns: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, ...]]:
        spots = next(iter(self.by_variant.values()))
        heads = [(f"{spot.size.tiles:,}", f"{spot.size.share:g} %", f"{spot.ground:.1%}") for spot in spots]
        return [(*head, *(cell for column in columns for cell in column[row])) for row, head in enumerate(heads)]


def seed_means(counts: ndarray, overall: Named = overall_scores) -> dict[str, ndarray]:
    """Return the mean over the seeds of the scores that `overall` takes of counts (n, seeds, ...)."""
    found = overall(counts)
    return {name: present_mean(found[name]) for name in SCORES}


def _head(spot: Spot) -> dict[str, Any]:
    return {**_size(spot.size), "ground": round(spot.ground, 6), "steps": spot.points[0].steps}


def _size(size: Size) -> dict[str, Any]:
    return {"share": size.share, "tiles": size.tiles}


def _values(figures: Figures) -> dict[str, Any]:
    return {
        key: value
        for name, figure in figures.items()
        for key, value in ((name, figure.plain), (f"{name}_interval", figure.ends))
    }


def _seeds(spot: Spot) -> list[dict[str, Any]]:
    columns = {name: spot.by_seed(name) for name in SCORES}
    return [
        {"seed": point.job.seed, "run": point.job.run, "epoch": point.epoch}
        | {name: None if np.isnan(values[index]) else values[index] for name, values in columns.items()}
        for index, point in enumerate(spot.points)
    ]


def _row(spot: Spot) -> dict[str, Any]:
    row = {"variant": spot.variant, **_head(spot), "seeds": len(spot.points)}
    for name, figure in spot.figures.items():
        known = [value for value in spot.by_seed(name) if not np.isnan(value)]
        row |= {name: figure.plain, f"{name}_low": None, f"{name}_high": None}
        if figure.ends:
            row |= {f"{name}_low": figure.low, f"{name}_high": figure.high}
        row |= {f"{name}_least_seed": min(known, default=None), f"{name}_best_seed": max(known, default=None)}
    return row


def _column(spots: Sequence[Spot], end: str) -> ndarray:
    return np.array([getattr(spot.figures["iou"], end) for spot in spots])


def _spread(names: Sequence[str]) -> list[str]:
    """Return names as headers of two columns each."""
    return [cell for name in names for cell in (name, "")]


def _iou(spot: Spot) -> str:
    return f"{spot.figures['iou'].value:.3f}"


MUCH_OVERLAP = 1.05
"""Tiles in which a pixel lies, in the mean, from where a share of tiles is far from that share of the labels."""


def curve(
    tiles: Path,
    out: Path,
    recipe: Recipe = DEFAULT_RECIPE,
    shares: Sequence[float] = SHARES,
    least_steps: int = LEAST_STEPS,
) -> Curve:
    """Train on ever more of the training tiles, and return how good each network is on the same ground; writes `out`.

    `shares` are percent. Every seed of the recipe draws subsets of its own, the smaller inside the larger, and every
    variant trains on the same ones; without variants, the recipe's network pretrained and from scratch. All are scored
    on the whole test part, or on val where there is none. Points with few tiles take as many steps as that with all,
    or `least_steps` where that is fewer. Takes variants x shares x seeds trainings. Given again after a stop, it goes
    on: finished points stay, an unfinished one is resumed.

    Raises:
        SettingError: for shares that give no tile, variants of one name, or points in `out` of other settings.
        InputError, WeightsError, OutputError: as `train` does.
    """
    whole = TileSet.open(tiles)
    named = replace(recipe, variants=variants_of(recipe))
    check_variants(named)
    if not recipe.seeds or least_steps < 0:
        raise SettingError(f"{len(recipe.seeds)} seeds, --least-steps {least_steps}: give a seed, and 0 steps or more.")
    jobs = _jobs(whole, named, shares, least_steps)
    done = {job.run: finished(job, whole, out) for job in jobs}
    points = []
    for number, job in enumerate(jobs, start=1):
        found = done[job.run]
        if found is None:
            where = f"{job.variant}, {job.size.tiles:,} tiles, seed {job.seed}"
            announce(f"{number} of {len(jobs)}: {where}")
            found = computed(job, whole, out)
        points.append(found)
    # Small numbers of tiles are computed first, for a curve that can be looked at early.
    order = [variant.name for variant in named.variants]
    points.sort(key=lambda point: (order.index(point.job.variant), point.job.size.tiles))
    split = _scored(whole)
    result = Curve(
        out, recipe.title, tiles.resolve(), split, whole.meta.legend.names, tuple(points), _notes(whole, named)
    )
    result.write()
    return result


def _jobs(whole: TileSet, recipe: Recipe, shares: Sequence[float], least_steps: int) -> list[Job]:
    total = len(whole.split("train"))
    if not total or not whole.split("val"):
        raise InputError(f"{whole.folder} has no train or no val tiles. Prepare it again with other shares.")
    jobs = []
    for size in sizes(shares, total):
        for seed in dict.fromkeys(recipe.seeds):
            for variant in recipe.variants:
                own = recipe.variant(variant, seed)
                often = repeats(size.tiles, total, own.train, least_steps)
                run = f"{slug(variant.name)}/share{size.share:g}/seed{seed}"
                repeated = replace(own.changed(train={"repeat": often}), variants=())
                jobs.append(Job(variant.name, size, repeated, _scored(whole), run))
    return jobs


def _scored(whole: TileSet) -> Split:
    return "test" if whole.split("test") else "val"


def _notes(whole: TileSet, recipe: Recipe) -> tuple[str, ...]:
    notes = []
    if _scored(whole) == "val":
        notes.append("there is no test part, and val also chose each run's epoch: all figures flatter a little.")
    if len(set(recipe.seeds)) == 1:
        notes.append("one seed: which few tiles are drawn is chance. Give --seeds 0 1 2 or more.")
    held = overlap([(tile.scene, tile.window) for tile in whole.split("train")], ())
    again = held.pixels / held.ground
    if again > MUCH_OVERLAP:
        notes.append(
            f"training tiles overlap, each pixel lies in {again:.1f} of them in the mean: few tiles hold more of the "
            "ground than their share says. Labels are counted by the ground."
        )
    return tuple(notes)
