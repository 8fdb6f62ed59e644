"""Overlapping tiles blended into one map of probabilities: what each tile counts, and sums without rounding.

A tile counts most at its centre and least at its edge: a Hann window (Pielawski and Wählby 2020,
doi:10.1371/journal.pone.0229839), divided by the sum of all windows at the pixel.

Probabilities and weights are whole numbers here: a probability has LEVELS steps, the weights of a pixel add up to
WHOLE in each direction, and a sum fits 32 bits. So weights sum to one exactly, and neither the order of tiles nor the
width of the panels they are added in can matter.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt32
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.mapping.batches import CHUNK_TILES, Batch, Source, Tile, batches, tiles_of
from geograft.mapping.prefetch import ahead, behind
from geograft.mapping.windows import Lanes

LEVELS = 2**18 - 1
"""What stands for probability 1."""
WHOLE = 2**7
"""What the weights of a pixel's tiles add up to, in each direction: LEVELS * WHOLE * WHOLE fits 32 bits."""
NOT_NUMBERS = "The network puts out NaN: its weights are not numbers. Train the run again."

Model: TypeAlias = Callable[[Shaped[ndarray, "n b t t"], Bool[ndarray, "n t t"]], Float32[ndarray, "n layers t t"]]
"""A full batch of tiles as files hold them, and which pixels are valid -> layers from 0 to 1."""
Output: TypeAlias = tuple[Batch, Float32[ndarray, "n layers t t"]]


@dataclass(frozen=True)
class Strip:
    """Finished pixels: those that one lane completes."""

    lane: int
    window: Window
    """The pixels that the map has now."""
    tiles: int
    """Tiles of the lane that the model was shown."""
    data: Window
    """The columns of `window` from the first to the last mapped pixel; no columns when there is none."""
    sums: UInt32[ndarray, "layers h w"]
    """Of `data`: layers in steps of 1 / (LEVELS * WHOLE * WHOLE)."""
    mapped: Bool[ndarray, "h w"]
    """Of `data`: whether the map has a value. False where the raster is not valid or the pixel is not wanted."""
    spill: UInt32[ndarray, "layers h s"] | None
    """What the lane's tiles add to the first columns of tiles of the next panel; None for nothing."""

    @property
    def layers(self) -> Float32[ndarray, "layers h w"]:
        """The layers of `data`, 0 to 1."""
        return self.sums.astype(np.float32) / np.float32(LEVELS * WHOLE**2)

    def at_least(self, *probabilities: float) -> Bool[ndarray, "some h w"]:
        """Return where the first layers are at least these probabilities, one a layer, rounded as they are."""
        least = np.array([round(probability * LEVELS) * WHOLE**2 for probability in probabilities], np.uint32)
        enough: ndarray = self.sums[: len(least)] >= least[:, None, None]
        return enough


@runtime_checkable
class Store(Protocol):
    """Where finished strips go. It may have been filled by a job before this one."""

    @property
    def tiles(self) -> Sequence[int]:
        """How many tiles each finished lane had, from lane 0 on."""

    def add(self, strip: Strip) -> None:
        """Keep the strip of the next lane."""

    def spill(self, lane: int) -> UInt32[ndarray, "layers h s"] | None:
        """Return the spill of a finished lane's strip."""


@dataclass(frozen=True)
class Plan:
    """What decides how the work is cut. None of it decides the map, but that models round by the size of a batch."""

    lanes: Lanes
    layers: int
    batch_size: int = 8
    chunk_tiles: int = field(default=CHUNK_TILES)
    """Neighbouring tiles that are read at once."""


def blend(plan: Plan, source: Source, model: Model, store: Store) -> None:
    """Give `store` the strips of all lanes that it does not hold, in order.

    Reads in one thread and blends and stores in another, while `model` computes in this one. Batches are full across
    lanes. A tile has the same place in the same batch however often the job was stopped: the batch that was cut is
    computed again, with tiles of finished lanes whose result is not needed any more.

    Memory: for each column of a panel 4 bytes a layer and row of a tile; three batches; and a strip or two.

    Raises:
        InputError: when the model puts out something that is not a number.
    """
    done = len(store.tiles)
    if done == len(plan.lanes):
        return
    needed = plan.lanes.first_reaching(done)
    first, skipped = _begin_of_batch(store.tiles, needed, plan.batch_size)
    tiles = islice(tiles_of(plan.lanes, source, first, plan.chunk_tiles), skipped, None)

    def keep(outputs: Iterator[Output]) -> None:
        for strip in _strips(plan, outputs, store, needed):
            store.add(strip)

    with closing(ahead(batches(tiles, plan.batch_size))) as coming, behind(keep) as put:
        for batch in coming:
            put((batch, model(batch.pixels, batch.valid)))


def shares(begins: Sequence[int], size: int) -> UInt32[ndarray, "tiles size"]:
    """Return what each pixel of each window counts, for windows of `size` pixels that begin at `begins` (ascending).

    At every pixel that a window covers, the shares of all windows add up to WHOLE.
    """
    window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    total = np.zeros(begins[-1] - begins[0] + size)
    for begin in begins:
        total[begin - begins[0] :][:size] += window
    running, result = np.zeros_like(total), np.empty((len(begins), size), np.uint32)
    for row, begin in zip(result, begins, strict=True):
        here = slice(begin - begins[0], begin - begins[0] + size)
        # Rounding the running sum, not each share, is what makes the last one fill up WHOLE.
        before = np.rint(WHOLE * running[here] / total[here])
        running[here] += window
        row[:] = np.rint(WHOLE * running[here] / total[here]) - before
    return result


def _begin_of_batch(counts: Sequence[int], lane: int, size: int) -> tuple[int, int]:
    """Return where the batch begins that the first tile of `lane` belongs to: a lane, and how many of its tiles before.

    `counts` are the tiles of the finished lanes.
    """
    extra, first = sum(counts[:lane]) % size, lane
    while extra > 0:
        first -= 1
        extra -= counts[first]
    return first, -extra


def _strips(plan: Plan, outputs: Iterable[Output], store: Store, first: int) -> Iterator[Strip]:
    """Yield the strips of the lanes that `store` does not hold. Tiles of lanes before `first` are left out."""
    lane, done = first, len(store.tiles)
    sums = _Sums(plan, lane)
    for tile, levels in _levels(outputs):
        while lane < tile.lane:
            strip = sums.finish(store.spill)
            if lane >= done:
                yield strip
            lane += 1
        if tile.lane >= first:
            sums.add(tile, levels)
    for rest in range(lane, len(plan.lanes)):
        strip = sums.finish(store.spill)
        if rest >= done:
            yield strip


def _levels(outputs: Iterable[Output]) -> Iterator[tuple[Tile, UInt32[ndarray, "layers t t"]]]:
    for batch, layers in outputs:
        if np.isnan(layers).any():
            raise InputError(NOT_NUMBERS)
        levels = np.rint(layers[: len(batch.tiles)].clip(0, 1) * np.float32(LEVELS)).astype(np.uint32)
        yield from zip(batch.tiles, levels, strict=True)


class _Sums:
    """Weighted sums over the rows that the current lane touches, in the frame of its panel's columns of tiles."""

    def __init__(self, plan: Plan, lane: int) -> None:
        self._lanes, self._tiles, self._layers = plan.lanes, plan.lanes.tiles, plan.layers
        size = self._tiles.tile_px
        self._row_shares, self._col_shares = shares(self._tiles.tops, size), shares(self._tiles.lefts, size)
        self._lane, self._count = lane, 0
        self._begin_panel()

    def add(self, tile: Tile, levels: UInt32[ndarray, "layers t t"]) -> None:
        """Add a tile of the current lane."""
        _, row = self._lanes.place(tile.lane)
        left, size = self._tiles.lefts[tile.column] - self._left, self._tiles.tile_px
        weights = np.outer(self._row_shares[row], self._col_shares[tile.column])
        self._sums[:, :, left : left + size] += levels * weights
        self._mapped[:, left : left + size] |= tile.mapped
        self._reach, self._count = size, self._count + 1

    def finish(self, spill_of: Callable[[int], ndarray | None]) -> Strip:
        """Return the current lane's strip and move on to the next lane."""
        strip = self._strip(spill_of)
        last = self._lanes.ends_panel(self._lane)
        if not last and self._reach:
            _, row = self._lanes.place(self._lane)
            self._move(self._tiles.tops[row + 1] - self._tiles.tops[row])
        self._lane, self._count = self._lane + 1, 0
        if last and self._lane < len(self._lanes):
            self._begin_panel()
        return strip

    def _begin_panel(self) -> None:
        columns, _ = self._lanes.place(self._lane)
        self._left = self._tiles.lefts[columns.start]
        width = self._tiles.lefts[columns.stop - 1] - self._left + self._tiles.tile_px
        self._sums = np.zeros((self._layers, self._tiles.tile_px, width), np.uint32)
        self._mapped = np.zeros((self._tiles.tile_px, width), bool)
        self._reach = 0
        """Rows from here on are 0."""

    def _strip(self, spill_of: Callable[[int], ndarray | None]) -> Strip:
        window = self._lanes.strip(self._lane)
        columns, row = self._lanes.place(self._lane)
        before = self._lanes.before(self._lane)
        spilled = spill_of(before) if before is not None else None
        if not self._reach and spilled is None:
            return _empty_strip(self._lane, window, self._layers)
        top = window.row - self._tiles.tops[row]
        sums, mapped = self._sums[:, top : top + window.height], self._mapped[top : top + window.height]
        if spilled is not None:
            sums[:, :, : spilled.shape[2]] += spilled
            # Also where no tile of this lane was computed: without it these rows would stay for the next lane.
            self._reach = max(self._reach, top + window.height)
        left = window.col - self._left
        kept = slice(left, left + window.width)
        extent = _extent(mapped[:, kept])
        data = Window(window.row, window.col + extent.start, window.height, extent.stop - extent.start)
        inside = slice(left + extent.start, left + extent.stop)
        done = sums[:, :, inside].copy(), mapped[:, inside].copy()
        return Strip(self._lane, window, self._count, data, *done, self._spill(sums, columns.stop))

    def _spill(self, sums: UInt32[ndarray, "layers h w"], column: int) -> UInt32[ndarray, "layers h s"] | None:
        if column == len(self._tiles.lefts):
            return None
        beyond = sums[:, :, self._tiles.lefts[column] - self._left :]
        return beyond.copy() if beyond.any() else None

    def _move(self, step: int) -> None:
        for frame in (self._sums, self._mapped):
            frame[..., : -step or None, :] = frame[..., step:, :]
            frame[..., self._tiles.tile_px - step :, :] = 0
        self._reach = max(0, self._reach - step)


def _extent(mapped: Bool[ndarray, "h w"]) -> slice:
    """Return the columns from the first to the last with a mapped pixel."""
    found = np.flatnonzero(mapped.any(axis=0))
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)


def _empty_strip(lane: int, window: Window, layers: int) -> Strip:
    data = Window(window.row, window.col, window.height, 0)
    shape = (window.height, 0)
    return Strip(lane, window, 0, data, np.zeros((layers, *shape), np.uint32), np.zeros(shape, bool), None)
