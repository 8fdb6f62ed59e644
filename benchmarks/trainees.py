"""Who takes part in the training benchmark, what each is given, and the recipes that Geograft's own train by."""

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
"""The recipe whose losses, rates and schedule all plain loops have too."""
DEFAULT = Path("default")


@dataclass(frozen=True)
class Job:
    """What a contestant is given."""

    name: str
    """In TRAINEES."""
    tiles: Path
    weights: Path
    """Of the encoder, for timm's tf_efficientnet_b0."""
    epochs: int = 10
    seed: int = 0
    threads: int = 1
    clock: Literal["wall", "cpu"] = "wall"
    """Whether seconds are those on the wall, or of the processor: steadier on a busy machine, for one thread."""
    limit: int = 0
    """Tiles of each part that count; 0: all."""

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Return the job that a file holds."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {name: Path(content[name]) for name in ("tiles", "weights")})

    def write(self, path: Path) -> Path:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Trainee:
    """A network and a way to train it."""

    title: str
    """In the tables."""
    slow: bool = False
    """Whether one seed has to do."""
    recipe: Callable[[Job], Recipe] | None = None
    """What Geograft's engine trains it by; None: a loop of its own."""
    module: str = ""
    """What an interpreter must have for it."""
    timed: bool = True
    """Whether its step is timed beside those of the others."""


def default_recipe(job: Job) -> Recipe:
    """Return the recipe of Geograft's default. Everybody's epoch is one pass over the tiles."""
    return _filled(load_recipe(DEFAULT).with_settings(train={"repeat": 1, "patience": 0}), job)


def default_recipe_alone(job: Job) -> Recipe:
    """Return it for another network, without the loss on the coarser maps, which are those of the default's own."""
    return default_recipe(job).with_settings(train={"auxiliary_weight": 0})


def article_recipe(variant: int) -> Callable[[Job], Recipe]:
    """Return what makes the recipe of one of the article's models."""

    def recipe(job: Job) -> Recipe:
        shipped = load_recipe(ARTICLE)
        return _filled(shipped.variant(shipped.variants[variant], job.seed), job)

    return recipe


def needs_own_run(recipe: Recipe) -> bool:
    """Whether fewer epochs are another training, and not the first part of a longer one: rates know the end."""
    return recipe.train.schedule == "cosine"


TRAINEES = {
    "geograft": Trainee("**Geograft's default**", recipe=default_recipe),
    "smp-unet": Trainee("smp Unet, plain loop"),
    "smp-fpn": Trainee("smp FPN, plain loop"),
    "smp-deeplab": Trainee("smp DeepLabV3Plus, plain loop"),
    "smp-unet-recipe": Trainee("smp Unet, the default's recipe", recipe=default_recipe_alone),
    "article": Trainee("the article's EfficientNet U-Net in Geograft", recipe=article_recipe(2)),
    "article-random": Trainee("the same, not pretrained", slow=True, recipe=article_recipe(1)),
    "article-unet": Trainee("the article's U-Net in Geograft", slow=True, recipe=article_recipe(0)),
    "newcomer": Trainee("the article's EfficientNet U-Net, a newcomer's loop", slow=True),
    "torchgeo": Trainee(
        "TorchGeo's task, smp Unet in it", slow=True, module="torchgeo.trainers, lightning.pytorch", timed=False
    ),
}
OURS, PEER = "geograft", "smp-unet"
"""Who is compared, and with whom."""
RIVALS = ("smp-unet", "smp-fpn", "smp-deeplab")
"""Whom Geograft's default shall be ahead of in IoU."""


def opened(job: Job) -> TileSet:
    """Return the job's tile set, `limit` tiles of each part, spread over it.

    Raises:
        NotRunnableError: for one that not all contestants can learn from.
    """
    tiles = TileSet.open(job.tiles)
    meta = tiles.meta
    if meta.legend.outputs != 1 or len(meta.band_names) != 3 or meta.scale is None:
        raise NotRunnableError(
            f"{job.tiles}: {len(meta.legend.names)} classes, {len(meta.band_names)} bands of {meta.dtype}. "
            "The benchmark needs two classes and three bands of known range, as the encoder's weights do."
        )
    some = [tile for part in SPLITS for tile in _spread(tiles.split(part), job.limit)]
    return replace(tiles, tiles=tuple(some))


def scenes_of(tiles: TileSet) -> tuple[tuple[str, ...], ndarray]:
    """Return the validation scenes' names, and the number of each validation tile's scene."""
    scenes = [tile.scene for tile in tiles.split("val")]
    names = tuple(dict.fromkeys(scenes))
    return names, np.array([names.index(scene) for scene in scenes])


def _filled(recipe: Recipe, job: Job) -> Recipe:
    weights = "none" if recipe.model.weights == "none" else str(job.weights)
    train = {"epochs": job.epochs, "seed": job.seed, "batch_size": BATCH, "workers": 0, "device": "cpu"}
    return recipe.with_settings(model={"encoder": ENCODER, "weights": weights}, train=train)


def _spread(tiles: tuple[Tile, ...], limit: int) -> tuple[Tile, ...]:
    return tiles[:: max(1, len(tiles) // limit)][:limit] if limit else tiles
