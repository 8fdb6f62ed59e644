"""`geograft find`: a small search for the learning rates, the mix of losses and the encoder that suit a tile set.

What a search found: its trials as a table, find.csv, and best.toml.
"""

import csv
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from geograft.commands.search import SearchSpace, TrialResult, Values, should_promote
from geograft.commands.train import DEFAULT_RECIPE, train
from geograft.config import Recipe, recipe_toml
from geograft.dataset.tileset import TileSet
from geograft.errors import DivergedError, InputError, SettingError
from geograft.files import write_text
from geograft.networks.network import build
from geograft.progress import announce
from geograft.text import format_table
from geograft.training.checkpoint import STATE
from geograft.training.distributed import rank_of

BEST = "best.toml"
TABLE = "find.csv"
OPTIMISM_NOTE = (
    "The best of several flatters on the tiles that chose it. Score it on others: geograft evaluate --split test"
)
MAX_SHOWN = 10
"""Trials in the printed table."""


@dataclass(frozen=True)
class SearchResult:
    """The trials of a search."""

    folder: Path
    space: SearchSpace
    trials: tuple[TrialResult, ...]

    @property
    def ranked(self) -> list[TrialResult]:
        """The trials, the best first: by how long they trained, then by validation IoU, the earlier of equals."""
        return sorted(self.trials, key=lambda each: (each.diverged, -each.epochs, -each.iou, each.number))

    @property
    def best(self) -> TrialResult:
        """The trial of the best validation IoU among those that trained with all epochs."""
        return self.ranked[0]

    @property
    def recipe(self) -> Recipe:
        """The recipe with the settings of the best trial."""
        return self.space.recipe_of(self.best.values, self.space.recipe.train.epochs)

    @property
    def run(self) -> Path:
        """The best trial's run of all epochs."""
        return run_of(self.folder, self.best.number, self.best.epochs)

    @property
    def epochs(self) -> int:
        """Epochs that all trainings took."""
        return sum(sum(trial.scores) for trial in self.trials)

    def lines(self) -> list[str]:
        """Return what the command line prints: the best trials, what was tried, what it cost, what it is worth."""
        rungs, names = self.space.rungs(), self.space.parameter_names()
        header = ("trial", *names, *(f"IoU after {epochs}" for epochs in rungs))
        rows = [(f"{t.number}", *(_shown(t.values[name]) for name in names), *_cells(t, rungs)) for t in self.ranked]
        return [
            *format_table([header, *rows[:MAX_SHOWN]]),
            *self._more(),
            self._cost(),
            self._gain(),
            OPTIMISM_NOTE,
            f"search: {self.folder}",
        ]

    def write(self) -> None:
        """Write find.csv, one row a trial in their order, and best.toml."""
        rungs, names = self.space.rungs(), self.space.parameter_names()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", *names, *(f"val_iou_{epochs}" for epochs in rungs), "epochs", "seconds", "lost"])
        for trial in self.trials:
            scores = [trial.scores.get(epochs, "") for epochs in rungs]
            values = [trial.values[name] for name in names]
            seconds = round(trial.seconds, 1)
            writer.writerow([trial.number, *values, *scores, sum(trial.scores), seconds, int(trial.diverged)])
        write_text(self.folder / TABLE, text.getvalue())
        head = f"# Found by `geograft find`, trial {self.best.number} of {len(self.trials)}: {self._gain()}.\n"
        write_text(self.folder / BEST, head + recipe_toml(self.recipe))

    def _more(self) -> list[str]:
        more, lost = len(self.trials) - MAX_SHOWN, sum(trial.diverged for trial in self.trials)
        diverged = f"{lost} of the trials, counted as IoU 0, had a loss that became infinite or no number"
        return [*([f"... and {more} more in {TABLE}"] if more > 0 else []), *([diverged] if lost else [])]

    def _cost(self) -> str:
        seconds = sum(trial.seconds for trial in self.trials)
        whole = len(self.trials) * self.space.recipe.train.epochs
        what = f"{', '.join(self.space.parameter_names())}: {len(self.trials)} trials"
        return f"{what}, {self.epochs} epochs in {seconds:.0f} s; each trial in full would be {whole}"

    def _gain(self) -> str:
        first, best = self.trials[0], self.best
        own = "the recipe's own settings diverged" if first.diverged else f"the recipe's own settings: {first.iou:.3f}"
        return f"best validation IoU {best.iou:.3f}, {own}"


def run_of(folder: Path, number: int, epochs: int) -> Path:
    """Return the folder of a trial's run of so many epochs."""
    return folder / f"trial{number:02d}" / f"epochs{epochs}"


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _cells(trial: TrialResult, rungs: tuple[int, ...]) -> list[str]:
    return [f"{trial.scores[epochs]:.3f}" if epochs in trial.scores else "-" for epochs in rungs]


TRIALS = 12


def find(
    tiles: Path,
    out: Path,
    recipe: Recipe = DEFAULT_RECIPE,
    trials: int = TRIALS,
    minutes: float = 0.0,
    encoders: Sequence[str] = (),
) -> SearchResult:
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
    space = SearchSpace.around(recipe, tuple(encoders))
    _check(whole, space, trials, minutes)
    search = _import_search().Search(out, space, space.settings(whole.meta.fingerprint))
    while _needs_trial(search.results, trials, minutes):
        trial, values = search.ask()
        tried = _run_trial(tiles, out, space, values, search.results)
        search.tell(trial, tried, whole=not tried.diverged and tried.epochs == recipe.train.epochs)
        # Twice the size of the weights, and of no use any more.
        for epochs in tried.scores:
            (run_of(out, tried.number, epochs) / STATE).unlink(missing_ok=True)
    found = SearchResult(out, space, tuple(search.results))
    if found.best.diverged:
        raise InputError(f"The loss of every trial in {out} became infinite or no number. Give smaller learning rates.")
    found.write()
    return found


def _import_search() -> Any:
    """Return the module that knows Optuna."""
    try:
        return import_module("geograft.commands.search")
    except ImportError as error:
        raise SettingError("geograft find needs Optuna: pip install geograft[find]") from error


def _needs_trial(tried: Sequence[TrialResult], trials: int, minutes: float) -> bool:
    spent = sum(each.seconds for each in tried)
    return not tried or (len(tried) < trials and not (minutes and spent >= 60 * minutes))


def _run_trial(
    tiles: Path, out: Path, space: SearchSpace, values: Values, before: Sequence[TrialResult]
) -> TrialResult:
    number, scores, seconds = len(before) + 1, dict[int, float](), 0.0
    rivals = [each.scores for each in before if not each.diverged]
    shown = ", ".join(f"{name} {value}" for name, value in values.items())
    for epochs in space.rungs():
        announce(f"trial {number}, {epochs} epochs: {shown}")
        iou, took = _train_rung(tiles, run_of(out, number, epochs), space.recipe_of(values, epochs))
        scores[epochs], seconds = iou or 0.0, seconds + took
        if iou is None:
            return TrialResult(number, values, scores, seconds, diverged=True)
        if not should_promote(iou, [each[epochs] for each in rivals if epochs in each]):
            break
    return TrialResult(number, values, scores, seconds, diverged=False)


def _train_rung(tiles: Path, run: Path, recipe: Recipe) -> tuple[float | None, float]:
    """Return a run's validation IoU, None where its loss became no number, and how many seconds it took."""
    began = time.monotonic()
    try:
        history = train(tiles, run, recipe, resume=True).history
    except DivergedError:
        return None, time.monotonic() - began
    if math.isnan(history.best.val_iou):
        raise InputError(f"{tiles}: no validation tile can be scored. Prepare it again with a larger --val.")
    return history.best.val_iou, history.seconds


def _check(whole: TileSet, space: SearchSpace, trials: int, minutes: float) -> None:
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
        model = space.recipe.with_settings(model={"encoder": encoder}).model
        build(model, len(whole.meta.band_names), whole.meta.legend.outputs, pretrained=False)
