"""`geograft model`, `train`, `compare`, `curve`, `find`, `calibrate` and `evaluate`, each imported when called."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from geograft.cli.flags import config_from, recipe_from, settings, show
from geograft.config import EvaluateConfig, ModelConfig, TrainConfig
from geograft.errors import SettingError


def model(name: str, /, *, bands: int = 3, outputs: int = 1, size: int = 224, draw_to: Path | None = None) -> None:
    """Show the stages of a network with their shapes, parameters, GFLOP and memory, and draw its graph.

    Args:
        name: unet, transfer, light, timm's name of an encoder, or a recipe file.
        bands: Number of bands of the image.
        outputs: Number of output channels: 1 for two classes, else the number of classes.
        size: Edge of a tile in pixels.
        draw_to: File to draw the graph to, .svg or .png.
    """
    from geograft.commands.model import draw, model

    summary = model(name, bands=bands, outputs=outputs, size=size)
    show(summary)
    if draw_to:
        draw(summary, draw_to)


@settings(model=ModelConfig, train=TrainConfig)
def train(tiles: Path, /, *, out: Path, recipe: Path | None = None, resume: bool = False, **chosen: Any) -> None:
    """Train a network on a tile set and keep the epoch with the least validation loss.

    Args:
        tiles: Folder of a tile set.
        out: Folder of the run.
        recipe: TOML file with the tables [model] and [train]; flags come on top.
        resume: Go on with the run in --out where it was stopped.
    """
    from geograft.commands.train import train

    show(train(tiles, out, recipe_from(recipe, chosen), resume=resume))


@settings(model=ModelConfig, train=TrainConfig)
def compare(
    tiles: Path,
    /,
    *,
    recipe: Path,
    out: Path,
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    folds: int = 0,
    **chosen: Any,
) -> None:
    """Train every variant of a recipe with every seed on the same tiles, and set them side by side.

    Stopped comparisons go on where they stopped when the same command is given again.

    Args:
        tiles: Folder of a tile set.
        recipe: TOML file with [[variants]].
        out: Folder of the comparison.
        seeds: Seeds to train every variant with, in place of the recipe's.
        folds: Share the ground out in so many folds and train each variant once a fold, on the rest; 0: do not.
    """
    from geograft.commands.compare import compare

    base = recipe_from(recipe, chosen)
    show(compare(tiles, replace(base, seeds=seeds or base.seeds), out, folds))


@settings(model=ModelConfig, train=TrainConfig)
def curve(
    tiles: Path,
    /,
    *,
    out: Path,
    recipe: Path | None = None,
    shares: str = "1,2,5,10,25,50,100",
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    least_steps: int = 1000,
    **chosen: Any,
) -> None:
    """Train on ever more of the training tiles, pretrained and from scratch, and draw how good each is with how many.

    Stopped curves go on where they stopped when the same command is given again.

    Args:
        tiles: Folder of a tile set.
        out: Folder of the curve.
        recipe: TOML file; its [[variants]] in place of pretrained and from scratch.
        shares: Percent of the training tiles, by commas.
        seeds: Seeds to draw tiles and to train with, in place of the recipe's.
        least_steps: Few tiles are shown as often as all tiles would be, or for so many steps if that is less.
    """
    from geograft.commands.curve import curve

    base = recipe_from(recipe, chosen)
    show(curve(tiles, out, replace(base, seeds=seeds or base.seeds), percents(shares), least_steps))


def percents(text: str) -> tuple[float, ...]:
    """Return (1.0, 2.5) for "1,2.5".

    Raises:
        SettingError: when a part is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(f"--shares {text!r} is not understood: give percents by commas, as in 1,10,100.") from None


@settings(model=ModelConfig, train=TrainConfig)
def find(
    tiles: Path,
    /,
    *,
    out: Path,
    recipe: Path | None = None,
    trials: int = 12,
    minutes: float = 0.0,
    encoders: str = "",
    **chosen: Any,
) -> None:
    """Search for the learning rates, the mix of losses and the encoder of the best validation IoU.

    Poor trials stop after a quarter or half of the epochs. Stopped searches go on when the same command is given again.

    Args:
        tiles: Folder of a tile set.
        out: Folder of the search.
        recipe: TOML file to search around; flags come on top.
        trials: Number of trials, with those that are there; the first one is the recipe's own settings.
        minutes: Begin no trial once trainings took so long together; 0: no limit.
        encoders: timm's names of the encoders to try, by commas; the recipe's alone by default.
    """
    from geograft.commands.find import find

    names = [name.strip() for name in encoders.split(",") if name.strip()]
    show(find(tiles, out, recipe_from(recipe, chosen), trials, minutes, names))


def calibrate(run: Path, /, *, tiles: Path | None = None) -> None:
    """Choose a run's threshold and temperature on its validation tiles and write them into its card.

    Maps and scores that are made afterwards use them. The test tiles are not looked at.

    Args:
        run: Folder of a run.
        tiles: Where its tile set lies now, if it was moved.
    """
    from geograft.commands.calibrate import calibrate

    show(calibrate(run, tiles))


@settings(evaluate=EvaluateConfig)
def evaluate(
    run: Path,
    /,
    *,
    split: Literal["train", "val", "test"] = "test",
    tiles: Path | None = None,
    against: Path | None = None,
    out: Path | None = None,
    **chosen: Any,
) -> None:
    """Score a run on the tiles of one split, every pixel once, with 95 % intervals.

    Args:
        run: Folder of a run.
        split: train, val or test.
        tiles: Another tile set with the same classes than the run's own.
        against: Folder of another run: how much better the first one is, with an interval.
        out: JSON file of the scores; default: scores-SPLIT.json in the run.
    """
    from geograft.commands.evaluate import evaluate

    config = config_from(EvaluateConfig, EvaluateConfig(), chosen)
    show(evaluate(run, split, tiles, out, against, config))
