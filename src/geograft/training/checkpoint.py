"""Checkpoints of a run: weights as safetensors, and the state to resume from.

    model.safetensors   weights of the epoch with the lowest validation loss
    last.safetensors    weights of the last finished epoch
    history.csv         losses and scores of every finished epoch
    card.json           model card of model.safetensors, finished or not
    state.ckpt          network, optimizer, random state and progress

The files of an epoch are written into a folder of their own, whose rename commits all of them at once
(`geograft.files.atomic_update`).
"""

import hashlib
import io
import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from geograft.bundle import BundleMember
from geograft.card import CARD, FEATURES_FILE, STATE, WEIGHTS, ModelCard, read_card
from geograft.config import TrainConfig
from geograft.errors import InputError, SettingError
from geograft.files import atomic_update, complete_update, write_bytes, write_text
from geograft.metrics.applicability import Applicability
from geograft.training.history import History, checked_epoch
from geograft.training.loader import TrainingData

LAST = "last.safetensors"
TILES = "tiles"
"""Key of the tile set's fingerprint in the identity of a run."""

CALIBRATED = ("threshold", "thresholds", "temperature", "calibrated")
"""Fields of a card that `geograft calibrate` sets."""

CHANGEABLE_SETTINGS = ("epochs", "workers", "calibrate", "save_minutes", "tensorboard", "mlflow", "patience")
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


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run. Every change of it is atomic: after a kill it has the files of one moment."""

    path: Path
    card: ModelCard | None = None
    """Model card of the run, whose epoch and scores are not yet those of an epoch; None: no card is written."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Content of further files by name, written with every state."""

    def write_state(
        self, parts: Mapping[str, Stateful], progress: TrainingProgress, identity: Mapping[str, Any]
    ) -> None:
        """Write the state within an epoch.

        Raises:
            OutputError: if a file cannot be written; the folder is unchanged.
        """
        with atomic_update(self.path) as part:
            self._write_state(part, parts, progress, identity)

    def write_epoch(
        self, network: nn.Module, parts: Mapping[str, Stateful], progress: TrainingProgress, identity: Mapping[str, Any]
    ) -> None:
        """Write a finished epoch: `network` as the last weights, and as the best if they are; history, card, state.

        The training features of earlier weights are removed. Syncs all files to disk.

        Raises:
            OutputError: if a file cannot be written; the folder then has the epoch before, or this one.
        """
        history = progress.history
        with atomic_update(self.path) as part:
            digest = ""
            if history.best == history.epochs[-1]:
                digest = save_weights(part / WEIGHTS, network)
                (part / FEATURES_FILE).touch()
            save_weights(part / LAST, network)
            history.write(part)
            if self.card is not None:
                self.card_of(self.card, history, digest=digest).write(part)
            self._write_state(part, parts, progress, identity)

    def finish(self, card: ModelCard, features: Applicability | None) -> None:
        """Write the card of the finished run, and its training features.

        Raises:
            OutputError: if a file cannot be written; the folder then is as before, or complete.
        """
        with atomic_update(self.path) as part:
            card.write(part)
            if features is None:
                (part / FEATURES_FILE).touch()
            else:
                features.write(part / FEATURES_FILE)

    def card_of(self, card: ModelCard, history: History, finished: bool = False, digest: str = "") -> ModelCard:
        """Return `card` with the best epoch of `history`, and the calibration in the folder if it is of that epoch.

        `digest` is that of the weights of the best epoch; empty: it is in the folder's card.
        """
        best = history.best
        scores = {"loss": best.val_loss, "iou": best.val_iou, "f1": best.val_f1}
        known = {name: value for name, value in scores.items() if not math.isnan(value)}
        card = replace(card, epoch=best.epoch, epochs=len(history.epochs), scores=known, finished=finished)
        card = replace(card, weights_digest=digest)
        try:
            before = read_card(self.path)
        except InputError:
            return card
        if (before.epoch, before.data_fingerprint) != (card.epoch, card.data_fingerprint):
            return card
        kept = {name: getattr(before, name) for name in CALIBRATED}
        return replace(card, **kept, weights_digest=digest or before.weights_digest)

    def _write_state(
        self, part: Path, parts: Mapping[str, Stateful], progress: TrainingProgress, identity: Mapping[str, Any]
    ) -> None:
        for name, text in self.settings.items():
            write_text(part / name, text)
        save_state(part, parts, progress, identity)


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
    write_bytes(folder / STATE, buffer.getbuffer())


def load_state(
    folder: Path, parts: Mapping[str, Stateful], identity: Mapping[str, Any], epochs: int
) -> TrainingProgress:
    """Restore `parts` and torch's random state from state.ckpt, and return the run's progress.

    With `epochs` or more finished epochs nothing is left to train, and the number of epochs may differ from before.
    Nothing is written, except that an interrupted `RunFolder.write_epoch` is completed.

    Raises:
        InputError: if state.ckpt is missing or damaged.
        SettingError: if the state belongs to a run with other settings, data, network or version.
    """
    complete_update(folder)
    path = folder / STATE
    progress, content = _read(folder, identity, epochs)
    missing = [name for name in parts if name not in content["parts"]]
    if missing:
        raise _damaged_error(path, f"it has no {missing[0]}")
    try:
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SettingError(f"{path} belongs to another network. Resume with the same [model] settings.") from error
    _set_random_state(path, content["random"])
    return progress


def save_weights(path: Path, network: nn.Module) -> str:
    """Write the state_dict of a network as safetensors, under the same names, and return the file's SHA-256.

    Raises:
        OutputError: if the file cannot be written.
    """
    content = save({name: value.cpu().contiguous() for name, value in network.state_dict().items()})
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path | BundleMember, network: nn.Module) -> str:
    """Load a file written by `save_weights` into `network`, and return the file's SHA-256.

    Raises:
        InputError: if the file is missing or damaged, has NaN or infinite values, or belongs to another network.
    """
    try:
        content = path.read_bytes()
        tensors: dict[str, Tensor] = load(content)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}. Copy the run again, or train it again.") from error
    nonfinite = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    if nonfinite is not None:
        raise InputError(f"{path}: {nonfinite} has NaN or infinite values. Copy the run again, or train it again.")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} does not match the network in the model card. Train the run again.") from error
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class _SavedProgress:
    """`TrainingProgress` as plain values."""

    confusion: list[Any]
    loss: Annotated[float, Field(ge=0)]
    epoch: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class _StateContent:
    """Content of state.ckpt."""

    identity: dict[str, Any]
    parts: dict[str, dict[str, Any]]
    random: dict[str, Any]
    progress: _SavedProgress


def _read(folder: Path, identity: Mapping[str, Any], epochs: int) -> tuple[TrainingProgress, Mapping[str, Any]]:
    """Return the progress in state.ckpt, and its whole content, if such a run can be resumed from it."""
    path = folder / STATE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        TypeAdapter(_StateContent).validate_python(content)
        before, progress = content["identity"], _from_dict(content["progress"])
    except FileNotFoundError as error:
        raise InputError(_missing_state_message(folder)) from error
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise _damaged_error(path, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else "not a state of Geograft"
        raise _damaged_error(path, reason) from error
    if progress.epoch >= epochs:
        # Nothing is left to train, so the length of the cosine schedule no longer matters.
        identity = {name: before.get(name) if name == "epochs" else value for name, value in identity.items()}
    _check_identity(path, before, identity)
    return progress, content


def _damaged_error(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged: {reason}. Copy the run again, or remove {path.parent} and train again.")


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
    """Return the progress; raise ValueError if it cannot have been written."""
    confusion = np.array(content["confusion"], dtype=np.int64)
    if confusion.ndim not in (2, 3) or (confusion < 0).any():
        raise ValueError("confusion is not a matrix of counts")
    if len(content["history"]) != content["epoch"]:
        raise ValueError(f"epoch is {content['epoch']}, but the history has {len(content['history'])}")
    history = History(tuple(checked_epoch(row, number) for number, row in enumerate(content["history"], start=1)))
    totals = EpochTotals(confusion, content["loss"])
    return TrainingProgress(totals, content["epoch"], content["step"], content["seconds"], history)


def _random_state() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own gap
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_state(path: Path, state: Mapping[str, Any]) -> None:
    try:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
    except (RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise _damaged_error(path, "its random state cannot be restored") from error
