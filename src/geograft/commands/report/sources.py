"""What a report is made from: the files of a run or of a comparison, read and checked. Opens no image."""

import math
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.dataclasses import dataclass as record

from geograft.card import CARD, ModelCard, read_card, tiles_of
from geograft.commands.compare import COMPARISON, Row
from geograft.commands.report.scores import LENIENT, AreaFile, FoldsFile, ScoreTable, read_json
from geograft.commands.train import RECIPE
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError
from geograft.networks.summary import title_of
from geograft.training.history import HISTORY, Epoch, History, read_history

FOLDS = "folds.json"


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    card: ModelCard
    history: History
    scores: tuple[ScoreTable, ...]
    recipe: dict[str, Any]
    areas: tuple[AreaFile, ...] = ()
    """What a labelled sample says of this run's maps, of every area*.json in the folder."""

    @property
    def best(self) -> Epoch:
        """The epoch of the weights."""
        chosen = [epoch for epoch in self.history.epochs if epoch.epoch == self.card.epoch]
        return chosen[0] if chosen else self.history.best

    @property
    def seconds(self) -> float:
        """Time that training took."""
        return self.history.seconds

    def score(self, name: str) -> ScoreTable | None:
        """Return the scores called `name`, or None."""
        return next((table for table in self.scores if table.name == name), None)


@record(frozen=True, config=LENIENT)
class _ComparisonFile:
    title: str
    rows: list[Row]


@dataclass(frozen=True)
class Variant:
    """One network of a comparison: its rows, one a seed, and those of its runs that can be read."""

    name: str
    rows: tuple[Row, ...]
    runs: tuple[Run, ...]

    @property
    def best_run(self) -> Run | None:
        """The run with the least validation loss."""
        return min(self.runs, key=lambda run: _or(run.best.val_loss, math.inf), default=None)

    def mean(self, column: str) -> float:
        """Return the mean of a column of the rows over the seeds that have it; NaN for none."""
        return mean([getattr(row, column) for row in self.rows])

    def values(self, score: str) -> list[float]:
        """Return the IoU of every run that has the scores called `score`; for "val" those of the weights' epoch."""
        if score == "val":
            return known([row.iou for row in self.rows] or [run.best.val_iou for run in self.runs])
        return known([table.iou for run in self.runs if (table := run.score(score))])


@dataclass(frozen=True)
class Subject:
    """What a report is about. A run is a subject with one variant called "map", one run and no rows."""

    kind: Literal["run", "comparison"]
    folder: Path
    title: str
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()
    folds: FoldsFile | None = None
    """Scores over all folds, where the comparison has any."""

    @property
    def leader(self) -> Variant:
        """The variant with the best validation IoU, mean over seeds; the test has no say, so that it stays fair."""
        readable = [variant for variant in self.variants if variant.runs] or self.variants
        return max(readable, key=lambda variant: _or(mean(variant.values("val")), -math.inf))

    @property
    def run(self) -> Run | None:
        """The run whose maps are shown: of the leader, the one with the least validation loss."""
        return self.leader.best_run


def read_subject(folder: Path) -> Subject:
    """Read a run folder or a comparison folder.

    Raises:
        InputError: when `folder` is neither, or a file in it cannot be read.
    """
    if (folder / COMPARISON).is_file():
        return _read_comparison(folder)
    if (folder / CARD).is_file():
        run = read_run(folder)
        return Subject("run", folder, f"{run.card.name}, {title_of(run.card.model)}", (Variant("map", (), (run,)),))
    seen = "holds neither card.json nor comparison.json" if folder.is_dir() else "is not a folder"
    raise InputError(
        f"{folder} {seen}. Give the folder of a run (`geograft train`) or of a comparison (`geograft compare`)."
    )


def read_run(folder: Path) -> Run:
    """Read a run folder: card, history, recipe, every scores-*.json, the test's first, and every area*.json.

    Raises:
        InputError: when one of them is damaged, or card or history are missing.
    """
    card = read_card(folder)
    history = read_history(folder)
    if not history.epochs:
        raise InputError(f"{folder / HISTORY} holds no epoch. Train the run again.")
    tables = [read_json(path, ScoreTable) for path in sorted(folder.glob("scores-*.json"))]
    tables.sort(key=lambda table: table.name != "test")
    areas = tuple(read_json(path, AreaFile) for path in sorted(folder.glob("area*.json")))
    return Run(folder, card, history, tuple(tables), _read_recipe(folder / RECIPE), areas)


def tile_set_of(run: Run) -> TileSet:
    """Open the tile set that trained the run; no image is opened.

    Raises:
        InputError: when the run does not say where it lies, or it is not there.
    """
    return TileSet.open(tiles_of(run.folder))


def known(values: Sequence[float | None]) -> list[float]:
    """Return the numbers among `values`."""
    return [value for value in values if value is not None and not math.isnan(value)]


def mean(values: Sequence[float | None]) -> float:
    """Return the mean of the numbers among `values`; NaN for none."""
    return statistics.fmean(known(values)) if known(values) else math.nan


def deviation(values: Sequence[float | None]) -> float | None:
    """Return the sample standard deviation of the numbers among `values`; None for fewer than two."""
    return statistics.stdev(known(values)) if len(known(values)) > 1 else None


def _read_comparison(folder: Path) -> Subject:
    content = read_json(folder / COMPARISON, _ComparisonFile)
    if not content.rows:
        raise InputError(f"{folder / COMPARISON} lists no run. Compare again with `geograft compare`.")
    names = list(dict.fromkeys(row.variant for row in content.rows))
    groups = {name: tuple(row for row in content.rows if row.variant == name) for name in names}
    runs = {row.run: read_run(folder / row.run) for row in content.rows if (folder / row.run / CARD).is_file()}
    variants = tuple(
        Variant(name, rows, tuple(runs[row.run] for row in rows if row.run in runs)) for name, rows in groups.items()
    )
    gone = [row.run for row in content.rows if row.run not in runs]
    notes = (f"These runs are no longer in the comparison's folder: {', '.join(gone)}.",) if gone else ()
    folds = read_json(folder / FOLDS, FoldsFile) if (folder / FOLDS).is_file() else None
    return Subject("comparison", folder, content.title or "Comparison", variants, notes, folds)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Train the run again.") from error


def _or(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value
