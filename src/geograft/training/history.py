"""The training history of a run: history.csv, one row per epoch, and the same metrics in TensorBoard and MLflow.

Imports no torch. The trackers are optional: TensorBoard needs the package `tensorboard`, MLflow `mlflow-skinny` or
`mlflow`.
"""

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from geograft.bundle import BundleMember
from geograft.card import CARD, read_card
from geograft.config import TrainConfig
from geograft.errors import InputError, SettingError, first_line
from geograft.files import complete_update, write_text
from geograft.runs import run_file
from geograft.text import pluralise

HISTORY = "history.csv"


@dataclass(frozen=True)
class Epoch:
    """One row of the history. Scores are those of the positive class (binary), else means over the classes present.

    NaN, written as an empty cell, means undefined (no validation tiles, or no labelled pixel).
    """

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the epoch's labelled pixels, each batch with the weights before its step."""
    train_iou: float
    train_f1: float
    train_precision: float
    train_recall: float
    val_loss: float
    """Mean over the labelled validation pixels, with the weights at the end of the epoch."""
    val_iou: float
    val_f1: float
    val_precision: float
    val_recall: float
    lr: float
    """Learning rate of the decoder in this epoch."""
    seconds: float
    """Training and validation."""
    tiles_per_second: float
    """Training tiles per second of training, without validation."""


SCORES = ("_iou", "_f1", "_precision", "_recall")
"""Endings of the columns whose values lie from 0 to 1."""
COLUMNS = [column.name for column in fields(Epoch)]


@dataclass(frozen=True)
class History:
    """The epochs of a run so far, in order."""

    epochs: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Messages about the run, one line each; not written to the file."""

    @property
    def best(self) -> Epoch:
        """The first epoch with the lowest validation loss; the last epoch if none has a validation loss.

        Raises:
            ValueError: if the history is empty.
        """
        scored = [epoch for epoch in self.epochs if not math.isnan(epoch.val_loss)]
        return min(scored, key=lambda epoch: epoch.val_loss) if scored else max(self.epochs, key=lambda e: e.epoch)

    @property
    def epochs_since_best(self) -> int:
        """Number of epochs after the best one; 0 for an empty history."""
        return self.epochs[-1].epoch - self.best.epoch if self.epochs else 0

    @property
    def seconds(self) -> float:
        """Total time of the epochs."""
        return sum(epoch.seconds for epoch in self.epochs)

    def append(self, epoch: Epoch) -> "History":
        """Return a new history with `epoch` added."""
        return History((*self.epochs, epoch))

    def write(self, folder: Path) -> None:
        """Write history.csv into a run folder, atomically."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in asdict(epoch).items()} for epoch in self.epochs)
        write_text(folder / HISTORY, text.getvalue())


def read_history(run: Path) -> History:
    """Read history.csv of a run.

    Raises:
        InputError: if the file is missing, truncated, or was not written by `History.write`; if it does not have as
            many epochs as the model card says.
    """
    path = run_file(run, HISTORY)
    history = _read(run, path)
    try:
        epochs = read_card(run).epochs
    except InputError:
        return history
    if epochs not in (0, len(history.epochs)):
        raise InputError(
            f"{path} has {pluralise(len(history.epochs), 'epoch')}, but the run has {epochs} according to {CARD}. Copy "
            "the run again, or train it again."
        )
    return history


def checked_epoch(values: Mapping[str, float], number: int) -> Epoch:
    """Return epoch `number` with these values by column; raise ValueError naming a column that is out of range."""
    if set(values) != set(COLUMNS):
        raise ValueError(f"epoch {number} does not have the columns {', '.join(COLUMNS)}")
    if values["epoch"] != number:
        raise ValueError(f"epoch is {values['epoch']}, not {number}")
    for name, value in values.items():
        if name.endswith(SCORES) and value > 1:
            raise ValueError(f"{name} is {value!r}, above 1")
        if value < 0:
            raise ValueError(f"{name} is {value!r}, below 0")
    return Epoch(number, **{name: float(value) for name, value in values.items() if name != "epoch"})


def _read(run: Path, path: Path | BundleMember) -> History:
    try:
        complete_update(run)
        text = path.read_bytes().decode("utf-8")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        if rows.fieldnames != COLUMNS:
            raise ValueError("unexpected columns")
        if not text.endswith("\n"):
            raise ValueError("the last line is incomplete")
        return History(tuple(_epoch(row, number) for number, row in enumerate(rows, start=1)))
    except OSError as error:
        raise InputError(f"{run} is not a run: {HISTORY} is missing. Train one with `geograft train`.") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not a history written by Geograft ({error}). Train the run again.") from error


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _epoch(row: dict[str, str], number: int) -> Epoch:
    """Return one row, number `number`; raise ValueError naming the column if it cannot have been written."""
    if set(row) != set(COLUMNS) or None in row.values():
        raise ValueError(f"line {number + 1} does not have {len(COLUMNS)} cells")
    if row["epoch"] != str(number):
        raise ValueError(f"epoch is {row['epoch']} in line {number + 1}, not {number}")
    return checked_epoch({name: _number(name, cell) for name, cell in row.items()}, number)


def _number(name: str, cell: str) -> float:
    try:
        return float(cell or "nan")
    except ValueError as error:
        raise ValueError(f"{name} is {cell!r}, not a number") from error


@runtime_checkable
class Tracker(Protocol):
    """A receiver of the metrics of each epoch."""

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log the metrics, by name, of one epoch, counted from 1."""
        ...

    def close(self) -> tuple[str, ...]:
        """End the log, and return messages about it, one line each."""
        ...


def trackers(config: TrainConfig, folder: Path, finished: int) -> list[Tracker]:
    """Return the trackers selected in `config`, for the run in `folder` with `finished` epochs.

    Raises:
        SettingError: if a package is not installed, or MLflow cannot be reached.
    """
    chosen: list[Tracker] = [TensorBoardTracker(folder, finished)] if config.tensorboard else []
    return [*chosen, MLflowTracker(folder, config)] if config.mlflow else chosen


def tracked_metrics(row: Epoch) -> dict[str, float]:
    """Return the metrics of an epoch by tracker name: train_iou is "iou/train", val_iou is "iou/val".

    Undefined metrics (NaN) are left out.
    """
    named = {}
    for name, value in asdict(row).items():
        split, _, metric = name.partition("_")
        named[f"{metric}/{split}" if split in ("train", "val") else name] = float(value)
    del named["epoch"]
    return {name: value for name, value in named.items() if not math.isnan(value)}


EVENTS = "tensorboard"


class TensorBoardTracker:
    """TensorBoard events in the folder tensorboard/ of a run, from the end of its first epoch on.

    Purges events after epoch `finished`, to be logged again.

    Raises:
        SettingError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        try:
            tensorboard = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise SettingError("tensorboard = true needs TensorBoard: pip install geograft[tensorboard]") from error
        # Opened at the first epoch, so that a training that fails before leaves no files.
        self._open = partial(tensorboard.SummaryWriter, str(folder / EVENTS), purge_step=finished + 1)
        self._writer: Any = None

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log one epoch."""
        if self._writer is None:
            self._writer = self._open()
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> tuple[str, ...]:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
        return ()


EXPERIMENT = "geograft"
RUN_ID = "mlflow.txt"
"""File in the run folder with the MLflow run ID, for resuming."""


class MLflowTracker:
    """A run in the MLflow experiment "geograft", named after the folder, with the training settings as parameters.

    The MLflow run is created at the end of the first epoch. An epoch that is repeated after an interruption is logged
    twice, with the same metrics.

    Raises:
        SettingError: if MLflow is not installed, or the tracking server cannot be reached.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._folder, self._config = folder, config
        address = config.mlflow
        # Geograft makes no network request that the user did not ask for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if "://" not in address:
            # Newer releases require this variable for a file store.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = Path(address).resolve().as_uri()
        try:
            mlflow: Any = import_module("mlflow")
        except ImportError as error:
            raise SettingError("mlflow needs the package MLflow: pip install geograft[mlflow]") from error
        self._error_type: type[Exception] = mlflow.MlflowException
        self._messages: tuple[str, ...] = ()
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=address)
            self._run = _known_run(self._client, folder)
        except self._error_type as error:
            raise SettingError(f"mlflow = {config.mlflow!r} cannot be used: {first_line(error)}") from error

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Log one epoch. If the server fails, training continues without it."""
        try:
            self._run = self._run or _create_run(self._client, self._folder, self._config)
            for name, value in metrics.items():
                self._client.log_metric(self._run, name, value, step=epoch)
        except self._error_type as error:
            self._messages = (f"MLflow missed epoch {epoch}: {first_line(error)}",)

    def close(self) -> tuple[str, ...]:
        """Mark the MLflow run as finished."""
        try:
            if self._run is not None:
                self._client.set_terminated(self._run)
        except self._error_type as error:
            self._messages = (f"The MLflow run could not be marked as finished: {first_line(error)}",)
        return self._messages


def _known_run(client: Any, folder: Path) -> str | None:
    """Return the ID of the MLflow run of `folder`, None if there is none yet; either way the server must answer."""
    note = folder / RUN_ID
    if not note.exists():
        client.get_experiment_by_name(EXPERIMENT)
        return None
    known: str = note.read_text(encoding="utf-8", errors="replace").strip()
    client.get_run(known)
    return known


def _create_run(client: Any, folder: Path, config: TrainConfig) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run_id: str = client.create_run(experiment_id, run_name=folder.name).info.run_id
    for name, value in asdict(config).items():
        client.log_param(run_id, name, value)
    write_text(folder / RUN_ID, run_id + "\n")
    return run_id
