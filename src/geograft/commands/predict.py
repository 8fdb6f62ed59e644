"""`geograft predict`: maps from runs and rasters of any size, in constant memory; a killed job goes on where it was.

What `geograft predict` returns, and how it reads.

`--dry-run`: how much there is to do for a map, and how long it will take.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geograft.card import read_card
from geograft.config import PredictConfig
from geograft.geo.grid import cells
from geograft.geo.rasters.writer import BLOCK_PX
from geograft.inference.predictor import Mapper
from geograft.mapping.applicability import batch_seconds, check_known, seconds_of
from geograft.mapping.batches import occupied
from geograft.mapping.blend import Model
from geograft.mapping.job import MadeMap, made_before, make
from geograft.mapping.ledger import finished
from geograft.mapping.plan import Task, backend_for, notes, origin, planned


@dataclass(frozen=True)
class Forecast:
    """What making one map will take."""

    path: Path
    shape: tuple[int, int]
    """Rows and columns."""
    blocks: int
    """Blocks of the map's file that may hold data."""
    all_blocks: int
    tiles: int
    """Tiles left to compute, at most: without those that are known to be empty unread."""
    all_tiles: int
    done_tiles: int
    """Tiles that a killed job computed."""
    batch_s: float | None
    """Time that the model took for one batch of real tiles; None when no tile has a valid pixel."""
    seconds: float
    """Time for all tiles left, at most: as many batches, each as long."""
    map_bytes: int
    """Size of the files to be written, at most: not compressed, with overviews."""
    ledger_bytes: int
    """Size of the finished strips beside them until all is written, at most."""

    def lines(self) -> list[str]:
        """Return the forecast as text."""
        left = f", {self.done_tiles:,} of them computed before" if self.done_tiles else ""
        timed = f" (by one batch, which took {self.batch_s:.2f} s)" if self.batch_s is not None else ""
        return [
            f"{self.path}: {self.shape[1]:,} x {self.shape[0]:,} pixels",
            f"  blocks   {self.blocks:,} of {self.all_blocks:,} may hold data",
            f"  tiles    at most {self.tiles:,} to compute, of {self.all_tiles:,} in all{left}",
            f"  time     at most about {duration(self.seconds)}{timed}",
            f"  disk     at most {size(self.map_bytes)} of maps, and {size(self.ledger_bytes)} until they are whole; "
            "compressed, both become much smaller",
        ]


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote, or would write."""

    path: Path
    """The map, or the folder of maps."""
    maps: tuple[MadeMap, ...]
    """None for a dry run."""
    notes: tuple[str, ...]
    """What the user should know about the result, a line each."""
    forecasts: tuple[Forecast, ...] = ()
    """For a dry run: what each map will take."""

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        made = [line for part in self.maps for line in part.lines()]
        planned = [line for part in self.forecasts for line in part.lines()]
        return made + planned + [f"Note: {note}" for note in self.notes]


def duration(seconds: float) -> str:
    """Return a time in words of one unit.

    >>> [duration(s) for s in (0.4, 90, 9000, 400000)]
    ['1 s', '90 s', '2.5 h', '4.6 days']
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(count: int) -> str:
    """Return a number of bytes in words of one unit.

    >>> [size(n) for n in (900, 34_000_000, 10**11)]
    ['1 kB', '34 MB', '100 GB']
    """
    power, unit = next((p, u) for p, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= p or u == "kB")
    return f"{max(1, count / power):.3g} {unit}"


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


def predict(
    run: Path | Sequence[Path],
    rasters: Sequence[Path],
    out: Path,
    config: PredictConfig | None = None,
    aoi: Path | None = None,
    dry_run: bool = False,
) -> Prediction:
    """Write the class map of `rasters` as a Cloud-Optimised GeoTIFF and say what is in it.

    Several runs are averaged. With `out` a .tif, all rasters become one map; they must lie on one grid, and where they
    overlap the first valid pixel counts. Otherwise `out` is a folder with one map a raster, under the raster's name.
    Beside MAP.tif come MAP.probabilities.tif, MAP.uncertainty.tif and MAP.applicability.tif (of the first run), when
    asked for, and, until all is written, the folder .MAP.part with what is finished: after a kill the same call goes on
    from there and ends with the same bytes.
    `aoi` is a vector file: only what its polygons cover is mapped, and only blocks that they touch are read. With
    `dry_run` nothing is written: the result says how much there is to do, and how long it will take.

    The network sees the mean of each band in pixels that are not valid and the raster mirrored beyond its borders; what
    the file holds under nodata decides nothing. Such pixels are 255 in the map, as is all outside `aoi`. Uncertainty
    goes from 0 to 1: the entropy of the class probabilities divided by that of equal ones; with several runs twice the
    standard deviation of their probabilities, of the class where they differ most.

    Memory depends neither on the raster's height nor on its width.

    Raises:
        InputError: when a run cannot be used; when a raster does not fit it, cannot be read, has no valid pixel or
            changes while it is read; when what a killed job left belongs to another model, raster or setting.
        SettingError: for a device or a backend that is not there.
        OutputError: when a map exists already or cannot be written.
    """
    settings = config or PredictConfig()
    runs = (run,) if isinstance(run, Path) else tuple(run)
    card = read_card(runs[0])
    tasks = [Task(job, runs, card, settings) for job in planned(card, rasters, out, settings, aoi)]
    if settings.applicability:
        check_known(runs[0])
    mapper = Mapper.load(runs, **_options(tasks))
    tasks = [replace(task, origin=origin(task, mapper.backend)) for task in tasks]
    said = (*mapper.notes, *(note for task in tasks for note in notes(task)))
    if dry_run:
        return Prediction(out, (), said, tuple(forecast(task, mapper) for task in tasks))
    before = [made_before(task, alone=task.job.path == out) for task in tasks]
    maps = tuple(done or make(task, mapper) for task, done in zip(tasks, before, strict=True))
    return Prediction(out, maps, (*said, *(note for made in maps for note in made.notes)))


def _options(tasks: Sequence[Task]) -> dict[str, Any]:
    """Return how what computes all maps is loaded. Backends are compared on the first map's first tiles."""
    first, settings = tasks[0], tasks[0].settings
    batch = first.first_batch()
    return {
        "device": settings.device,
        "backend": backend_for(tasks),
        "batch_size": settings.batch_size,
        "tta": settings.tta,
        "compile": settings.compile,
        "spread": first.spread,
        **({"sample": (batch.pixels, batch.valid)} if batch else {}),
    }
