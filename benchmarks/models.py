"""The run that the benchmarks predict with: the default network, trained on the scene inside the package."""

from pathlib import Path

from geograft import VectorSource, load_recipe, prepare, train
from geograft.card import CARD
from geograft.config import Recipe
from geograft.errors import WeightsError
from geograft.networks.network import build
from rasters import SCENE

NETWORK = {"architecture": "transfer", "encoder": "efficientnet_b0", "weights": "hub"}
"""Geograft's default. Its speed does not depend on the weights; what it shows at the borders of tiles does."""


def trained_run(folder: Path, epochs: int) -> Path:
    """Return a run in `folder`, trained by the demo's recipe with tiles of the default size unless it is there.

    The encoder is pretrained where the hub answers, else random. About 4 minutes for 6 epochs on two cores.
    """
    run = folder / f"run-{epochs}"
    if not (run / CARD).exists():
        recipe = _recipe(epochs)
        tiles = folder / "tiles"
        if not tiles.exists():
            source = VectorSource((SCENE,), SCENE.with_suffix(".gpkg"), class_field="class")
            prepare(source, tiles, recipe.prepare)
        train(tiles, run, recipe, resume=True)
    return run


def _recipe(epochs: int) -> Recipe:
    shipped = load_recipe(Path("demo"))
    recipe = shipped.with_settings(prepare={"tile_px": 224}, model=NETWORK, train={"epochs": epochs})
    try:
        build(recipe.model, bands=3, outputs=1)
    except WeightsError:
        return recipe.with_settings(model={"weights": "none"})
    return recipe
