"""Where the history of a run goes besides history.csv: TensorBoard and MLflow, each an extra, behind one interface.

History as TensorBoard events, for those who want it; the package `tensorboard` is an extra.

History as a run of MLflow, for those who want it; the package `mlflow-skinny` (or `mlflow`) is an extra.
"""

import math
import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from geograft.config import TrainConfig
from geograft.errors import SettingError
from geograft.files import write_text
from geograft.networks.device import short_message
from geograft.training.history import Epoch


@runtime_checkable
class Tracker(Protocol):
    """Something that takes the epochs of a run."""

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
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
    chosen: list[Tracker] = [TensorBoardTracker(folder, finished)] if config.tensorboard else []
    return [*chosen, MLflowTracker(folder, config)] if config.mlflow else chosen


def tracked_metrics(row: Epoch) -> dict[str, float]:
    """Return what is tracked of an epoch; what has a train_ and a val_ figure shares the part of its name after that.

    Figures that do not exist (NaN) are left out.
    """
    named = {}
    for name, value in asdict(row).items():
        part, _, figure = name.partition("_")
        named[f"{figure}/{part}" if part in ("train", "val") else name] = float(value)
    del named["epoch"]
    return {name: value for name, value in named.items() if not math.isnan(value)}


EVENTS = "tensorboard"


class TensorBoardTracker:
    """The folder tensorboard/ of a run. Events of epochs after `finished` are struck out, for they come again.

    Raises:
        SettingError: when TensorBoard is not installed.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        try:
            tensorboard = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise SettingError("tensorboard = true needs TensorBoard: pip install geograft[tensorboard]") from error
        self._writer: Any = tensorboard.SummaryWriter(str(folder / EVENTS), purge_step=finished + 1)

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add one epoch."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> tuple[str, ...]:
        """Close the file."""
        self._writer.close()
        return ()


EXPERIMENT = "geograft"
RUN_ID = "mlflow.txt"
"""In the run folder: MLflow's number of the run, for a run that goes on."""


class MLflowTracker:
    """A run in MLflow's experiment "geograft", named as the folder, with the settings of training as its parameters.

    An epoch that is done again after a kill is there twice, with the same figures.

    Raises:
        SettingError: when MLflow is not installed, or the address does not answer.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        address = config.mlflow
        # Geograft asks no network for anything that it was not told to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if "://" not in address:
            # Newer releases ask for this word before they write to a folder.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = Path(address).resolve().as_uri()
        try:
            mlflow: Any = import_module("mlflow")
        except ImportError as error:
            raise SettingError("mlflow needs a package: pip install geograft[mlflow]") from error
        self._fault: type[Exception] = mlflow.MlflowException
        self._lost: tuple[str, ...] = ()
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=address)
            self._run = _run_id(self._client, folder, config)
        except self._fault as error:
            raise SettingError(f"mlflow = {config.mlflow!r} cannot be used: {short_message(error)}") from error

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Add one epoch. Where the server is gone, training goes on without it."""
        try:
            for name, value in metrics.items():
                self._client.log_metric(self._run, name, value, step=epoch)
        except self._fault as error:
            self._lost = (f"MLflow missed epoch {epoch}: {short_message(error)}",)

    def close(self) -> tuple[str, ...]:
        """Mark the run as finished."""
        try:
            self._client.set_terminated(self._run)
        except self._fault as error:
            self._lost = (f"MLflow does not know that the run has finished: {short_message(error)}",)
        return self._lost


def _run_id(client: Any, folder: Path, config: TrainConfig) -> str:
    """Return the number of the run that `folder` has in MLflow; it begins one where there is none."""
    note = folder / RUN_ID
    if note.exists():
        known: str = note.read_text(encoding="utf-8").strip()
        client.get_run(known)
        return known
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    begun: str = client.create_run(number, run_name=folder.name).info.run_id
    for name, value in asdict(config).items():
        client.log_param(begun, name, value)
    write_text(note, begun + "\n")
    return begun
