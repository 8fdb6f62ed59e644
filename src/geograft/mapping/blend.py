"""Blending the probabilities of overlapping tiles into one map, with sums that are exact.

Tiles are weighted by a Hann window, highest at the centre and lowest at the edge (Pielawski and Wählby 2020,
doi:10.1371/journal.pone.0229839), divided by the sum of all windows at the pixel.

Probabilities and weights are integers: a probability has PROBABILITY_STEPS steps, the weights at a pixel add up to
WEIGHT_SUM in each direction, and the sums fit into 32 bits. Therefore weights sum to one exactly, and the result
depends neither on the order of the tiles nor on the width of the panels.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt32
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.mapping.batches import CHUNK_TILES, RasterSource, RasterTile, TileBatch, batch_tiles, iterate_tiles
from geograft.mapping.prefetch import prefetch
from geograft.mapping.windows import Lanes

PROBABILITY_STEPS = 2**18 - 1
"""The integer that represents probability 1."""
WEIGHT_SUM = 2**7
"""Sum of the weights at a pixel, in each direction: PROBABILITY_STEPS * WEIGHT_SUM**2 fits into 32 bits."""
MAX_WAITING = 2
"""Predicted batches that wait for blending at most."""

Model: TypeAlias = Callable[[Shaped[ndarray, "n b t t"], Bool[ndarray, "n t t"]], Float32[ndarray, "n layers t t"]]
"""A batch of tiles as stored and the mask of their valid pixels -> layers from 0 to 1."""
TileLayers: TypeAlias = tuple[TileBatch, Float32[ndarray, "n layers t t"]]
CarryOver: TypeAlias = Callable[[int], UInt32[ndarray, "layers h s"] | None]
"""Number of a finished lane -> the `carry_over` of its strip."""


@dataclass(frozen=True)
class Strip:
    """The pixels that one lane completes."""

    lane: int
    window: Window
    """The completed pixels."""
    tiles: int
    """Number of tiles of the lane that were predicted."""
    data: Window
    """Columns of `window` from the first to the last mapped pixel; no columns if there is none."""
    sums: UInt32[ndarray, "layers h w"]
    """Weighted sums in `data`, in steps of 1 / (PROBABILITY_STEPS * WEIGHT_SUM**2)."""
    mapped: Bool[ndarray, "h w"]
    """Mask of the pixels in `data` that have a value: those that are valid and of interest."""
    carry_over: UInt32[ndarray, "layers h s"] | None
    """What the lane's tiles add to the first pixel columns of the next panel; None for nothing."""

    @property
    def layers(self) -> Float32[ndarray, "layers h w"]:
        """Layers in `data`, from 0 to 1."""
        return self.sums.astype(np.float32) / np.float32(PROBABILITY_STEPS * WEIGHT_SUM**2)

    def at_least(self, *probabilities: float) -> Bool[ndarray, "some h w"]:
        """Return where the first layers reach these probabilities, one per layer, rounded as the layers are."""
        steps = np.rint(np.array(probabilities, np.float32) * np.float32(PROBABILITY_STEPS)).astype(np.uint32)
        minimum = steps * np.uint32(WEIGHT_SUM**2)
        reached: ndarray = self.sums[: len(minimum)] >= minimum[:, None, None]
        return reached


@dataclass(frozen=True)
class BlendPlan:
    """How the work is divided. The map does not depend on it, except that networks round by batch size."""

    lanes: Lanes
    layers: int
    """Layers that the model returns per pixel."""
    batch_size: int = 8
    chunk_tiles: int = field(default=CHUNK_TILES)
    """Maximum number of adjacent tiles read with one call."""


def blend(
    plan: BlendPlan,
    source: RasterSource,
    model: Model,
    finished: Sequence[int] = (),
    carry_over: CarryOver | None = None,
) -> Generator[Strip, None, None]:
    """Predict the tiles of a raster and yield its strips in order, without those that are `finished`.

    Tiles are read in one thread and predicted in another; strips are summed in the thread that iterates. Batches span
    lanes. A tile has the same position in the same batch after a restart: a batch that was interrupted is predicted
    again, including its tiles of finished lanes. Closing the generator waits for the batch that is being predicted.

    Memory: for each pixel column of a panel 4 bytes per layer and row of a tile; `MAX_WAITING` + 3 batches; two strips.
    Without `carry_over` also what one panel adds to the next.

    Args:
        plan: how the work is divided.
        source: the raster.
        model: computes the layers of a batch of tiles.
        finished: number of predicted tiles of each lane that an earlier call completed, from lane 0.
        carry_over: returns the `carry_over` of a strip that was yielded before, by this or an earlier call. By default
            it is kept in memory, which requires that no lane is finished.

    Raises:
        InputError: if the model returns NaN, or the source cannot be read.
    """
    if len(finished) == len(plan.lanes):
        return
    needed = plan.lanes.first_overlapping(len(finished))
    first, skipped = _batch_start(finished, needed, plan.batch_size)
    tiles = islice(iterate_tiles(plan.lanes, source, first, plan.chunk_tiles), skipped, None)
    with (
        closing(prefetch(batch_tiles(tiles, plan.batch_size))) as batches,
        closing(prefetch(_predictions(model, batches), MAX_WAITING)) as predictions,
    ):
        for strip in _strips(plan, predictions, needed, carry_over):
            if strip.lane >= len(finished):
                yield strip


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


def _batch_start(counts: Sequence[int], lane: int, size: int) -> tuple[int, int]:
    """Return where the batch with the first tile of `lane` starts: a lane and the number of its tiles before.

    `counts` are the tiles of the finished lanes.
    """
    extra, first = sum(counts[:lane]) % size, lane
    while extra > 0:
        first -= 1
        extra -= counts[first]
    return first, -extra


def _predictions(model: Model, batches: Iterable[TileBatch]) -> Iterator[TileLayers]:
    for batch in batches:
        yield batch, model(batch.pixels, batch.valid)


def _strips(
    plan: BlendPlan, predictions: Iterable[TileLayers], first: int, carry_over: CarryOver | None
) -> Iterator[Strip]:
    """Yield the strips from lane `first` on. Tiles of earlier lanes are ignored."""
    lane, sums = first, _Sums(plan, first, carry_over)
    for tile, levels in _quantised_tiles(predictions):
        while lane < tile.lane:
            yield sums.finish_lane()
            lane += 1
        if tile.lane >= first:
            sums.add(tile, levels)
    for _ in range(lane, len(plan.lanes)):
        yield sums.finish_lane()


def _quantised_tiles(predictions: Iterable[TileLayers]) -> Iterator[tuple[RasterTile, UInt32[ndarray, "layers t t"]]]:
    for batch, layers in predictions:
        if np.isnan(layers).any():
            raise InputError("The network's output contains NaN: its weights are damaged. Train the run again.")
        scaled = layers.clip(0, 1) * np.float32(PROBABILITY_STEPS)
        yield from zip(batch.tiles, np.rint(scaled).astype(np.uint32), strict=True)


class _Sums:
    """Weighted sums over the pixel rows of the current lane's tiles, for the pixel columns of its panel."""

    def __init__(self, plan: BlendPlan, lane: int, carry_over: CarryOver | None) -> None:
        self._lanes, self._tiles, self._layers = plan.lanes, plan.lanes.tiles, plan.layers
        size = self._tiles.tile_px
        self._row_weights, self._col_weights = (
            blend_weights(starts, size) for starts in (self._tiles.tops, self._tiles.lefts)
        )
        self._lane, self._count = lane, 0
        self._in_memory: dict[int, ndarray | None] | None = {} if carry_over is None else None
        self._carry_over = carry_over or self._take
        self._start_panel()

    def add(self, tile: RasterTile, levels: UInt32[ndarray, "layers t t"]) -> None:
        """Add a tile of the current lane."""
        _, row = self._lanes.position(tile.lane)
        left, size = self._tiles.lefts[tile.column] - self._left, self._tiles.tile_px
        weights = np.outer(self._row_weights[row], self._col_weights[tile.column])
        self._sums[:, :, left : left + size] += levels * weights
        self._mapped[:, left : left + size] |= tile.mapped
        self._nonzero_rows, self._count = size, self._count + 1

    def finish_lane(self) -> Strip:
        """Return the current lane's strip and move on to the next lane."""
        strip = self._strip()
        if self._in_memory is not None:
            self._in_memory[self._lane] = strip.carry_over
        last = self._lanes.is_last_in_panel(self._lane)
        if not last and self._nonzero_rows:
            _, row = self._lanes.position(self._lane)
            self._shift_rows(self._tiles.tops[row + 1] - self._tiles.tops[row])
        self._lane, self._count = self._lane + 1, 0
        if last and self._lane < len(self._lanes):
            self._start_panel()
        return strip

    def _take(self, lane: int) -> ndarray | None:
        assert self._in_memory is not None
        return self._in_memory.pop(lane)

    def _start_panel(self) -> None:
        columns, _ = self._lanes.position(self._lane)
        self._left = self._tiles.lefts[columns.start]
        width = self._tiles.lefts[columns.stop - 1] - self._left + self._tiles.tile_px
        self._sums = np.zeros((self._layers, self._tiles.tile_px, width), np.uint32)
        self._mapped = np.zeros((self._tiles.tile_px, width), bool)
        self._nonzero_rows = 0
        """All rows from here on are 0."""

    def _strip(self) -> Strip:
        window = self._lanes.strip(self._lane)
        columns, row = self._lanes.position(self._lane)
        neighbour = self._lanes.left_neighbour(self._lane)
        carried = self._carry_over(neighbour) if neighbour is not None else None
        if not self._nonzero_rows and carried is None:
            return _empty_strip(self._lane, window, self._layers)
        top = window.row - self._tiles.tops[row]
        sums, mapped = self._sums[:, top : top + window.height], self._mapped[top : top + window.height]
        if carried is not None:
            sums[:, :, : carried.shape[2]] += carried
            # Also where no tile of this lane was predicted: otherwise these rows would remain for the next lane.
            self._nonzero_rows = max(self._nonzero_rows, top + window.height)
        left = window.col - self._left
        extent = _mapped_columns(mapped[:, left : left + window.width])
        data = Window(window.row, window.col + extent.start, window.height, extent.stop - extent.start)
        inside = slice(left + extent.start, left + extent.stop)
        pixels = sums[:, :, inside].copy(), mapped[:, inside].copy()
        return Strip(self._lane, window, self._count, data, *pixels, self._beyond_panel(sums, columns.stop))

    def _beyond_panel(self, sums: UInt32[ndarray, "layers h w"], column: int) -> UInt32[ndarray, "layers h s"] | None:
        if column == len(self._tiles.lefts):
            return None
        beyond = sums[:, :, self._tiles.lefts[column] - self._left :]
        return beyond.copy() if beyond.any() else None

    def _shift_rows(self, step: int) -> None:
        for array in (self._sums, self._mapped):
            array[..., : -step or None, :] = array[..., step:, :]
            array[..., self._tiles.tile_px - step :, :] = 0
        self._nonzero_rows = max(0, self._nonzero_rows - step)


def _mapped_columns(mapped: Bool[ndarray, "h w"]) -> slice:
    """Return the columns from the first to the last with a mapped pixel."""
    columns = np.flatnonzero(mapped.any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)


def _empty_strip(lane: int, window: Window, layers: int) -> Strip:
    data = Window(window.row, window.col, window.height, 0)
    shape = (window.height, 0)
    return Strip(lane, window, 0, data, np.zeros((layers, *shape), np.uint32), np.zeros(shape, bool), None)
