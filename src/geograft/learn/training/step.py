"""One step of the optimizer: batches there and back, in smaller parts where memory is short."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor

from geograft.counting import Counting
from geograft.errors import SettingError
from geograft.learn.device import in_short
from geograft.learn.feeding.feed import Batch
from geograft.learn.losses.mix import Deep, Logits, LossMix, segmentation_losses
from geograft.learn.losses.truth import Label
from geograft.learn.training.crew import Crew
from geograft.learn.training.metrics import confusion, tables
from geograft.legend import IGNORE
from geograft.progress import announce

Pair: TypeAlias = tuple[Tensor, Tensor]
"""A batch among others, which may hold more tiles or fewer."""


class Counted(NamedTuple):
    """What one batch gave."""

    loss: float
    """Of the logits of the network's own resolution, so that training and validation compare."""
    confusion: Int64[ndarray, "..."]
    """As `geograft.counting.Counting` has it."""
    tiles: int


class NoNumberError(Exception):
    """The loss of a batch is infinite or no number; the weights have not moved."""

    def __init__(self, loss: float, batch: int) -> None:
        super().__init__(loss, batch)
        self.loss = loss
        self.batch = batch
        """Position among the batches of the step."""


class Step:
    """Computes the gradients of some batches, and what the batches gave.

    Attributes:
        cuts: parts that each batch goes through the network in; doubled where memory runs out.
    """

    def __init__(self, crew: Crew, model: Any, mix: LossMix, k: int) -> None:
        self._crew, self._model, self._mix = crew, model, mix
        self._counting = Counting(k, mix.overlapping)
        self.cuts = 1
        self._nothing = (torch.empty(0), torch.empty(0))

    def gradients(self, batches: Sequence[Pair]) -> list[Counted]:
        """Leave the gradients of the mean of the batches' losses at the parameters, and return what each batch gave.

        A batch that is cut has as its loss the mean of its parts' losses, each by its labelled pixels. For
        cross-entropy that is the whole batch's loss; a region loss and batch norm see a part at a time.

        Raises:
            NoNumberError: for a loss that is infinite or no number.
            SettingError: when memory is too short for a single tile.
        """
        while True:
            try:
                self._model.zero_grad()
                counted = [self._gradients(index, batch, len(batches)) for index, batch in enumerate(batches)]
                self._crew.add_gradients(self._model)
                return counted
            except RuntimeError as error:
                if is_from_compiler(error):
                    raise SettingError(f"compile = true: {in_short(error)}. Train without --compile.") from error
                if not is_out_of_memory(error):
                    raise
                self._cut(max(len(images) for images, _ in batches), error)
            # After the exception is gone, and with it what its frames held.
            _give_back(self._crew.fabric.device)

    def notes(self) -> tuple[str, ...]:
        """Return what there is to say of memory."""
        if self.cuts == 1:
            return ()
        return (
            f"memory is too short for whole batches: each goes through the network in {self.cuts} parts, whose "
            "gradients make one step",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on."""
        return {"cuts": self.cuts}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set what `state_dict` returned."""
        self.cuts = state_dict["cuts"]

    def seen(self, batch: Batch | None, model: Any) -> Counted:
        """Return what a batch gives as `model` stands, without gradients; None: only other processes have its tiles."""
        logits, label = self._nothing if batch is None else (model(batch[0]), batch[1])
        # In case the next batch has no tile for this process, which then still takes part.
        self._nothing = logits[:0], label[:0]
        return self._counted(*self._losses(logits, label)[1:])

    def _gradients(self, index: int, batch: Batch, batches: int) -> Counted:
        whole, parts = max(1, labelled(batch[1])), in_parts(batch, self.cuts)
        given = Counted(0.0, self._counting.none(), 0)
        for images, label in parts:
            weight = labelled(label) / whole if self.cuts > 1 else 1.0
            with self._crew.shared_statistics():
                logits = self._model(images)
            loss, *rest = self._losses(logits, label)
            if not math.isfinite(loss.item()):
                raise NoNumberError(loss.item(), index)
            counted = self._counted(*rest)
            self._crew.fabric.backward(loss * (weight / batches))
            matrix, tiles = given.confusion + counted.confusion, given.tiles + counted.tiles
            given = Counted(given.loss + weight * counted.loss, matrix, tiles)
        return given

    def _losses(self, logits: Logits | Deep, label: Label) -> tuple[Tensor, Tensor, Logits, Label]:
        """Return `segmentation_losses` of all processes' tiles, with their logits and labels."""
        label = self._crew.joined(label)
        if isinstance(logits, tuple):
            fine = self._crew.joined(logits[0])
            coarser = {stride: self._crew.joined(each) for stride, each in logits[1].items()}
            return *segmentation_losses((fine, coarser), label, self._mix), fine, label
        fine = self._crew.joined(logits)
        return *segmentation_losses(fine, label, self._mix), fine, label

    def _counted(self, loss: Tensor, logits: Logits, label: Label) -> Counted:
        detached, overlapping = logits.detach(), self._counting.overlapping
        counts = tables(detached, label) if overlapping else confusion(detached, label, self._counting.classes)
        return Counted(loss.item(), counts.numpy(force=True), len(label))

    def _cut(self, tiles: int, error: RuntimeError) -> None:
        if self._crew.world > 1:
            # The others wait for what this one computes; it cannot begin again alone.
            raise SettingError(
                "Memory is too short for this process's part of a batch. Lower batch_size and raise accumulate by the "
                "same factor."
            ) from error
        if self.cuts >= tiles:
            raise SettingError(
                "Memory is too short to train on a single tile. Prepare smaller tiles (--tile-px), take a smaller "
                "encoder, or train on another device."
            ) from error
        self.cuts *= 2
        announce(*self.notes())


def grouped(batches: Iterable[Pair], size: int) -> Iterator[list[Pair]]:
    """Yield `batches` in lists of `size`; the last may hold fewer."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def in_parts(batch: Batch, parts: int) -> list[Pair]:
    """Return a batch cut into `parts` of about the same number of tiles; at most as many as it has."""
    images, label = batch
    count = min(parts, len(images))
    return list(zip(images.tensor_split(count), label.tensor_split(count), strict=True))


def labelled(label: Label) -> int:
    """Return how many pixels a label knows; of shares, how many shares."""
    known = label != IGNORE if label.dtype == torch.uint8 else label.isfinite()
    return int(known.sum())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device says that its memory is used up. CPUs have no exception of their own for it."""
    words = ("out of memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def is_from_compiler(error: RuntimeError) -> bool:
    """Return whether torch's compiler, or what it calls, failed; by name, for the compiler takes a second to import."""
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
