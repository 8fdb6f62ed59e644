"""The training step: gradients and confusion matrices of batches, which are split when memory is short.

Also finds the tiles that cause a NaN or infinite loss.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor, nn

from geograft.errors import SettingError
from geograft.interrupts import received_signal
from geograft.legend import IGNORE
from geograft.losses.segmentation import (
    Logits,
    LossConfig,
    MultiScaleLogits,
    main_logits,
    segmentation_loss,
    segmentation_losses,
)
from geograft.losses.targets import LabelTensor, class_index
from geograft.metrics.confusion import ConfusionScheme
from geograft.networks.device import short_message
from geograft.progress import announce
from geograft.training.distributed import ProcessGroup
from geograft.training.loader import TrainingBatch


def classes_from_logits(logits: Float[Tensor, "n o h w"]) -> Int64[Tensor, "n h w"]:
    """Return the most probable class of each pixel; with one output, class 1 if its probability is at least 0.5."""
    return (logits[:, 0] >= 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def confusion(logits: Float[Tensor, "n o h w"], label: LabelTensor, k: int) -> Int64[Tensor, "{k} {k}"]:
    """Return the confusion matrix of `k` classes in pixels: true classes in rows, predicted classes in columns.

    With fractional labels, the true class is the one with the largest fraction. Unlabelled pixels are not counted.
    """
    label = class_index(label)
    pair = label.long() * k + classes_from_logits(logits)
    # An extra bin takes the ignored pixels, which is ten times as fast as indexing by a mask.
    bins = pair.masked_fill(label == IGNORE, k * k)
    return torch.bincount(bins.flatten(), minlength=k * k + 1)[: k * k].reshape(k, k)


def overlapping_confusion(
    logits: Float[Tensor, "n k h w"], fractions: Float[Tensor, "n k h w"]
) -> Int64[Tensor, "k 2 2"]:
    """Return the 2 x 2 confusion matrix of each overlapping class: true in rows, predicted in columns, absent first.

    A class is present in a pixel from a fraction of 0.5 on, and predicted from a probability of 0.5 on. NaN is not
    counted.
    """
    k = logits.shape[1]
    place = torch.arange(k, device=logits.device).reshape(k, 1, 1) * 4 + (fractions >= 0.5).long() * 2 + (logits >= 0)
    bins = place.masked_fill(~fractions.isfinite(), 4 * k)
    return torch.bincount(bins.flatten(), minlength=4 * k + 1)[: 4 * k].reshape(k, 2, 2)


MAX_NAMED = 3


@runtime_checkable
class NamedTiles(Protocol):
    """Tiles with names."""

    def name(self, index: int, /) -> str:
        """Return the scene and window of a tile, as text."""
        ...


def tile_name(tiles: object, index: int) -> str:
    """Return the name of a tile, or its index if the tiles have no names."""
    return tiles.name(index) if isinstance(tiles, NamedTiles) else f"tile {index}"


def nonfinite_tiles(model: Any, batch: TrainingBatch, loss_config: LossConfig) -> list[int]:
    """Return the indices of the tiles of a batch that have a NaN or infinite loss on their own.

    Costs a forward pass per tile. The mode of `model` is not changed: in training mode batch norm uses the statistics
    of the tile, while its running statistics may already be NaN.
    """
    images, label = batch
    with torch.no_grad():
        losses = [
            segmentation_loss(model(images[index : index + 1]), label[index : index + 1], loss_config)
            for index in range(len(images))
        ]
    return [index for index, loss in enumerate(losses) if not loss.isfinite()]


def nonfinite_message(network: nn.Module, names: Sequence[str], tiles: int) -> str:
    """Return the cause and the remedy of a non-finite loss.

    `names` are the tiles, among the `tiles` of the batch, that have a non-finite loss on their own.
    """
    if not all(parameter.isfinite().all() for parameter in network.parameters()):
        return "The weights are NaN or infinite. Lower the learning rates, or set clip_norm."
    if not names:
        return "No tile of the batch causes it on its own. Lower the learning rates, or set clip_norm."
    if len(names) == tiles > 1:
        return (
            "Every tile of the batch causes it on its own. Lower the learning rates, or look for extreme pixel values."
        )
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    listed = "; ".join(names[:MAX_NAMED])
    return f"The cause is {listed}{more}. Mask extreme pixel values there, or rescale the bands."


TensorPair: TypeAlias = tuple[Tensor, Tensor]
"""Images and labels of a batch of any size."""


class BatchResult(NamedTuple):
    """Loss and confusion of one batch."""

    loss: float
    """Without auxiliary outputs, so that training and validation losses are comparable."""
    confusion: Int64[ndarray, "..."]
    """As in `geograft.metrics.confusion.ConfusionScheme`."""
    tiles: int
    interrupted: bool = False
    """Whether a process of the group was interrupted; the same in all of them."""


class NonFiniteLossError(Exception):
    """The loss of a batch is NaN or infinite; the weights have not been updated."""

    def __init__(self, loss: float, batch: int) -> None:
        super().__init__(loss, batch)
        self.loss = loss
        self.batch = batch
        """Index among the batches of the step."""


class Step:
    """Computes gradients, losses and confusion matrices of batches.

    Attributes:
        chunks: number of chunks that each batch is split into; doubled when memory runs out.
    """

    def __init__(self, group: ProcessGroup, model: Any, loss_config: LossConfig, k: int) -> None:
        self._group, self._model, self._loss_config = group, model, loss_config
        self._scheme = ConfusionScheme(k, loss_config.overlapping)
        self.chunks = 1
        self._empty = (torch.empty(0), torch.empty(0))

    def compute_gradients(self, batches: Sequence[TensorPair]) -> list[BatchResult]:
        """Set the parameters' gradients to those of the batches' mean loss, and return the result of each batch.

        The loss of a batch in chunks is the mean of the chunks' losses, weighted by labelled pixels. For cross-entropy
        this equals the loss of the whole batch; region loss and batch norm are computed per chunk. A retry with more
        chunks gives, to the bit, what these chunks had given at once.

        Raises:
            NonFiniteLossError: for a NaN or infinite loss.
            SettingError: if memory is too short for a single tile.
        """
        device = self._group.fabric.device
        # About a thousandth of a step.
        before = _StateBeforeStep.read(self._model, device)
        while True:
            try:
                self._model.zero_grad()
                results = [self._batch_gradients(index, batch, len(batches)) for index, batch in enumerate(batches)]
                self._group.all_reduce_gradients(self._model)
                return results
            except RuntimeError as error:
                if is_from_compiler(error):
                    raise SettingError(f"compile = true: {short_message(error)}. Train without --compile.") from error
                if not is_out_of_memory(error):
                    raise
                self._split_further(max(len(images) for images, _ in batches), error)
            # Outside the except block, where the exception no longer holds tensors alive.
            _empty_cache(device)
            before.restore()

    def notes(self) -> tuple[str, ...]:
        """Return messages about memory, one line each."""
        if self.chunks == 1:
            return ()
        return (f"out of memory: each batch is split into {self.chunks} chunks, whose gradients are accumulated",)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"chunks": self.chunks}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the state that `state_dict` returned."""
        chunks = state_dict["chunks"]
        if not isinstance(chunks, int) or chunks < 1:
            raise ValueError(f"chunks is {chunks!r}, not a number from 1")
        self.chunks = chunks

    def evaluate(self, batch: TrainingBatch | None, model: Any) -> BatchResult:
        """Return the result of a batch without gradients; None stands for a batch of which this process has no tile."""
        logits, label = self._empty if batch is None else (model(batch[0]), batch[1])
        # For a later batch of None: the process still takes part in the collectives, with empty tensors.
        self._empty = logits[:0], label[:0]
        return self._batch_result(self._losses(logits, label)[1], main_logits(logits), label)

    def _batch_gradients(self, index: int, batch: TrainingBatch, batches: int) -> BatchResult:
        chunks = split_batch(batch, self._chunk_count(batch))
        result = BatchResult(0.0, self._scheme.zeros(), 0)
        for number, ((images, label), weight) in enumerate(zip(chunks, self._chunk_weights(chunks), strict=True)):
            is_last = index == batches - 1 and number == len(chunks) - 1
            with self._group.skip_gradient_sync(self._model, enabled=not is_last):
                with self._group.sync_batchnorm():
                    logits = self._model(images)
                loss, main_loss = self._losses(logits, label)
                if not math.isfinite(loss.item()):
                    raise NonFiniteLossError(loss.item(), index)
                self._group.fabric.backward(loss * (weight * self._group.loss_factor / batches))
            chunk = self._batch_result(main_loss, main_logits(logits), label)
            matrix, tiles = result.confusion + chunk.confusion, result.tiles + chunk.tiles
            interrupted = result.interrupted or chunk.interrupted
            result = BatchResult(result.loss + weight * chunk.loss, matrix, tiles, interrupted)
        return result

    def _chunk_count(self, batch: TensorPair) -> int:
        """Return the number of chunks of a batch: the same in all processes, which meet in each of them."""
        if self.chunks == 1:
            return 1
        return -self._group.all_max(-min(self.chunks, len(batch[0])))

    def _chunk_weights(self, chunks: Sequence[TensorPair]) -> list[float]:
        """Return the fraction of the batch's labelled pixels in each chunk, over all processes."""
        if self.chunks == 1:
            return [1.0]
        own = torch.tensor([count_labelled(label) for _, label in chunks], device=self._group.fabric.device)
        counts = self._group.all_reduce(own).tolist()
        return [count / max(1, sum(counts)) for count in counts]

    def _losses(self, logits: Logits | MultiScaleLogits, label: LabelTensor) -> tuple[Tensor, Tensor]:
        """Return `segmentation_losses` over the tiles of all processes, from sums or, if necessary, from all logits."""
        if not self._loss_config.needs_all_pixels:
            return segmentation_losses(logits, label, self._loss_config, self._group.all_reduce)
        gather = self._group.all_gather
        if isinstance(logits, tuple):
            logits = gather(logits[0]), {stride: gather(each) for stride, each in logits[1].items()}
        else:
            logits = gather(logits)
        return segmentation_losses(logits, gather(label), self._loss_config)

    def _batch_result(self, loss: Tensor, logits: Logits, label: LabelTensor) -> BatchResult:
        detached, overlapping = logits.detach(), self._scheme.overlapping
        counts = (
            overlapping_confusion(detached, label) if overlapping else confusion(detached, label, self._scheme.classes)
        )
        # Interrupts are summed with the counts, so that all processes stop after the same step.
        others = counts.new_tensor([len(label), received_signal()])
        sums = self._group.all_reduce(torch.cat([counts.flatten(), others])).numpy(force=True)
        return BatchResult(loss.item(), sums[:-2].reshape(counts.shape), int(sums[-2]), interrupted=bool(sums[-1]))

    def _split_further(self, tiles: int, error: RuntimeError) -> None:
        if self._group.world_size > 1:
            # The other processes wait in a collective, so this one cannot retry alone; see `chunks_that_fit`.
            raise SettingError(
                "Out of memory in one of several processes. Lower batch_size and raise accumulate by the same factor."
            ) from error
        if self.chunks >= tiles:
            raise _single_tile_error() from error
        self.chunks *= 2
        announce(*self.notes())


def chunks_that_fit(group: ProcessGroup, network: nn.Module, batch: TensorPair, loss_config: LossConfig) -> int:
    """Return the number of chunks in which every process of a group can compute a batch like its `batch`.

    Each tries it without the others, before batch norm and gradients are synchronised: later, when one runs out of
    memory, the others wait for it. The state of `network` is as before.

    Raises:
        SettingError: in all processes, if one has too little memory for a single tile.
    """
    before, chunks = _StateBeforeStep.read(network, group.fabric.device), 1
    while chunks <= len(batch[0]) and not _fits(group, network, split_batch(batch, chunks)[0], loss_config):
        _empty_cache(group.fabric.device)
        before.restore()
        chunks *= 2
    network.zero_grad()
    before.restore()
    failed = group.all_max(int(chunks > len(batch[0])))
    if failed:
        raise _single_tile_error()
    return group.all_max(chunks)


def _fits(group: ProcessGroup, network: nn.Module, batch: TensorPair, loss_config: LossConfig) -> bool:
    """Return whether a process can compute the gradients of a batch."""
    try:
        with group.fabric.autocast():
            loss, _ = segmentation_losses(network(batch[0]), batch[1], loss_config)
        torch.autograd.backward(loss)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _single_tile_error() -> SettingError:
    return SettingError(
        "Out of memory with a single tile. Prepare smaller tiles (--tile-px), or choose a smaller encoder or another "
        "device."
    )


@dataclass(frozen=True)
class _StateBeforeStep:
    """What a forward pass changes besides gradients: buffers, such as batch-norm statistics, and random numbers."""

    buffers: list[Tensor]
    values: list[Tensor]
    """Copies of the buffers."""
    random: dict[str, Tensor]

    @classmethod
    def read(cls, model: Any, device: torch.device) -> "_StateBeforeStep":
        """Return the state of `model` now."""
        buffers = list(model.buffers())
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        return cls(buffers, [buffer.clone() for buffer in buffers], random)

    def restore(self) -> None:
        """Set the state of the model to this one."""
        for buffer, value in zip(self.buffers, self.values, strict=True):
            buffer.copy_(value)
        torch.set_rng_state(self.random["cpu"])
        if "cuda" in self.random:
            torch.cuda.set_rng_state(self.random["cuda"])


def group_batches(batches: Iterable[TensorPair], size: int) -> Iterator[list[TensorPair]]:
    """Yield `batches` in lists of `size`; the last may hold fewer."""
    batches = iter(batches)
    while group := list(islice(batches, size)):
        yield group


def split_batch(batch: TrainingBatch, chunks: int) -> list[TensorPair]:
    """Return a batch split into `chunks` of about equal size; into single tiles if it has fewer."""
    images, label = batch
    count = min(chunks, len(images))
    return list(zip(images.tensor_split(count), label.tensor_split(count), strict=True))


def count_labelled(label: LabelTensor) -> int:
    """Return the number of labelled pixels; of fractional labels, the number of finite values."""
    known = label != IGNORE if label.dtype == torch.uint8 else label.isfinite()
    return int(known.sum())


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device is out of memory. On a CPU only the message says so."""
    words = ("out of memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Raise SettingError where memory is too short for the optimizer or validation, which cannot be split."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SettingError(
            f"Out of memory outside the training step: {short_message(error)}. Lower batch_size, or choose a smaller "
            "encoder or another device."
        ) from error


def is_from_compiler(error: RuntimeError) -> bool:
    """Return whether torch.compile failed. Compares names, because the compiler takes a second to import."""
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
