"""History as TensorBoard events, for those who want it; the package `tensorboard` is an extra."""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from tilth.errors import SettingError
from tilth.learn.history import Epoch

EVENTS = "tensorboard"


class EventLog:
    """The folder tensorboard/ of a run. Events of epochs after `finished` are struck out, for they come again.

    Raises:
        SettingError: when TensorBoard is not installed.
    """

    def __init__(self, folder: Path, finished: int) -> None:
        try:
            tensorboard = import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise SettingError("tensorboard = true needs TensorBoard: pip install tilth[tensorboard]") from error
        self._writer: Any = tensorboard.SummaryWriter(str(folder / EVENTS), purge_step=finished + 1)

    def write(self, row: Epoch) -> None:
        """Add one epoch; what has a train_ and a val_ figure shares the part of its name after that."""
        for name, value in asdict(row).items():
            part, _, figure = name.partition("_")
            self._writer.add_scalar(f"{figure}/{part}" if part in ("train", "val") else name, value, row.epoch)
        self._writer.flush()
