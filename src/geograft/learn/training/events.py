"""History as TensorBoard events, for those who want it; the package `tensorboard` is an extra."""

from importlib import import_module
from pathlib import Path
from typing import Any

from geograft.errors import SettingError

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
            raise SettingError("tensorboard = true needs TensorBoard: pip install geograft[tensorboard]") from error
        self._writer: Any = tensorboard.SummaryWriter(str(folder / EVENTS), purge_step=finished + 1)

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        """Add one epoch."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> tuple[str, ...]:
        """Close the file."""
        self._writer.close()
        return ()
