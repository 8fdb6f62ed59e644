"""`geograft find`: a small search for the learning rates, the mix of losses and the encoder that suit a tile set."""

import math
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from geograft.config import Recipe
from geograft.errors import DivergedError, InputError, SettingError
from geograft.geo.tilesets.tileset import TileSet
from geograft.learn.networks.network import build
from geograft.learn.training.checkpoint import STATE
from geograft.learn.training.crew import rank_of
from geograft.progress import announce
from geograft.verbs.find.halving import Tried, goes_on
from geograft.verbs.find.result import Found, run_of
from geograft.verbs.find.space import Space, Values
from geograft.verbs.train import DEFAULT_RECIPE, train

__all__ = ["Found", "find"]

TRIALS = 12


def find(
    tiles: Path,
    out: Path,
    recipe: Recipe = DEFAULT_RECIPE,
    trials: int = TRIALS,
    minutes: float = 0.0,
    encoders: Sequence[str] = (),
) -> Found:
    """Search around `recipe` for settings of a better validation IoU, and return all trials; writes `out`.

    The first trial is the recipe's own settings. A trial trains with a quarter of the epochs, and where it is among
    the best third with half, then all of them; each time anew, with the whole schedule. `trials` counts those of
    earlier calls. With `minutes`, no trial begins once trainings took so long. Test tiles are not looked at. Given
    again after a stop, it goes on: trials stay, an unfinished training is resumed. Twelve trials take about as long
    as eight trainings.

    Raises:
        SettingError: without Optuna, for numbers or encoders that cannot be, or a search in `out` of other settings.
        InputError, WeightsError, OutputError: as `train` does; InputError too when every trial diverged.
    """
    whole = TileSet.open(tiles)
    space = Space.of(recipe, tuple(encoders))
    _check(whole, space, trials, minutes)
    search = _searching().Search(out, space, space.settings(whole.meta.fingerprint))
    while _goes_on(search.tried, trials, minutes):
        trial, values = search.drawn()
        tried = _tried(tiles, out, space, values, search.tried)
        search.note(trial, tried, whole=not tried.lost and tried.epochs == recipe.train.epochs)
        # Twice the size of the weights, and of no use any more.
        for epochs in tried.scores:
            (run_of(out, tried.number, epochs) / STATE).unlink(missing_ok=True)
    found = Found(out, space, tuple(search.tried))
    if found.best.lost:
        raise InputError(f"The loss of every trial in {out} became infinite or no number. Give smaller learning rates.")
    found.write()
    return found


def _searching() -> Any:
    """Return the module that knows Optuna."""
    try:
        return import_module("geograft.verbs.find.study")
    except ImportError as error:
        raise SettingError("geograft find needs Optuna: pip install geograft[find]") from error


def _goes_on(tried: Sequence[Tried], trials: int, minutes: float) -> bool:
    spent = sum(each.seconds for each in tried)
    return not tried or (len(tried) < trials and not (minutes and spent >= 60 * minutes))


def _tried(tiles: Path, out: Path, space: Space, values: Values, before: Sequence[Tried]) -> Tried:
    number, scores, seconds = len(before) + 1, dict[int, float](), 0.0
    rivals = [each.scores for each in before if not each.lost]
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    for epochs in space.rungs():
        announce(f"trial {number}, {epochs} epochs: {shown}")
        iou, took = _trained(tiles, run_of(out, number, epochs), space.recipe_of(values, epochs))
        scores[epochs], seconds = iou or 0.0, seconds + took
        if iou is None:
            return Tried(number, values, scores, seconds, lost=True)
        if not goes_on(iou, [each[epochs] for each in rivals if epochs in each]):
            break
    return Tried(number, values, scores, seconds, lost=False)


def _trained(tiles: Path, run: Path, recipe: Recipe) -> tuple[float | None, float]:
    """Return a run's validation IoU, None where its loss became no number, and how many seconds it took."""
    began = time.monotonic()
    try:
        history = train(tiles, run, recipe, resume=True).history
    except DivergedError:
        return None, time.monotonic() - began
    if math.isnan(history.best.val_iou):
        raise InputError(f"{tiles}: no validation tile can be scored. Prepare it again with a larger --val.")
    return history.best.val_iou, history.seconds


def _check(whole: TileSet, space: Space, trials: int, minutes: float) -> None:
    """Raise what would else come up in the middle of the search."""
    if trials < 1 or minutes < 0:
        raise SettingError(f"--trials {trials} --minutes {minutes:g}: give a trial or more, and minutes of 0 or more.")
    if space.recipe.train.nodes > 1 or rank_of(space.recipe.train):
        raise SettingError(
            "geograft find runs in one process, and trains on as many --devices as there are: start one."
        )
    for part in ("train", "val"):
        if not whole.split(part):
            raise InputError(f"{whole.folder} has no {part} tiles. Prepare it again with other shares.")
    # A network that starts from a run is that run's, and train says what is wrong with it.
    for encoder in () if space.recipe.model.start else space.encoders:
        model = space.recipe.changed(model={"encoder": encoder}).model
        build(model, len(whole.meta.band_names), whole.meta.legend.outputs, pretrained=False)
