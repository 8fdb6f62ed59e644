"""Going through rasters tile by tile: how unsure the runs are of each, and what it looks like to the first of them.

Ground that is labelled already, by the windows of a tile set, as it lies on a raster.
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
from geograft.inference.embedding import Encoder
from geograft.inference.uncertainty import Doubt, mean_inside
from geograft.mapping.batches import Batch, Mirrored, Tile, batches, frames, tiles_of
from geograft.mapping.plan import Job
from geograft.mapping.windows import Lanes
from geograft.metrics.applicability import Applicability
from geograft.progress import meter

MOST_LABELLED = 0.25
"""A tile of which a larger share is labelled is not suggested."""


@dataclass(frozen=True)
class Labelled:
    """The labelled ground on one raster."""

    grid: Grid
    tree: shapely.STRtree
    """Outlines of tiles in the raster's CRS; no two are counted twice where they overlap."""

    def share(self, window: Window) -> float:
        """Return the share of a window's ground that lies in labelled tiles."""
        outline = self.grid.footprint(window)
        near = self.tree.geometries[self.tree.query(outline, predicate="intersects")]
        if not len(near):
            return 0.0
        return float(shapely.intersection(outline, shapely.union_all(near)).area / outline.area)


def labelled_on(raster: Path, grid: Grid, known: TileSet | None) -> Labelled:
    """Return the ground of a tile set's tiles, of all its parts, on a raster of `grid`.

    Found by place; for an image of the tile set itself, which needs no place on the ground, by its windows.

    Raises:
        InputError: when the tile set's index cannot be read.
    """
    shapes = np.zeros(0, object) if known is None else _shapes(raster, grid, known)
    return Labelled(grid, shapely.STRtree(shapes))


def _shapes(raster: Path, grid: Grid, known: TileSet) -> Shaped[ndarray, " n"]:
    scenes = {scene for scene in known.scenes if known.image_path(scene).resolve() == raster.resolve()}
    if scenes and grid.crs is None:
        return np.array([grid.footprint(tile.window) for tile in known.tiles if tile.scene in scenes], object)
    if grid.crs is None:
        return np.zeros(0, object)
    polygons = read_polygons(known.folder / INDEX, None)
    if polygons.crs is None:
        return np.zeros(0, object)
    return read_polygons(known.folder / INDEX, grid.crs).shapes


def check_some_left(rasters: Sequence[Path], tiles: int, labelled: int) -> None:
    """Raise InputError when no tile is left to suggest, and say why."""
    if tiles:
        return
    name = f"{rasters[0]}{f' and {len(rasters) - 1} more' if len(rasters) > 1 else ''}"
    if labelled:
        raise InputError(f"{name}: all tiles with valid pixels are labelled already. Give rasters of other ground.")
    raise InputError(
        f"{name} has no valid pixel to label: all is nodata or outside --aoi. Check nodata value and mask."
    )


LEAST_SHARE = 0.25
"""A tile of which a smaller share can be labelled is not suggested."""
MOST_TILES = 3000
"""Tiles that are compared with each other: of more, the most doubtful."""
LEAST_DOUBT = 1e-3
"""What a pixel's doubt counts at least: a run may be wrong where it has none."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One tile that may be labelled."""

    raster: int
    """Which of the rasters."""
    window: Window
    """Inside the raster; smaller than a tile at its lower and right border."""
    doubt: float
    """Mean over its pixels, 0 to 1."""
    share: float
    """Pixels that can be labelled, as a share of a whole tile."""
    looks: Float[ndarray, "q d"]
    """What its quarters look like: the mean of what the encoder sees in their cells."""
    unsure: Float[ndarray, " q"]
    """How much doubt there is in each quarter."""
    novelty: float | None = None
    """Distance to what the run was trained on, over the threshold of its area of applicability: outside above 1."""

    @property
    def weight(self) -> float:
        """How much doubt there is in it."""
        return self.share * self.doubt


@dataclass
class Pool:
    """The most doubtful candidates that were seen, and what was left out."""

    kept: list[Candidate] = field(default_factory=list)
    seen: int = 0
    labelled: int = 0
    """Tiles left out, for they are labelled already."""

    def add(self, candidate: Candidate) -> None:
        """Keep a candidate as long as it is among the most doubtful."""
        self.seen += 1
        self.kept.append(candidate)
        if len(self.kept) >= 2 * MOST_TILES:
            self.prune()

    def prune(self) -> None:
        """Keep MOST_TILES at most, in falling order of doubt."""
        self.kept.sort(key=lambda one: (-one.weight, one.raster, one.window))
        del self.kept[MOST_TILES:]


@dataclass(frozen=True)
class Eyes:
    """What looks at tiles."""

    doubt: Doubt
    encoder: Encoder
    known: Applicability | None
    batch_size: int


@dataclass(frozen=True)
class Ground:
    """One raster, cut into tiles side by side, and what is labelled of it."""

    number: int
    job: Job
    labelled: Labelled

    def lanes(self, tile_px: int) -> Lanes:
        """Return its tiles, from the upper left corner; the last ones reach beyond it."""
        mosaic = self.job.mosaic
        return frames(mosaic.grid, tile_px, mosaic.bands * np.dtype(mosaic.dtype).itemsize)

    def window(self, lanes: Lanes, tile: Tile) -> Window:
        """Return the part of the raster that a tile holds."""
        grid, edge = lanes.tiles, lanes.tiles.tile_px
        whole = Window(grid.tops[lanes.place(tile.lane)[1]], grid.lefts[tile.column], edge, edge)
        return whole.overlap(self.job.grid.window) or whole


def look(eyes: Eyes, grounds: Sequence[Ground]) -> Pool:
    """Return the candidates of all rasters, in falling order of doubt.

    Costs one pass of each run in each turn over the rasters, and one of the first run's encoder. Memory: a batch of
    tiles and the features of 2 * MOST_TILES tiles, four rows each, however large the rasters are.

    Raises:
        InputError: when a raster cannot be read.
    """
    pool = Pool()
    for ground in grounds:
        lanes = ground.lanes(eyes.doubt.card.tile_px)
        with closing(ground.job.mosaic), meter(_title(ground), float(len(lanes)), "rows of tiles") as bar:
            before = 0
            for batch in batches(_unlabelled(ground, lanes, pool), eyes.batch_size):
                for candidate in _candidates(eyes, ground, lanes, batch):
                    pool.add(candidate)
                bar.advance(batch.tiles[-1].lane - before)
                before = batch.tiles[-1].lane
    pool.prune()
    return pool


def _title(ground: Ground) -> str:
    return f"looking at {ground.job.rasters[0].name}"


def _unlabelled(ground: Ground, lanes: Lanes, pool: Pool) -> Iterator[Tile]:
    """Yield the tiles that may be suggested, and count in `pool` those that are labelled."""
    grid = ground.job.grid
    for tile in tiles_of(lanes, Mirrored(ground.job, grid.height, grid.width)):
        if tile.mapped.mean() < LEAST_SHARE:
            continue
        if ground.labelled.share(ground.window(lanes, tile)) > MOST_LABELLED:
            pool.labelled += 1
        else:
            yield tile


def _candidates(eyes: Eyes, ground: Ground, lanes: Lanes, batch: Batch) -> Iterator[Candidate]:
    """Yield the tiles of a batch but for those without a cell that has features and can be labelled."""
    mapped = np.stack([tile.mapped for tile in batch.tiles])
    doubt = eyes.doubt(batch.pixels, batch.valid)[: len(mapped)]
    means = mean_inside(doubt, mapped)
    unsure = in_cells(np.where(mapped, np.maximum(doubt, LEAST_DOUBT), 0), eyes.encoder.cell_px)
    cells, seen = eyes.encoder(batch.pixels, batch.valid)
    wanted = seen[: len(mapped)] & (unsure > 0)
    ends = seen.sum(axis=(1, 2)).cumsum()[: len(mapped)]
    for i, (tile, mine) in enumerate(zip(batch.tiles, np.split(cells, ends)[: len(mapped)], strict=True)):
        if wanted[i].any():
            window, share, novelty = ground.window(lanes, tile), float(tile.mapped.mean()), _novelty(mine, eyes.known)
            pieces = quarters(mine[wanted[i][seen[i]]], unsure[i], wanted[i])
            yield Candidate(ground.number, window, float(means[i]), share, *pieces, novelty)


def in_cells(doubt: Float[ndarray, "n t t"], cell_px: int) -> Float64[ndarray, "n rows cols"]:
    """Return the doubt in each cell of tiles, as a share of a whole cell's; the last ones may reach beyond the tile."""
    n, size, _ = doubt.shape
    side = -(-size // cell_px)
    whole = np.zeros((n, side * cell_px, side * cell_px))
    whole[:, :size, :size] = doubt
    means: Float64[ndarray, "n rows cols"] = whole.reshape(n, side, cell_px, side, cell_px).mean(axis=(2, 4))
    return means


def quarters(
    cells: Float32[ndarray, "m d"], unsure: Float64[ndarray, "rows cols"], seen: Bool[ndarray, "rows cols"]
) -> tuple[Float64[ndarray, "q d"], Float64[ndarray, " q"]]:
    """Return the mean features and the doubt of the quarters of a tile that hold cells; `cells` are those `seen`."""
    rows, cols = np.nonzero(seen)
    quarter = 2 * (2 * rows // seen.shape[0]) + 2 * cols // seen.shape[1]
    each = [quarter == one for one in np.unique(quarter)]
    looks = np.stack([cells[mine].mean(axis=0, dtype=np.float64) for mine in each])
    return looks, np.array([unsure[seen][mine].sum() for mine in each])


def _novelty(cells: Float32[ndarray, "m d"], known: Applicability | None) -> float | None:
    return None if known is None else float(known.index(cells).mean()) / known.threshold
