"""The training history of a run: history.csv, one row per epoch. Imports no torch."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from geograft.bundle import BundleMember
from geograft.card import CARD, read_card
from geograft.errors import InputError
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
