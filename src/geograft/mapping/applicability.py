"""The area of applicability of a map: where rasters resemble the run's training data."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from geograft.card import FEATURES_FILE, STATE, read_card
from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.geo.rasters.styles import applicability_style
from geograft.geo.rasters.tags import SCALE_TAG
from geograft.geo.rasters.writer import MapLayout, create_map
from geograft.inference.embedding import CellEncoder, load_cell_encoder
from geograft.mapping.batches import MirroredSource, TileBatch, batch_tiles, coarsen_grid, frame_lanes, iterate_tiles
from geograft.mapping.plan import MapTask, time_batch
from geograft.mapping.windows import Lanes
from geograft.metrics.applicability import Applicability
from geograft.progress import progress_bar
from geograft.runs import run_file

FRAMES = 8
"""Frames per batch of the encoder."""
BAND = "dissimilarity index / threshold"
DESCRIPTION = "dissimilarity index divided by the threshold of the area of applicability: outside above 1"


@dataclass(frozen=True)
class ApplicabilityCounts:
    """Number of mapped pixels inside and outside the area of applicability."""

    pixels_with_index: int
    """Mapped pixels in cells with an index."""
    outside_px: int
    """Mapped pixels in cells outside the area of applicability."""

    @property
    def fraction(self) -> float:
        """Fraction of the mapped area that lies outside; 0 if no cell has an index."""
        return self.outside_px / max(self.pixels_with_index, 1)


def check_training_features(run: Path) -> None:
    """Raise InputError if a run has no training features, or their file is corrupt."""
    features = run_file(run, FEATURES_FILE)
    if not features.exists():
        again = (
            f"Give `geograft train TILES --out {run} --resume` with its recipe, which writes it without training again"
            if run_file(run, STATE).exists()
            else "Train it again"
        )
        raise InputError(
            f"{run} holds no {FEATURES_FILE}, which --applicability needs. {again}; or map without --applicability."
        )
    Applicability.read(features)


@dataclass(frozen=True)
class ApplicabilityMapper:
    """Computes the area of applicability of a map, in the features of the first run's encoder."""

    task: MapTask
    encoder: CellEncoder
    known: Applicability
    """The training features."""

    @classmethod
    def load(cls, task: MapTask) -> "ApplicabilityMapper":
        """Load the encoder and the training features of a map's first run."""
        return cls(task, _encoder(task), Applicability.read(run_file(task.runs[0], FEATURES_FILE)))

    def write(
        self, path: Path, tags: dict[str, str], check: Callable[[], None], part: Window | None = None
    ) -> ApplicabilityCounts:
        """Write the dissimilarity index of each cell of a map divided by its threshold, one pixel per cell.

        NaN if no pixel of a cell is mapped, or less than half of it is valid. `check` is called after the last read,
        before the file is moved to `path`. Cost: one pass of the encoder over the raster; memory: a batch of frames.
        Deterministic on one machine. With `part`, which begins with a cell, the file has only the cells there.

        Raises:
            InputError: if a raster cannot be read, or by `check`.
            OutputError: if the file cannot be written.
        """
        grid = coarsen_grid(self.task.source.grid, self.encoder.cell_px)
        wanted = grid.window if part is None else _cells_of(part, self.encoder.cell_px)
        pixels_with_index = outside_px = 0
        with create_map(path, grid.crop(wanted), applicability_layout(tags)) as writer:
            for cells in self._cells(part):
                shared = cells.window.intersection(wanted)
                if shared is None:
                    continue
                here = shared.relative_to(cells.window).slices
                index, mapped_px = cells.index[here], cells.mapped_px[here]
                writer.write(index[None], shared.relative_to(wanted))
                pixels_with_index += int(mapped_px[~np.isnan(index)].sum())
                outside_px += int(mapped_px[index > 1].sum())
            check()
        return ApplicabilityCounts(pixels_with_index, outside_px)

    def _cells(self, part: Window | None) -> Iterator["_FrameCells"]:
        """Yield the cells of all frames with a mapped pixel, in reading order; with `part`, those that touch it."""
        task, encoder = self.task, self.encoder
        lanes, edge = replace(_lanes(task, encoder), part=part), encoder.frame_px // encoder.cell_px
        name, total = f"applicability {task.source.path.name}", float(len(lanes))
        shown = part is None
        with closing(task.source.mosaic), progress_bar(name, total, "rows of frames", enabled=shown) as bar:
            previous_lane = 0
            for batch in _batches(task, lanes):
                for tile, index in zip(batch.tiles, _indices(batch, encoder, self.known), strict=False):
                    mapped = tile.mapped.reshape(edge, encoder.cell_px, edge, encoder.cell_px).sum(axis=(1, 3))
                    _, row = lanes.position(tile.lane)
                    window = Window(row * edge, tile.column * edge, edge, edge)
                    yield _FrameCells(window, np.where(mapped > 0, index, np.float32(np.nan)), mapped)
                bar.advance(batch.tiles[-1].lane - previous_lane)
                previous_lane = batch.tiles[-1].lane


def applicability_layout(tags: dict[str, str]) -> MapLayout:
    """Return the layout of a file with the area of applicability."""
    tags, style = tags | {SCALE_TAG: DESCRIPTION}, applicability_style()
    return MapLayout(1, "float32", np.nan, tags=tags, band_names=(BAND,), overviews="average", style=style)


def _cells_of(part: Window, cell_px: int) -> Window:
    """Return the cells of a part of the raster that begins with a cell."""
    sides = (-(-length // cell_px) for length in (part.height, part.width))
    return Window(part.row // cell_px, part.col // cell_px, *sides)


def estimate_seconds(task: MapTask) -> float:
    """Return an upper bound for the seconds that the index takes: the number of batches times the first one's."""
    encoder = _encoder(task)
    lanes = _lanes(task, encoder)
    with closing(task.source.mosaic):
        batch_s = time_batch(encoder, next(_batches(task, lanes), None)) or 0.0
    return batch_s * -(-len(lanes.tiles.tops) * len(lanes.tiles.lefts) // FRAMES)


@dataclass(frozen=True)
class _FrameCells:
    """The cells of one frame."""

    window: Window
    """Their window in the grid of cells; it may extend beyond the grid."""
    index: Float32[ndarray, "rows cols"]
    """Dissimilarity index divided by the threshold; NaN where there is none."""
    mapped_px: Int64[ndarray, "rows cols"]
    """Number of mapped pixels in each cell."""


def _indices(batch: TileBatch, encoder: CellEncoder, known: Applicability) -> Float32[ndarray, "n rows cols"]:
    """Return the index of every cell divided by the threshold; NaN where less than half of a cell is valid."""
    features, seen = encoder(batch.pixels, batch.valid)
    index = np.full(seen.shape, np.nan, np.float32)
    index[seen] = known.dissimilarity_index(features) / known.threshold
    return index


def _encoder(task: MapTask) -> CellEncoder:
    # The map's own backend, so that an interrupted job ends with the same file.
    backend = str(task.origin.get("backend", task.settings.backend))
    return load_cell_encoder(task.runs[0], read_card(task.runs[0]), task.settings.device, backend)


def _lanes(task: MapTask, encoder: CellEncoder) -> Lanes:
    mosaic = task.source.mosaic
    return frame_lanes(mosaic.grid, encoder.frame_px, mosaic.bands * np.dtype(mosaic.dtype).itemsize)


def _batches(task: MapTask, lanes: Lanes) -> Iterator[TileBatch]:
    grid = task.source.grid
    return batch_tiles(iterate_tiles(lanes, MirroredSource(task.source, grid.height, grid.width)), FRAMES)
