"""`geograft compare`: train several configurations and seeds on the same tiles and compare them.

With folds, the comparison is a cross-validation: each run is scored on the fold that it was not trained on.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.commands.evaluate import evaluate
from geograft.commands.train import check_trainings, train
from geograft.config import EvaluateConfig, InferenceConfig, Recipe
from geograft.dataset.folds import write_fold_sets, write_place_folds
from geograft.dataset.joined import TileSetPaths, open_run_tiles
from geograft.dataset.places import scenes_in_place
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import unit_names_over_folds
from geograft.errors import SettingError
from geograft.figures import ExampleTile, examples_figure, loss_figure
from geograft.figures.pictures import stretch, stretch_limits
from geograft.files import StrPath, write_bytes, write_json, write_text
from geograft.labels import image_mask
from geograft.locks import lock_output
from geograft.mapping.held_out import evenly_spaced, predict_classes
from geograft.mapping.models import RunModel
from geograft.mapping.scoring import (
    BootstrapEstimator,
    Confusion,
    Metrics,
    headline_scores,
    json_intervals,
    json_values,
)
from geograft.metrics.confusion import ConfusionScheme
from geograft.metrics.intervals import LEVEL, few_units_warning
from geograft.progress import announce
from geograft.text import format_table
from geograft.training.distributed import rank_of
from geograft.training.history import read_history

FoldRun = tuple[str, int, int, Path]
"""Variant, fold, seed and run folder."""
UnitCounts = dict[str, Int64[ndarray, "_ ..."]]
"""Pixel counts of every unit by variant, summed over the seeds."""


@dataclass(frozen=True)
class CrossValidation:
    """Scores of a cross-validation. The units of all folds cover the whole area; each is tested once per seed."""

    units: tuple[str, ...]
    scheme: ConfusionScheme
    by_unit: UnitCounts
    by_fold: Mapping[tuple[str, int, int], Confusion]
    """Pixel counts by variant, fold and seed."""
    places: tuple[str, ...] = ()
    """The place that each fold leaves out, in order; empty if folds are no places."""
    in_place: UnitCounts = field(default_factory=dict)
    """If folds are places: pixel counts of test tiles of the other places, summed over folds and seeds."""
    by_place: Mapping[tuple[str, str], Int64[ndarray, "_ ..."]] = field(default_factory=dict)
    """If folds are places: pixel counts of every unit by variant and place."""

    @cached_property
    def figures(self) -> dict[str, Metrics]:
        """The metrics of every variant over all folds."""
        return {
            name: BootstrapEstimator(counts, self.scheme.overall).estimate() for name, counts in self.by_unit.items()
        }

    @cached_property
    def in_place_figures(self) -> dict[str, Metrics]:
        """The metrics of every variant on test tiles of the places that it was trained in."""
        return {
            name: BootstrapEstimator(counts, self.scheme.overall).estimate() for name, counts in self.in_place.items()
        }

    @cached_property
    def place_figures(self) -> dict[tuple[str, str], Metrics]:
        """The metrics of every variant in each place that was left out, by variant and place."""
        return {
            key: BootstrapEstimator(counts, self.scheme.overall).estimate() for key, counts in self.by_place.items()
        }

    @cached_property
    def differences(self) -> dict[tuple[str, str], Metrics]:
        """The paired differences of metrics on the same units, for every pair of variants."""
        measures = {name: BootstrapEstimator(counts, self.scheme.overall) for name, counts in self.by_unit.items()}
        return {(one, other): measures[one].difference(measures[other]) for one, other in combinations(measures, 2)}

    def content(self) -> dict[str, Any]:
        """Return the content of folds.json."""
        return {
            "interval": {"level": LEVEL, "units": len(self.units), "warning": few_units_warning(len(self.units))},
            "variants": [{"variant": name, **_plain(figures)} for name, figures in self.figures.items()],
            "differences": [
                {"first": one, "second": other, **_plain(figures)} for (one, other), figures in self.differences.items()
            ],
            "folds": [
                {"variant": variant, "fold": fold, "seed": seed, **headline_scores(counts, self.scheme)}
                for (variant, fold, seed), counts in self.by_fold.items()
            ],
            **self._place_content(),
        }

    def _place_content(self) -> dict[str, Any]:
        if not self.places:
            return {}
        units = max((len(counts) for counts in self.in_place.values()), default=0)
        in_place = {
            "interval": {"level": LEVEL, "units": units, "warning": few_units_warning(units)},
            "variants": [{"variant": name, **_plain(figures)} for name, figures in self.in_place_figures.items()],
        }
        rows = [
            {"variant": variant, "place": place, "units": len(self.by_place[variant, place]), **_plain(figures)}
            for (variant, place), figures in self.place_figures.items()
        ]
        return {"places": list(self.places), **({"in_place": in_place} if units else {}), "per_place": rows}

    def lines(self) -> list[str]:
        """Return the lines to print: the scores of each variant over all folds, then the paired differences."""
        if self.places:
            return self._place_lines()
        rows = [("over all folds", "IoU", "", "F1", "", "folds' IoU")]
        for name, figures in self.figures.items():
            ious = [self.scheme.headline(counts)["iou"] for (own, _, _), counts in self.by_fold.items() if own == name]
            fold_range = f"{np.nanmin(ious):.3f} to {np.nanmax(ious):.3f}" if not np.isnan(ious).all() else "-"
            rows.append((name, *figures["iou"].format(".3f"), *figures["f1"].format(".3f"), fold_range))
        words = f"In brackets: 95 % confidence interval over {len(self.units)} units, each tested once."
        return [
            *format_table(rows),
            *self._difference_lines(),
            f"{words} {few_units_warning(len(self.units))}".strip(),
        ]

    def _difference_lines(self) -> list[str]:
        pairs: list[tuple[str, ...]] = [("difference", "IoU", "", "F1", "")]
        for (one, other), figures in self.differences.items():
            pairs.append((f"{one} - {other}", *figures["iou"].format("+.3f"), *figures["f1"].format("+.3f")))
        return format_table(pairs) if len(pairs) > 1 else []

    def _place_lines(self) -> list[str]:
        """Return the lines to print if folds are places: IoU elsewhere and in place, and elsewhere by place."""
        rows: list[tuple[str, ...]] = [("each place left out once", "IoU elsewhere", "", "IoU in place", "")]
        for name, figures in self.figures.items():
            here = self.in_place_figures[name]["iou"].format(".3f") if self.in_place else ("-", "")
            rows.append((name, *figures["iou"].format(".3f"), *here))
        table: list[tuple[str, ...]] = [("place left out", "units", "IoU", "", "F1", "")]
        for (variant, place), figures in self.place_figures.items():
            units = f"{len(self.by_place[variant, place]):,}"
            cells = (*figures["iou"].format(".3f"), *figures["f1"].format(".3f"))
            table.append((f"{place}: {variant}", units, *cells))
        words = (
            f"In brackets: 95 % confidence interval over {len(self.units)} units of {len(self.places)} places. Other "
            "places may differ by more."
        )
        return [*format_table(rows), *format_table(table), *self._difference_lines(), words]


def score_folds(runs: Sequence[FoldRun], places: Sequence[str] = ()) -> CrossValidation:
    """Score each run on the test tiles of its fold, write the scores as `evaluate` does, and return all of them.

    `places` are the places that folds 1, 2, ... leave out; tiles of other places are then scored in place. Takes as
    long as predicting all tiles once per variant and seed.
    """
    by_fold: dict[tuple[str, int, int], Confusion] = {}
    tested, in_place = _Sums(), _Sums()
    by_place: dict[tuple[str, str], _Sums] = {}
    for variant, fold, seed, run in runs:
        # Exporting a graph takes longer than scoring a fold.
        result = evaluate(run, "test", config=EvaluateConfig(backend="torch"))
        scheme, tile_set = result.scheme, open_run_tiles(run)
        here = scenes_in_place(tile_set, "test", tile_set) if places else frozenset()
        for cell, unit, own in zip(
            result.counts.units.cells,
            unit_names_over_folds(tile_set, result.counts.units),
            result.counts.confusion,
            strict=True,
        ):
            if cell.scene in here:
                in_place.add(variant, unit, own)
                continue
            tested.add(variant, unit, own)
            by_fold[variant, fold, seed] = by_fold.get((variant, fold, seed), 0) + own
            if places:
                by_place.setdefault((variant, places[fold - 1]), _Sums()).add(variant, unit, own)
    return CrossValidation(
        tested.units,
        scheme,
        tested.by_variant(),
        by_fold,
        tuple(places),
        in_place.by_variant(),
        {key: sums.by_variant()[key[0]] for key, sums in by_place.items()},
    )


@dataclass
class _Sums:
    """Pixel counts by variant and unit, summed over runs."""

    counts: dict[str, dict[str, Confusion]] = field(default_factory=dict)

    def add(self, variant: str, unit: str, counts: Confusion) -> None:
        """Add the pixel counts of one cell."""
        mine = self.counts.setdefault(variant, {})
        mine[unit] = mine.get(unit, 0) + counts

    @property
    def units(self) -> tuple[str, ...]:
        """The names of all units, in order of first appearance."""
        return tuple(dict.fromkeys(name for mine in self.counts.values() for name in mine))

    def by_variant(self) -> UnitCounts:
        """Return the counts of all units by variant, in the order of `units`."""
        return {variant: np.stack([mine[name] for name in self.units]) for variant, mine in self.counts.items()}


def _plain(figures: Metrics) -> dict[str, Any]:
    return {
        "overall": json_values(figures),
        "overall_intervals": json_intervals(figures),
    }


COMPARISON = "comparison.json"
FOLD_SCORES = "folds.json"
FOLDS = "folds"
SAMPLE_TILES = 4
MAX_SLUG = 100
"""Maximum length of a variant's folder name; most file systems allow 255 bytes."""
MIN_CLASS_FRACTION = 0.05
"""Fraction of each of the first two classes that example tiles have, if there are such tiles."""


@dataclass(frozen=True)
class RunSummary:
    """One run of a comparison."""

    variant: str
    seed: int
    run: str
    """Run folder, relative to the comparison."""
    parameters: int
    trainable: int
    best_val_loss: float
    best_epoch: int
    iou: float
    """Validation IoU at the epoch with the lowest validation loss."""
    gap: float
    """Generalisation gap: validation loss minus training loss at that epoch."""
    seconds: float
    fold: int = 0
    """Test fold, counted from 1; 0 without cross-validation."""


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`: several runs on the same tiles."""

    folder: Path
    title: str
    rows: tuple[RunSummary, ...]
    cross_validation: CrossValidation | None = None
    """Scores over all folds; None without folds."""

    def lines(self) -> list[str]:
        """Return the lines to print: a row per variant with means over its seeds, and the cross-validation."""
        header = ("variant", "parameters", "trained", "val loss", "epoch", "val IoU", "val - train", "seconds")
        body = [_summary(name, rows) for name, rows in self.by_variant().items()]
        crossed = self.cross_validation.lines() if self.cross_validation else []
        return [*format_table([header, *body]), *crossed, f"comparison: {self.folder}"]

    def by_variant(self) -> dict[str, list[RunSummary]]:
        """Return the rows of each variant, in the recipe's order."""
        names = dict.fromkeys(row.variant for row in self.rows)
        return {name: [row for row in self.rows if row.variant == name] for name in names}

    def best(self) -> RunSummary:
        """Return the run with the lowest validation loss of the variant with the best mean validation IoU."""
        by_variant = self.by_variant()
        return self.best_run(max(by_variant, key=lambda name: mean(row.iou for row in by_variant[name])))

    def best_run(self, variant: str) -> RunSummary:
        """Return the run of a variant with the lowest validation loss."""
        return min(self.by_variant()[variant], key=lambda row: row.best_val_loss)


def compare(
    tiles: StrPath | Sequence[StrPath],
    recipe: Recipe,
    out: StrPath,
    folds: int = 0,
    leave_one_place_out: bool = False,
) -> Comparison:
    """Train every variant of `recipe` with every seed on one or several tile sets, and write the comparison to `out`.

    With `folds`, the tile set is divided spatially into that many folds. Every variant and seed is trained once per
    fold, on the other folds, and scored on it. folds.json then contains the scores by fold and over all folds, and the
    paired differences of the variants, with confidence intervals.

    With `leave_one_place_out`, each fold is a place: a group of scenes, or one of several tile sets. Every variant is
    trained in all other places, with validation tiles of these, and scored in the place that is left out (elsewhere)
    and on test tiles of the others (in place).

    Resumable: finished runs are kept, and an interrupted one is resumed.

    Raises:
        SettingError: if the recipe has no variants, two have the same name, or the area is too small for the folds.
        InputError, WeightsError, OutputError: as in `train`.
    """
    paths, out = TileSetPaths.of(tiles).folders, Path(out)
    check_variants(recipe)
    if folds < 0:
        raise SettingError(f"--folds {folds}: give the number of folds, or 0 for none.")
    if folds and leave_one_place_out:
        raise SettingError("--folds and --leave-one-place-out are two ways to choose folds. Give one of them.")
    if folds and len(paths) > 1:
        raise SettingError("--folds divides one tile set. With several, give --leave-one-place-out, or no folds.")
    check_trainings(
        TileSetPaths.of(paths).open(), (recipe.variant(variant, recipe.seeds[0]) for variant in recipe.variants)
    )
    # Of the processes that torchrun or Slurm started, rank 0 holds the lock for all.
    with lock_output(out, enabled=rank_of(recipe.train) == 0):
        if leave_one_place_out:
            found = write_place_folds(paths, out / FOLDS)
            sets = {number: fold.folders for number, fold in enumerate(found, start=1)}
            return _compare(paths, recipe, out, sets, tuple(fold.place for fold in found))
        if folds:
            sets = {
                number: (path,) for number, path in enumerate(write_fold_sets(paths[0], folds, out / FOLDS), start=1)
            }
            return _compare(paths, recipe, out, sets)
        return _compare(paths, recipe, out, {0: paths})


Paths = tuple[Path, ...]


def _compare(
    tiles: Paths, recipe: Recipe, out: Path, sets: Mapping[int, Paths], places: Sequence[str] = ()
) -> Comparison:
    """Compare on the tile sets of each fold; fold 0 is that of a comparison without folds."""
    jobs = [(fold, seed, variant) for fold in sets for seed in recipe.seeds for variant in recipe.variants]
    rows = []
    for number, (fold, seed, variant) in enumerate(jobs, start=1):
        if rank_of(recipe.train) == 0:
            where = f"without {places[fold - 1]}, " if places else f"fold {fold}, " if fold else ""
            announce(f"{number} of {len(jobs)}: {variant.name}, {where}seed {seed}")
        rows.append(_row(sets[fold], recipe.variant(variant, seed), variant.name, out, fold))
    order = [variant.name for variant in recipe.variants]
    rows.sort(key=lambda row: (order.index(row.variant), row.fold, row.seed))
    scored = [(row.variant, row.fold, row.seed, out / row.run) for row in rows if row.fold]
    result = Comparison(out, recipe.title, tuple(rows), score_folds(scored, places) if scored else None)
    _write(result, tiles, TileSetPaths.of(sets[min(sets)]).open())
    return result


def check_variants(recipe: Recipe) -> None:
    """Raise SettingError if the recipe has no variants, or names of them are the same or cannot be those of folders."""
    names = [slug(variant.name) for variant in recipe.variants]
    if not names:
        raise SettingError("The recipe has no [[variants]]. Add at least one.")
    for variant, name in zip(recipe.variants, names, strict=True):
        if not 0 < len(name) <= MAX_SLUG:
            raise SettingError(
                f"The variant {variant.name[:40]!r} would have a folder name of {len(name)} letters. "
                f"Give it a name with 1 to {MAX_SLUG} letters and digits."
            )
    if len(set(names)) < len(names):
        raise SettingError(f"Two variants have the same name, of {', '.join(names)}. Rename one.")


def slug(name: str) -> str:
    """Return a folder name for `name`: lower case letters, digits and hyphens.

    >>> slug("U-Net, EfficientNet-B0")
    'u-net-efficientnet-b0'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _row(tiles: Paths, recipe: Recipe, variant: str, out: Path, fold: int) -> RunSummary:
    seed = recipe.train.seed
    folder = "/".join([slug(variant), *([f"fold{fold}"] if fold else []), f"seed{seed}"])
    run = out / folder
    trained = train(tiles, run, recipe, resume=True)
    best = trained.history.best
    return RunSummary(
        variant=variant,
        seed=seed,
        run=folder,
        parameters=trained.parameters,
        trainable=trained.trainable,
        best_val_loss=best.val_loss,
        best_epoch=best.epoch,
        iou=best.val_iou,
        gap=best.val_loss - best.train_loss,
        seconds=trained.history.seconds,
        fold=fold,
    )


def _write(result: Comparison, tiles: Paths, shown: TileSet) -> None:
    write_table(result)
    histories = {
        name: [read_history(result.folder / row.run) for row in rows] for name, rows in result.by_variant().items()
    }
    write_bytes(result.folder / "losses.png", loss_figure(histories))
    runs = {name: result.folder / rows[0].run for name, rows in result.by_variant().items()}
    write_bytes(result.folder / "samples.png", _sample_figure(shown, runs))
    folders = " and ".join(str(path) for path in tiles)
    content = {"title": result.title, "tiles": folders, "rows": [asdict(row) for row in result.rows]}
    if result.cross_validation:
        write_json(result.folder / FOLD_SCORES, result.cross_validation.content())
    write_json(result.folder / COMPARISON, content)


def write_table(result: Comparison) -> None:
    """Write table.csv, one row per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(result.rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in result.rows)
    write_text(result.folder / "table.csv", text.getvalue())


def _sample_figure(tile_set: TileSet, runs: Mapping[str, Path]) -> bytes:
    """Return a figure of example validation tiles, evenly spaced in the index, preferably with both classes."""
    samples = tile_set.samples("val", unique_pixels=True)
    mixed = [i for i, tile in enumerate(samples.tiles) if min(tile.class_fractions[:2]) >= MIN_CLASS_FRACTION]
    candidates = mixed or list(range(len(samples)))
    chosen = [candidates[place] for place in evenly_spaced(len(candidates), SAMPLE_TILES)]
    tiles = [samples[i] for i in chosen]
    windows = [samples.tiles[i] for i in chosen]
    models = {name: RunModel.open(run, InferenceConfig(), compare=False) for name, run in runs.items()}
    maps = {name: predict_classes(model, tile_set, windows) for name, model in models.items()}
    seen, scheme = [image_mask(*tile) for tile in tiles], ConfusionScheme.from_legend(tile_set.meta.legend)
    limits = stretch_limits([image[: tile_set.meta.bands] for image, _ in tiles], seen)
    rows = [
        ExampleTile(
            stretch(image, valid, limits),
            scheme.to_classes(label),
            {name: classes[i] for name, classes in maps.items()},
        )
        for i, ((image, label), valid) in enumerate(zip(tiles, seen, strict=True))
    ]
    return examples_figure(rows, tile_set.meta.legend)


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
