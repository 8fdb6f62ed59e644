"""Blending on a GPU: the same whole-number sums as in `geograft.mapping.sums`, in the device's memory.

Only the values of maps come back: classes, encoded probabilities, and what one panel adds to the next. Given the same
layers they are those of NumPy to the bit. Sums are of 64 bits, because torch adds no unsigned integers of 32.

Networks run on one stream and sums on another, so that the sums of one batch are added while the next one is computed.
The same code runs on torch's CPU device, for tests. Imported only where a GPU is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64, Shaped, UInt8, UInt32
from numpy import ndarray
from torch import Tensor

from geograft.inference.device_predictor import DevicePredictor
from geograft.inference.torch_networks import refuse_short_memory
from geograft.mapping.batches import RasterTile, TileBatch
from geograft.mapping.sums import FULL_SUM, PROBABILITY_STEPS, EncodingDtype, minimum_sums, nan_error

MAX_WEIGHTS = 256
"""Maximum number of rows of weights that are kept on the device."""


@dataclass(frozen=True)
class DeviceLevels:
    """A batch and its layers in steps of 1 / PROBABILITY_STEPS, which may still be in computation."""

    batch: TileBatch
    levels: Int32[Tensor, "n layers t t"]
    has_nan: Bool[Tensor, ""]
    computed: Any
    """The event after which they are there."""


class SumStream:
    """The stream on which sums are computed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream()
        # Few windows have weights of their own: those at the border.
        self._weights: dict[bytes, Int64[Tensor, " t"]] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let this thread use the stream inside the block.

        Raises:
            SettingError: if memory is too short.
        """
        with self._module.stream(self._stream), refuse_short_memory():
            yield

    def wait_for(self, prediction: DeviceLevels) -> None:
        """Let what follows on the stream wait until `prediction` is computed."""
        self._stream.wait_event(prediction.computed)
        if self.device.type == "cuda":
            prediction.levels.record_stream(self._stream)
            prediction.has_nan.record_stream(self._stream)

    def weights(self, rows: UInt32[ndarray, " t"], columns: UInt32[ndarray, " t"]) -> Int64[Tensor, "t t"]:
        """Return the weights of the pixels of a tile; call it in this stream's context."""
        return torch.outer(self._uploaded(rows), self._uploaded(columns))

    def _uploaded(self, weights: UInt32[ndarray, " t"]) -> Int64[Tensor, " t"]:
        key = weights.tobytes()
        if key not in self._weights:
            if len(self._weights) >= MAX_WEIGHTS:
                self._weights.clear()
            self._weights[key] = torch.from_numpy(weights.astype(np.int64)).to(self.device)
        return self._weights[key]


class DeviceBlending:
    """Blending where the networks run; `predict` and the rest may be called by two threads."""

    def __init__(self, predictor: DevicePredictor) -> None:
        self._predictor, self._stream = predictor, SumStream(predictor.device)

    def predict(self, batch: TileBatch) -> DeviceLevels:
        """Start to compute the levels of a batch."""
        uploaded = self._predictor.upload(batch.pixels, batch.valid)
        with self._predictor.running():
            layers = self._predictor.layers(uploaded)
            has_nan = layers.isnan().any()
            levels = (layers.nan_to_num(0.0).clamp(0, 1) * PROBABILITY_STEPS).round().to(torch.int32)
            return DeviceLevels(batch, levels, has_nan, self._predictor.event())

    def levels(self, prediction: DeviceLevels) -> Iterator[tuple[RasterTile, Int32[Tensor, "layers t t"]]]:
        """Yield the tiles of a batch with their levels, once they are computed.

        Raises:
            InputError: for NaN.
        """
        with self._stream():
            self._stream.wait_for(prediction)
            if bool(prediction.has_nan):
                raise nan_error()
        yield from zip(prediction.batch.tiles, prediction.levels, strict=True)

    def panel(self, layers: int, height: int, width: int) -> "TensorPanel":
        """Return the sums of a panel, all 0."""
        return TensorPanel((layers, height, width), self._stream)


class TensorPanel:
    """Sums over the pixel rows of a lane's tiles, for the pixel columns of its panel, as `ArrayPanel`."""

    def __init__(self, shape: tuple[int, int, int], stream: SumStream) -> None:
        self._stream = stream
        with stream():
            self._sums = torch.zeros(shape, dtype=torch.int64, device=stream.device)

    def add(
        self,
        left: int,
        levels: Int32[Tensor, "layers t t"],
        row_weights: UInt32[ndarray, " t"],
        col_weights: UInt32[ndarray, " t"],
    ) -> None:
        """Add the weighted levels of a tile, from pixel column `left` on."""
        with self._stream():
            weighted = levels * self._stream.weights(row_weights, col_weights)
            self._sums[:, :, left : left + len(col_weights)] += weighted

    def add_carried(self, top: int, carried: UInt32[ndarray, "layers h s"]) -> None:
        """Add what the panel to the left carried over to the first columns, from row `top` on."""
        with self._stream():
            there = torch.from_numpy(carried.astype(np.int64)).to(self._stream.device)
            self._sums[:, top : top + carried.shape[1], : carried.shape[2]] += there

    def copy(self, rows: slice, columns: slice) -> "TensorSums":
        """Return a copy of the sums in a part of the panel."""
        with self._stream():
            return TensorSums(self._sums[:, rows, columns].clone(), self._stream)

    def beyond(self, rows: slice, column: int) -> UInt32[ndarray, "layers h s"] | None:
        """Return the sums from pixel column `column` on; None if all are 0."""
        with self._stream():
            part: ndarray = self._sums[:, rows, column:].cpu().numpy()
        return part.astype(np.uint32) if part.any() else None

    def shift_rows(self, step: int) -> None:
        """Move all rows up by `step`; the last ones become 0."""
        with self._stream():
            shifted = torch.zeros_like(self._sums)
            shifted[:, : self._sums.shape[1] - step] = self._sums[:, step:]
            self._sums = shifted


@dataclass(frozen=True)
class TensorSums:
    """Weighted sums of layers at pixels on the device, and the values that are computed from them, as `ArraySums`."""

    tensor: Int64[Tensor, "layers h w"]
    stream: SumStream

    @property
    def array(self) -> UInt32[ndarray, "layers h w"]:
        """The sums."""
        return self._fetch(self.tensor).astype(np.uint32)

    def layers(self, chosen: slice = slice(None)) -> Float32[ndarray, "some h w"]:
        """Return the chosen layers, from 0 to 1."""
        with self.stream():
            return self._fetch(self._fractions(chosen))

    def at_least(self, *probabilities: float) -> Bool[ndarray, "some h w"]:
        """Return where the first layers reach these probabilities, one per layer, rounded as the layers are."""
        with self.stream():
            minimum = torch.from_numpy(minimum_sums(probabilities).astype(np.int64)).to(self.stream.device)
            return self._fetch(self.tensor[: len(probabilities)] >= minimum[:, None, None])

    def most_probable(self, layers: int) -> UInt8[ndarray, "h w"]:
        """Return the index of the largest of the first layers, the first of equal ones."""
        with self.stream():
            return self._fetch(self.tensor[:layers].argmax(dim=0).to(torch.uint8))

    def probabilities(self, layers: int, binary: bool) -> Float32[ndarray, "classes h w"]:
        """Return the probability of every class; the only layer of a binary map is that of the second class."""
        with self.stream():
            return self._fetch(self._classes(layers, binary))

    def encoded_probabilities(
        self, layers: int, binary: bool, dtype: EncodingDtype, maximum: int
    ) -> Shaped[ndarray, "classes h w"]:
        """Return the same, multiplied by `maximum`, as float16 or rounded to uint8."""
        with self.stream():
            scaled = self._classes(layers, binary) * maximum
            encoded = scaled.round().to(torch.uint8) if dtype == "uint8" else scaled.to(torch.float16)
            return self._fetch(encoded)

    def _classes(self, layers: int, binary: bool) -> Float32[Tensor, "classes h w"]:
        found = self._fractions(slice(layers))
        return torch.cat([1 - found, found]) if binary else found

    def _fractions(self, chosen: slice) -> Float32[Tensor, "some h w"]:
        # A tensor, because torch multiplies by the reciprocal of a number on CUDA.
        full = torch.full((), FULL_SUM, dtype=torch.float32, device=self.stream.device)
        return self.tensor[chosen].to(torch.float32) / full

    def _fetch(self, values: Tensor) -> Shaped[ndarray, "*shape"]:
        with self.stream():
            found: ndarray = values.cpu().numpy()
        return found
