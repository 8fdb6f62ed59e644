"""Blending the probabilities of overlapping tiles into one map, strip by strip, with sums that are exact.

`geograft.mapping.sums` says how tiles are weighted and added.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt32
from numpy import ndarray

from geograft.geo.grid import Window
from geograft.inference.predictor import EnsemblePredictor
from geograft.mapping.batches import CHUNK_TILES, RasterSource, RasterTile, batch_tiles, iterate_tiles, prefetch
from geograft.mapping.sums import ArrayBlending, ArrayPanel, ArraySums, Model, blend_weights, shift_rows
from geograft.mapping.windows import Lanes

if TYPE_CHECKING:
    from geograft.mapping.device_blend import DeviceBlending, TensorPanel, TensorSums

MAX_WAITING, MAX_WAITING_BYTES = 2, 2**28
"""Predicted batches that wait for blending at most, and their bytes; one batch may always wait."""

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
    sums: "ArraySums | TensorSums"
    """Weighted sums in `data`; on a GPU's memory if the network runs there."""
    mapped: Bool[ndarray, "h w"]
    """Mask of the pixels in `data` that have a value: those that are valid and of interest."""
    carry_over: UInt32[ndarray, "layers h s"] | None
    """What the lane's tiles add to the first pixel columns of the next panel; None for nothing."""


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

    Tiles are read in one thread and predicted in another; strips are summed in the thread that iterates: in NumPy, or
    on the GPU if the network runs there. Batches span lanes. A tile has the same position in the same batch after a
    restart: a batch that was interrupted is predicted again, including its tiles of finished lanes. Closing the
    generator waits for the batch that is being predicted.

    Memory: for each pixel column of a panel 4 bytes per layer and row of a tile, or 8 on a GPU; `MAX_WAITING` + 3
    batches, or fewer if the waiting ones exceed MAX_WAITING_BYTES; two strips. Without `carry_over` also what one panel
    adds to the next.

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
    blending = _blending(model)
    waiting = min(MAX_WAITING, MAX_WAITING_BYTES // (4 * plan.batch_size * plan.layers * plan.lanes.tiles.tile_px**2))
    with (
        closing(prefetch(batch_tiles(tiles, plan.batch_size))) as batches,
        closing(prefetch((blending.predict(batch) for batch in batches), max(1, waiting))) as predictions,
    ):
        for strip in _strips(plan, blending, predictions, needed, carry_over):
            if strip.lane >= len(finished):
                yield strip


def _blending(model: Model) -> "ArrayBlending | DeviceBlending":
    if isinstance(model, EnsemblePredictor) and model.on_device is not None:
        from geograft.mapping.device_blend import DeviceBlending  # noqa: PLC0415  (imports torch)

        return DeviceBlending(model.on_device)
    return ArrayBlending(model)


def _batch_start(counts: Sequence[int], lane: int, size: int) -> tuple[int, int]:
    """Return where the batch with the first tile of `lane` starts: a lane and the number of its tiles before.

    `counts` are the tiles of the finished lanes.
    """
    extra, first = sum(counts[:lane]) % size, lane
    while extra > 0:
        first -= 1
        extra -= counts[first]
    return first, -extra


def _strips(
    plan: BlendPlan,
    blending: "ArrayBlending | DeviceBlending",
    predictions: Iterable[Any],
    first: int,
    carry_over: CarryOver | None,
) -> Iterator[Strip]:
    """Yield the strips from lane `first` on. Tiles of earlier lanes are ignored."""
    lane, sums = first, _Sums(plan, blending, first, carry_over)
    for prediction in predictions:
        for tile, levels in blending.levels(prediction):
            while lane < tile.lane:
                yield sums.finish_lane()
                lane += 1
            if tile.lane >= first:
                sums.add(tile, levels)
    for _ in range(lane, len(plan.lanes)):
        yield sums.finish_lane()


class _Sums:
    """The current lane: which tiles add to its panel, which pixels are mapped, and what they make a strip of."""

    def __init__(
        self, plan: BlendPlan, blending: "ArrayBlending | DeviceBlending", lane: int, carry_over: CarryOver | None
    ) -> None:
        self._lanes, self._tiles, self._layers = plan.lanes, plan.lanes.tiles, plan.layers
        self._blending = blending
        size = self._tiles.tile_px
        self._row_weights, self._col_weights = (
            blend_weights(starts, size) for starts in (self._tiles.tops, self._tiles.lefts)
        )
        self._lane, self._count = lane, 0
        self._in_memory: dict[int, ndarray | None] | None = {} if carry_over is None else None
        self._carry_over = carry_over or self._take
        self._start_panel()

    def add(self, tile: RasterTile, levels: Any) -> None:
        """Add a tile of the current lane."""
        _, row = self._lanes.position(tile.lane)
        left, size = self._tiles.lefts[tile.column] - self._left, self._tiles.tile_px
        self._panel.add(left, levels, self._row_weights[row], self._col_weights[tile.column])
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
            step = self._tiles.tops[row + 1] - self._tiles.tops[row]
            self._panel.shift_rows(step)
            shift_rows(self._mapped, step)
            self._nonzero_rows = max(0, self._nonzero_rows - step)
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
        self._panel: ArrayPanel | TensorPanel = self._blending.panel(self._layers, self._tiles.tile_px, width)
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
        rows = slice(top, top + window.height)
        if carried is not None:
            self._panel.add_carried(top, carried)
            # Also where no tile of this lane was predicted: otherwise these rows would remain for the next lane.
            self._nonzero_rows = max(self._nonzero_rows, rows.stop)
        left, mapped = window.col - self._left, self._mapped[rows]
        extent = _mapped_columns(mapped[:, left : left + window.width])
        data = Window(window.row, window.col + extent.start, window.height, extent.stop - extent.start)
        inside = slice(left + extent.start, left + extent.stop)
        beyond = self._beyond_panel(rows, columns.stop)
        pixels = self._panel.copy(rows, inside), mapped[:, inside].copy()
        return Strip(self._lane, window, self._count, data, *pixels, beyond)

    def _beyond_panel(self, rows: slice, column: int) -> UInt32[ndarray, "layers h s"] | None:
        if column == self._lanes.columns.stop:
            return None
        return self._panel.beyond(rows, self._tiles.lefts[column] - self._left)


def _mapped_columns(mapped: Bool[ndarray, "h w"]) -> slice:
    """Return the columns from the first to the last with a mapped pixel."""
    columns = np.flatnonzero(mapped.any(axis=0))
    return slice(int(columns[0]), int(columns[-1]) + 1) if len(columns) else slice(0, 0)


def _empty_strip(lane: int, window: Window, layers: int) -> Strip:
    data = Window(window.row, window.col, window.height, 0)
    shape = (window.height, 0)
    sums = ArraySums(np.zeros((layers, *shape), np.uint32))
    return Strip(lane, window, 0, data, sums, np.zeros(shape, bool), None)
