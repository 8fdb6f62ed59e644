"""The run that the benchmarks predict with: the default network, trained on the scene inside the package."""

from pathlib import Path

from geograft import VectorSource, load_recipe, prepare, train
from geograft.card import CARD
from geograft.commands.demo import with_weights
from geograft.config import Recipe
from rasters import SCENE


def trained_run(folder: Path, epochs: int) -> Path:
    """Return a run in `folder`, trained first with the demo's recipe if it is missing.

    As in the demo, the encoder is EfficientNet-B0 if its weights can be downloaded, otherwise EfficientNet-Lite0. Six
    epochs take about a minute on two cores.
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
    return with_weights(load_recipe(Path("demo")).with_settings(train={"epochs": epochs}))[0]
