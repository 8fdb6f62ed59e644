"""`geograft find`: hyper-parameter search over learning rates, loss and encoder by successive halving (Optuna)."""

import csv
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from geograft.card import STATE
from geograft.commands.search import SearchSpace, TrialResult, Values, should_promote
from geograft.commands.train import DEFAULT_RECIPE, check_trainings, train
from geograft.config import Recipe, recipe_toml
from geograft.dataset.tileset import TileSet
from geograft.errors import DivergedError, InputError, SettingError
from geograft.files import StrPath, write_text
from geograft.locks import locks_output
from geograft.progress import announce
from geograft.text import format_table
from geograft.training.distributed import rank_of

BEST = "best.toml"
TABLE = "find.csv"
OPTIMISM_NOTE = (
    "The best trial was selected on these tiles, so its score is optimistic: run geograft evaluate --split test"
)
MAX_SHOWN = 10
"""Maximum number of trials in the printed table."""


@dataclass(frozen=True)
class SearchResult:
    """Result of `find`: the trials of a search."""

    folder: Path
    space: SearchSpace
    trials: tuple[TrialResult, ...]

    @property
    def ranked_trials(self) -> list[TrialResult]:
        """The trials, best first: by epochs trained, then by validation IoU, then by number."""
        return sorted(self.trials, key=lambda each: (each.diverged, -each.epochs, -each.iou, each.number))

    @property
    def best(self) -> TrialResult:
        """The trial with the best validation IoU among those that trained for all epochs."""
        return self.ranked_trials[0]

    @property
    def recipe(self) -> Recipe:
        """The recipe with the settings of the best trial."""
        return self.space.recipe_of(self.best.values, self.space.recipe.train.epochs)

    @property
    def run(self) -> Path:
        """Run folder of the best trial, with all epochs."""
        return run_of(self.folder, self.best.number, self.best.epochs)

    @property
    def epochs(self) -> int:
        """Total number of epochs trained."""
        return sum(sum(trial.scores) for trial in self.trials)

    def lines(self) -> list[str]:
        """Return the lines to print: the best trials, the search space, its cost, and the gain."""
        rungs, names = self.space.rungs(), self.space.parameter_names()
        header = ("trial", *names, *(f"IoU after {epochs}" for epochs in rungs))
        rows = [
            (f"{t.number}", *(_shown(t.values[name]) for name in names), *_cells(t, rungs)) for t in self.ranked_trials
        ]
        return [
            *format_table([header, *rows[:MAX_SHOWN]]),
            *self._more(),
            self._cost(),
            self._gain(),
            OPTIMISM_NOTE,
            f"search: {self.folder}",
        ]

    def write(self) -> None:
        """Write find.csv, one row per trial in order, and best.toml."""
        rungs, names = self.space.rungs(), self.space.parameter_names()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", *names, *(f"val_iou_{epochs}" for epochs in rungs), "epochs", "seconds", "diverged"])
        for trial in self.trials:
            scores = [trial.scores.get(epochs, "") for epochs in rungs]
            values = [trial.values[name] for name in names]
            seconds = round(trial.seconds, 1)
            writer.writerow([trial.number, *values, *scores, sum(trial.scores), seconds, int(trial.diverged)])
        write_text(self.folder / TABLE, text.getvalue())
        head = f"# Found by `geograft find`, trial {self.best.number} of {len(self.trials)}: {self._gain()}.\n"
        write_text(self.folder / BEST, head + recipe_toml(self.recipe))

    def _more(self) -> list[str]:
        more, n_diverged = len(self.trials) - MAX_SHOWN, sum(trial.diverged for trial in self.trials)
        diverged = f"{n_diverged} of the trials diverged (NaN or infinite loss) and count as IoU 0"
        return [*([f"... and {more} more in {TABLE}"] if more > 0 else []), *([diverged] if n_diverged else [])]

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
    """Return the folder of a trial's run with `epochs` epochs."""
    return folder / f"trial{number:02d}" / f"epochs{epochs}"


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _cells(trial: TrialResult, rungs: tuple[int, ...]) -> list[str]:
    return [f"{trial.scores[epochs]:.3f}" if epochs in trial.scores else "-" for epochs in rungs]


TRIALS = 12


@locks_output
def find(
    tiles: StrPath,
    out: StrPath,
    recipe: Recipe = DEFAULT_RECIPE,
    trials: int = TRIALS,
    minutes: float = 0.0,
    encoders: Sequence[str] = (),
) -> SearchResult:
    """Search for settings near `recipe` with a better validation IoU, write `out` and return all trials.

    The first trial has the recipe's own settings. A trial trains for a quarter of the epochs; if it is in the best
    third, for half of them, then for all, each time from scratch with the whole learning-rate schedule. `trials`
    includes those of earlier calls. With `minutes`, no trial starts after that training time. Test tiles are not used.
    Resumable: finished trials are kept, and an interrupted training is resumed. Twelve trials take about as long as
    eight trainings.

    Raises:
        SettingError: without Optuna, for invalid numbers or encoders, or if `out` has a search with other settings.
        InputError, WeightsError, OutputError: as in `train`; InputError also if every trial diverged.
    """
    tiles, out = Path(tiles), Path(out)
    whole = TileSet.open(tiles)
    space = SearchSpace.around(recipe, tuple(encoders))
    _check(whole, space, trials, minutes)
    search = _import_search().Search(out, space, space.settings(whole.meta.fingerprint))
    while _needs_trial(search.results, trials, minutes):
        trial, values = search.ask()
        trial_result = _run_trial(tiles, out, space, values, search.results)
        search.tell(
            trial, trial_result, complete=not trial_result.diverged and trial_result.epochs == recipe.train.epochs
        )
        # No longer needed, and twice the size of the weights.
        for epochs in trial_result.scores:
            (run_of(out, trial_result.number, epochs) / STATE).unlink(missing_ok=True)
    result = SearchResult(out, space, tuple(search.results))
    if result.best.diverged:
        raise InputError(f"The loss of every trial in {out} became NaN or infinite. Give lower learning rates.")
    result.write()
    return result


def _import_search() -> Any:
    """Return the module that imports Optuna."""
    try:
        return import_module("geograft.commands.search")
    except ImportError as error:
        raise SettingError("geograft find needs Optuna: pip install geograft[find]") from error


def _needs_trial(results: Sequence[TrialResult], trials: int, minutes: float) -> bool:
    spent = sum(each.seconds for each in results)
    return not results or (len(results) < trials and not (minutes and spent >= 60 * minutes))


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
    """Return a run's validation IoU, None if it diverged, and its training time in seconds."""
    began = time.monotonic()
    try:
        history = train(tiles, run, recipe, resume=True).history
    except DivergedError:
        return None, time.monotonic() - began
    if math.isnan(history.best.val_iou):
        raise InputError(f"{tiles}: no labelled validation tiles. Prepare it again with a larger --val.")
    return history.best.val_iou, history.seconds


def _check(whole: TileSet, space: SearchSpace, trials: int, minutes: float) -> None:
    """Raise errors now that would otherwise occur in the middle of the search."""
    if trials < 1 or minutes < 0:
        raise SettingError(f"--trials {trials} --minutes {minutes:g}: give at least 1 trial, and 0 or more minutes.")
    if space.recipe.train.nodes > 1 or rank_of(space.recipe.train):
        raise SettingError(
            "geograft find runs in one process and spawns others for --devices. Start it without torchrun or srun."
        )
    encoders = (space.recipe.model.encoder,) if space.recipe.model.start else space.encoders
    check_trainings(whole, (space.recipe.with_settings(model={"encoder": encoder}) for encoder in encoders))
