"""What a search found: its trials as a table, find.csv, and best.toml."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from geograft.config import Recipe, recipe_toml
from geograft.files import write_text
from geograft.table import table
from geograft.verbs.find.halving import Tried
from geograft.verbs.find.space import Space

BEST = "best.toml"
TABLE = "find.csv"
FLATTERS = "The best of several flatters on the tiles that chose it. Score it on others: geograft evaluate --split test"
SHOWN = 10
"""Trials in the printed table."""


@dataclass(frozen=True)
class Found:
    """The trials of a search."""

    folder: Path
    space: Space
    trials: tuple[Tried, ...]

    @property
    def ranked(self) -> list[Tried]:
        """The trials, the best first: by how long they trained, then by validation IoU, the earlier of equals."""
        return sorted(self.trials, key=lambda each: (each.lost, -each.epochs, -each.iou, each.number))

    @property
    def best(self) -> Tried:
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
        rungs, names = self.space.rungs(), self.space.searched()
        header = ("trial", *names, *(f"IoU after {epochs}" for epochs in rungs))
        rows = [(f"{t.number}", *(_shown(t.values[name]) for name in names), *_cells(t, rungs)) for t in self.ranked]
        return [
            *table([header, *rows[:SHOWN]]),
            *self._more(),
            self._cost(),
            self._gain(),
            FLATTERS,
            f"search: {self.folder}",
        ]

    def write(self) -> None:
        """Write find.csv, one row a trial in their order, and best.toml."""
        rungs, names = self.space.rungs(), self.space.searched()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", *names, *(f"val_iou_{epochs}" for epochs in rungs), "epochs", "seconds", "lost"])
        for trial in self.trials:
            scores = [trial.scores.get(epochs, "") for epochs in rungs]
            values = [trial.values[name] for name in names]
            seconds = round(trial.seconds, 1)
            writer.writerow([trial.number, *values, *scores, sum(trial.scores), seconds, int(trial.lost)])
        write_text(self.folder / TABLE, text.getvalue())
        head = f"# Found by `geograft find`, trial {self.best.number} of {len(self.trials)}: {self._gain()}.\n"
        write_text(self.folder / BEST, head + recipe_toml(self.recipe))

    def _more(self) -> list[str]:
        more, lost = len(self.trials) - SHOWN, sum(trial.lost for trial in self.trials)
        diverged = f"{lost} of the trials, counted as IoU 0, had a loss that became infinite or no number"
        return [*([f"... and {more} more in {TABLE}"] if more > 0 else []), *([diverged] if lost else [])]

    def _cost(self) -> str:
        seconds = sum(trial.seconds for trial in self.trials)
        whole = len(self.trials) * self.space.recipe.train.epochs
        what = f"{', '.join(self.space.searched())}: {len(self.trials)} trials"
        return f"{what}, {self.epochs} epochs in {seconds:.0f} s; each trial in full would be {whole}"

    def _gain(self) -> str:
        first, best = self.trials[0], self.best
        own = "the recipe's own settings diverged" if first.lost else f"the recipe's own settings: {first.iou:.3f}"
        return f"best validation IoU {best.iou:.3f}, {own}"


def run_of(folder: Path, number: int, epochs: int) -> Path:
    """Return the folder of a trial's run of so many epochs."""
    return folder / f"trial{number:02d}" / f"epochs{epochs}"


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _cells(trial: Tried, rungs: tuple[int, ...]) -> list[str]:
    return [f"{trial.scores[epochs]:.3f}" if epochs in trial.scores else "-" for epochs in rungs]
