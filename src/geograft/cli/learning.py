"""Command-line functions of `go`, `model`, `show` and the commands that train, calibrate or evaluate networks."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from geograft.cli.flags import config_from, print_result, recipe_from, recipe_with, settings, with_progress
from geograft.config import AdaptConfig, EvaluateConfig, InferenceConfig, ModelConfig, PartConfig, TrainConfig
from geograft.errors import SettingError

Split = Literal["train", "val", "test"]
LINEAR = "linear"
ALL_SPLITS: tuple[Split, ...] = ("train", "val", "test")


@with_progress
def go(
    folder: Path,
    /,
    *,
    minutes: float | None = None,
    first: Annotated[tuple[str, ...], Parameter(negative=())] = (),
) -> None:
    """Train, score, map and suggest what to label next, from the labels of a project folder.

    Steps whose inputs have not changed are skipped. Run the same command again to resume an interrupted one.

    Args:
        folder: Folder of a project, from `geograft project`.
        minutes: Lower the number of epochs so that training takes about this long.
        first: Name of an image to map before the others: that of its map, without suffix; may be repeated.
            NAME@ROW,COL,HEIGHT,WIDTH also maps this part of it, in pixels, before everything else, into .views.
    """
    from geograft.commands.go import go

    print_result(go(folder, minutes, first))


def model(name: str, /, *, bands: int = 3, outputs: int = 1, size: int = 224, draw_to: Path | None = None) -> None:
    """Summarise a network: shapes, parameters, GFLOP and memory of each stage. Can draw its graph.

    Args:
        name: unet, transfer, linear, light, the name of an encoder in timm, or a recipe file.
        bands: Number of input bands.
        outputs: Number of output channels: 1 for binary segmentation, else the number of classes.
        size: Tile size in pixels.
        draw_to: File for a drawing of the graph, .svg or .png.
    """
    from geograft.commands.model import model, write_graph

    summary = model(name, bands=bands, outputs=outputs, size=size)
    print_result(summary)
    if draw_to:
        write_graph(summary, draw_to)


@with_progress
def show(run: Path, /, *, json: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Describe a run: classes, thresholds, bands, network, training data, scores, licence of the pretrained weights.

    Args:
        run: A run: its folder, a bundle (.graft), hf:USER/NAME on the hub, or an address (https://, s3://).
        json: Print JSON, with the whole model card.
    """
    from geograft.commands.show import JsonText, show

    description = show(run)
    print_result(JsonText(description) if json else description)


@with_progress
@settings(model=ModelConfig, train=TrainConfig)
def train(
    tiles: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    out: Path,
    recipe: Path | None = None,
    resume: bool = False,
    quick: Annotated[bool, Parameter(negative=())] = False,
    minutes: float | None = None,
    set_weights: str = "",
    **chosen: Any,
) -> None:
    """Train a network on one or several tile sets; the epoch with the lowest validation loss is saved.

    Without a recipe, settings that are not given are planned from the tile set: few tiles are repeated, and tiles of
    rare classes are drawn more often.

    Args:
        tiles: Folders of tile sets with the same classes, bands and tile size.
        out: Folder of the run.
        recipe: TOML file with the tables [model] and [train]; flags override it.
        resume: Resume the interrupted run in --out. Without --recipe it keeps the settings that it was started with.
        quick: Fit a linear classifier on the features of the frozen encoder, in seconds: --architecture linear.
        minutes: Lower the number of epochs so that training takes about this long.
        set_weights: How often tiles of each tile set are drawn, relative to the others, such as 1,3.
    """
    from geograft.commands.train import read_recipe, train

    began = read_recipe(out) if resume and recipe is None else None
    base = began or recipe_from(recipe, {})
    if quick:
        chosen = chosen | {"architecture": _linear(chosen)}
    given = {name for name, value in chosen.items() if value is not None}
    sets = _weighted(tiles, set_weights) if set_weights else tiles
    print_result(train(sets, out, recipe_with(base, chosen), resume, minutes, None if recipe else given))


def _linear(chosen: dict[str, Any]) -> str:
    """Return the architecture that --quick stands for."""
    if chosen.get("architecture") not in (None, LINEAR):
        raise SettingError(f"--quick fits --architecture {LINEAR}, not {chosen['architecture']}. Omit one of them.")
    return LINEAR


def _weighted(tiles: tuple[Path, ...], text: str) -> dict[Path, float]:
    weights = parse_numbers(text, "--set-weights")
    if len(weights) != len(tiles) or len(set(tiles)) < len(tiles):
        raise SettingError(f"--set-weights {text}: give one number for each of the {len(set(tiles))} tile sets.")
    return dict(zip(tiles, weights, strict=True))


@with_progress
@settings(model=ModelConfig, train=TrainConfig)
def compare(
    tiles: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    recipe: Path,
    out: Path,
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    folds: int = 0,
    leave_one_place_out: Annotated[bool, Parameter(negative=())] = False,
    **chosen: Any,
) -> None:
    """Train all variants of a recipe with all seeds on the same tiles and compare them.

    Run the same command again to resume an interrupted comparison.

    Args:
        tiles: Folders of tile sets; several are trained on together.
        recipe: TOML file with [[variants]].
        out: Folder of the comparison.
        seeds: Random seeds to train every variant with, instead of the recipe's.
        folds: Number of folds for spatial cross-validation: each variant is trained once per fold. 0 disables it.
        leave_one_place_out: Leave out one place at a time, a group of scenes or one of several tile sets: each variant
            is trained in the other places, and scored there and in these.
    """
    from geograft.commands.compare import compare

    base = recipe_from(recipe, chosen)
    print_result(compare(tiles, base.with_seeds(seeds), out, folds, leave_one_place_out))


@with_progress
@settings(model=ModelConfig, train=TrainConfig)
def curve(
    tiles: Path,
    /,
    *,
    out: Path,
    recipe: Path | None = None,
    percent: str = "1,2,5,10,25,50,100",
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    min_steps: int = 1000,
    **chosen: Any,
) -> None:
    """Plot a learning curve: IoU against the number of training tiles, pretrained and from scratch.

    Run the same command again to resume an interrupted curve.

    Args:
        tiles: Folder of a tile set.
        out: Folder of the curve.
        recipe: TOML file; its [[variants]] replace pretrained and from scratch.
        percent: Percentages of the training tiles, separated by commas.
        seeds: Random seeds for subsets and training, instead of the recipe's.
        min_steps: Minimum number of optimizer steps with few tiles, unless all tiles take fewer.
    """
    from geograft.commands.curve import curve

    base = recipe_from(recipe, chosen)
    print_result(curve(tiles, out, base.with_seeds(seeds), parse_numbers(percent, "--percent"), min_steps))


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """Return (1.0, 2.5) for "1,2.5".

    Raises:
        SettingError: if a part is not a number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"{option} {text!r} cannot be parsed. Give numbers separated by commas, such as 1,10,100."
        ) from None


@with_progress
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
    """Search learning rates, loss and encoder by successive halving (Optuna), for the highest validation IoU.

    Poor trials stop after a quarter or half of the epochs. Run the same command again to resume a search.

    Args:
        tiles: Folder of a tile set.
        out: Folder of the search.
        recipe: TOML file to search around; flags override it.
        trials: Total number of trials, finished ones included. The first one has the recipe's settings.
        minutes: Start no trial after this total training time in minutes. 0: no limit.
        encoders: Names of encoders in timm to try, separated by commas. Default: the recipe's only.
    """
    from geograft.commands.find import find

    names = [name.strip() for name in encoders.split(",") if name.strip()]
    print_result(find(tiles, out, recipe_from(recipe, chosen), trials, minutes, names))


@with_progress
@settings(adapt=AdaptConfig)
def adapt(
    run: Path,
    /,
    *,
    tiles: Path,
    out: Path,
    source: Path | None = None,
    **chosen: Any,
) -> None:
    """Train a run further on a few labelled tiles of another place, if that makes it better there.

    Tiles of the run's own place are rehearsed, so that it does not forget them. The scores are those of models that
    were not trained on the tiles they are scored on. If they are no better than those of the run itself, no run is
    written. Run the same command again to resume.

    Args:
        run: A run: its folder, a bundle (.graft), or hf:USER/NAME on the hub.
        tiles: Folder of a tile set of the other place, with three or more tiles; all splits are used.
        out: Folder of the adapted run.
        source: Folder of the run's own tile set, if it was moved.
    """
    from geograft.commands.adapt import adapt

    print_result(adapt(run, tiles, out, config_from(AdaptConfig, AdaptConfig(), chosen), source))


@with_progress
@settings(calibrate=InferenceConfig)
def calibrate(
    run: Path,
    /,
    *,
    tiles: Path | None = None,
    objects: str = "",
    out: Path | None = None,
    place_tiles: Path | None = None,
    name: str = "",
    splits: Annotated[tuple[Split, ...], Parameter(consume_multiple=True, negative=())] = ALL_SPLITS,
    **chosen: Any,
) -> None:
    """Calibrate a run on its validation tiles: temperature scaling and the probability threshold.

    Both are written to the model card and used by later maps and scores. Test tiles are not used. With --place-tiles,
    they are fitted to labelled tiles of another place instead, and used by commands with --place; the run stays as it
    is.

    Args:
        run: A run: its folder, a bundle (.graft), or hf:USER/NAME on the hub.
        tiles: Folder of its tile set, if it was moved.
        objects: Also choose how polygons of this class, such as building, are cleaned: minimum area, holes and gaps.
        out: Bundle to write with the calibrated card, .graft, if the run is a bundle.
        place_tiles: Folder of a tile set of another place.
        name: Name of the place; default: that of the tile set's folder.
        splits: Splits whose tiles of the place are used; the others remain for evaluate --place.
    """
    from geograft.commands.calibrate import calibrate, calibrate_place

    config = config_from(InferenceConfig, InferenceConfig(), chosen)
    if place_tiles is None:
        if name or splits != ALL_SPLITS:
            raise SettingError("--name and --splits have an effect with --place-tiles only. Give it, or omit them.")
        print_result(calibrate(run, tiles, config, objects, out))
        return
    given = {"--tiles": tiles, "--objects": objects, "--out": out}
    without = next((option for option, value in given.items() if value), None)
    if without:
        raise SettingError(f"{without} has no effect with --place-tiles. Omit it.")
    print_result(calibrate_place(run, place_tiles, name, splits, config))


@with_progress
@settings(evaluate=EvaluateConfig, worker=PartConfig)
def evaluate(
    run: Path,
    /,
    *,
    split: Split = "test",
    tiles: Path | None = None,
    against: Path | None = None,
    ensemble: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    out: Path | None = None,
    worker: Annotated[bool, Parameter(negative=())] = False,
    **chosen: Any,
) -> None:
    """Score a run on the tiles of one split, with 95 % confidence intervals. Each pixel counts once.

    Tiles are predicted exactly as `geograft predict` maps their scenes.

    Args:
        run: A run: its folder, a bundle (.graft), hf:USER/NAME on the hub, or an address (https://, s3://).
        split: train, val or test.
        tiles: Another tile set with the same classes, instead of the run's own.
        ensemble: Further runs; the probabilities of all runs are averaged, as in a map.
        against: Another run; the paired difference in scores is reported with its confidence interval.
        out: JSON file of the scores; default: scores-SPLIT.json in the run. A bundle needs it. With --worker a folder.
        worker: Score units of the split together with other processes that share the folder --out (docs/scale.md).
    """
    from geograft.commands.evaluate import evaluate

    config = config_from(EvaluateConfig, EvaluateConfig(), chosen)
    options = config_from(PartConfig, PartConfig(), chosen)
    if not worker and not options.ray:
        if options != PartConfig():
            raise SettingError("--part and --tolerance are settings of a worker. Add --worker or --ray.")
        print_result(evaluate((run, *ensemble), split, tiles, out, against, config))
        return
    if against is not None:
        raise SettingError("--against compares two runs in one process. Omit it with --worker and --ray.")
    if out is None:
        raise SettingError("--worker and --ray need --out, a folder that all workers share.")
    from geograft.commands.units import evaluate_units

    print_result(evaluate_units((run, *ensemble), out, split, tiles, config, options))
