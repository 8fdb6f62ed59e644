"""`geograft predict`: maps from runs and rasters of any size, in constant memory; a killed job goes on where it was."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geograft.card import read_card
from geograft.config import PredictConfig
from geograft.learn.using.inference import Mapper
from geograft.verbs.predict.applicability import check_known
from geograft.verbs.predict.forecast import forecast
from geograft.verbs.predict.job import made_before, make
from geograft.verbs.predict.origin import backend_for, origin
from geograft.verbs.predict.plan import Task, notes, planned
from geograft.verbs.predict.result import Prediction

__all__ = ["Prediction", "predict"]


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
