"""Where the history of a run goes besides history.csv: TensorBoard and MLflow, each an extra, behind one interface."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

from geograft.config import TrainConfig
from geograft.learn.training.events import EventLog
from geograft.learn.training.experiments import ExperimentLog
from geograft.learn.training.history import Epoch


@runtime_checkable
class Tracker(Protocol):
    """Something that takes the epochs of a run."""

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        """Add one epoch, counted from 1: its figures by name."""
        ...

    def close(self) -> tuple[str, ...]:
        """End the record, and return what there is to say of it, a line each."""
        ...


def trackers(config: TrainConfig, folder: Path, finished: int) -> list[Tracker]:
    """Return those that `config` asks for, of a run in `folder` that has so many finished epochs.

    Raises:
        SettingError: when a package is not installed, or MLflow cannot be reached.
    """
    chosen: list[Tracker] = [EventLog(folder, finished)] if config.tensorboard else []
    return [*chosen, ExperimentLog(folder, config)] if config.mlflow else chosen


def figures(row: Epoch) -> dict[str, float]:
    """Return what is tracked of an epoch; what has a train_ and a val_ figure shares the part of its name after that.

    Figures that do not exist (NaN) are left out.
    """
    named = {}
    for name, value in asdict(row).items():
        part, _, figure = name.partition("_")
        named[f"{figure}/{part}" if part in ("train", "val") else name] = float(value)
    del named["epoch"]
    return {name: value for name, value in named.items() if not math.isnan(value)}
