"""The area of applicability of a map: where rasters look like what the run was trained on, and where they do not.

How long a batch of tiles takes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.tags import SCALE_TAG
from geograft.geo.rasters.writer import MapLayout, create_map
from geograft.inference.embedding import Encoder, load_encoder
from geograft.mapping.batches import Batch, Mirrored, batches, coarse, frames, tiles_of
from geograft.mapping.plan import Task
from geograft.mapping.windows import Lanes
from geograft.metrics.applicability import KNOWN, Applicability
from geograft.progress import meter
from geograft.training.checkpoint import STATE

BAND = "dissimilarity index / threshold"
IN_WORDS = "dissimilarity index divided by the threshold of the area of applicability: outside above 1"


@dataclass(frozen=True)
class Outside:
    """How much of a map lies outside the area of applicability."""

    judged_px: int
    """Mapped pixels in cells that have an index."""
    outside_px: int
    """Those of them in cells outside."""

    @property
    def share(self) -> float:
        """Share of the mapped area that lies outside; 0 where no cell could be judged."""
        return self.outside_px / max(self.judged_px, 1)


def check_known(run: Path) -> None:
    """Raise InputError when a run does not say what it knows, or what says so is damaged."""
    if not (run / KNOWN).exists():
        again = (
            f"Give `geograft train TILES --out {run} --resume` with its recipe, which writes it without training again"
            if (run / STATE).exists()
            else "Train it again"
        )
        raise InputError(
            f"{run} holds no {KNOWN}, so nobody can say what the run knows. {again}; or map without --applicability."
        )
    Applicability.read(run / KNOWN)


def write_applicability(path: Path, task: Task, tags: dict[str, str], check: Callable[[], None]) -> Outside:
    """Write how unlike the training each cell of a map is, one pixel a cell, and return how much lies outside.

    The features are those of the first run. NaN where no pixel of a cell is mapped, or less than half of it is valid.
    `check` is called when all is read, before the file takes its place. Costs one pass of the encoder over the raster;
    memory: a batch of frames. The same bytes whenever it is made anew on the same machine.

    Raises:
        InputError: when a raster cannot be read, or `check` says so.
        OutputError: when the file cannot be written.
    """
    encoder = _encoder(task)
    grid, known = coarse(task.job.grid, encoder.cell_px), Applicability.read(task.runs[0] / KNOWN)
    tags = tags | {SCALE_TAG: IN_WORDS}
    layout = MapLayout(1, "float32", np.nan, tags=tags, band_names=(BAND,), overviews="average")
    judged_px = outside_px = 0
    with create_map(path, grid, layout) as writer:
        for cells in _cells(task, encoder, known):
            part = cells.window.overlap(grid.window) or cells.window
            writer.write(cells.index[None, : part.height, : part.width], part)
            judged_px += int(cells.mapped_px[~np.isnan(cells.index)].sum())
            outside_px += int(cells.mapped_px[cells.index > 1].sum())
        check()
    return Outside(judged_px, outside_px)


def seconds_of(task: Task) -> float:
    """Return how long `write_applicability` will take, at most: as many batches as there are frames, each as the first.

    Runs the encoder on one batch twice: the second time counts.
    """
    encoder = _encoder(task)
    lanes = _lanes(task, encoder)
    with closing(task.job.mosaic):
        batch_s = batch_seconds(encoder, next(_batches(task, lanes), None)) or 0.0
    return batch_s * -(-len(lanes.tiles.tops) * len(lanes.tiles.lefts) // task.settings.batch_size)


@dataclass(frozen=True)
class _Cells:
    """The cells of one frame."""

    window: Window
    """Where they lie among all cells; it may reach beyond them."""
    index: Float32[ndarray, "rows cols"]
    """The dissimilarity index over the threshold; NaN where there is none."""
    mapped_px: Int64[ndarray, "rows cols"]
    """Mapped pixels in each cell."""


def _cells(task: Task, encoder: Encoder, known: Applicability) -> Iterator[_Cells]:
    """Yield the cells of all frames with a mapped pixel, in the order in which they are read."""
    lanes, edge = _lanes(task, encoder), encoder.frame_px // encoder.cell_px
    name, total = f"applicability {task.job.path.name}", float(len(lanes))
    with closing(task.job.mosaic), meter(name, total, "rows of frames") as bar:
        before = 0
        for batch in _batches(task, lanes):
            for tile, index in zip(batch.tiles, _indices(batch, encoder, known), strict=False):
                mapped = tile.mapped.reshape(edge, encoder.cell_px, edge, encoder.cell_px).sum(axis=(1, 3))
                _, row = lanes.place(tile.lane)
                window = Window(row * edge, tile.column * edge, edge, edge)
                yield _Cells(window, np.where(mapped > 0, index, np.float32(np.nan)), mapped)
            bar.advance(batch.tiles[-1].lane - before)
            before = batch.tiles[-1].lane


def _indices(batch: Batch, encoder: Encoder, known: Applicability) -> Float32[ndarray, "n rows cols"]:
    """Return the index of every cell over the threshold; NaN where less than half of a cell is valid."""
    features, seen = encoder(batch.pixels, batch.valid)
    index = np.full(seen.shape, np.nan, np.float32)
    index[seen] = known.index(features) / known.threshold
    return index


def _encoder(task: Task) -> Encoder:
    return load_encoder(task.runs[0], task.card, task.settings.device)


def _lanes(task: Task, encoder: Encoder) -> Lanes:
    mosaic = task.job.mosaic
    return frames(mosaic.grid, encoder.frame_px, mosaic.bands * np.dtype(mosaic.dtype).itemsize)


def _batches(task: Task, lanes: Lanes) -> Iterator[Batch]:
    grid = task.job.grid
    return batches(tiles_of(lanes, Mirrored(task.job, grid.height, grid.width)), task.settings.batch_size)


def batch_seconds(model: Callable[[ndarray, ndarray], object], batch: Batch | None) -> float | None:
    """Return how long `model` takes for a batch; None without one. Runs it twice: the second time counts."""
    if batch is None:
        return None
    model(batch.pixels, batch.valid)
    started = time.perf_counter()
    model(batch.pixels, batch.valid)
    return time.perf_counter() - started
