"""Collect candidates for active learning: the uncertainty and the embeddings of the unlabelled tiles of rasters.

Uncertainty comes from all runs, embeddings from the first run's encoder. Tiles inside the labelled area of a tile set
are skipped.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Bool, Float, Float32, Float64, Shaped
from numpy import ndarray

from geograft.dataset.tileset import INDEX, TileSet
from geograft.errors import InputError
from geograft.geo.grid import Grid, Window
from geograft.geo.vectors.reader import read_polygons
from geograft.inference.embedding import CellEncoder
from geograft.inference.uncertainty import Uncertainty, mean_over_mask
from geograft.mapping.batches import MirroredSource, RasterTile, TileBatch, batch_tiles, frame_lanes, iterate_tiles
from geograft.mapping.plan import MapSource
from geograft.mapping.windows import Lanes
from geograft.metrics.applicability import Applicability
from geograft.progress import progress_bar

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


def labelled_area(raster: Path, grid: Grid, tile_set: TileSet | None) -> LabelledArea:
    """Return the area of a tile set's tiles, of all splits, on a raster with `grid`; an empty area without a tile set.

    Tiles are located by their coordinates. An image of the tile set that is not georeferenced is located by its path,
    and its tiles by their windows.

    Raises:
        InputError: when the tile set's index cannot be read.
    """
    shapes = np.zeros(0, object) if tile_set is None else _shapes(raster, grid, tile_set)
    return LabelledArea(grid, shapely.STRtree(shapes))


def _shapes(raster: Path, grid: Grid, tile_set: TileSet) -> Shaped[ndarray, " n"]:
    scenes = {scene for scene in tile_set.scenes if tile_set.image_path(scene).resolve() == raster.resolve()}
    if scenes and grid.crs is None:
        return np.array([grid.footprint(tile.window) for tile in tile_set.tiles if tile.scene in scenes], object)
    if grid.crs is None:
        return np.zeros(0, object)
    polygons = read_polygons(tile_set.folder / INDEX, None)
    if polygons.crs is None:
        return np.zeros(0, object)
    return read_polygons(tile_set.folder / INDEX, grid.crs).shapes


def check_candidates(rasters: Sequence[Path], tiles: int, labelled: int) -> None:
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

    @property
    def weight(self) -> float:
        """Total uncertainty of the tile."""
        return self.valid_fraction * self.uncertainty


@dataclass
class Pool:
    """The most uncertain candidates, and the numbers of tiles considered and skipped."""

    candidates: list[Candidate] = field(default_factory=list)
    unlabelled_tiles: int = 0
    labelled_tiles: int = 0
    """Tiles skipped because they are already labelled."""

    def add(self, candidate: Candidate) -> None:
        """Add a candidate; it is kept while it is among the most uncertain."""
        self.unlabelled_tiles += 1
        self.candidates.append(candidate)
        if len(self.candidates) >= 2 * MAX_CANDIDATES:
            self.prune()

    def prune(self) -> None:
        """Keep the MAX_CANDIDATES most uncertain candidates, in descending order."""
        self.candidates.sort(key=lambda one: (-one.weight, one.raster, one.window))
        del self.candidates[MAX_CANDIDATES:]


@dataclass(frozen=True)
class Embedder:
    """Computes the uncertainty and the embeddings of tiles, and their dissimilarity to the training data."""

    uncertainty: Uncertainty
    encoder: CellEncoder
    training_features: Applicability | None
    batch_size: int


@dataclass(frozen=True)
class PoolRaster:
    """One raster, divided into adjacent tiles, and its labelled area."""

    index: int
    job: MapSource
    labelled: LabelledArea

    def lanes(self, tile_px: int) -> Lanes:
        """Return its tiles, from the upper left corner; the last ones extend beyond the raster."""
        mosaic = self.job.mosaic
        return frame_lanes(mosaic.grid, tile_px, mosaic.bands * np.dtype(mosaic.dtype).itemsize)

    def window(self, lanes: Lanes, tile: RasterTile) -> Window:
        """Return the part of a tile's window that lies inside the raster."""
        grid, edge = lanes.tiles, lanes.tiles.tile_px
        whole = Window(grid.tops[lanes.position(tile.lane)[1]], grid.lefts[tile.column], edge, edge)
        return whole.intersection(self.job.grid.window) or whole


def collect_candidates(embedder: Embedder, rasters: Sequence[PoolRaster]) -> Pool:
    """Return the candidates of all rasters, in descending order of uncertainty.

    Costs one pass of each run in each TTA view over the rasters, and one of the first run's encoder. Memory: a batch of
    tiles and the embeddings of 2 * MAX_CANDIDATES tiles, four rows each, independent of the size of the rasters.

    Raises:
        InputError: when a raster cannot be read.
    """
    pool = Pool()
    for raster in rasters:
        lanes = raster.lanes(embedder.uncertainty.card.tile_px)
        with closing(raster.job.mosaic), progress_bar(_title(raster), float(len(lanes)), "rows of tiles") as bar:
            before = 0
            for batch in batch_tiles(_unlabelled(raster, lanes, pool), embedder.batch_size):
                for candidate in _candidates(embedder, raster, lanes, batch):
                    pool.add(candidate)
                bar.advance(batch.tiles[-1].lane - before)
                before = batch.tiles[-1].lane
    pool.prune()
    return pool


def _title(raster: PoolRaster) -> str:
    return f"scoring {raster.job.rasters[0].name}"


def _unlabelled(raster: PoolRaster, lanes: Lanes, pool: Pool) -> Iterator[RasterTile]:
    """Yield the tiles that may be suggested; count the labelled ones in `pool`."""
    grid = raster.job.grid
    for tile in iterate_tiles(lanes, MirroredSource(raster.job, grid.height, grid.width)):
        if tile.mapped.mean() < MIN_VALID_FRACTION:
            continue
        if raster.labelled.fraction(raster.window(lanes, tile)) > MAX_LABELLED_FRACTION:
            pool.labelled_tiles += 1
        else:
            yield tile


def _candidates(embedder: Embedder, raster: PoolRaster, lanes: Lanes, batch: TileBatch) -> Iterator[Candidate]:
    """Yield the tiles of a batch that have at least one cell with features and valid pixels."""
    mapped = np.stack([tile.mapped for tile in batch.tiles])
    uncertainty = embedder.uncertainty(batch.pixels, batch.valid)[: len(mapped)]
    means = mean_over_mask(uncertainty, mapped)
    cell_uncertainty = cell_means(
        np.where(mapped, np.maximum(uncertainty, MIN_UNCERTAINTY), 0), embedder.encoder.cell_px
    )
    cells, has_features = embedder.encoder(batch.pixels, batch.valid)
    usable = has_features[: len(mapped)] & (cell_uncertainty > 0)
    ends = has_features.sum(axis=(1, 2)).cumsum()[: len(mapped)]
    for i, (tile, mine) in enumerate(zip(batch.tiles, np.split(cells, ends)[: len(mapped)], strict=True)):
        if usable[i].any():
            window, valid_fraction = raster.window(lanes, tile), float(tile.mapped.mean())
            dissimilarity = _dissimilarity(mine, embedder.training_features)
            quarters = pool_quarters(mine[usable[i][has_features[i]]], cell_uncertainty[i], usable[i])
            yield Candidate(raster.index, window, float(means[i]), valid_fraction, *quarters, dissimilarity)


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
