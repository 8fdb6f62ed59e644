"""What every epoch of a run gave: history.csv, one row an epoch, for spreadsheets and figures. Imports no torch."""

import csv
import io
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from geograft.errors import InputError
from geograft.files import write_text

HISTORY = "history.csv"


@dataclass(frozen=True)
class Epoch:
    """One row. Scores are those of class 1 of two that exclude each other, else means over the classes present.

    NaN, and an empty cell in the file, where a figure does not exist (no validation tiles, no pixel of any class).
    """

    epoch: int
    """Counted from 1."""
    train_loss: float
    """Mean over the epoch's labelled pixels, each batch with the weights it was trained with."""
    train_iou: float
    train_f1: float
    train_precision: float
    train_recall: float
    val_loss: float
    """Mean over the validation part's labelled pixels, with the weights at the epoch's end."""
    val_iou: float
    val_f1: float
    val_precision: float
    val_recall: float
    lr: float
    """Learning rate of the decoder in this epoch."""
    seconds: float
    """Training and validation together."""
    tiles_per_second: float
    """Training tiles over the time that training alone took."""


COLUMNS = [column.name for column in fields(Epoch)]


@dataclass(frozen=True)
class History:
    """The epochs of a run so far, in order."""

    epochs: tuple[Epoch, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What else is to be said of the run, a line each; not in the file."""

    @property
    def best(self) -> Epoch:
        """The epoch of least validation loss, the first of equals; the last epoch where none has a validation loss.

        Raises:
            ValueError: when there is no epoch.
        """
        scored = [epoch for epoch in self.epochs if not math.isnan(epoch.val_loss)]
        return min(scored, key=lambda epoch: epoch.val_loss) if scored else max(self.epochs, key=lambda e: e.epoch)

    @property
    def epochs_since_best(self) -> int:
        """How many epochs came after the best; 0 where there is none."""
        return self.epochs[-1].epoch - self.best.epoch if self.epochs else 0

    @property
    def seconds(self) -> float:
        """Time that the epochs took together."""
        return sum(epoch.seconds for epoch in self.epochs)

    def append(self, epoch: Epoch) -> "History":
        """Return the history with one more epoch."""
        return History((*self.epochs, epoch))

    def write(self, folder: Path) -> None:
        """Write history.csv into a run folder, whole or not at all."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in asdict(epoch).items()} for epoch in self.epochs)
        write_text(folder / HISTORY, text.getvalue())


def read_history(folder: Path) -> History:
    """Read history.csv of a run folder.

    Raises:
        InputError: when the file is missing, or is not what `History.write` writes.
    """
    path = folder / HISTORY
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if rows.fieldnames != COLUMNS:
                raise ValueError("its columns differ")
            return History(tuple(_epoch(row) for row in rows))
    except OSError as error:
        raise InputError(f"{folder} is not a run: it holds no {HISTORY}. Train one with `geograft train`.") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is not a history that Geograft wrote ({error}). Train the run again.") from error


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _epoch(row: dict[str, str]) -> Epoch:
    return Epoch(int(row.pop("epoch")), **{name: float(cell or "nan") for name, cell in row.items()})
