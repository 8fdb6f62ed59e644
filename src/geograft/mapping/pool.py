"""Collect candidates for active learning: the uncertainty and the embeddings of the unlabelled tiles of rasters.

Uncertainty is that of the map that `predict` writes with the same runs and settings; embeddings are those of the first
run's encoder. Tiles inside the labelled area of a tile set are skipped.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

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
from geograft.legend import Legend
from geograft.locations import Place
from geograft.mapping.batches import MirroredSource
from geograft.mapping.blend import Strip
from geograft.mapping.classmap import class_entropy, class_margin, class_probabilities, ensemble_std
from geograft.mapping.held_out import PartOfInterest, assemble, blend_part
from geograft.mapping.models import RunModel
from geograft.mapping.plan import MapSource
from geograft.metrics.applicability import Applicability
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


def check_candidates(rasters: Sequence[Place], tiles: int, labelled: int) -> None:
    """Raise InputError if there is no tile to suggest, with the reason."""
    if tiles:
        return
    name = f"{rasters[0]}{f' and {len(rasters) - 1} more' if len(rasters) > 1 else ''}"
    if labelled:
        raise InputError(f"{name}: all tiles with valid pixels are labelled already. Give rasters of another area.")
    raise InputError(
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
    embeddings: Float[ndarray, "q d"]
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
        self.unlabelled_tiles += 1
        self.candidates.append(candidate)
        self.sample.append(candidate)
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


def open_pool_model(runs: Sequence[Path], settings: InferenceConfig, acquisition: Acquisition) -> RunModel:
    """Return the model of runs whose strips have what the acquisition function needs.

    Raises:
        InputError: if one of `runs` is not a run, or differs from the first in classes, bands or dtype.
    """
    spread = acquisition == "disagreement"
    return RunModel.open(runs, settings, spread=spread, spread_views=spread)


@dataclass(frozen=True)
class Embedder:
    """Computes the uncertainty and the embeddings of tiles, and their dissimilarity to the training data."""

    model: RunModel
    acquisition: Acquisition
    encoder: CellEncoder
    training_features: Applicability | None
    seed: int = 0
    """Seed of the tiles' lots."""


@dataclass(frozen=True)
class PoolRaster:
    """One raster, divided into adjacent tiles, and its labelled area."""

    index: int
    source: MapSource
    labelled: LabelledArea
    frames: MapSource
    """The same raster, opened a second time: it is read in another thread than `source`."""

    def unlabelled(self, tile_px: int) -> tuple[list[Window], int]:
        """Return the unlabelled tiles that may have data, and the number of labelled ones.

        Tiles start at the upper left corner; the last ones are cut at the raster's border.
        """
        grid = self.source.grid
        windows = [
            window for window in block_windows(grid.window, tile_px, tile_px) if not self.source.is_empty(window)
        ]
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
    size = embedder.model.card.tile_px
    for raster in rasters:
        free, labelled = raster.unlabelled(size)
        pool.labelled_tiles += labelled
        title = f"scoring {raster.source.rasters[0].name}"
        with (
            closing(raster.source.mosaic),
            closing(raster.frames.mosaic),
            progress_bar(title, len(free), "tiles") as bar,
        ):
            tiles = _uncertain_tiles(embedder, raster, free)
            while batch := list(islice(tiles, BATCH)):
                for candidate in _candidates(embedder, raster, batch):
                    pool.add(candidate)
                bar.advance(len(batch))
    pool.prune()
    return pool


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


def _uncertain_tiles(embedder: Embedder, raster: PoolRaster, windows: Sequence[Window]) -> Iterator[_UncertainTile]:
    """Yield the tiles with enough valid pixels and their uncertainty, in the order in which they are complete."""
    model, size = embedder.model, embedder.model.card.tile_px

    def extract(strip: Strip) -> list[ndarray]:
        legend = model.card.legend
        return [
            ACQUISITIONS[embedder.acquisition](strip, legend),
            strip.mapped[None],
            class_probabilities(strip, legend),
        ]

    if not windows:
        return
    part = PartOfInterest(raster.source, tuple(windows))
    with closing(blend_part(model, part, raster.source.mosaic)) as strips:
        for position, (uncertainty, (mapped,), probabilities) in assemble(strips, windows, extract):
            window = windows[position]
            padding = [(0, size - window.height), (0, size - window.width)]
            means = mean_over_mask(probabilities, np.broadcast_to(mapped, probabilities.shape)).tolist()
            tile = _UncertainTile(window, np.pad(uncertainty[0], padding), tuple(means), np.pad(mapped, padding))
            if tile.mapped.mean() >= MIN_VALID_FRACTION:
                yield tile


def _candidates(embedder: Embedder, raster: PoolRaster, tiles: Sequence[_UncertainTile]) -> Iterator[Candidate]:
    """Yield the tiles of a batch that have at least one cell with features and valid pixels."""
    mapped = np.stack([tile.mapped for tile in tiles])
    uncertainty = np.stack([tile.uncertainty for tile in tiles])
    means = mean_over_mask(uncertainty, mapped)
    cell_uncertainty = cell_means(
        np.where(mapped, np.maximum(uncertainty, MIN_UNCERTAINTY), 0), embedder.encoder.cell_px
    )
    grid, size = raster.frames.grid, embedder.model.card.tile_px
    source = MirroredSource(raster.frames, grid.height, grid.width)
    frames = [source.read(Window(tile.window.row, tile.window.col, size, size)) for tile in tiles]
    cells, has_features = embedder.encoder(*(np.stack(arrays) for arrays in zip(*frames, strict=True)))
    usable = has_features & (cell_uncertainty > 0)
    ends = has_features.sum(axis=(1, 2)).cumsum()
    for i, (tile, mine) in enumerate(zip(tiles, np.split(cells, ends)[: len(tiles)], strict=True)):
        if usable[i].any():
            dissimilarity = _dissimilarity(mine, embedder.training_features)
            quarters = pool_quarters(mine[usable[i][has_features[i]]], cell_uncertainty[i], usable[i])
            yield Candidate(
                raster.index,
                tile.window,
                float(means[i]),
                float(tile.mapped.mean()),
                *quarters,
                dissimilarity,
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
) -> tuple[Float64[ndarray, "q d"], Float64[ndarray, " q"]]:
    """Return the mean features and the total uncertainty of each quarter of a tile that contains cells.

    `cells` are the features of the cells in `mask`.
    """
    rows, cols = np.nonzero(mask)
    quarter = 2 * (2 * rows // mask.shape[0]) + 2 * cols // mask.shape[1]
    each = [quarter == one for one in np.unique(quarter)]
    embeddings = np.stack([cells[mine].mean(axis=0, dtype=np.float64) for mine in each])
    return embeddings, np.array([uncertainty[mask][mine].sum() for mine in each])


def _dissimilarity(cells: Float32[ndarray, "m d"], known: Applicability | None) -> float | None:
    return None if known is None else float(known.dissimilarity_index(cells).mean()) / known.threshold
