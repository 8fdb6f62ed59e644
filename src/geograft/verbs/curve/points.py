"""One point of a curve: a run on some of the training tiles, and how it does on all tiles that are scored."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from geograft.config import EvaluateConfig, Recipe
from geograft.counting import Counting
from geograft.errors import InputError, SettingError
from geograft.files import write_json
from geograft.geo.coverage import overlap
from geograft.geo.rasters.raster import close_labels
from geograft.geo.tilesets.tileset import Split, TileSet
from geograft.learn.training.checkpoint import STATE
from geograft.learn.using.inference import Predictor
from geograft.making import as_json, differences
from geograft.verbs.curve.plan import Size, steps, subset
from geograft.verbs.derived import derived_fingerprint, derived_set
from geograft.verbs.evaluate import scored
from geograft.verbs.train import train

POINT = "point.json"
WITHOUT_EFFECT = ("workers", "save_minutes", "tensorboard", "mlflow")
"""Settings of [train] that do not touch what a run computes."""


@dataclass(frozen=True)
class Job:
    """What decides a point."""

    variant: str
    size: Size
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
        train_settings = {name: value for name, value in recipe["train"].items() if name not in WITHOUT_EFFECT}
        fingerprint = derived_fingerprint(whole, subset(whole, self.seed, self.size.tiles))
        return as_json({"tiles": fingerprint, "split": self.split, "model": recipe["model"], "train": train_settings})


@dataclass(frozen=True)
class Point:
    """A trained and scored run."""

    job: Job
    steps: int
    epoch: int
    """Whose weights were kept."""
    ground: float
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
    def counting(self) -> Counting:
        """How pixels are counted."""
        return Counting(self.confusion.shape[1], self.overlapping)


def finished(job: Job, whole: TileSet, out: Path) -> Point | None:
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
        point = Point(job, **{**figures, "units": tuple(figures["units"])}, confusion=counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be understood: {error!r}. Remove {path.parent} to begin it anew.") from error
    changed = differences(before, job.settings(whole))
    if changed:
        raise SettingError(f"{path} is of another curve: {'; '.join(changed[:3])}. Undo that, or choose another --out.")
    return point


def computed(job: Job, whole: TileSet, out: Path) -> Point:
    """Train and score a point, and return what was found; its file is written last. Goes on where a kill stopped it.

    Raises:
        InputError, WeightsError, OutputError: as `train` does.
    """
    run = out / job.run
    train(_tiles(job, whole, out), run, job.recipe, resume=True)
    return noted(job, whole, run, Predictor.load(run))


def noted(job: Job, whole: TileSet, run: Path, trained: Predictor) -> Point:
    """Score a point's network, write what was found to its run, and return it."""
    result = scored(run, trained, whole, job.split, EvaluateConfig())
    units = result.counts.units
    point = Point(
        job,
        steps=steps(job.size.tiles, job.recipe.train),
        epoch=result.card.epoch,
        ground=_ground(job, whole),
        words=units.words,
        caveat=units.caveat,
        units=units.names,
        confusion=units.summed(result.counts.confusion),
        overlapping=result.counting.overlapping,
    )
    write_json(run / POINT, {"settings": job.settings(whole), "point": _plain(point)})
    # Twice the size of the weights, and of no use any more.
    (run / STATE).unlink(missing_ok=True)
    return point


def _tiles(job: Job, whole: TileSet, out: Path) -> Path:
    if job.size.tiles == len(whole.split("train")):
        return whole.folder
    folder = out / "tiles" / f"share{job.size.share:g}" / f"seed{job.seed}"
    try:
        return derived_set(whole, subset(whole, job.seed, job.size.tiles), folder)
    finally:
        close_labels()


def _ground(job: Job, whole: TileSet) -> float:
    mine = [tile for tile in subset(whole, job.seed, job.size.tiles) if tile.split == "train"]
    held, all_of_it = (
        overlap([(tile.scene, tile.window) for tile in tiles], ()).ground for tiles in (mine, whole.split("train"))
    )
    return held / all_of_it


def _plain(point: Point) -> Mapping[str, Any]:
    names = ("steps", "epoch", "ground", "words", "caveat")
    return {
        **{name: getattr(point, name) for name in names},
        "units": list(point.units),
        "confusion": point.confusion.tolist(),
        **({"overlapping": True} if point.overlapping else {}),
    }
