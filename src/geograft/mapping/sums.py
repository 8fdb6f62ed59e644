"""Weighted sums of layers in whole numbers, in NumPy; `geograft.mapping.device_blend` has the same on a GPU.

Tiles are weighted by a Hann window, highest at the centre and lowest at the edge (Pielawski and Wählby 2020,
doi:10.1371/journal.pone.0229839), divided by the sum of all windows at the pixel.

Probabilities and weights are integers: a probability has PROBABILITY_STEPS steps, the weights at a pixel add up to
WEIGHT_SUM in each direction, and the sums fit into 32 bits. Therefore weights sum to one exactly, and the result
depends neither on the order of the tiles nor on the width of the panels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8, UInt32
from numpy import ndarray

from geograft.errors import InputError
from geograft.mapping.batches import RasterTile, TileBatch

PROBABILITY_STEPS = 2**18 - 1
"""The integer that represents probability 1."""
WEIGHT_SUM = 2**7
"""Sum of the weights at a pixel, in each direction: PROBABILITY_STEPS * WEIGHT_SUM**2 fits into 32 bits."""
FULL_SUM = PROBABILITY_STEPS * WEIGHT_SUM**2
"""The sum that represents probability 1."""

Model: TypeAlias = Callable[[Shaped[ndarray, "n b t t"], Bool[ndarray, "n t t"]], Float32[ndarray, "n layers t t"]]
"""A batch of tiles as stored and the mask of their valid pixels -> layers from 0 to 1."""
TileLayers: TypeAlias = tuple[TileBatch, Float32[ndarray, "n layers t t"]]
EncodingDtype: TypeAlias = Literal["uint8", "float16"]


def blend_weights(starts: Sequence[int], size: int) -> UInt32[ndarray, "tiles size"]:
    """Return the weights of each pixel of windows of `size` pixels that start at `starts` (ascending).

    At every pixel that a window covers, the weights of all windows add up to WEIGHT_SUM.
    """
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    total = np.zeros(starts[-1] - starts[0] + size)
    for start in starts:
        total[start - starts[0] :][:size] += window
    running, result = np.zeros_like(total), np.empty((len(starts), size), np.uint32)
    for row, start in zip(result, starts, strict=True):
        here = slice(start - starts[0], start - starts[0] + size)
        # Rounding the running sum instead of each weight makes the last weight complete WEIGHT_SUM.
        before = np.rint(WEIGHT_SUM * running[here] / total[here])
        running[here] += window
        row[:] = np.rint(WEIGHT_SUM * running[here] / total[here]) - before
    return result


@dataclass(frozen=True)
class ArraySums:
    """Weighted sums of layers at pixels, in steps of 1 / FULL_SUM, and the values that are computed from them."""

    array: UInt32[ndarray, "layers h w"]

    def layers(self, chosen: slice = slice(None)) -> Float32[ndarray, "some h w"]:
        """Return the chosen layers, from 0 to 1."""
        layers: ndarray = self.array[chosen].astype(np.float32) / np.float32(FULL_SUM)
        return layers

    def at_least(self, *probabilities: float) -> Bool[ndarray, "some h w"]:
        """Return where the first layers reach these probabilities, one per layer, rounded as the layers are."""
        reached: ndarray = self.array[: len(probabilities)] >= minimum_sums(probabilities)[:, None, None]
        return reached

    def most_probable(self, layers: int) -> UInt8[ndarray, "h w"]:
        """Return the index of the largest of the first layers, the first of equal ones."""
        index: ndarray = self.array[:layers].argmax(axis=0).astype(np.uint8)
        return index

    def probabilities(self, layers: int, binary: bool) -> Float32[ndarray, "classes h w"]:
        """Return the probability of every class; the only layer of a binary map is that of the second class."""
        found = self.layers(slice(layers))
        classes: Float32[ndarray, "classes h w"] = np.concatenate([1 - found, found]) if binary else found
        return classes

    def encoded_probabilities(
        self, layers: int, binary: bool, dtype: EncodingDtype, maximum: int
    ) -> Shaped[ndarray, "classes h w"]:
        """Return the same, multiplied by `maximum`, as float16 or rounded to uint8."""
        values = self.probabilities(layers, binary)
        scaled = np.rint(values * maximum) if dtype == "uint8" else values * maximum
        encoded: ndarray = scaled.astype(dtype)
        return encoded


def minimum_sums(probabilities: Sequence[float]) -> UInt32[ndarray, " some"]:
    """Return the least sums of pixels that reach these probabilities."""
    steps = np.rint(np.array(probabilities, np.float32) * np.float32(PROBABILITY_STEPS))
    sums: UInt32[ndarray, " some"] = steps.astype(np.uint32) * np.uint32(WEIGHT_SUM**2)
    return sums


def nan_error() -> InputError:
    """Return the error for a network whose output has NaN."""
    return InputError("The network's output contains NaN: its weights are damaged. Train the run again.")


class ArrayBlending:
    """Blending in NumPy: calls a model, and turns the layers of its tiles into whole steps."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(self, batch: TileBatch) -> TileLayers:
        """Return a batch with its layers."""
        return batch, self._model(batch.pixels, batch.valid)

    def levels(self, prediction: TileLayers) -> Iterator[tuple[RasterTile, UInt32[ndarray, "layers t t"]]]:
        """Yield the tiles of a batch with their layers in steps of 1 / PROBABILITY_STEPS.

        Raises:
            InputError: for NaN.
        """
        batch, layers = prediction
        if np.isnan(layers).any():
            raise nan_error()
        # Tile by tile and in place, because a tile fits into a core's cache, and a batch does not.
        for tile, own in zip(batch.tiles, layers, strict=True):
            scaled = own.clip(0, 1)
            scaled *= np.float32(PROBABILITY_STEPS)
            yield tile, np.rint(scaled, out=scaled).astype(np.uint32)

    def panel(self, layers: int, height: int, width: int) -> "ArrayPanel":
        """Return the sums of a panel, all 0."""
        return ArrayPanel(layers, height, width)


class ArrayPanel:
    """Sums over the pixel rows of a lane's tiles, for the pixel columns of its panel, in NumPy."""

    def __init__(self, layers: int, height: int, width: int) -> None:
        self._sums = np.zeros((layers, height, width), np.uint32)

    def add(
        self,
        left: int,
        levels: UInt32[ndarray, "layers t t"],
        row_weights: UInt32[ndarray, " t"],
        col_weights: UInt32[ndarray, " t"],
    ) -> None:
        """Add the weighted levels of a tile, from pixel column `left` on."""
        self._sums[:, :, left : left + len(col_weights)] += levels * np.outer(row_weights, col_weights)

    def add_carried(self, top: int, carried: UInt32[ndarray, "layers h s"]) -> None:
        """Add what the panel to the left carried over to the first columns, from row `top` on."""
        self._sums[:, top : top + carried.shape[1], : carried.shape[2]] += carried

    def copy(self, rows: slice, columns: slice) -> ArraySums:
        """Return a copy of the sums in a part of the panel."""
        return ArraySums(self._sums[:, rows, columns].copy())

    def beyond(self, rows: slice, column: int) -> UInt32[ndarray, "layers h s"] | None:
        """Return a copy of the sums from pixel column `column` on; None if all are 0."""
        part = self._sums[:, rows, column:]
        return part.copy() if part.any() else None

    def shift_rows(self, step: int) -> None:
        """Move all rows up by `step`; the last ones become 0."""
        shift_rows(self._sums, step)


def shift_rows(array: Shaped[ndarray, "*n h w"], step: int) -> None:
    """Move all rows up by `step`, in place; the last ones become 0."""
    height = array.shape[-2]
    array[..., : -step or None, :] = array[..., step:, :]
    array[..., height - step :, :] = 0
