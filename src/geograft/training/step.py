"""The training step: gradients and confusion matrices of batches, which are split when memory is short.

Also finds the tiles that cause a NaN or infinite loss.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64
from lightning_fabric import Fabric
from numpy import ndarray
from torch import Tensor, nn

from geograft.errors import SettingError, first_line
from geograft.interrupts import received_signal
from geograft.legend import IGNORE
from geograft.losses.segmentation import (
    LabelTensor,
    Logits,
    LossConfig,
    MultiScaleLogits,
    class_index,
    main_logits,
    segmentation_loss,
    segmentation_losses,
)
from geograft.metrics.confusion import ConfusionScheme
from geograft.networks.network import Network
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
    return count_values(bins.flatten(), k * k + 1)[: k * k].reshape(k, k)


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
    return count_values(bins.flatten(), 4 * k + 1)[: 4 * k].reshape(k, 2, 2)


def count_values(values: Int64[Tensor, " n"], size: int) -> Int64[Tensor, " {size}"]:
    """Return how often each number from 0 to `size` - 1 occurs."""
    return count_by_sorting(values, size) if values.is_cuda else torch.bincount(values, minlength=size)


def count_by_sorting(values: Int64[Tensor, " n"], size: int) -> Int64[Tensor, " {size}"]:
    """Return what `count_values` returns, without waiting for a GPU, as bincount does to learn the largest value."""
    ordered = values.to(torch.int32).sort().values
    edges = torch.arange(size + 1, dtype=torch.int32, device=values.device)
    return torch.searchsorted(ordered, edges).diff()


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


class UnreadResult(NamedTuple):
    """A `BatchResult` in the device's memory. Reading it waits for the device."""

    loss: Float[Tensor, ""]
    objective: Float32[Tensor, ""]
    """The loss with auxiliary outputs, whose gradients are computed; that of the first non-finite chunk, if any."""
    counts: Int64[Tensor, " c"]
    """The confusion, flattened; tiles; interrupted processes."""


class NonFiniteLossError(Exception):
    """The loss of a batch is NaN or infinite; the weights have not been updated."""

    def __init__(self, loss: float, batch: int) -> None:
        super().__init__(loss, batch)
        self.loss = loss
        self.batch = batch
        """Index among the batches of the step, or of those that are read together."""


class Step:
    """Computes gradients, losses and confusion matrices of batches.

    Attributes:
        chunks: number of chunks that each batch is split into; doubled when memory runs out.
        checkpointing: whether encoder stages compute their activations twice, which is tried before.
        found_inf: 1 from the first batch on whose loss is not finite, else 0; None if losses are checked before
            gradients are computed, which waits for the device. A fused optimizer with it then changes nothing.
    """

    def __init__(
        self,
        group: ProcessGroup,
        model: Any,
        loss_config: LossConfig,
        k: int,
        defers: bool = False,
        network: Network | None = None,
    ) -> None:
        """Compute with `model`. `network` is the one inside if its encoder may be checkpointed, not if compiled."""
        self._network, self.checkpointing = network, False
        self._group, self._model, self._loss_config = group, model, loss_config
        self._scheme = ConfusionScheme(k, loss_config.overlapping)
        self.chunks = 1
        self.found_inf = torch.zeros((), device=group.fabric.device) if defers else None
        # Apple's GPUs have no float64.
        self._float = torch.float32 if group.fabric.device.type == "mps" else torch.float64
        self._empty = (torch.empty(0), torch.empty(0))
        self._before: _StateBeforeStep | None = None

    def compute_gradients(self, batches: Sequence[TensorPair]) -> list[UnreadResult]:
        """Set the parameters' gradients to those of the batches' mean loss, and return the result of each batch.

        The loss of a batch in chunks is the mean of the chunks' losses, weighted by labelled pixels. For cross-entropy
        this equals the loss of the whole batch; region loss and batch norm are computed per chunk. A retry with more
        chunks gives, to the bit, what these chunks had given at once.

        Raises:
            NonFiniteLossError: for a NaN or infinite loss, unless checks are deferred.
            SettingError: if memory is too short for a single tile.
        """
        device = self._group.fabric.device
        self._before = self._before or _StateBeforeStep(self._model, device)
        # About a thousandth of a step.
        self._before.read()
        while True:
            try:
                self._model.zero_grad()
                results = [self._batch_gradients(index, batch, len(batches)) for index, batch in enumerate(batches)]
                self._group.all_reduce_gradients(self._model)
                if self.found_inf is not None:
                    finite = torch.stack([each.objective for each in results]).isfinite().all()
                    self.found_inf.masked_fill_(~finite, 1)
                return results
            except RuntimeError as error:
                if is_from_compiler(error):
                    raise SettingError(f"compile = true: {first_line(error)}. Train without --compile.") from error
                if not is_out_of_memory(error):
                    raise
                self._save_memory(max(len(images) for images, _ in batches), error)
            # Outside the except block, where the exception no longer holds tensors alive.
            _empty_cache(device)
            self._before.restore()

    def read(self, unread: Sequence[UnreadResult]) -> list[BatchResult]:
        """Return results from the device's memory, in two copies.

        Raises:
            NonFiniteLossError: for the first NaN or infinite loss, if checks are deferred.
        """
        numbers = [torch.stack([each.loss, each.objective.to(each.loss.dtype)]) for each in unread]
        losses, objectives = torch.stack(numbers).T.tolist()
        counts = torch.stack([each.counts for each in unread]).numpy(force=True)
        for batch, objective in enumerate(objectives if self.found_inf is not None else ()):
            if not math.isfinite(objective):
                raise NonFiniteLossError(objective, batch)
        shape = self._scheme.zeros().shape
        return [
            BatchResult(loss, row[:-2].reshape(shape), int(row[-2]), interrupted=bool(row[-1]))
            for loss, row in zip(losses, counts, strict=True)
        ]

    def notes(self) -> tuple[str, ...]:
        """Return messages about memory, one line each."""
        means = [
            *(["the encoder computes its activations twice"] if self.checkpointing else []),
            *(
                [f"each batch is split into {self.chunks} chunks, whose gradients are accumulated"]
                if self.chunks > 1
                else []
            ),
        ]
        return (f"out of memory: {'; '.join(means)}",) if means else ()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"chunks": self.chunks, "checkpointing": self.checkpointing}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Restore the state that `state_dict` returned."""
        chunks = state_dict["chunks"]
        if not isinstance(chunks, int) or chunks < 1:
            raise ValueError(f"chunks is {chunks!r}, not a number from 1")
        checkpointing = state_dict.get("checkpointing", False)
        if not isinstance(checkpointing, bool):
            raise ValueError(f"checkpointing is {checkpointing!r}, not true or false")
        self.chunks = chunks
        self.checkpointing = checkpointing and self._network is not None and self._network.set_checkpointing(True)

    def evaluate(self, batch: TrainingBatch | None, model: Any) -> UnreadResult:
        """Return the result of a batch without gradients; None stands for a batch of which this process has no tile."""
        logits, label = self._empty if batch is None else (model(batch[0]), batch[1])
        # For a later batch of None: the process still takes part in the collectives, with empty tensors.
        self._empty = logits[:0], label[:0]
        loss = self._losses(logits, label)[1]
        # A validation loss may be NaN.
        return UnreadResult(loss.to(self._float), torch.zeros_like(loss), self._counts(main_logits(logits), label))

    def _batch_gradients(self, index: int, batch: TrainingBatch, batches: int) -> UnreadResult:
        chunks = split_batch(batch, self._chunk_count(batch))
        result: UnreadResult | None = None
        for number, ((images, label), weight) in enumerate(zip(chunks, self._chunk_weights(chunks), strict=True)):
            is_last = index == batches - 1 and number == len(chunks) - 1
            with self._group.skip_gradient_sync(self._model, enabled=not is_last):
                with self._group.sync_batchnorm():
                    logits = self._model(images)
                loss, main_loss = self._losses(logits, label)
                if self.found_inf is None and not math.isfinite(loss.item()):
                    raise NonFiniteLossError(loss.item(), index)
                self._group.fabric.backward(loss * (weight * self._group.loss_factor / batches).to(loss.dtype))
            counts = self._counts(main_logits(logits), label)
            chunk = UnreadResult(weight * main_loss.detach().to(self._float), loss.detach(), counts)
            result = chunk if result is None else _add_chunk(result, chunk)
        assert result is not None
        return result

    def _chunk_count(self, batch: TensorPair) -> int:
        """Return the number of chunks of a batch: the same in all processes, which meet in each of them."""
        if self.chunks == 1:
            return 1
        return -self._group.all_max(-min(self.chunks, len(batch[0])))

    def _chunk_weights(self, chunks: Sequence[TensorPair]) -> Float[Tensor, " c"]:
        """Return the fraction of the batch's labelled pixels in each chunk, over all processes."""
        if self.chunks == 1:
            return torch.ones(1, dtype=self._float, device=self._group.fabric.device)
        counts = self._group.all_reduce(torch.stack([count_labelled(label) for _, label in chunks]))
        return counts.to(self._float) / counts.sum().clamp(min=1)

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

    def _counts(self, logits: Logits, label: LabelTensor) -> Int64[Tensor, " c"]:
        """Return the counts of an `UnreadResult` over all processes."""
        detached, overlapping = logits.detach(), self._scheme.overlapping
        counts = (
            overlapping_confusion(detached, label) if overlapping else confusion(detached, label, self._scheme.classes)
        )
        # Interrupts are summed with the counts, so that all processes stop after the same step.
        # Filled on the device: a copy of numbers to it waits for it.
        others = [counts.new_full((1,), number) for number in (len(label), received_signal())]
        return self._group.all_reduce(torch.cat([counts.flatten(), *others]))

    def _save_memory(self, tiles: int, error: RuntimeError) -> None:
        """Keep fewer activations, or split batches further.

        Raises:
            SettingError: if nothing is left to do.
        """
        if self._group.world_size > 1:
            # The other processes wait in a collective, so this one cannot retry alone; see `chunks_that_fit`.
            raise SettingError(
                "Out of memory in one of several processes. Lower batch_size and raise accumulate by the same factor."
            ) from error
        if not self.checkpointing and self._network is not None and self._network.set_checkpointing(True):
            self.checkpointing = True
        elif self.chunks >= tiles:
            raise _single_tile_error() from error
        else:
            self.chunks *= 2
        announce(*self.notes())


def chunks_that_fit(group: ProcessGroup, network: nn.Module, batch: TensorPair, loss_config: LossConfig) -> int:
    """Return the number of chunks in which every process of a group can compute a batch like its `batch`.

    Each tries it without the others, before batch norm and gradients are synchronised: later, when one runs out of
    memory, the others wait for it. The state of `network` is as before.

    Raises:
        SettingError: in all processes, if one has too little memory for a single tile.
    """
    before, chunks = _StateBeforeStep(network, group.fabric.device), 1
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


def _add_chunk(first: UnreadResult, second: UnreadResult) -> UnreadResult:
    objective = torch.where(first.objective.isfinite(), second.objective, first.objective)
    return UnreadResult(first.loss + second.loss, objective, first.counts + second.counts)


class _StateBeforeStep:
    """What a forward pass changes besides gradients: buffers, such as batch-norm statistics, and random numbers."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Read the state of `model` now."""
        buffers: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            buffers.setdefault(buffer.dtype, []).append(buffer)
        # By dtype, so that a GPU copies all of them at once.
        self._copies = [(group, [buffer.clone() for buffer in group]) for group in buffers.values()]
        self._device = device
        self._read_random_state()

    def read(self) -> None:
        """Read the state now."""
        for buffers, values in self._copies:
            torch._foreach_copy_(values, buffers)
        self._read_random_state()

    def _read_random_state(self) -> None:
        self._random = torch.get_rng_state()
        self._cuda_random = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None

    def restore(self) -> None:
        """Set the state of the model to the one that was read."""
        for buffers, values in self._copies:
            torch._foreach_copy_(buffers, values)
        torch.set_rng_state(self._random)
        if self._cuda_random is not None:
            torch.cuda.set_rng_state(self._cuda_random)


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


def count_labelled(label: LabelTensor) -> Int64[Tensor, ""]:
    """Return the number of labelled pixels; of fractional labels, the number of finite values."""
    known = label != IGNORE if label.dtype == torch.uint8 else label.isfinite()
    return known.sum()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether a device is out of memory. On a CPU only the message says so."""
    words = ("out of memory", "not enough memory", "DefaultCPUAllocator")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def can_defer_checks(fabric: Fabric) -> bool:
    """Return whether losses are checked after the step: on CUDA, whose fused optimizers can skip it without waiting.

    Not with 16-mixed, where steps that overflow are skipped too, and are no error.
    """
    return fabric.device.type == "cuda" and fabric.strategy.precision.precision != "16-mixed"


@contextmanager
def translate_out_of_memory() -> Iterator[None]:
    """Raise SettingError where memory is too short for the optimizer or validation, which cannot be split."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SettingError(
            f"Out of memory outside the training step: {first_line(error)}. Lower batch_size, or choose a smaller "
            "encoder or another device."
        ) from error


def is_from_compiler(error: RuntimeError) -> bool:
    """Return whether torch.compile failed. Compares names, because the compiler takes a second to import."""
    return any(kind.__name__ == "TorchDynamoException" for kind in type(error).__mro__)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
