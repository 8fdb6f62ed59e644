"""`--dry-run`: how much there is to do for a map, and how long it will take."""

from contextlib import closing

from geograft.geo.grid import cells
from geograft.geo.mapping.batches import occupied
from geograft.geo.mapping.blend import Model
from geograft.geo.mapping.ledger import finished
from geograft.geo.rasters.rasterout import BLOCK_PX
from geograft.verbs.predict.applicability import seconds_of
from geograft.verbs.predict.plan import Task
from geograft.verbs.predict.result import Forecast
from geograft.verbs.predict.timing import batch_seconds

OVERVIEWS = 4 / 3
"""Size of a raster with its overviews, each a quarter of the one before."""
OTHER_FILES = 2
"""A file is written twice before it takes its place: plain, then cloud-optimised."""


def forecast(task: Task, model: Model) -> Forecast:
    """Return what making a map will take; nothing of it is written.

    Counts the tiles that are not known to be empty without reading, which are at least those to compute. Reads as many
    as it needs to fill one batch and has the model compute it twice: the second time counts.

    Raises:
        InputError: when what a killed job left belongs to another model, raster or setting.
    """
    lanes, tiles = task.plan.lanes, task.plan.lanes.tiles
    done = [entry.tiles for entry in finished(task.folder, task.origin)]
    with closing(task.job.mosaic):
        left = [_tiles_of_lane(task, lane) for lane in range(len(done), len(lanes))]
        batch_s = batch_seconds(model, task.first_batch())
        blocks = _blocks(task)
    seconds = -(-sum(left) // task.settings.batch_size) * (batch_s or 0.0)
    seconds += seconds_of(task) if task.applicability else 0.0
    grid = task.job.grid
    data_px = min(blocks * BLOCK_PX**2, grid.height * grid.width)
    return Forecast(
        path=task.job.path,
        shape=(grid.height, grid.width),
        blocks=blocks,
        all_blocks=-(-grid.height // BLOCK_PX) * -(-grid.width // BLOCK_PX),
        tiles=sum(left),
        all_tiles=len(tiles.tops) * len(tiles.lefts),
        done_tiles=sum(done),
        batch_s=batch_s,
        seconds=seconds,
        map_bytes=round(data_px * _bytes_a_pixel(task) * OVERVIEWS * OTHER_FILES),
        ledger_bytes=data_px * _bytes_a_pixel(task) + _spill_bytes(task, sum(map(bool, done + left))),
    )


def _tiles_of_lane(task: Task, lane: int) -> int:
    columns, row = task.plan.lanes.place(lane)
    return sum(map(len, occupied(task.plan.lanes.tiles, task.job, row, columns, task.plan.chunk_tiles)))


def _blocks(task: Task) -> int:
    """Return how many blocks of the map's file are not known to be empty."""
    return sum(not task.job.empty(block) for block in cells(task.job.grid.window, BLOCK_PX, BLOCK_PX))


def _bytes_a_pixel(task: Task) -> int:
    share = 2 if task.settings.probabilities == "float16" else 1
    shares = len(task.card.legend.names) * (task.settings.probabilities != "none") + task.settings.uncertainty
    classes = len(task.card.legend.names) if task.card.legend.overlapping else 1
    return classes + share * shares


def _spill_bytes(task: Task, lanes: int) -> int:
    """Return what so many lanes hand on to the next panel, at most."""
    tiles = task.plan.lanes.tiles
    return 4 * task.layers * lanes * tiles.stride * (tiles.tile_px - tiles.stride) * (len(task.plan.lanes.panels) > 1)
