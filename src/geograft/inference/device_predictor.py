"""Prediction on a GPU: pixels go up as the file holds them, and everything up to the layers stays on the device.

Pixels are copied on one stream while networks run on another. The same code runs on torch's CPU device, where streams
do nothing: there tests compare it with `EnsemblePredictor`. Imported only where a GPU is used.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Shaped
from numpy import ndarray
from torch import Tensor

from geograft.errors import SettingError
from geograft.inference.probability import FlipRotation, pairwise_sum
from geograft.inference.runners import TileWorkers
from geograft.inference.torch_networks import TorchRunner, refuse_short_memory
from geograft.networks.device import memory_format_for, stored_values, transfer_form

Spread = Literal["none", "runs", "views"]
"""What the standard deviation in the last layer is over; "views": over the TTA views of each run, too."""


@dataclass(frozen=True)
class DeviceMember:
    """One network of an ensemble, on the device, with the statistics of its training images and its temperature."""

    runner: TorchRunner
    mean: Float32[Tensor, " b"]
    std: Float32[Tensor, " b"]
    temperature: Float32[Tensor, ""]

    @classmethod
    def of(
        cls, runner: TorchRunner, mean: Sequence[float], std: Sequence[float], temperature: float, device: torch.device
    ) -> "DeviceMember":
        """Return a member whose numbers are on `device`."""
        numbers = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std, temperature))
        return cls(runner, *numbers)

    def scale(self, pixels: Shaped[Tensor, "n b t t"], valid: Bool[Tensor, "n t t"]) -> Float32[Tensor, "n b t t"]:
        """Return the network's input, the same bits as `geograft.inference.predictor.scaled_pixels`."""
        # Tensors, because torch multiplies by the reciprocal of a number on CUDA.
        scaled = (pixels.to(torch.float32) - self.mean[:, None, None]) / self.std[:, None, None]
        return scaled.masked_fill_(~valid[:, None] | scaled.isnan(), 0)


@dataclass(frozen=True)
class DeviceBatch:
    """The pixels of a batch on their way to the device, or there."""

    pixels: Shaped[Tensor, "n b t t"]
    valid: Bool[Tensor, "n t t"]
    uint16: bool
    """Whether the pixels are unsigned, in a tensor of int16: torch computes little with uint16."""
    copied: Any
    """The event after which they are there."""

    def stored(self) -> Shaped[Tensor, "n b t t"]:
        """Return the pixels as they are stored."""
        return stored_values(self.pixels, self.uint16)


class DevicePredictor:
    """The networks of an ensemble on one device, called by one thread.

    Attributes:
        device: the device.
        windows: number of windows that a network is given at once, all TTA views of each included; 0: a whole batch.
            Halved when memory runs out.
    """

    def __init__(
        self,
        members: Sequence[DeviceMember],
        device: torch.device,
        *,
        transforms: Sequence[FlipRotation] = (FlipRotation(0, flipped=False),),
        overlapping: bool = False,
        spread: Spread = "none",
    ) -> None:
        self._members, self._transforms = tuple(members), tuple(transforms)
        self._overlapping, self._spread = overlapping, spread
        self.device, self.windows = device, 0
        self._streams: Any = torch.get_device_module(device)
        self._copies, self._networks = self._streams.Stream(), self._streams.Stream()
        # The networks were moved to the device on another stream.
        self._streams.synchronize()

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> Float32[ndarray, "n l t t"]:
        """Return the layers of a batch, as `EnsemblePredictor` does."""
        batch = self.upload(pixels, valid)
        with self.running():
            layers: ndarray = self.layers(batch).cpu().numpy()
        return layers

    def warm_up(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"], compiled: bool | None
    ) -> tuple[str, ...]:
        """Find how many windows of a batch fit into memory at once, and prepare the networks for that number.

        On CUDA each network is captured as a graph, unless `compiled` is False; if it is True, it is compiled before.

        Returns:
            Remarks for the user.

        Raises:
            SettingError: if memory is too short for one window.
        """
        batch = self.upload(pixels, valid)
        with self.running():
            while True:
                self.layers(batch)
                try:
                    self._prepare(batch, compiled)
                    break
                except torch.OutOfMemoryError as error:
                    self._halve(len(pixels), error)
                self._empty_cache()
        return tuple(dict.fromkeys(each.runner.note for each in self._members if each.runner.note))

    def _prepare(self, batch: DeviceBatch, compiled: bool | None) -> None:
        size = self.windows or len(batch.pixels)
        for member in self._members:
            images = self._turned(member.scale(batch.stored()[:size], batch.valid[:size]))
            if compiled:
                member.runner.compile(images.cpu().numpy(), TileWorkers(0))
            if self.device.type == "cuda" and compiled is not False:
                member.runner.capture(images)

    def upload(self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]) -> DeviceBatch:
        """Start to copy a batch to the device."""
        pixels, uint16 = transfer_form(pixels)
        with self._streams.stream(self._copies), refuse_short_memory():
            there = self._copy(pixels), self._copy(valid)
            return DeviceBatch(*there, uint16, self._copies.record_event())

    def _copy(self, array: Shaped[ndarray, "*shape"]) -> Shaped[Tensor, "*shape"]:
        host = torch.from_numpy(np.require(array, requirements=("C", "W")))
        # Only from pinned memory are copies made while kernels run.
        return (host.pin_memory() if self.device.type == "cuda" else host).to(self.device, non_blocking=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run what the block computes on the stream of the networks, without gradients.

        Raises:
            SettingError: if memory is too short.
        """
        with self._streams.stream(self._networks), torch.inference_mode(), refuse_short_memory():
            yield

    def event(self) -> Any:
        """Return an event after everything that was computed in `running` so far."""
        return self._networks.record_event()

    def layers(self, batch: DeviceBatch) -> Float32[Tensor, "n layers t t"]:
        """Return the layers of a batch on the device; call it in `running`. Does not wait for them.

        If memory runs out, fewer windows are computed at once, from now on.

        Raises:
            SettingError: if memory is too short for one window.
        """
        self._networks.wait_event(batch.copied)
        if self.device.type == "cuda":
            for each in (batch.pixels, batch.valid):
                each.record_stream(self._networks)
        pixels, valid = batch.stored(), batch.valid
        while True:
            try:
                size = self.windows or len(pixels)
                parts = zip(torch.split(pixels, size), torch.split(valid, size), strict=True)
                found = [self._layers(*part) for part in parts]
                return found[0] if len(found) == 1 else torch.cat(found)
            except torch.OutOfMemoryError as error:
                self._halve(len(pixels), error)
            # Outside the except block, where the exception no longer holds tensors alive.
            self._empty_cache()

    def _halve(self, count: int, error: torch.OutOfMemoryError) -> None:
        size = min(self.windows or count, count)
        if size == 1:
            raise SettingError(
                "Out of memory with a single window. Give a smaller --window-px, or --device cpu."
            ) from error
        self.windows = -(-size // 2)
        for member in self._members:
            member.runner.release()

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _layers(self, pixels: Tensor, valid: Tensor) -> Tensor:
        views = [self._views(member, pixels, valid) for member in self._members]
        if self._spread == "none":
            return _mean([_mean(each) for each in views])
        terms = (
            [view for each in views for view in each] if self._spread == "views" else [_mean(each) for each in views]
        )
        mean = _mean(terms)
        variance = _mean([torch.square(term - mean) for term in terms])
        return torch.cat([mean, variance.sqrt().amax(dim=1, keepdim=True)], dim=1)

    def _views(self, member: DeviceMember, pixels: Tensor, valid: Tensor) -> list[Tensor]:
        """Return the layers that one run predicts for each transform of the tiles, transformed back."""
        logits = member.runner.logits(self._turned(member.scale(pixels, valid))) / member.temperature
        layers = logits.sigmoid() if self._overlapping or logits.shape[1] == 1 else logits.softmax(dim=1)
        parts = layers.chunk(len(self._transforms))
        return [_undo_flip_rotate(part, each) for part, each in zip(parts, self._transforms, strict=True)]

    def _turned(self, images: Float32[Tensor, "n b t t"]) -> Float32[Tensor, "m b t t"]:
        """Return the images under all transforms."""
        turned = torch.cat([_flip_rotate(images, each) for each in self._transforms])
        return turned.contiguous(memory_format=memory_format_for(self.device))


def _mean(terms: Sequence[Tensor]) -> Tensor:
    """Return the mean by pairwise summation, as `geograft.inference.probability.pairwise_mean`."""
    if len(terms) == 1:
        return terms[0]
    total = pairwise_sum(terms, lambda term: term)
    return total / torch.full((), len(terms), dtype=total.dtype, device=total.device)


def _flip_rotate(images: Shaped[Tensor, "n c t t"], transform: FlipRotation) -> Shaped[Tensor, "n c t t"]:
    flipped = images.flip(-1) if transform.flipped else images
    return flipped.rot90(transform.quarter_turns, (-2, -1)) if transform.quarter_turns else flipped


def _undo_flip_rotate(maps: Shaped[Tensor, "n c t t"], transform: FlipRotation) -> Shaped[Tensor, "n c t t"]:
    upright = maps.rot90(-transform.quarter_turns, (-2, -1)) if transform.quarter_turns else maps
    return upright.flip(-1) if transform.flipped else upright
