"""Checkpoints of a run: weights as safetensors, and the state to resume from.

    model.safetensors   weights of the epoch with the lowest validation loss
    last.safetensors    weights of the last finished epoch
    state.ckpt          network, optimizer, random state and progress; written last, so that it matches the others

Each file is written atomically.
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
"""Key of the tile set's fingerprint in the identity of a run."""

CHANGEABLE_SETTINGS = ("epochs", "workers", "save_minutes", "tensorboard", "mlflow", "patience")
"""Settings that may change when a run is resumed: they do not affect what an epoch computes."""


@runtime_checkable
class Stateful(Protocol):
    """An object with a state of tensors and plain values, as in torch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the object."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore the state."""
        ...


@dataclass
class EpochTotals:
    """Loss and confusion, summed over the batches of an epoch so far."""

    confusion: Int64[ndarray, "..."]
    """As in `geograft.metrics.confusion.ConfusionScheme`."""
    loss: float = 0.0
    """Sum of each batch's loss times its labelled pixels (overlapping classes: times its labels of all classes)."""

    @classmethod
    def zero(cls, k: int) -> "EpochTotals":
        """Return zero sums for `k` mutually exclusive classes."""
        return cls(ConfusionScheme(k).zeros())

    def add(self, loss: float, confusion: Int64[ndarray, "..."]) -> None:
        """Add one batch."""
        self.confusion = self.confusion + confusion
        self.loss += loss * int(confusion.sum())

    @property
    def mean_loss(self) -> float:
        """The mean loss over the labelled pixels; NaN without any."""
        pixels = int(self.confusion.sum())
        return self.loss / pixels if pixels else float("nan")


@dataclass
class TrainingProgress:
    """How far a run has got."""

    totals: EpochTotals
    """Of the training tiles of the current epoch."""
    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished batches of the current epoch."""
    seconds: float = 0.0
    """Time spent on the steps of the current epoch."""
    history: History = field(default_factory=History)

    def is_finished(self, config: TrainConfig) -> bool:
        """Return whether training is over: all epochs are done, or early stopping (`patience`) applies."""
        stopped_early = bool(config.patience) and self.history.epochs_since_best >= config.patience
        return self.epoch >= config.epochs or (stopped_early and not self.step)


def run_identity(config: TrainConfig, data: TrainingData) -> dict[str, Any]:
    """Return what must be equal to resume a run: the settings that affect its result, the network and the data."""
    # The cosine schedule depends on the number of epochs.
    changeable = set(CHANGEABLE_SETTINGS) - ({"epochs"} if config.schedule == "cosine" else set())
    settings = {name: value for name, value in asdict(config).items() if name not in changeable}
    scaling = {name: list(values) for name, values in asdict(data.scaling).items()}
    data_and_network = {TILES: data.fingerprint, "classes": list(data.legend.names), **data.network_settings}
    return {**data_and_network, **settings, **scaling}


def save_state(
    folder: Path, parts: Mapping[str, Stateful], progress: TrainingProgress, identity: Mapping[str, Any]
) -> None:
    """Write state.ckpt: the state of `parts`, torch's random state, `progress` and the run's identity.

    Raises:
        OutputError: if the file cannot be written; the previous state remains.
    """
    content = {
        "identity": dict(identity),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "random": _random_state(),
        "progress": _to_dict(progress),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(folder / STATE) as part:
        part.write_bytes(buffer.getbuffer())


def check_state(folder: Path, config: TrainConfig, data: TrainingData) -> TrainingProgress:
    """Return the progress of a run that can be resumed with these settings and data, without loading its state.

    Raises:
        InputError, SettingError: as in `load_state`, except for a network that differs under equal settings.
    """
    return _read(folder, run_identity(config, data), config.epochs)[0]


def load_state(
    folder: Path, parts: Mapping[str, Stateful], identity: Mapping[str, Any], epochs: int
) -> TrainingProgress:
    """Restore `parts` and torch's random state from state.ckpt, and return the run's progress.

    Raises:
        InputError: if state.ckpt is missing or damaged.
        SettingError: if the state belongs to a run with other settings, data, network or version, or has more than
            `epochs` finished epochs.
    """
    path = folder / STATE
    progress, content = _read(folder, identity, epochs)
    try:
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise SettingError(f"{path} belongs to another network. Resume with the same [model] settings.") from error
    _set_random_state(content["random"])
    return progress


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the state_dict of a network as safetensors, under the same names.

    Raises:
        OutputError: if the file cannot be written.
    """
    content = save({name: value.cpu().contiguous() for name, value in network.state_dict().items()})
    with atomic_write(path) as part:
        part.write_bytes(content)


def load_weights(path: Path, network: nn.Module) -> None:
    """Load a file written by `save_weights` into `network`.

    Raises:
        InputError: if the file is missing or damaged, has NaN or infinite values, or belongs to another network.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}. Copy the run again, or train it again.") from error
    nonfinite = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if nonfinite is not None:
        raise InputError(f"{path}: {nonfinite} has NaN or infinite values. Copy the run again, or train it again.")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} does not match the network in the model card. Train the run again.") from error


def _read(folder: Path, identity: Mapping[str, Any], epochs: int) -> tuple[TrainingProgress, Mapping[str, Any]]:
    """Return the progress in state.ckpt, and its whole content, if such a run can be resumed from it."""
    path = folder / STATE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before, progress = content["identity"], _from_dict(content["progress"])
    except FileNotFoundError as error:
        raise InputError(_missing_state_message(folder)) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a state of Geograft. Remove {folder} and train again.") from error
    _check_identity(path, before, identity)
    if progress.epoch > epochs:
        raise SettingError(f"{folder} already has {progress.epoch} epochs: raise epochs = {epochs} to train further.")
    return progress, content


def _missing_state_message(folder: Path) -> str:
    if (folder / CARD).exists():
        state = f"{folder} is a finished run without {STATE} (curve and find remove it), so it cannot be resumed"
        return f"{state}. Start a new run from its weights (--start), or choose another --out."
    return f"{folder} has no {STATE} to resume from. Train without --resume."


def _check_identity(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before == now:
        return
    differing = [name for name in now if name in before and before[name] != now[name]]
    if not differing:
        raise SettingError(
            f"{path} was written by another version of geograft with other settings. Resume with that version, or "
            "choose another --out."
        )
    changes = ", ".join(
        "the tile set differs" if name == TILES else f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in differing
    )
    raise SettingError(f"{path} belongs to another run: {changes}. Restore these settings, or choose another --out.")


def _to_dict(progress: TrainingProgress) -> dict[str, Any]:
    # Plain values only, because the file is read with weights_only=True.
    return {
        "confusion": progress.totals.confusion.tolist(),
        "loss": progress.totals.loss,
        "epoch": progress.epoch,
        "step": progress.step,
        "seconds": progress.seconds,
        "history": [asdict(epoch) for epoch in progress.history.epochs],
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
