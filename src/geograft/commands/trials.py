"""The runs of a learning curve: subsets of the training tiles, training steps, and scores of each run."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.card import STATE
from geograft.commands.evaluate import score_split
from geograft.commands.train import train
from geograft.config import EvaluateConfig, Recipe, TrainConfig, Variant
from geograft.dataset.folds import derived_fingerprint, write_derived_set
from geograft.dataset.splits import stratified_order
from geograft.dataset.tileset import Split, Tile, TileSet
from geograft.dataset.units import units_of
from geograft.errors import InputError, SettingError
from geograft.files import write_json
from geograft.geo.coverage import tile_overlap
from geograft.geo.rasters.raster import close_labels
from geograft.mapping.models import RunModel
from geograft.metrics.confusion import ConfusionScheme
from geograft.resume import differences, to_json_types
from geograft.training.sampling import make_batches

PERCENTS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Percentages of the training tiles."""
MIN_STEPS = 1000
"""Optimizer steps of a run with few tiles, unless the run with all tiles takes fewer."""


@dataclass(frozen=True)
class SubsetSize:
    """A number of training tiles, one position on the axis of the curve."""

    percent: float
    """Percent of the training tiles."""
    tiles: int


def subset_sizes(percents: Sequence[float], total: int) -> list[SubsetSize]:
    """Return the number of tiles at each percentage of `total`, rounded to the nearest, in ascending order.

    Raises:
        SettingError: for a percentage outside (0, 100], or one that gives no tile or as many as another.
    """
    invalid = [percent for percent in percents if not 0 < percent <= 100]
    if invalid or not percents:
        raise SettingError(f"--percent {format_percents(percents)}: give numbers above 0 and up to 100.")
    sizes = [SubsetSize(percent, int(percent * total / 100 + 0.5)) for percent in sorted(percents)]
    # Of several percentages with the same number of tiles, keep the largest.
    distinct = {size.tiles: size for size in sizes if size.tiles}
    if len(distinct) < len(sizes):
        empty = [size.percent for size in sizes if not size.tiles]
        problem = f"{format_percents(empty)} % give no tile" if empty else "some give the same number of tiles"
        remedy = (
            f"Give --percent {format_percents([size.percent for size in distinct.values()])}."
            if distinct
            else "Prepare more tiles."
        )
        raise SettingError(f"--percent {format_percents(percents)}: of {total:,} training tiles {problem}. {remedy}")
    return sizes


def format_percents(percents: Sequence[float]) -> str:
    """Return percentages as written on the command line.

    >>> format_percents([0.5, 10.0])
    '0.5,10'
    """
    return ",".join(f"{percent:g}" for percent in percents)


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """Return the recipe's variants; without any, its network with pretrained weights and from scratch."""
    if recipe.variants:
        return recipe.variants
    scratch = Variant("from scratch", model={"weights": "none", "start": ""})
    if recipe.model.architecture == "unet" or recipe.model.weights == "none":
        return (scratch,)
    return (Variant("pretrained"), scratch)


def subset(tile_set: TileSet, seed: int, count: int) -> list[Tile]:
    """Return the tiles of `tile_set` with only `count` training tiles, in index order.

    Subsets of one seed are nested. They are stratified by the units of the split.
    """
    train = tile_set.split("train")
    units = units_of(tile_set, "train")
    order = stratified_order([units.cells[cell].unit for cell in units.cell_of], seed)
    chosen = {id(train[position]) for position in order[:count]}
    return [tile for tile in tile_set.tiles if tile.split != "train" or id(tile) in chosen]


def repeats(tiles: int, total: int, config: TrainConfig, min_steps: int) -> int:
    """Return how often each of `tiles` training tiles is repeated in an epoch; the full set has `total` tiles.

    The run then takes about as many steps as one with all tiles, or `min_steps` if that is fewer. The number of epochs,
    and so of validations and learning-rate decays, stays the same.
    """
    min_samples = min_steps * config.batch_size * config.accumulate / config.epochs
    return max(config.repeat, int(min(total * config.repeat, min_samples) / tiles + 0.5))


def optimizer_steps(tiles: int, config: TrainConfig) -> int:
    """Return the number of optimizer steps of a run on `tiles` training tiles without early stopping."""
    batches = len(make_batches(range(tiles * config.repeat), config.batch_size))
    return config.epochs * math.ceil(batches / config.accumulate)


POINT = "point.json"
SETTINGS_WITHOUT_EFFECT = ("workers", "save_minutes", "tensorboard", "mlflow")
"""Settings of [train] that do not affect the result of a run."""


@dataclass(frozen=True)
class CurveJob:
    """A run of the curve to compute."""

    variant: str
    size: SubsetSize
    recipe: Recipe
    """With the seed and the repetition of tiles set."""
    split: Split
    """Split to score on."""
    run: str
    """Run folder, relative to the curve."""

    @property
    def seed(self) -> int:
        """Seed of the subset and of training."""
        return self.recipe.train.seed

    def settings(self, tile_set: TileSet) -> dict[str, Any]:
        """Return everything that the scores depend on, as JSON types."""
        recipe = asdict(self.recipe)
        train_settings = {name: value for name, value in recipe["train"].items() if name not in SETTINGS_WITHOUT_EFFECT}
        fingerprint = derived_fingerprint(tile_set, subset(tile_set, self.seed, self.size.tiles))
        return to_json_types(
            {"tiles": fingerprint, "split": self.split, "model": recipe["model"], "train": train_settings}
        )


@dataclass(frozen=True)
class ScoredRun:
    """A trained and scored run of the curve."""

    job: CurveJob
    steps: int
    epoch: int
    """Epoch of the saved weights."""
    area_fraction: float
    """Fraction of the area of all training tiles that its tiles cover."""
    words: str
    """Description of the units."""
    caveat: str
    units: tuple[str, ...]
    confusion: Int64[ndarray, "u ..."]
    """Pixel counts of each scored unit."""
    overlapping: bool = False
    """Whether classes overlap, each with its own counts."""

    @property
    def scheme(self) -> ConfusionScheme:
        """How pixels are counted."""
        return ConfusionScheme(self.confusion.shape[1], self.overlapping)


def read_scored_run(job: CurveJob, tile_set: TileSet, out: Path) -> ScoredRun | None:
    """Return the result of a run that is already finished; None if it is not.

    Raises:
        SettingError: if it was computed with other settings.
        InputError: if its file is not readable.
    """
    path = out / job.run / POINT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        before, figures = content["settings"], content["point"]
        counts = np.array(figures.pop("confusion"), np.int64)
        scored = ScoredRun(job, **{**figures, "units": tuple(figures["units"])}, confusion=counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error!r}. Remove {path.parent} to train this run again.") from error
    changed = differences(before, job.settings(tile_set))
    if changed:
        raise SettingError(
            f"{path} belongs to another curve: {'; '.join(changed[:3])}. Undo that, or choose another --out."
        )
    return scored


def train_and_score(job: CurveJob, tile_set: TileSet, out: Path) -> ScoredRun:
    """Train and score a run and return the result. Resumes an interrupted training; point.json is written last.

    Raises:
        InputError, WeightsError, OutputError: as in `train`.
    """
    run = out / job.run
    train(_tiles(job, tile_set, out), run, job.recipe, resume=True)
    return score_and_save(job, tile_set, run)


def score_and_save(job: CurveJob, tile_set: TileSet, run: Path, model: RunModel | None = None) -> ScoredRun:
    """Score a run, or another model in its place, write point.json into its folder, and return the result."""
    result = score_split(
        model or RunModel.open(run, EvaluateConfig(), compare=False), tile_set, job.split, EvaluateConfig()
    )
    units = result.counts.units
    scored = ScoredRun(
        job,
        steps=optimizer_steps(job.size.tiles, job.recipe.train),
        epoch=result.card.epoch,
        area_fraction=_area_fraction(job, tile_set),
        words=units.description,
        caveat=units.caveat,
        units=units.names,
        confusion=units.sum_by_unit(result.counts.confusion),
        overlapping=result.scheme.overlapping,
    )
    write_json(run / POINT, {"settings": job.settings(tile_set), "point": _to_dict(scored)})
    # No longer needed, and twice the size of the weights.
    (run / STATE).unlink(missing_ok=True)
    return scored


def _tiles(job: CurveJob, tile_set: TileSet, out: Path) -> Path:
    if job.size.tiles == len(tile_set.split("train")):
        return tile_set.folder
    folder = out / "tiles" / f"percent{job.size.percent:g}" / f"seed{job.seed}"
    try:
        return write_derived_set(tile_set, subset(tile_set, job.seed, job.size.tiles), folder)
    finally:
        close_labels()


def _area_fraction(job: CurveJob, tile_set: TileSet) -> float:
    own_tiles = [tile for tile in subset(tile_set, job.seed, job.size.tiles) if tile.split == "train"]
    own_area, total_area = (
        tile_overlap([(tile.scene, tile.window) for tile in tiles], ()).unique_pixels
        for tiles in (own_tiles, tile_set.split("train"))
    )
    return own_area / total_area


def _to_dict(scored: ScoredRun) -> Mapping[str, Any]:
    names = ("steps", "epoch", "area_fraction", "words", "caveat")
    return {
        **{name: getattr(scored, name) for name in names},
        "units": list(scored.units),
        "confusion": scored.confusion.tolist(),
        **({"overlapping": True} if scored.overlapping else {}),
    }
