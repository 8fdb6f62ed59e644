"""History as a run of MLflow, for those who want it; the package `mlflow-skinny` (or `mlflow`) is an extra."""

import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from geograft.config import TrainConfig
from geograft.errors import SettingError
from geograft.files import write_text
from geograft.learn.device import in_short

EXPERIMENT = "geograft"
RUN_ID = "mlflow.txt"
"""In the run folder: MLflow's number of the run, for a run that goes on."""


class ExperimentLog:
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
            raise SettingError(f"mlflow = {config.mlflow!r} cannot be used: {in_short(error)}") from error

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        """Add one epoch. Where the server is gone, training goes on without it."""
        try:
            for name, value in figures.items():
                self._client.log_metric(self._run, name, value, step=epoch)
        except self._fault as error:
            self._lost = (f"MLflow missed epoch {epoch}: {in_short(error)}",)

    def close(self) -> tuple[str, ...]:
        """Mark the run as finished."""
        try:
            self._client.set_terminated(self._run)
        except self._fault as error:
            self._lost = (f"MLflow does not know that the run has finished: {in_short(error)}",)
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
