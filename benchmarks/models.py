"""The run that the benchmarks predict with: the default network, trained on the scene inside the package."""

from pathlib import Path

from geograft import VectorSource, load_recipe, prepare, train
from geograft.card import CARD
from geograft.config import Recipe
from geograft.errors import WeightsError
from geograft.networks.network import build
from rasters import SCENE

NETWORK = {"architecture": "transfer", "encoder": "efficientnet_b0", "weights": "hub"}
"""Geograft's default. Its speed does not depend on the weights, but its seams do."""


def trained_run(folder: Path, epochs: int) -> Path:
    """Return a run in `folder`, trained first with the demo's recipe and tiles of the default size if it is missing.

    The encoder is pretrained if its weights can be downloaded, otherwise random. Six epochs take about 4 minutes on two
    cores.
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
