"""The run that the benchmarks predict with: the default network, trained on the scene inside the package."""

from pathlib import Path

from geograft import VectorSource, load_recipe, prepare, train
from geograft.card import CARD, read_card
from geograft.commands.demo import with_weights
from geograft.config import Recipe
from rasters import SCENE


def trained_run(folder: Path, epochs: int) -> Path:
    """Return a run in `folder`, trained first with the demo's recipe if it is missing.

    As in the demo, the encoder is EfficientNet-B0 if its weights can be downloaded, otherwise EfficientNet-Lite0. Six
    epochs take about a minute on two cores.
    """
    run = folder / f"run-{epochs}"
    if not is_finished(run):
        recipe = _recipe(epochs)
        tiles = folder / "tiles"
        if not tiles.exists():
            source = VectorSource((SCENE,), SCENE.with_suffix(".gpkg"), class_field="class")
            prepare(source, tiles, recipe.prepare)
        train(tiles, run, recipe, resume=True)
    return run


def is_finished(run: Path) -> bool:
    """Return whether a folder has a run that was trained to its end."""
    return (run / CARD).exists() and read_card(run).finished


def _recipe(epochs: int) -> Recipe:
    return with_weights(load_recipe(Path("demo")).with_settings(train={"epochs": epochs}))[0]
