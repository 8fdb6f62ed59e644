"""Going through rasters tile by tile: how unsure the runs are of each, and what it looks like to the first of them."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy import ndarray

from tilth.applicability import Applicability
from tilth.geo.grid import Window
from tilth.geo.mapping.batches import Batch, Tile, batches, tiles_of
from tilth.geo.mapping.coarse import Mirrored, frames
from tilth.geo.mapping.tiles import Lanes
from tilth.learn.using.doubt import Doubt, mean_inside
from tilth.learn.using.known import Encoder
from tilth.progress import meter
from tilth.verbs.predict.plan import Job
from tilth.verbs.suggest.labelled import MOST_LABELLED, Labelled

LEAST_SHARE = 0.25
"""A tile of which a smaller share can be labelled is not suggested."""
MOST_TILES = 3000
"""Tiles that are compared with each other: of more, the most doubtful."""


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
    features: Float[ndarray, " d"]
    """Mean over its cells; standardised as the training's were, where these are known."""
    distance: float
    """Mean over its cells of the distance to the nearest of the training's; 0 where these are not known."""

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
    tiles and 2 * MOST_TILES rows of features, however large the rasters are.

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
    """Yield the tiles of a batch but for those without a cell that has features."""
    mapped = np.stack([tile.mapped for tile in batch.tiles])
    doubts = mean_inside(eyes.doubt(batch.pixels, batch.valid)[: len(mapped)], mapped)
    cells, seen = eyes.encoder(batch.pixels, batch.valid)
    ends = seen.sum(axis=(1, 2)).cumsum()[: len(mapped)]
    for tile, doubt, mine in zip(batch.tiles, doubts, np.split(cells, ends)[: len(mapped)], strict=True):
        if len(mine):
            window = ground.window(lanes, tile)
            features, distance = pooled(mine, eyes.known)
            yield Candidate(ground.number, window, float(doubt), float(tile.mapped.mean()), features, distance)


def pooled(cells: Float32[ndarray, "m d"], known: Applicability | None) -> tuple[Float64[ndarray, " d"], float]:
    """Return the mean features of a tile's cells, standardised, and their mean distance to the known ones."""
    mean = cells.mean(axis=0, dtype=np.float64)
    if known is None:
        return mean, 0.0
    return (mean - known.centre) * known.scale, float(known.index(cells).mean()) * known.mean_distance
