"""`geograft compare`: several configurations and seeds, trained on the same tiles, side by side.

Scores over all folds of a cross-validation: every run on the fold that it did not train on, units side by side.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.card import CARD
from geograft.commands.evaluate import evaluate
from geograft.commands.train import train
from geograft.config import Recipe
from geograft.dataset.folds import write_fold_sets
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import unit_names_over_folds
from geograft.errors import SettingError
from geograft.figures import ExampleTile, examples_figure, loss_figure
from geograft.figures.pictures import stretch, stretch_limits
from geograft.files import atomic_write, write_json, write_text
from geograft.inference.predictor import Predictor
from geograft.mapping.scoring import (
    BootstrapEstimator,
    Confusion,
    Metrics,
    headline_scores,
    json_intervals,
    json_values,
    predict_classes,
)
from geograft.metrics.confusion import ConfusionScheme
from geograft.metrics.intervals import LEVEL, few_units_warning
from geograft.text import format_table
from geograft.training.checkpoint import STATE
from geograft.training.history import read_history
from geograft.training.loader import image_mask

FoldRun = tuple[str, int, int, Path]
"""Variant, fold, seed and run."""


@dataclass(frozen=True)
class CrossValidation:
    """What cross-validation found. The units of all folds are those of the whole ground, each tested once a seed."""

    units: tuple[str, ...]
    counting: ConfusionScheme
    by_unit: Mapping[str, Int64[ndarray, "u ..."]]
    """By variant the pixel counts of every unit, seeds added up."""
    by_fold: Mapping[tuple[str, int, int], Confusion]
    """Pixel counts by variant, fold and seed."""

    @cached_property
    def figures(self) -> dict[str, Metrics]:
        """The figures of every variant over all folds."""
        return {
            name: BootstrapEstimator(counts, self.counting.overall).estimate() for name, counts in self.by_unit.items()
        }

    @cached_property
    def differences(self) -> dict[tuple[str, str], Metrics]:
        """The figures of one variant less those of another, on the same units, for every two variants."""
        measures = {name: BootstrapEstimator(counts, self.counting.overall) for name, counts in self.by_unit.items()}
        return {(one, other): measures[one].difference(measures[other]) for one, other in combinations(measures, 2)}

    def content(self) -> dict[str, Any]:
        """Return what folds.json holds."""
        return {
            "interval": {"level": LEVEL, "units": len(self.units), "warning": few_units_warning(len(self.units))},
            "variants": [{"variant": name, **_plain(figures)} for name, figures in self.figures.items()],
            "differences": [
                {"first": one, "second": other, **_plain(figures)} for (one, other), figures in self.differences.items()
            ],
            "folds": [
                {"variant": variant, "fold": fold, "seed": seed, **headline_scores(counts, self.counting)}
                for (variant, fold, seed), counts in self.by_fold.items()
            ],
        }

    def lines(self) -> list[str]:
        """Return what the command line prints: each variant over all folds, then every two side by side."""
        rows = [("over all folds", "IoU", "", "F1", "", "folds' IoU")]
        for name, figures in self.figures.items():
            ious = [
                self.counting.headline(counts)["iou"] for (own, _, _), counts in self.by_fold.items() if own == name
            ]
            spread = f"{np.nanmin(ious):.3f} to {np.nanmax(ious):.3f}" if not np.isnan(ious).all() else "-"
            rows.append((name, *figures["iou"].format(".3f"), *figures["f1"].format(".3f"), spread))
        pairs: list[tuple[str, ...]] = [("difference", "IoU", "", "F1", "")]
        for (one, other), figures in self.differences.items():
            pairs.append((f"{one} - {other}", *figures["iou"].format("+.3f"), *figures["f1"].format("+.3f")))
        words = f"In brackets: 95 % interval over {len(self.units)} units, each the test once."
        return [
            *format_table(rows),
            *(format_table(pairs) if len(pairs) > 1 else []),
            f"{words} {few_units_warning(len(self.units))}".strip(),
        ]


def score_folds(runs: Sequence[FoldRun]) -> CrossValidation:
    """Return the scores of runs on the test tiles of their folds, and write them into each run as `evaluate` does.

    Takes as long as predicting the whole ground once for every variant and seed.
    """
    by_fold: dict[tuple[str, int, int], Confusion] = {}
    total: dict[str, dict[str, Confusion]] = {}
    for variant, fold, seed, run in runs:
        result = evaluate(run, "test")
        by_fold[variant, fold, seed] = result.confusion
        counting = result.scheme
        ground = unit_names_over_folds(TileSet.open(result.tiles), result.counts.units)
        mine = total.setdefault(variant, {})
        for unit, own in zip(ground, result.counts.confusion, strict=True):
            mine[unit] = mine.get(unit, 0) + own
    names = tuple(dict.fromkeys(_all_names(total)))
    by_unit = {variant: np.stack([mine[name] for name in names]) for variant, mine in total.items()}
    return CrossValidation(names, counting, by_unit, by_fold)


def _all_names(total: Mapping[str, Mapping[str, Confusion]]) -> Iterator[str]:
    for mine in total.values():
        yield from mine


def _plain(figures: Metrics) -> dict[str, Any]:
    return {
        "overall": json_values(figures),
        "overall_intervals": json_intervals(figures),
    }


COMPARISON = "comparison.json"
FOLD_SCORES = "folds.json"
FOLDS = "folds"
SAMPLE_TILES = 4
MIN_CLASS_FRACTION = 0.05
"""Of each of the first two classes in a sample tile, where there are such tiles."""


@dataclass(frozen=True)
class RunSummary:
    """One trained run of a comparison."""

    variant: str
    seed: int
    run: str
    """Folder of the run inside the comparison."""
    parameters: int
    trainable: int
    best_val_loss: float
    best_epoch: int
    iou: float
    """On the validation tiles, at the epoch of least validation loss."""
    gap: float
    """Validation loss less training loss at that epoch: how much better the network knows what it has seen."""
    seconds: float
    fold: int = 0
    """Fold that was its test, counted from 1; 0 where all train on the same tiles."""


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same tiles."""

    folder: Path
    title: str
    rows: tuple[RunSummary, ...]
    cross_validation: CrossValidation | None = None
    """Scores over all folds, where there are any."""

    def lines(self) -> list[str]:
        """Return what the command line prints: one row a variant, means over its seeds; the scores over all folds."""
        header = ("variant", "parameters", "trained", "val loss", "epoch", "val IoU", "val - train", "seconds")
        body = [_summary(name, rows) for name, rows in self.by_variant().items()]
        crossed = self.cross_validation.lines() if self.cross_validation else []
        return [*format_table([header, *body]), *crossed, f"comparison: {self.folder}"]

    def by_variant(self) -> dict[str, list[RunSummary]]:
        """Return the rows of each variant, in the recipe's order."""
        names = dict.fromkeys(row.variant for row in self.rows)
        return {name: [row for row in self.rows if row.variant == name] for name in names}

    def best(self) -> RunSummary:
        """Return the run of the variant with the best mean validation IoU that has the least validation loss."""
        by_variant = self.by_variant()
        return self.best_run(max(by_variant, key=lambda name: mean(row.iou for row in by_variant[name])))

    def best_run(self, variant: str) -> RunSummary:
        """Return the run of a variant that has the least validation loss."""
        return min(self.by_variant()[variant], key=lambda row: row.best_val_loss)


def compare(tiles: Path, recipe: Recipe, out: Path, folds: int = 0) -> Comparison:
    """Train every variant of `recipe` with every seed on one tile set, and write the comparison to `out`.

    With `folds`, the ground of the tile set is shared out in so many folds; every variant and seed is trained once for
    each fold, on the rest, and scored on it, so that all ground is the test once. folds.json then holds the scores by
    fold, over all of them, and the paired differences of the variants, with intervals.

    Given again after a stop, it goes on: finished runs stay, an unfinished one is resumed.

    Raises:
        SettingError: when the recipe has no variants, two share a name, or the ground is too little for the folds.
        InputError, WeightsError, OutputError: as `train` does.
    """
    check_variants(recipe)
    sets = dict(enumerate(write_fold_sets(tiles, folds, out / FOLDS), start=1)) if folds else {0: tiles}
    jobs = [(fold, seed, variant) for fold in sets for seed in recipe.seeds for variant in recipe.variants]
    rows = [_row(sets[fold], recipe.variant(variant, seed), variant.name, out, fold) for fold, seed, variant in jobs]
    order = [variant.name for variant in recipe.variants]
    rows.sort(key=lambda row: (order.index(row.variant), row.fold, row.seed))
    crossed = score_folds([(row.variant, row.fold, row.seed, out / row.run) for row in rows]) if folds else None
    result = Comparison(out, recipe.title, tuple(rows), crossed)
    _write(result, sets[min(sets)])
    return result


def check_variants(recipe: Recipe) -> None:
    """Raise SettingError when there is nothing to compare."""
    names = [slug(variant.name) for variant in recipe.variants]
    if not names:
        raise SettingError("The recipe has no [[variants]]: name at least one configuration to train.")
    if len(set(names)) < len(names):
        raise SettingError(f"Two variants share a name among {', '.join(names)}: give each its own.")


def slug(name: str) -> str:
    """Return a name as a folder's name: lower case letters, digits and hyphens.

    >>> slug("U-Net, EfficientNet-B0")
    'u-net-efficientnet-b0'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _row(tiles: Path, recipe: Recipe, variant: str, out: Path, fold: int) -> RunSummary:
    seed = recipe.train.seed
    place = "/".join([slug(variant), *([f"fold{fold}"] if fold else []), f"seed{seed}"])
    run = out / place
    trained = train(tiles, run, recipe, resume=(run / STATE).exists() or (run / CARD).exists())
    best = trained.history.best
    return RunSummary(
        variant=variant,
        seed=seed,
        run=place,
        parameters=trained.parameters,
        trainable=trained.trainable,
        best_val_loss=best.val_loss,
        best_epoch=best.epoch,
        iou=best.val_iou,
        gap=best.val_loss - best.train_loss,
        seconds=trained.history.seconds,
        fold=fold,
    )


def _write(result: Comparison, tiles: Path) -> None:
    write_table(result)
    histories = {
        name: [read_history(result.folder / row.run) for row in rows] for name, rows in result.by_variant().items()
    }
    _write_bytes(result.folder / "losses.png", loss_figure(histories))
    runs = {name: result.folder / rows[0].run for name, rows in result.by_variant().items()}
    _write_bytes(result.folder / "samples.png", _sample_figure(TileSet.open(tiles), runs))
    content = {"title": result.title, "tiles": str(tiles.resolve()), "rows": [asdict(row) for row in result.rows]}
    if result.cross_validation:
        write_json(result.folder / FOLD_SCORES, result.cross_validation.content())
    write_json(result.folder / COMPARISON, content)


def write_table(result: Comparison) -> None:
    """Write table.csv, one row a run, for spreadsheets."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(result.rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in result.rows)
    write_text(result.folder / "table.csv", text.getvalue())


def _sample_figure(tile_set: TileSet, runs: Mapping[str, Path]) -> bytes:
    """Return the picture of some validation tiles: spread over the index, those with labels of class 1 first."""
    samples = tile_set.samples("val", unique_pixels=True)
    mixed = [i for i, tile in enumerate(samples.tiles) if min(tile.class_fractions[:2]) >= MIN_CLASS_FRACTION]
    chosen = evenly_spaced(mixed or list(range(len(samples))))
    tiles = [samples[i] for i in chosen]
    maps = {name: predict_classes(Predictor.load(run), tiles) for name, run in runs.items()}
    seen, counting = [image_mask(*tile) for tile in tiles], ConfusionScheme.from_legend(tile_set.meta.legend)
    limits = stretch_limits([image[: tile_set.meta.bands] for image, _ in tiles], seen)
    rows = [
        ExampleTile(
            stretch(image, valid, limits),
            counting.to_classes(label),
            {name: classes[i] for name, classes in maps.items()},
        )
        for i, ((image, label), valid) in enumerate(zip(tiles, seen, strict=True))
    ]
    return examples_figure(rows, tile_set.meta.legend)


def evenly_spaced(indices: Sequence[int]) -> list[int]:
    """Return up to four of `indices`, evenly spread.

    >>> spread(list(range(10)))
    [0, 3, 6, 9]
    """
    positions = np.linspace(0, len(indices) - 1, min(SAMPLE_TILES, len(indices)))
    return [indices[round(position)] for position in positions]


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_write(path) as part:
        part.write_bytes(content)


def _summary(name: str, rows: Sequence[RunSummary]) -> tuple[str, ...]:
    def average(values: Iterator[float], digits: int) -> str:
        figures = list(values)
        around = f" ± {stdev(figures):.{digits}f}" if len(figures) > 1 else ""
        return f"{mean(figures):.{digits}f}{around}"

    return (
        name,
        f"{rows[0].parameters:,}",
        f"{rows[0].trainable:,}",
        average((row.best_val_loss for row in rows), 4),
        ", ".join(str(row.best_epoch) for row in rows),
        average((row.iou for row in rows), 3),
        average((row.gap for row in rows), 3),
        f"{mean(row.seconds for row in rows):.0f}",
    )
