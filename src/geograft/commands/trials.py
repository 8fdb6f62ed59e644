"""One point of a curve: a run on some of the training tiles, and how it does on all tiles that are scored.

What a curve computes: which numbers of tiles, which of them, which networks, and for how many steps.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

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
from geograft.inference.predictor import Predictor
from geograft.metrics.confusion import ConfusionScheme
from geograft.resume import differences, to_json_types
from geograft.training.checkpoint import STATE
from geograft.training.sampling import make_batches

PERCENTS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Percent of the training tiles."""
MIN_STEPS = 1000
"""Steps of the optimizer that a point with few tiles takes, if the one with all takes as many."""


@dataclass(frozen=True)
class SubsetSize:
    """One place on the axis of a curve."""

    percent: float
    """Percent of the training tiles."""
    tiles: int


def subset_sizes(percents: Sequence[float], total: int) -> list[SubsetSize]:
    """Return the number of tiles that each share in percent is of `total`, to the nearest, in ascending order.

    Raises:
        SettingError: for a share that is none, gives no tile, or gives as many as another one.
    """
    strange = [share for share in percents if not 0 < share <= 100]
    if strange or not percents:
        raise SettingError(f"--percent {format_percents(percents)}: each is more than 0 and at most 100, in percent.")
    found = [SubsetSize(share, int(share * total / 100 + 0.5)) for share in sorted(percents)]
    # Of several shares of one number of tiles the largest comes nearest to what it says.
    kept = {size.tiles: size for size in found if size.tiles}
    if len(kept) < len(found):
        none = [size.percent for size in found if not size.tiles]
        what = f"{format_percents(none)} % give no tile" if none else "some give the same number of tiles"
        remedy = (
            f"Give --percent {format_percents([size.percent for size in kept.values()])}." if kept else "Prepare more."
        )
        raise SettingError(f"--percent {format_percents(percents)}: of {total:,} training tiles {what}. {remedy}")
    return found


def format_percents(percents: Sequence[float]) -> str:
    """Return shares as the command line takes them.

    >>> joined([0.5, 10.0])
    '0.5,10'
    """
    return ",".join(f"{share:g}" for share in percents)


def variants_of(recipe: Recipe) -> tuple[Variant, ...]:
    """Return the recipe's variants; of one that lists none its network pretrained, and the same from scratch."""
    if recipe.variants:
        return recipe.variants
    scratch = Variant("from scratch", model={"weights": "none", "start": ""})
    if recipe.model.architecture == "unet" or recipe.model.weights == "none":
        return (scratch,)
    return (Variant("pretrained"), scratch)


def subset(whole: TileSet, seed: int, count: int) -> list[Tile]:
    """Return the tiles of `whole` with `count` of the training tiles, in the index's order.

    The smaller subset of a seed lies in the larger one. Tiles are drawn from all units of the split alike.
    """
    train = whole.split("train")
    units = units_of(whole, "train")
    order = stratified_order([units.cells[cell].unit for cell in units.cell_of], seed)
    chosen = {id(train[position]) for position in order[:count]}
    return [tile for tile in whole.tiles if tile.split != "train" or id(tile) in chosen]


def repeats(tiles: int, total: int, config: TrainConfig, min_steps: int) -> int:
    """Return how often each of `tiles` training tiles comes in an epoch, of which `total` tiles make the full one.

    So often that the run takes about as many steps as that with all tiles, or `least_steps` where that is fewer. Epochs
    stay what they are: as many validations to choose the best from, and rates that fall alike.
    """
    enough = min_steps * config.batch_size * config.accumulate / config.epochs
    return max(config.repeat, int(min(total * config.repeat, enough) / tiles + 0.5))


def optimizer_steps(tiles: int, config: TrainConfig) -> int:
    """Return how many steps of the optimizer a run on `tiles` training tiles takes when nothing stops it early."""
    batches = len(make_batches(range(tiles * config.repeat), config.batch_size))
    return config.epochs * math.ceil(batches / config.accumulate)


POINT = "point.json"
SETTINGS_WITHOUT_EFFECT = ("workers", "save_minutes", "tensorboard", "mlflow")
"""Settings of [train] that do not touch what a run computes."""


@dataclass(frozen=True)
class CurveJob:
    """What decides a point."""

    variant: str
    size: SubsetSize
    recipe: Recipe
    """With its seed, and with how often tiles are repeated."""
    split: Split
    """What it is scored on."""
    run: str
    """Folder of the run inside the curve's."""

    @property
    def seed(self) -> int:
        """The seed of the choice of tiles and of the training."""
        return self.recipe.train.seed

    def settings(self, whole: TileSet) -> dict[str, Any]:
        """Return all that the point's figures depend on, as JSON gives it back."""
        recipe = asdict(self.recipe)
        train_settings = {name: value for name, value in recipe["train"].items() if name not in SETTINGS_WITHOUT_EFFECT}
        fingerprint = derived_fingerprint(whole, subset(whole, self.seed, self.size.tiles))
        return to_json_types(
            {"tiles": fingerprint, "split": self.split, "model": recipe["model"], "train": train_settings}
        )


@dataclass(frozen=True)
class ScoredRun:
    """A trained and scored run."""

    job: CurveJob
    steps: int
    epoch: int
    """Whose weights were kept."""
    area_fraction: float
    """Share of the ground of all training tiles that its tiles hold."""
    words: str
    """What the units are."""
    caveat: str
    units: tuple[str, ...]
    confusion: Int64[ndarray, "u ..."]
    """Pixel counts of every unit that was scored."""
    overlapping: bool = False
    """Whether each class has counts of its own."""

    @property
    def counting(self) -> ConfusionScheme:
        """How pixels are counted."""
        return ConfusionScheme(self.confusion.shape[1], self.overlapping)


def read_scored_run(job: CurveJob, whole: TileSet, out: Path) -> ScoredRun | None:
    """Return the point that was computed before; None where there is none.

    Raises:
        SettingError: when it was computed with other settings.
        InputError: when its file cannot be understood.
    """
    path = out / job.run / POINT
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        before, figures = content["settings"], content["point"]
        counts = np.array(figures.pop("confusion"), np.int64)
        point = ScoredRun(job, **{**figures, "units": tuple(figures["units"])}, confusion=counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be understood: {error!r}. Remove {path.parent} to begin it anew.") from error
    changed = differences(before, job.settings(whole))
    if changed:
        raise SettingError(f"{path} is of another curve: {'; '.join(changed[:3])}. Undo that, or choose another --out.")
    return point


def train_and_score(job: CurveJob, whole: TileSet, out: Path) -> ScoredRun:
    """Train and score a point, and return what was found; its file is written last. Goes on where a kill stopped it.

    Raises:
        InputError, WeightsError, OutputError: as `train` does.
    """
    run = out / job.run
    train(_tiles(job, whole, out), run, job.recipe, resume=True)
    return score_and_save(job, whole, run, Predictor.load(run))


def score_and_save(job: CurveJob, whole: TileSet, run: Path, predictor: Predictor) -> ScoredRun:
    """Score a point's network, write what was found to its run, and return it."""
    result = score_split(run, predictor, whole, job.split, EvaluateConfig())
    units = result.counts.units
    point = ScoredRun(
        job,
        steps=optimizer_steps(job.size.tiles, job.recipe.train),
        epoch=result.card.epoch,
        area_fraction=_ground(job, whole),
        words=units.description,
        caveat=units.caveat,
        units=units.names,
        confusion=units.sum_by_unit(result.counts.confusion),
        overlapping=result.scheme.overlapping,
    )
    write_json(run / POINT, {"settings": job.settings(whole), "point": _plain(point)})
    # Twice the size of the weights, and of no use any more.
    (run / STATE).unlink(missing_ok=True)
    return point


def _tiles(job: CurveJob, whole: TileSet, out: Path) -> Path:
    if job.size.tiles == len(whole.split("train")):
        return whole.folder
    folder = out / "tiles" / f"share{job.size.percent:g}" / f"seed{job.seed}"
    try:
        return write_derived_set(whole, subset(whole, job.seed, job.size.tiles), folder)
    finally:
        close_labels()


def _ground(job: CurveJob, whole: TileSet) -> float:
    mine = [tile for tile in subset(whole, job.seed, job.size.tiles) if tile.split == "train"]
    held, all_of_it = (
        tile_overlap([(tile.scene, tile.window) for tile in tiles], ()).unique_pixels
        for tiles in (mine, whole.split("train"))
    )
    return held / all_of_it


def _plain(point: ScoredRun) -> Mapping[str, Any]:
    names = ("steps", "epoch", "ground", "words", "caveat")
    return {
        **{name: getattr(point, name) for name in names},
        "units": list(point.units),
        "confusion": point.confusion.tolist(),
        **({"overlapping": True} if point.overlapping else {}),
    }
