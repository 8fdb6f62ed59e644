"""The contestants of the training benchmark, their jobs, and the recipes for those that Geograft trains."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from geograft.config import Recipe, load_recipe
from geograft.dataset.tileset import SPLITS, Tile, TileSet
from measured import NotRunnableError

ENCODER = "tf_efficientnet_b0"
BATCH = 8
ARTICLE = Path("amazon")
"""The recipe whose loss, learning rates and schedule the plain loops share."""
DEFAULT = Path("default")


@dataclass(frozen=True)
class TrainingJob:
    """The input of one training or measurement."""

    name: str
    """A key of TRAINEES, or the name of a measurement."""
    tiles: Path
    weights: Path
    """Encoder weights of timm's tf_efficientnet_b0."""
    epochs: int = 10
    seed: int = 0
    threads: int = 1
    clock: Literal["wall", "cpu"] = "wall"
    """Wall time, or CPU time, which is less noisy on a busy machine with one thread."""
    limit: int = 0
    """Maximum tiles of each split; 0 means all."""

    @classmethod
    def read(cls, path: Path) -> "TrainingJob":
        """Read a job from a JSON file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {name: Path(content[name]) for name in ("tiles", "weights")})

    def write(self, path: Path) -> Path:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Trainee:
    """A contestant: a network and a way to train it."""

    title: str
    """Its name in the tables."""
    slow: bool = False
    """Whether it is trained with one seed only."""
    recipe: Callable[[TrainingJob], Recipe] | None = None
    """Recipe for Geograft's engine; None for another training loop."""
    module: str = ""
    """Modules that its interpreter needs."""
    timed: bool = True
    """Whether its steps are timed."""


def default_recipe(job: TrainingJob) -> Recipe:
    """Return the recipe of Geograft's default, with one pass over the tiles per epoch, as for all contestants."""
    return _for_job(load_recipe(DEFAULT).with_settings(train={"repeat": 1, "patience": 0}), job)


def default_recipe_without_auxiliary(job: TrainingJob) -> Recipe:
    """Return the default recipe without deep supervision, for a network without auxiliary outputs."""
    return default_recipe(job).with_settings(train={"auxiliary_weight": 0})


def article_recipe(variant: int) -> Callable[[TrainingJob], Recipe]:
    """Return the function that builds the recipe of one of the article's models."""

    def recipe(job: TrainingJob) -> Recipe:
        shipped = load_recipe(ARTICLE)
        return _for_job(shipped.variant(shipped.variants[variant], job.seed), job)

    return recipe


def needs_own_run(recipe: Recipe) -> bool:
    """Return whether a shorter training is not a prefix of a longer one, because the schedule depends on its length."""
    return recipe.train.schedule == "cosine"


TRAINEES = {
    "geograft": Trainee("**Geograft's default**", recipe=default_recipe),
    "smp-unet": Trainee("smp Unet, plain loop"),
    "smp-fpn": Trainee("smp FPN, plain loop"),
    "smp-deeplab": Trainee("smp DeepLabV3Plus, plain loop"),
    "smp-unet-recipe": Trainee("smp Unet, default recipe", recipe=default_recipe_without_auxiliary),
    "article": Trainee("article's EfficientNet U-Net, Geograft", recipe=article_recipe(2)),
    "article-random": Trainee("the same, random initial weights", slow=True, recipe=article_recipe(1)),
    "article-unet": Trainee("article's U-Net, Geograft", slow=True, recipe=article_recipe(0)),
    "article-loop": Trainee("article's EfficientNet U-Net, article's loop", slow=True),
    "torchgeo": Trainee(
        "smp Unet, TorchGeo's task", slow=True, module="torchgeo.trainers, lightning.pytorch", timed=False
    ),
}
OURS, PEER = "geograft", "smp-unet"
"""Geograft's default, and the baseline that speeds are relative to."""
RIVALS = ("smp-unet", "smp-fpn", "smp-deeplab")
"""Contestants that Geograft's default should exceed in IoU."""


def open_tiles(job: TrainingJob) -> TileSet:
    """Return the job's tile set, reduced to at most `limit` evenly spaced tiles of each split.

    Raises:
        NotRunnableError: if not all contestants can train on it.
    """
    tiles = TileSet.open(job.tiles)
    meta = tiles.meta
    if meta.legend.outputs != 1 or len(meta.band_names) != 3 or meta.scale is None:
        raise NotRunnableError(
            f"{job.tiles}: {len(meta.legend.names)} classes, {len(meta.band_names)} bands of {meta.dtype}. "
            "The benchmark needs two classes and three bands of a known range, which the encoder weights expect."
        )
    some = [tile for split in SPLITS for tile in _subsample(tiles.split(split), job.limit)]
    return replace(tiles, tiles=tuple(some))


def validation_scenes(tiles: TileSet) -> tuple[tuple[str, ...], ndarray]:
    """Return the names of the validation scenes, and the index of each validation tile's scene."""
    scenes = [tile.scene for tile in tiles.split("val")]
    names = tuple(dict.fromkeys(scenes))
    return names, np.array([names.index(scene) for scene in scenes])


def _for_job(recipe: Recipe, job: TrainingJob) -> Recipe:
    weights = "none" if recipe.model.weights == "none" else str(job.weights)
    train = {"epochs": job.epochs, "seed": job.seed, "batch_size": BATCH, "workers": 0, "device": "cpu"}
    return recipe.with_settings(model={"encoder": ENCODER, "weights": weights}, train=train)


def _subsample(tiles: tuple[Tile, ...], limit: int) -> tuple[Tile, ...]:
    return tiles[:: max(1, len(tiles) // limit)][:limit] if limit else tiles
