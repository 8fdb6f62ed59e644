"""What outlives a killed run: weights as safetensors, and the state that a run goes on from.

    model.safetensors   weights of the epoch of least validation loss
    last.safetensors    weights of the last finished epoch
    state.ckpt          all that decides how training goes on; written last, for what is not in it did not happen

All three appear whole or not at all.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from geograft.card import CARD
from geograft.config import TrainConfig
from geograft.errors import InputError, SettingError
from geograft.files import atomic_write
from geograft.metrics.confusion import ConfusionScheme
from geograft.training.history import Epoch, History
from geograft.training.loader import TrainingData

STATE = "state.ckpt"
LAST = "last.safetensors"
TILES = "tiles"
"""What the tile set's fingerprint is called among what tells runs apart."""

CHANGEABLE_SETTINGS = ("epochs", "workers", "save_minutes", "tensorboard", "mlflow", "patience")
"""Settings that may change when a run goes on: they do not touch what an epoch computes."""


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state goes into a dictionary of tensors and plain values, and comes back from one."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Set the state."""
        ...


@dataclass
class EpochTotals:
    """Sums over the batches seen so far."""

    confusion: Int64[ndarray, "..."]
    """As `geograft.metrics.confusion.Counting` has it."""
    loss: float = 0.0
    """Each batch's loss times its labelled pixels; of overlapping classes, times its labels of each class."""

    @classmethod
    def zero(cls, k: int) -> "EpochTotals":
        """Return the sums over no batch, for `k` classes that exclude each other."""
        return cls(ConfusionScheme(k).zeros())

    def add(self, loss: float, confusion: Int64[ndarray, "..."]) -> None:
        """Count one more batch."""
        self.confusion = self.confusion + confusion
        self.loss += loss * int(confusion.sum())

    @property
    def mean_loss(self) -> float:
        """The loss over all labelled pixels; NaN where there is none."""
        pixels = int(self.confusion.sum())
        return self.loss / pixels if pixels else float("nan")


@dataclass
class TrainingProgress:
    """How far a run has come."""

    totals: EpochTotals
    """Of the training tiles of the epoch under way."""
    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Steps done of the epoch under way."""
    seconds: float = 0.0
    """Spent on the steps of the epoch under way."""
    history: History = field(default_factory=History)

    def is_finished(self, config: TrainConfig) -> bool:
        """Return whether no epoch is to come: all are done, or the last ones were in vain."""
        in_vain = bool(config.patience) and self.history.epochs_since_best >= config.patience
        return self.epoch >= config.epochs or (in_vain and not self.step)


def run_identity(config: TrainConfig, data: TrainingData) -> dict[str, Any]:
    """Return what must be equal for a run to go on: the settings that decide the outcome, and what tells the data."""
    # The cosine ends with the last epoch, so that the number of epochs decides each rate.
    free = set(CHANGEABLE_SETTINGS) - ({"epochs"} if config.schedule == "cosine" else set())
    settings = {name: value for name, value in asdict(config).items() if name not in free}
    scaling = {name: list(values) for name, values in asdict(data.scaling).items()}
    told = {TILES: data.fingerprint, "classes": list(data.legend.names), **data.network_settings}
    return {**told, **settings, **scaling}


def save_state(
    folder: Path, parts: Mapping[str, Stateful], position: TrainingProgress, known_as: Mapping[str, Any]
) -> None:
    """Write state.ckpt: the state of `parts`, torch's random numbers, `position`, and the run's identity.

    Raises:
        OutputError: when the disk refuses; the state written before stays.
    """
    content = {
        "identity": dict(known_as),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": _random_state(),
        "position": _to_dict(position),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(folder / STATE) as part:
        part.write_bytes(buffer.getbuffer())


def check_state(folder: Path, config: TrainConfig, data: TrainingData) -> TrainingProgress:
    """Return the position of a run that can go on with these settings and data; nothing is changed.

    Raises:
        InputError, SettingError: as `load_state` does, but for another network under the same settings.
    """
    return _read(folder, run_identity(config, data), config.epochs)[0]


def load_state(
    folder: Path, parts: Mapping[str, Stateful], known_as: Mapping[str, Any], epochs: int
) -> TrainingProgress:
    """Set `parts` and torch's random numbers to what state.ckpt holds, and return the run's position.

    Raises:
        InputError: when there is no state, or the file is damaged.
        SettingError: when the state is of another run: other settings, other data, another network or version; or when
            it has more than so many `epochs`.
    """
    path = folder / STATE
    position, content = _read(folder, known_as, epochs)
    try:
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise SettingError(f"{path} is of another network. Resume with the model that it began with.") from error
    _set_random_state(content["random"])
    return position


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights and batch-norm statistics as safetensors, under the names of its state_dict.

    Raises:
        OutputError: when the disk refuses.
    """
    content = save({name: value.cpu().contiguous() for name, value in network.state_dict().items()})
    with atomic_write(path) as part:
        part.write_bytes(content)


def load_weights(path: Path, network: nn.Module) -> None:
    """Set `network`'s weights to those of a file that `save_weights` wrote.

    Raises:
        InputError: when the file is missing, truncated, or of another network.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}. Copy the run again, or train it again.") from error
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} is of another network than its card describes. Train the run again.") from error


def _read(folder: Path, known_as: Mapping[str, Any], epochs: int) -> tuple[TrainingProgress, Mapping[str, Any]]:
    """Return the position that state.ckpt holds, and all of it, where such a run can go on with it."""
    path = folder / STATE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before, position = content["identity"], _from_dict(content["position"])
    except FileNotFoundError as error:
        raise InputError(_missing_state_message(folder)) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged or not Geograft's. Remove {folder} and train again.") from error
    _check_identity(path, before, known_as)
    if position.epoch > epochs:
        raise SettingError(f"{folder} has {position.epoch} epochs already: epochs = {epochs} is too few. Give more.")
    return position, content


def _missing_state_message(folder: Path) -> str:
    if (folder / CARD).exists():
        what = f"{folder} is a finished run without {STATE}, which curve and find remove: it cannot go on"
        return f"{what}. Begin another one with its weights (--start), or choose another --out."
    return f"{folder} holds no {STATE} to go on from. Train without --resume."


def _check_identity(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before == now:
        return
    differing = [name for name in now if name in before and before[name] != now[name]]
    if not differing:
        raise SettingError(
            f"{path} is of a run that another version of geograft began: it has other settings than this one. "
            "Go on with that version, or choose another --out."
        )
    changes = ", ".join(
        "the tile set was another one" if name == TILES else f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in differing
    )
    raise SettingError(f"{path} is of another run: {changes}. Undo that, or choose another --out.")


def _to_dict(position: TrainingProgress) -> dict[str, Any]:
    # Plain values only: the file is read without pickle's powers.
    return {
        "confusion": position.totals.confusion.tolist(),
        "loss": position.totals.loss,
        "epoch": position.epoch,
        "step": position.step,
        "seconds": position.seconds,
        "history": [asdict(epoch) for epoch in position.history.epochs],
    }


def _from_dict(content: Mapping[str, Any]) -> TrainingProgress:
    tally = EpochTotals(np.array(content["confusion"], dtype=np.int64), content["loss"])
    history = History(tuple(Epoch(**epoch) for epoch in content["history"]))
    return TrainingProgress(tally, content["epoch"], content["step"], content["seconds"], history)


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own gap
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
