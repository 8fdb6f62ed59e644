"""One step of the optimizer: batches there and back, in smaller parts where memory is short.

Counts of right and wrong pixels. The scores that follow from them are in geograft.metrics.confusion and
geograft.metrics.scores.

Which tile made the loss infinite or no number, in words for the user.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from geograft.errors import SettingError
from geograft.legend import IGNORE
from geograft.losses.segmentation import Logits, LossConfig, MultiScaleLogits, segmentation_loss, segmentation_losses
from geograft.losses.targets import LabelTensor, class_index
from geograft.metrics.confusion import ConfusionScheme
from geograft.networks.device import short_message
from geograft.progress import announce
from geograft.training.distributed import ProcessGroup
from geograft.training.loader import TrainingBatch


def predict_classes(logits: Float[Tensor, "n o h w"]) -> Int64[Tensor, "n h w"]:
    """Return the most probable class of each pixel; with one output, class 1 from a probability of 0.5 on."""
    return (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def confusion(logits: Float[Tensor, "n o h w"], label: LabelTensor, k: int) -> Int64[Tensor, "{k} {k}"]:
    """Return how many pixels of each true class (row) were predicted as each class (column), of `k` classes.

    Where labels are shares, a pixel is of the class that has most of it. Pixels that are not known are not counted. Add
    the matrices of all batches before taking scores.
    """
    label = class_index(label)
    pair = label.long() * k + predict_classes(logits)
    # One bin more takes what is ignored; picking the valid pixels out costs ten times as much.
    bins = pair.masked_fill(label == IGNORE, k * k)
    return torch.bincount(bins.flatten(), minlength=k * k + 1)[: k * k].reshape(k, k)


def overlapping_confusion(
    logits: Float[Tensor, "n k h w"], fractions: Float[Tensor, "n k h w"]
) -> Int64[Tensor, "k 2 2"]:
    """Return for each overlapping class how many pixels outside (row 0) and inside (1) were predicted so (columns).

    A pixel is inside from a share of one half on, and predicted so from a probability of one half on. Shares that are
    NaN are not counted.
    """
    k = logits.shape[1]
    place = torch.arange(k, device=logits.device).reshape(k, 1, 1) * 4 + (fractions >= 0.5).long() * 2 + (logits >= 0)
    bins = place.masked_fill(~fractions.isfinite(), 4 * k)
    return torch.bincount(bins.flatten(), minlength=4 * k + 1)[: 4 * k].reshape(k, 2, 2)


MAX_NAMED = 3


@runtime_checkable
class NamedTiles(Protocol):
    """Tiles that can say where they lie."""

    def name(self, index: int, /) -> str:
        """Return the scene and the window of a tile, in words."""
        ...


def tile_name(tiles: object, index: int) -> str:
    """Return the name of a tile; its number, counted from 0, where the tiles have no names."""
    return tiles.name(index) if isinstance(tiles, NamedTiles) else f"tile {index}"


def nonfinite_tiles(model: Any, batch: TrainingBatch, mix: LossConfig) -> list[int]:
    """Return the positions of those tiles of a batch whose loss is no finite number even when they are alone.

    Costs a forward pass of each tile. `model` stays in the mode it is in: in training, batch norm's running statistics
    may be no numbers any more, and those of the tile itself count.
    """
    images, label = batch
    with torch.no_grad():
        losses = [
            segmentation_loss(model(images[index : index + 1]), label[index : index + 1], mix)
            for index in range(len(images))
        ]
    return [index for index, loss in enumerate(losses) if not loss.isfinite()]


def nonfinite_message(network: nn.Module, guilty: Sequence[str], tiles: int) -> str:
    """Return what is at fault and what to do, when `guilty` tiles of a batch of `tiles` have no finite loss alone."""
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        return "The weights are no numbers any more. Lower the learning rates, or set clip_norm."
    if not guilty:
        return "No tile of its batch does so alone. Lower the learning rates, or set clip_norm."
    if len(guilty) == tiles > 1:
        return "Each tile of its batch does so alone. Lower the learning rates, or look for extreme pixel values."
    more = f" and {len(guilty) - MAX_NAMED} more" if len(guilty) > MAX_NAMED else ""
    named = "; ".join(guilty[:MAX_NAMED])
    return f"The cause is {named}{more}. Look there for extreme pixel values, and mask them or scale the bands."


TensorPair: TypeAlias = tuple[Tensor, Tensor]
"""A batch among others, which may hold more tiles or fewer."""


class BatchResult(NamedTuple):
    """What one batch gave."""

    loss: float
    """Of the logits of the network's own resolution, so that training and validation compare."""
    confusion: Int64[ndarray, "..."]
    """As `geograft.metrics.confusion.Counting` has it."""
    tiles: int


class NonFiniteLossError(Exception):
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

    def __init__(self, group: ProcessGroup, model: Any, mix: LossConfig, k: int) -> None:
        self._group, self._model, self._mix = group, model, mix
        self._counting = ConfusionScheme(k, mix.overlapping)
        self.chunks = 1
        self._empty = (torch.empty(0), torch.empty(0))

    def compute_gradients(self, batches: Sequence[TensorPair]) -> list[BatchResult]:
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
                counted = [self._batch_gradients(index, batch, len(batches)) for index, batch in enumerate(batches)]
                self._group.all_reduce_gradients(self._model)
                return counted
            except RuntimeError as error:
                if is_from_compiler(error):
                    raise SettingError(f"compile = true: {short_message(error)}. Train without --compile.") from error
                if not is_out_of_memory(error):
                    raise
                self._split_further(max(len(images) for images, _ in batches), error)
            # After the exception is gone, and with it what its frames held.
            _give_back(self._group.fabric.device)

    def notes(self) -> tuple[str, ...]:
        """Return what there is to say of memory."""
        if self.chunks == 1:
            return ()
        return (
            f"memory is too short for whole batches: each goes through the network in {self.chunks} parts, whose "
            "gradients make one step",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on."""
        return {"cuts": self.chunks}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set what `state_dict` returned."""
        self.chunks = state_dict["cuts"]

    def evaluate(self, batch: TrainingBatch | None, model: Any) -> BatchResult:
        """Return what a batch gives as `model` stands, without gradients; None: only other processes have its tiles."""
        logits, label = self._empty if batch is None else (model(batch[0]), batch[1])
        # In case the next batch has no tile for this process, which then still takes part.
        self._empty = logits[:0], label[:0]
        return self._batch_result(*self._losses(logits, label)[1:])

    def _batch_gradients(self, index: int, batch: TrainingBatch, batches: int) -> BatchResult:
        whole, parts = max(1, count_labelled(batch[1])), split_batch(batch, self.chunks)
        given = BatchResult(0.0, self._counting.zeros(), 0)
        for images, label in parts:
            weight = count_labelled(label) / whole if self.chunks > 1 else 1.0
            with self._group.sync_batchnorm():
                logits = self._model(images)
            loss, *rest = self._losses(logits, label)
            if not math.isfinite(loss.item()):
                raise NonFiniteLossError(loss.item(), index)
            counted = self._batch_result(*rest)
            self._group.fabric.backward(loss * (weight / batches))
            matrix, tiles = given.confusion + counted.confusion, given.tiles + counted.tiles
            given = BatchResult(given.loss + weight * counted.loss, matrix, tiles)
        return given

    def _losses(
        self, logits: Logits | MultiScaleLogits, label: LabelTensor
    ) -> tuple[Tensor, Tensor, Logits, LabelTensor]:
        """Return `segmentation_losses` of all processes' tiles, with their logits and labels."""
        label = self._group.all_gather(label)
        if isinstance(logits, tuple):
            fine = self._group.all_gather(logits[0])
            coarser = {stride: self._group.all_gather(each) for stride, each in logits[1].items()}
            return *segmentation_losses((fine, coarser), label, self._mix), fine, label
        fine = self._group.all_gather(logits)
        return *segmentation_losses(fine, label, self._mix), fine, label

    def _batch_result(self, loss: Tensor, logits: Logits, label: LabelTensor) -> BatchResult:
        detached, overlapping = logits.detach(), self._counting.overlapping
        counts = (
            overlapping_confusion(detached, label)
            if overlapping
            else confusion(detached, label, self._counting.classes)
        )
        return BatchResult(loss.item(), counts.numpy(force=True), len(label))

    def _split_further(self, tiles: int, error: RuntimeError) -> None:
        if self._group.world_size > 1:
            # The others wait for what this one computes; it cannot begin again alone.
            raise SettingError(
                "Memory is too short for this process's part of a batch. Lower batch_size and raise accumulate by the "
                "same factor."
            ) from error
        if self.chunks >= tiles:
            raise SettingError(
                "Memory is too short to train on a single tile. Prepare smaller tiles (--tile-px), take a smaller "
                "encoder, or train on another device."
            ) from error
        self.chunks *= 2
        announce(*self.notes())


def group_batches(batches: Iterable[TensorPair], size: int) -> Iterator[list[TensorPair]]:
    """Yield `batches` in lists of `size`; the last may hold fewer."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def split_batch(batch: TrainingBatch, parts: int) -> list[TensorPair]:
    """Return a batch cut into `parts` of about the same number of tiles; at most as many as it has."""
    images, label = batch
    count = min(parts, len(images))
    return list(zip(images.tensor_split(count), label.tensor_split(count), strict=True))


def count_labelled(label: LabelTensor) -> int:
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
