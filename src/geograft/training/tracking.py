"""Experiment trackers: TensorBoard and MLflow, which receive the same metrics as history.csv.

Both are optional: TensorBoard needs the package `tensorboard`, MLflow `mlflow-skinny` or `mlflow`.
"""

import math
import os
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from geograft.config import TrainConfig
from geograft.errors import SettingError, first_line
from geograft.files import write_text
from geograft.training.history import Epoch


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
