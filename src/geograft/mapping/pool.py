"""Candidates for active learning, the uncertainty and the embeddings of unlabelled tiles of rasters, and their ranks.

Uncertainty is that of the map that `predict` writes with the same runs and settings; embeddings are those of the first
run's encoder. Tiles inside the labelled area of a tile set are skipped.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import shapely
from jaxtyping import Bool, Float, Float32, Float64, Shaped
from numpy import ndarray

from geograft.config import InferenceConfig
from geograft.dataset.tileset import INDEX, TileSet
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window, block_windows
from geograft.geo.vectors.reader import read_polygons
from geograft.inference.embedding import CellEncoder
from geograft.inference.predictor import EnsemblePredictor, PixelBatch
from geograft.legend import Legend
from geograft.locations import Place
from geograft.mapping.batches import MirroredSource
from geograft.mapping.blend import BlendPlan, Strip, blend
from geograft.mapping.classmap import class_entropy, class_margin, class_probabilities, ensemble_std
from geograft.mapping.held_out import PartOfInterest, assemble
from geograft.mapping.models import RunModel
from geograft.mapping.plan import MapSource, plan_windows, sample_windows
from geograft.mapping.units import unit_plan
from geograft.metrics.applicability import Applicability
from geograft.metrics.selection import draw_balanced_sample, select_batch
from geograft.progress import progress_bar

BATCH = 8
"""Tiles per batch of the encoder."""
MAX_LABELLED_FRACTION = 0.25
"""A tile with a larger labelled fraction is not suggested."""


@dataclass(frozen=True)
class LabelledArea:
    """The labelled area on one raster."""

    grid: Grid
    tree: shapely.STRtree
    """Outlines of labelled tiles in the raster's CRS. They may overlap."""

    def fraction(self, window: Window) -> float:
        """Return the fraction of a window's area inside labelled tiles."""
        outline = self.grid.footprint(window)
        near = self.tree.geometries[self.tree.query(outline, predicate="intersects")]
        if not len(near):
            return 0.0
        return float(shapely.intersection(outline, shapely.union_all(near)).area / outline.area)


def labelled_area(raster: Place, grid: Grid, tile_set: TileSet | None) -> LabelledArea:
    """Return the area of a tile set's tiles, of all splits, on a raster with `grid`; an empty area without a tile set.

    Tiles are located by their coordinates. An image of the tile set that is not georeferenced is located by its path,
    and its tiles by their windows.

    Raises:
        InputError: when the tile set's index cannot be read.
    """
    shapes = np.zeros(0, object) if tile_set is None else _shapes(raster, grid, tile_set)
    return LabelledArea(grid, shapely.STRtree(shapes))


def _shapes(raster: Place, grid: Grid, tile_set: TileSet) -> Shaped[ndarray, " n"]:
    own = raster.resolve() if isinstance(raster, Path) else None
    scenes = {scene for scene in tile_set.scenes if tile_set.image_path(scene).resolve() == own}
    if scenes and grid.crs is None:
        return np.array([grid.footprint(tile.window) for tile in tile_set.tiles if tile.scene in scenes], object)
    if grid.crs is None:
        return np.zeros(0, object)
    indices = [folder / INDEX for folder in tile_set.folders]
    shapes = [read_polygons(index, grid.crs).shapes for index in indices if read_polygons(index, None).crs is not None]
    return np.concatenate([np.zeros(0, object), *shapes])


def no_candidate_error(rasters: Sequence[Place], labelled: int) -> InputError:
    """Return the error for rasters without a tile to suggest, of which `labelled` are labelled."""
    name = f"{rasters[0]}{f' and {len(rasters) - 1} more' if len(rasters) > 1 else ''}"
    if labelled:
        return InputError(f"{name}: all tiles with valid pixels are labelled already. Give rasters of another area.")
    return InputError(
        f"{name} has no valid pixel to label: all is nodata or outside --aoi. Check nodata value and mask."
    )


MIN_VALID_FRACTION = 0.25
"""A tile with a smaller fraction of valid pixels is not suggested."""
MAX_CANDIDATES = 3000
"""At most this many tiles, the most uncertain ones, are compared with each other."""
MIN_UNCERTAINTY = 1e-3
"""Lower limit of a pixel's uncertainty: a run may be wrong even where it is certain."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An unlabelled tile that may be suggested."""

    raster: int
    """Index of the raster."""
    window: Window
    """Window inside the raster; smaller than a tile at its lower and right border."""
    uncertainty: float
    """Mean uncertainty over its pixels, 0 to 1."""
    valid_fraction: float
    """Valid pixels as a fraction of a whole tile."""
    embeddings: Float32[ndarray, "q d"]
    """Embedding of each quarter of the tile: the mean of the encoder's features in its cells."""
    quarter_uncertainty: Float[ndarray, " q"]
    """Total uncertainty of each quarter."""
    dissimilarity: float | None = None
    """Dissimilarity index relative to the training data, divided by the threshold of the area of applicability.

    Above 1, the tile is outside that area. None if the run has no training features."""
    predicted: tuple[float, ...] = ()
    """Mean probability of each class over its pixels."""
    lot: int = 0
    """Random number of the tile: tiles with the lowest are a simple random sample of all."""

    @property
    def weight(self) -> float:
        """Total uncertainty of the tile."""
        return self.valid_fraction * self.uncertainty


@dataclass
class Pool:
    """The most uncertain candidates, a random sample of all, and the numbers of tiles considered and skipped."""

    candidates: list[Candidate] = field(default_factory=list)
    sample: list[Candidate] = field(default_factory=list)
    """All candidates, or a simple random sample of MAX_CANDIDATES of them, in random order."""
    unlabelled_tiles: int = 0
    labelled_tiles: int = 0
    """Tiles skipped because they are already labelled."""

    def add(self, candidate: Candidate) -> None:
        """Add a candidate; it is kept while it is among the most uncertain, or those with the lowest lots."""
        self.merge(Pool([candidate], [candidate], 1))

    def merge(self, other: "Pool") -> None:
        """Add the tiles of another pool. In which order pools are merged does not matter, once they are pruned."""
        self.unlabelled_tiles += other.unlabelled_tiles
        self.labelled_tiles += other.labelled_tiles
        self.candidates += other.candidates
        self.sample += other.sample
        if max(len(self.candidates), len(self.sample)) >= 2 * MAX_CANDIDATES:
            self.prune()

    def prune(self) -> None:
        """Keep the MAX_CANDIDATES most uncertain candidates, in descending order, and those with the lowest lots."""
        self.candidates.sort(key=lambda one: (-one.weight, one.raster, one.window))
        del self.candidates[MAX_CANDIDATES:]
        self.sample.sort(key=lambda one: (one.lot, one.raster, one.window))
        del self.sample[MAX_CANDIDATES:]


def draw_lot(seed: int, raster: str, window: Window) -> int:
    """Return the random number of a tile. It depends on the seed, the raster's name and the tile's position alone.

    So the sample of a raster does not depend on the order in which tiles are read.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {window.row} {window.col} {raster}".encode()).digest()[:8])


Acquisition = Literal["entropy", "margin", "disagreement"]
ACQUISITIONS: Mapping[Acquisition, Callable[[Strip, Legend], Float32[ndarray, "1 h w"]]] = {
    "entropy": class_entropy,
    "margin": class_margin,
    "disagreement": lambda strip, _legend: ensemble_std(strip),
}
"""Functions from a strip to the uncertainty of its pixels, 0 to 1."""


@dataclass(frozen=True)
class PoolModel:
    """The model of runs whose strips have what an acquisition function needs, with one backend for all rasters."""

    model: RunModel
    predictor: EnsemblePredictor
    """That of the windows in `sample`."""
    sample: PixelBatch
    """The first windows with valid pixels."""


def load_pool_model(
    runs: Sequence[Path], settings: InferenceConfig, acquisition: Acquisition, sources: Sequence[MapSource]
) -> PoolModel | None:
    """Load runs with the backend that is chosen on the first windows of the rasters; None if no pixel is valid.

    Raises:
        InputError: if one of `runs` is not a run, or differs from the first in classes, bands or dtype; if its weights
            cannot be used; if a raster cannot be read.
        SettingError: if the device or the backend is not available.
    """
    spread = acquisition == "disagreement"
    model = RunModel.open(runs, settings, spread=spread, spread_views=spread)
    for source in sources:
        plan = plan_windows(source.mosaic, model.card, settings, model.layers)
        with closing(source.mosaic):
            sample = sample_windows(plan, source)
        if sample is not None:
            return _with_sample(model, plan, sample)
    return None


def _with_sample(model: RunModel, plan: BlendPlan, sample: PixelBatch) -> PoolModel:
    predictor = model.predictor(plan.lanes.tiles.tile_px, plan.batch_size, lambda: sample)
    backend: Any = predictor.backend
    return PoolModel(replace(model, settings=replace(model.settings, backend=backend)), predictor, sample)


@dataclass(frozen=True)
class Embedder:
    """Computes the uncertainty and the embeddings of tiles, and their dissimilarity to the training data."""

    pixels: PoolModel
    acquisition: Acquisition
    encoder: CellEncoder
    training_features: Applicability | None
    seed: int = 0
    """Seed of the tiles' lots."""

    @property
    def tile_px(self) -> int:
        """Side of a tile in pixels: the largest of the training tiles' of all runs."""
        return self.pixels.model.card.tile_px


@dataclass(frozen=True)
class PoolRaster:
    """One raster, divided into adjacent tiles, and its labelled area."""

    index: int
    source: MapSource
    labelled: LabelledArea
    frames: MapSource
    """The same raster, opened a second time: it is read in another thread than `source`."""

    def unlabelled(self, tile_px: int, part: Window) -> tuple[list[Window], int]:
        """Return the unlabelled tiles in a part of the raster that may have data, and the number of labelled ones.

        Tiles start at the upper left corner; the last ones are cut at the raster's border. The part has whole tiles.
        """
        windows = [window for window in block_windows(part, tile_px, tile_px) if not self.source.is_empty(window)]
        free = [window for window in windows if self.labelled.fraction(window) <= MAX_LABELLED_FRACTION]
        return free, len(windows) - len(free)


def collect_candidates(embedder: Embedder, rasters: Sequence[PoolRaster]) -> Pool:
    """Return the candidates of all rasters, in descending order of uncertainty.

    Costs a map of the unlabelled tiles, and a pass of the first run's encoder. Memory: that of a map, a batch of tiles
    and the embeddings of 2 * MAX_CANDIDATES tiles, four rows each, independent of the size of the rasters, except for
    the positions of their tiles.

    Raises:
        InputError: when a raster cannot be read.
    """
    pool = Pool()
    for raster in rasters:
        free, labelled = raster.unlabelled(embedder.tile_px, raster.source.grid.window)
        pool.labelled_tiles += labelled
        with progress_bar(f"scoring {raster.source.rasters[0].name}", len(free), "tiles") as bar:
            add_candidates(pool, embedder, raster, free, bar.advance)
    pool.prune()
    return pool


def add_candidates(
    pool: Pool, embedder: Embedder, raster: PoolRaster, windows: Sequence[Window], advance: Callable[[int], None]
) -> None:
    """Add the candidates among the tiles `windows` of a raster to a pool.

    On a CPU a candidate has the same bits whichever tiles are given with it: it depends on its own pixels, and on those
    windows of the whole raster that share a pixel with it, which are added in whole numbers. `advance` is called with
    numbers of finished tiles.

    Raises:
        InputError: when the raster cannot be read.
    """
    with (
        closing(raster.source.mosaic),
        closing(raster.frames.mosaic),
        closing(_uncertain_tiles(embedder, raster, windows)) as tiles,
    ):
        while batch := list(islice(tiles, BATCH)):
            for candidate in _candidates(embedder, raster, batch):
                pool.add(candidate)
            advance(len(batch))


@dataclass(frozen=True)
class _UncertainTile:
    window: Window
    """Its part inside the raster."""
    uncertainty: Float32[ndarray, "t t"]
    """Of each pixel of the whole tile; 0 beyond the raster's border."""
    predicted: tuple[float, ...]
    """Mean probability of each class over its mapped pixels."""
    mapped: Bool[ndarray, "t t"]
    """Whether a pixel of the whole tile has a prediction."""


def _uncertain_tiles(
    embedder: Embedder, raster: PoolRaster, windows: Sequence[Window]
) -> Generator[_UncertainTile, None, None]:
    """Yield the tiles with enough valid pixels and their uncertainty, in the order in which they are complete."""
    model, size = embedder.pixels.model, embedder.tile_px

    def extract(strip: Strip) -> list[ndarray]:
        legend = model.card.legend
        return [
            ACQUISITIONS[embedder.acquisition](strip, legend),
            strip.mapped[None],
            class_probabilities(strip, legend),
        ]

    if not windows:
        return
    of_interest, bounds = PartOfInterest(raster.source, tuple(windows)), _bounding_window(windows)
    plan = unit_plan(plan_windows(raster.source.mosaic, model.card, model.settings, model.layers), bounds)
    predictor = model.predictor(plan.lanes.tiles.tile_px, plan.batch_size, partial(sample_windows, plan, of_interest))
    with closing(blend(plan, of_interest, predictor)) as strips:
        for position, (uncertainty, (mapped,), probabilities) in assemble(strips, windows, extract):
            window = windows[position]
            padding = [(0, size - window.height), (0, size - window.width)]
            means = mean_over_mask(probabilities, np.broadcast_to(mapped, probabilities.shape)).tolist()
            tile = _UncertainTile(window, np.pad(uncertainty[0], padding), tuple(means), np.pad(mapped, padding))
            if tile.mapped.mean() >= MIN_VALID_FRACTION:
                yield tile


def _bounding_window(windows: Sequence[Window]) -> Window:
    row, col = min(one.row for one in windows), min(one.col for one in windows)
    stop_row, stop_col = max(one.stop_row for one in windows), max(one.stop_col for one in windows)
    return Window(row, col, stop_row - row, stop_col - col)


def _candidates(embedder: Embedder, raster: PoolRaster, tiles: Sequence[_UncertainTile]) -> Iterator[Candidate]:
    """Yield the tiles of a batch that have at least one cell with features and valid pixels.

    Only the encoder sees the batch; on a CPU it too computes tile by tile. NumPy's sums may depend on the number of
    tiles that are added at once.
    """
    grid, size = raster.frames.grid, embedder.tile_px
    source = MirroredSource(raster.frames, grid.height, grid.width)
    frames = [source.read(Window(tile.window.row, tile.window.col, size, size)) for tile in tiles]
    cells, has_features = embedder.encoder(*(np.stack(arrays) for arrays in zip(*frames, strict=True)))
    each = np.split(cells, has_features.sum(axis=(1, 2)).cumsum())[: len(tiles)]
    for tile, own, seen in zip(tiles, each, has_features, strict=True):
        candidate = _candidate(embedder, raster, tile, own, seen)
        if candidate is not None:
            yield candidate


def _candidate(
    embedder: Embedder,
    raster: PoolRaster,
    tile: _UncertainTile,
    cells: Float32[ndarray, "m d"],
    has_features: Bool[ndarray, "rows cols"],
) -> Candidate | None:
    """Return a tile with the features of its cells; None if no cell with features has valid pixels."""
    uncertainty = np.where(tile.mapped, np.maximum(tile.uncertainty, MIN_UNCERTAINTY), 0)
    by_cell = cell_means(uncertainty[None], embedder.encoder.cell_px)[0]
    usable = has_features & (by_cell > 0)
    if not usable.any():
        return None
    return Candidate(
        raster.index,
        tile.window,
        float(mean_over_mask(tile.uncertainty[None], tile.mapped[None])[0]),
        float(tile.mapped.mean()),
        *pool_quarters(cells[usable[has_features]], by_cell, usable),
        _dissimilarity(cells, embedder.training_features),
        tile.predicted,
        draw_lot(embedder.seed, raster.source.rasters[0].name, tile.window),
    )


def mean_over_mask(values: Float32[ndarray, "n h w"], mask: Bool[ndarray, "n h w"]) -> Float64[ndarray, " n"]:
    """Return the mean of each band of values over the pixels in `mask`; 0 if it is empty."""
    total = np.where(mask, values, 0).sum(axis=(1, 2), dtype=np.float64)
    mean: Float64[ndarray, " n"] = total / np.maximum(mask.sum(axis=(1, 2)), 1)
    return mean


def cell_means(uncertainty: Float[ndarray, "n t t"], cell_px: int) -> Float64[ndarray, "n rows cols"]:
    """Return the mean uncertainty of each cell of tiles; pixels of the last cells beyond the tile count as 0."""
    n, size, _ = uncertainty.shape
    side = -(-size // cell_px)
    whole = np.zeros((n, side * cell_px, side * cell_px))
    whole[:, :size, :size] = uncertainty
    means: Float64[ndarray, "n rows cols"] = whole.reshape(n, side, cell_px, side, cell_px).mean(axis=(2, 4))
    return means


def pool_quarters(
    cells: Float32[ndarray, "m d"], uncertainty: Float64[ndarray, "rows cols"], mask: Bool[ndarray, "rows cols"]
) -> tuple[Float32[ndarray, "q d"], Float64[ndarray, " q"]]:
    """Return the mean features and the total uncertainty of each quarter of a tile that contains cells.

    `cells` are the features of the cells in `mask`.
    """
    rows, cols = np.nonzero(mask)
    quarter = 2 * (2 * rows // mask.shape[0]) + 2 * cols // mask.shape[1]
    each = [quarter == one for one in np.unique(quarter)]
    embeddings = np.stack([cells[mine].mean(axis=0, dtype=np.float64) for mine in each])
    return embeddings.astype(np.float32), np.array([uncertainty[mask][mine].sum() for mine in each])


def _dissimilarity(cells: Float32[ndarray, "m d"], known: Applicability | None) -> float | None:
    return None if known is None else float(known.dissimilarity_index(cells).mean()) / known.threshold


Origin = Literal["random", "suggested"]


@dataclass(frozen=True)
class Suggestion:
    """One tile to label."""

    rank: int
    """The order in which to label, from 1."""
    raster: int
    """Index of the raster."""
    window: Window
    score: float
    """Fraction of the total uncertainty that it covers in addition to the tiles before it."""
    uncertainty: float
    """Mean uncertainty over its pixels, 0 to 1."""
    dissimilarity: float | None
    """See `Candidate.dissimilarity`: above 1, the tile is outside the run's area of applicability."""
    origin: Origin = "suggested"
    """Whether it was drawn at random, all tiles with the same probability, or selected by its uncertainty."""


def draw_first(sample: Sequence[Candidate], count: int, seed: int) -> list[Candidate]:
    """Return `count` random candidates, all with the same probability, that represent all kinds of tiles.

    Kinds are what the run predicts in a tile and the embeddings of its quarters: see `draw_balanced_sample`.
    """
    if not count or not sample:
        return []
    predicted = np.array([one.predicted for one in sample])
    embeddings = np.stack([one.embeddings.mean(axis=0) for one in sample])
    chosen = draw_balanced_sample([predicted, embeddings], count, np.random.default_rng(seed))
    return [sample[position] for position in chosen]


def rank_candidates(
    candidates: Sequence[Candidate], count: int, first: Sequence[Candidate] = ()
) -> tuple[Suggestion, ...]:
    """Return the best `count` candidates to label together; the first n of them are the best n.

    They begin with the random ones in `first`, which cover what resembles them. See `geograft.metrics.selection`; the
    pieces are the quarters of the tiles. The order of the candidates does not matter.
    """
    drawn = {(one.raster, one.window) for one in first}
    candidates = [*first, *(one for one in candidates if (one.raster, one.window) not in drawn)]
    owners = np.repeat(np.arange(len(candidates)), [len(one.quarter_uncertainty) for one in candidates])
    features = np.concatenate([one.embeddings for one in candidates])
    weights = np.concatenate([one.quarter_uncertainty for one in candidates])
    found = select_batch(features, weights, owners, count, range(len(first)))
    chosen = [candidates[position] for position in found.positions]
    return tuple(
        Suggestion(
            rank,
            one.raster,
            one.window,
            float(gain),
            one.uncertainty,
            one.dissimilarity,
            "random" if rank <= len(first) else "suggested",
        )
        for rank, (one, gain) in enumerate(zip(chosen, found.gains, strict=True), start=1)
    )
