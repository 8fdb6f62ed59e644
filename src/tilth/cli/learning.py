"""`tilth model`, `tilth train`, `tilth compare` and `tilth evaluate`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tilth.cli.flags import recipe_from, settings
from tilth.cli.show import show
from tilth.config import ModelConfig, TrainConfig
from tilth.geo.tileset import Split
from tilth.verbs.compare import compare as compare_variants
from tilth.verbs.evaluate import evaluate as evaluate_run
from tilth.verbs.model import draw
from tilth.verbs.model import model as summarise
from tilth.verbs.train import train as train_run


def model(name: str, /, *, bands: int = 3, outputs: int = 1, size: int = 224, draw_to: Path | None = None) -> None:
    """Show the stages of a network with their shapes, parameters, GFLOP and memory, and draw its graph.

    Example:

        $ tilth model transfer

    Args:
        name: unet, transfer, timm's name of an encoder, or a recipe file.
        bands: Number of bands of the image.
        outputs: Number of output channels: 1 for two classes, else the number of classes.
        size: Edge of a tile in pixels.
        draw_to: File to draw the graph to, .svg or .png.
    """
    summary = summarise(name, bands=bands, outputs=outputs, size=size)
    show(summary)
    if draw_to:
        draw(summary, draw_to)


@settings(model=ModelConfig, train=TrainConfig)
def train(tiles: Path, /, *, out: Path, recipe: Path | None = None, resume: bool = False, **chosen: Any) -> None:
    """Train a network on a tile set and keep the epoch with the least validation loss.

    Example:

        $ tilth train tiles/ --out runs/trees --epochs 20

    Args:
        tiles: Folder of a tile set.
        out: Folder of the run.
        recipe: TOML file with the tables [model] and [train]; flags come on top.
        resume: Go on with the run in --out where it was stopped.
    """
    show(train_run(tiles, out, recipe_from(recipe, chosen), resume=resume))


@settings(model=ModelConfig, train=TrainConfig)
def compare(
    tiles: Path,
    /,
    *,
    recipe: Path,
    out: Path,
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    **chosen: Any,
) -> None:
    """Train every variant of a recipe with every seed on the same tiles, and set them side by side.

    Stopped comparisons go on where they stopped when the same command is given again.

    Example:

        $ tilth compare tiles/ --recipe recipes/demo.toml --out comparison/

    Args:
        tiles: Folder of a tile set.
        recipe: TOML file with [[variants]].
        out: Folder of the comparison.
        seeds: Seeds to train every variant with, in place of the recipe's.
    """
    base = recipe_from(recipe, chosen)
    show(compare_variants(tiles, base.changed(seeds=seeds) if seeds else base, out))


def evaluate(run: Path, /, *, split: Split = "test", tiles: Path | None = None, out: Path | None = None) -> None:
    """Score a run on the tiles of one split, every pixel once.

    Example:

        $ tilth evaluate runs/trees --split test

    Args:
        run: Folder of a run.
        split: train, val or test.
        tiles: Another tile set with the same classes than the run's own.
        out: JSON file of the scores; default: scores-SPLIT.json in the run.
    """
    show(evaluate_run(run, split=split, tiles=tiles, out=out))
