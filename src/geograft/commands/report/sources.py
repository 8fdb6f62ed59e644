"""The input of a report: the files of a run or of a comparison, read and validated. Opens no image."""

import math
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass as record

from geograft.bundle import BundleMember
from geograft.card import CARD, ModelCard, read_card
from geograft.commands.compare import COMPARISON, RunSummary
from geograft.commands.report.scores import LENIENT, AreaFile, FoldsFile, ScoreTable, read_json
from geograft.commands.train import RECIPE
from geograft.dataset.joined import open_run_tiles
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.networks.summary import title_of
from geograft.runs import run_file, run_files
from geograft.training.history import HISTORY, Epoch, History, read_history

FOLDS = "folds.json"
RUN_NAME = "map"
"""Name of the only variant of a single run."""


@dataclass(frozen=True)
class TrainedRun:
    """A finished run."""

    folder: Path
    card: ModelCard
    history: History
    scores: tuple[ScoreTable, ...]
    recipe: dict[str, Any]
    areas: tuple[AreaFile, ...] = ()
    """Area estimates from labelled samples: every area*.json in the folder."""

    @property
    def best_epoch(self) -> Epoch:
        """The epoch of the saved weights."""
        chosen = [epoch for epoch in self.history.epochs if epoch.epoch == self.card.epoch]
        return chosen[0] if chosen else self.history.best

    @property
    def seconds(self) -> float:
        """Training time."""
        return self.history.seconds

    def score(self, name: str) -> ScoreTable | None:
        """Return the scores called `name`, or None."""
        return next((table for table in self.scores if table.name == name), None)


@record(frozen=True, config=LENIENT)
class _ComparisonFile:
    title: str
    rows: list[RunSummary]


@dataclass(frozen=True)
class NetworkRuns:
    """One network of a comparison: its rows, one per seed, and its runs that still exist."""

    name: str
    rows: tuple[RunSummary, ...]
    runs: tuple[TrainedRun, ...]

    @property
    def best_run(self) -> TrainedRun | None:
        """The run with the lowest validation loss."""
        return min(self.runs, key=lambda run: _or(run.best_epoch.val_loss, math.inf), default=None)

    def mean(self, column: str) -> float:
        """Return the mean of a column over the seeds that have it; NaN if none has."""
        return mean([getattr(row, column) for row in self.rows])

    def ious(self, score: str) -> list[float]:
        """Return the IoU of every run with scores named `score`; for "val", that of the epoch of the weights."""
        if score == "val":
            return finite_values([row.iou for row in self.rows] or [run.best_epoch.val_iou for run in self.runs])
        return finite_values([table.iou for run in self.runs if (table := run.score(score))])


@dataclass(frozen=True)
class Subject:
    """The subject of a report. A single run is one variant named "map" with one run and no rows."""

    kind: Literal["run", "comparison"]
    folder: Path
    title: str
    variants: tuple[NetworkRuns, ...]
    notes: tuple[str, ...] = ()
    folds: FoldsFile | None = None
    """Scores over all folds, if the comparison was cross-validated."""

    @property
    def leader(self) -> NetworkRuns:
        """The variant with the highest validation IoU, mean over seeds. Test scores are not used for selection."""
        readable = [variant for variant in self.variants if variant.runs] or self.variants
        return max(readable, key=lambda variant: _or(mean(variant.ious("val")), -math.inf))

    @property
    def run(self) -> TrainedRun | None:
        """The run whose maps are shown: the best variant's run with the lowest validation loss."""
        return self.leader.best_run


def read_subject(folder: Path) -> Subject:
    """Read a run, or the folder of a comparison.

    Raises:
        InputError: if it is neither, or a file in it cannot be read.
    """
    if (folder / COMPARISON).is_file():
        return _read_comparison(folder)
    if run_file(folder, CARD).is_file():
        run = read_run(folder)
        return Subject(
            "run", folder, f"{run.card.name}, {title_of(run.card.model)}", (NetworkRuns(RUN_NAME, (), (run,)),)
        )
    seen = "holds neither card.json nor comparison.json" if folder.is_dir() else "does not exist"
    raise InputError(
        f"{folder} {seen}. Give a run (`geograft train`) or the folder of a comparison (`geograft compare`)."
    )


def read_run(folder: Path) -> TrainedRun:
    """Read a run: card, history, recipe, every scores-*.json (the test scores first) and every area*.json.

    Raises:
        InputError: if a file is damaged, or card or history are missing.
    """
    card = read_card(folder)
    history = read_history(folder)
    if not history.epochs:
        raise InputError(f"{folder / HISTORY} holds no epoch. Train the run again.")
    tables = [read_json(path, ScoreTable) for path in run_files(folder, "scores-*.json")]
    tables.sort(key=lambda table: table.name != "test")
    areas = tuple(read_json(path, AreaFile) for path in run_files(folder, "area*.json"))
    return TrainedRun(folder, card, history, tuple(tables), _read_recipe(run_file(folder, RECIPE)), areas)


def tile_set_of(run: TrainedRun) -> TileSet:
    """Open the tile set that the run was trained on. Opens no image.

    Raises:
        InputError: if the run does not name its tile set, or it does not exist.
    """
    return open_run_tiles(run.folder)


def finite_values(values: Sequence[float | None]) -> list[float]:
    """Return `values` without None and NaN."""
    return [value for value in values if value is not None and not math.isnan(value)]


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of `values`, ignoring None and NaN; NaN if none is left."""
    return statistics.fmean(finite_values(values)) if finite_values(values) else math.nan


def standard_deviation(values: Sequence[float | None]) -> float | None:
    """Return the sample standard deviation of `values`, ignoring None and NaN; None for fewer than two."""
    return statistics.stdev(finite_values(values)) if len(finite_values(values)) > 1 else None


def _read_comparison(folder: Path) -> Subject:
    content = read_json(folder / COMPARISON, _ComparisonFile)
    if not content.rows:
        raise InputError(f"{folder / COMPARISON} lists no run. Compare again with `geograft compare`.")
    names = list(dict.fromkeys(row.variant for row in content.rows))
    groups = {name: tuple(row for row in content.rows if row.variant == name) for name in names}
    runs = {row.run: read_run(folder / row.run) for row in content.rows if (folder / row.run / CARD).is_file()}
    variants = tuple(
        NetworkRuns(name, rows, tuple(runs[row.run] for row in rows if row.run in runs))
        for name, rows in groups.items()
    )
    gone = [row.run for row in content.rows if row.run not in runs]
    notes = (f"These runs are missing from the comparison's folder: {', '.join(gone)}.",) if gone else ()
    folds = read_json(folder / FOLDS, FoldsFile) if (folder / FOLDS).is_file() else None
    return Subject("comparison", folder, content.title or "Comparison", variants, notes, folds)


def _read_recipe(path: Path | BundleMember) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Train the run again.") from error


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value
