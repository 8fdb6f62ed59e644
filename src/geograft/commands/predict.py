"""`geograft predict`: maps of rasters of any size, in constant memory; an interrupted job can be resumed."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geograft.config import PredictConfig
from geograft.errors import OutputError, SettingError
from geograft.files import StrPath, optional_path
from geograft.geo.grid import block_windows
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import map_legend
from geograft.geo.rasters.writer import BLOCK_PX
from geograft.geo.scene import RasterInput, to_inputs
from geograft.inference.predictor import EnsemblePredictor
from geograft.locations import Location, Place, to_place
from geograft.mapping.batches import nonempty_columns
from geograft.mapping.job import MapResult, usable_rasters, write_maps
from geograft.mapping.ledger import read_finished_strips
from geograft.mapping.models import RunModel
from geograft.mapping.plan import (
    MapTask,
    backend_for,
    band_order_notes,
    map_card,
    map_sources,
    origin,
    resolution_notes,
    time_batch,
)
from geograft.mapping.sums import Model
from geograft.mapping.unit_ledger import JOB, STATE
from geograft.outputs import bucket_output, local_path
from geograft.runs import to_runs
from geograft.text import html_table

PLOT_PX = 900
"""Longest side of the picture that `Prediction.plot` draws."""


@dataclass(frozen=True)
class Forecast:
    """Estimated cost of one map."""

    path: Path
    shape: tuple[int, int]
    """Rows and columns."""
    blocks: int
    """Blocks of the map's file that may contain data."""
    all_blocks: int
    tiles: int
    """Upper bound for the tiles left to predict: all that are not known to be empty."""
    all_tiles: int
    done_tiles: int
    """Tiles that an interrupted job predicted."""
    batch_s: float | None
    """Seconds that the model took for one batch of tiles; None if no tile has a valid pixel."""
    seconds: float
    """Upper bound for the time of all tiles left."""
    map_bytes: int
    """Upper bound for the size of the files: uncompressed, with overviews."""
    ledger_bytes: int
    """Upper bound for the size of the ledger until the files are complete."""

    def lines(self) -> list[str]:
        """Return the forecast as text."""
        left = f", {self.done_tiles:,} of them predicted earlier" if self.done_tiles else ""
        timed = f" (one batch took {self.batch_s:.2f} s)" if self.batch_s is not None else ""
        return [
            f"{self.path}: {self.shape[1]:,} x {self.shape[0]:,} pixels",
            f"  blocks   {self.blocks:,} of {self.all_blocks:,} may contain data",
            f"  tiles    at most {self.tiles:,} to predict, of {self.all_tiles:,} in total{left}",
            f"  time     at most about {format_seconds(self.seconds)}{timed}",
            f"  disk     at most {format_bytes(self.map_bytes)} of maps, and {format_bytes(self.ledger_bytes)} until "
            "they are complete; compression makes both much smaller",
        ]


@dataclass(frozen=True)
class Prediction:
    """The maps that `predict` wrote, or would write."""

    path: Place
    """The map, or the folder of maps."""
    maps: tuple[MapResult, ...]
    """Empty for a dry run."""
    notes: tuple[str, ...]
    """Warnings for the user, one line each."""
    forecasts: tuple[Forecast, ...] = ()
    """For a dry run: the estimated cost of each map."""
    model: str = ""
    """How pixels are predicted: backend, precision and windows."""
    failures: tuple[str, ...] = ()
    """With `keep_going`, why rasters were skipped, one line each."""

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        results = [line for part in self.maps for line in part.lines()]
        estimates = [line for part in self.forecasts for line in part.lines()]
        return (
            results
            + estimates
            + [f"predicted with {self.model}"]
            + [f"Note: {note}" for note in self.notes]
            + [f"skipped: {failure}" for failure in self.failures]
        )

    def plot(self, index: int = 0, ax: Any = None) -> Any:
        """Draw one of the maps in the colours of its classes; return the matplotlib Axes."""
        from geograft.dataset.thumbnails import map_thumbnail  # noqa: PLC0415  (imports matplotlib)
        from geograft.figures.style import draw_picture  # noqa: PLC0415

        path = self.maps[index].path
        with Image.open(path) as image:
            legend = map_legend(image.info)
            assert legend is not None, "a map has a legend"
            picture = map_thumbnail(image, legend, PLOT_PX)
        pairs = list(zip(legend.names, legend.colours, strict=True))
        return draw_picture(picture, path.name, dict(pairs[1:] if legend.binary else pairs), ax)

    def to_xarray(self, index: int = 0) -> Any:
        """Return one of the maps as an xarray DataArray (band, y, x), read lazily by rioxarray.

        `flag_values` and `flag_meanings` are the classes, by the CF conventions; of overlapping classes, `long_name`.

        Raises:
            SettingError: if rioxarray is not installed.
        """
        try:
            import rioxarray  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415  (an extra)
        except ImportError as error:
            raise SettingError("to_xarray needs rioxarray: pip install 'geograft[xarray]'.") from error

        with Image.open(self.maps[index].path) as image:
            legend = map_legend(image.info)
        found: Any = rioxarray.open_rasterio(self.maps[index].path)
        if legend and not legend.overlapping:
            names = " ".join(name.replace(" ", "_") for name in legend.names)
            found = found.assign_attrs(flag_values=list(legend.values), flag_meanings=names)
        return found.rename("class")

    def _repr_html_(self) -> str:
        rows = [("map", "pixels mapped", "classes")]
        for one in self.maps:
            classes = ", ".join(f"{name} {count / one.mapped_px:.1%}" for name, count in one.pixels.items())
            rows.append((str(one.path), f"{one.mapped_px:,}", classes or "finished earlier"))
        return html_table(self.model, rows, (*(line for f in self.forecasts for line in f.lines()), *self.notes))


def format_seconds(seconds: float) -> str:
    """Format a duration with one unit.

    >>> [format_seconds(s) for s in (0.4, 90, 9000, 400000)]
    ['1 s', '90 s', '2.5 h', '4.6 days']
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def format_bytes(count: int) -> str:
    """Format a number of bytes with one unit.

    >>> [format_bytes(n) for n in (900, 34_000_000, 10**11)]
    ['1 kB', '34 MB', '100 GB']
    """
    power, unit = next((p, u) for p, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= p or u == "kB")
    return f"{max(1, count / power):.3g} {unit}"


OVERVIEWS = 4 / 3
"""Size of a raster with overviews relative to one without."""
OTHER_FILES = 2
"""Copies of each file while it is written: a plain and a cloud-optimised one."""


def forecast_map(task: MapTask, model: Model) -> Forecast:
    """Estimate the cost of a map without writing anything.

    Counts the tiles that are not known to be empty, without reading them, and times the model on the first batch.

    Raises:
        InputError: if an interrupted job left a ledger of another model, raster or setting.
    """
    lanes, tiles = task.plan.lanes, task.plan.lanes.tiles
    done = [entry.tiles for entry in read_finished_strips(task.folder, task.origin, lanes)]
    with closing(task.source.mosaic):
        left = [_tiles_of_lane(task, lane) for lane in range(len(done), len(lanes))]
        batch_s = time_batch(model, task.first_batch())
        blocks = _blocks(task)
    seconds = -(-sum(left) // task.plan.batch_size) * (batch_s or 0.0)
    if task.applicability:
        from geograft.mapping.applicability import estimate_seconds  # noqa: PLC0415  (imports SciPy)

        seconds += estimate_seconds(task)
    grid = task.source.grid
    data_px = min(blocks * BLOCK_PX**2, grid.height * grid.width)
    return Forecast(
        path=task.source.path,
        shape=(grid.height, grid.width),
        blocks=blocks,
        all_blocks=-(-grid.height // BLOCK_PX) * -(-grid.width // BLOCK_PX),
        tiles=sum(left),
        all_tiles=len(tiles.tops) * len(tiles.lefts),
        done_tiles=sum(done),
        batch_s=batch_s,
        seconds=seconds,
        map_bytes=round(data_px * _bytes_per_pixel(task) * OVERVIEWS * OTHER_FILES),
        ledger_bytes=data_px * _bytes_per_pixel(task) + _carry_over_bytes(task, sum(map(bool, done + left))),
    )


def _tiles_of_lane(task: MapTask, lane: int) -> int:
    columns, row = task.plan.lanes.position(lane)
    return sum(map(len, nonempty_columns(task.plan.lanes.tiles, task.source, row, columns, task.plan.chunk_tiles)))


def _blocks(task: MapTask) -> int:
    """Return the number of blocks of the map's file that are not known to be empty."""
    return sum(not task.source.is_empty(block) for block in block_windows(task.source.grid.window, BLOCK_PX, BLOCK_PX))


def _bytes_per_pixel(task: MapTask) -> int:
    value_bytes = 2 if task.settings.probabilities == "float16" else 1
    values = len(task.card.legend.names) * (task.settings.probabilities != "none") + task.settings.uncertainty
    classes = len(task.card.legend.names) if task.card.legend.overlapping else 1
    return classes + value_bytes * values


def _carry_over_bytes(task: MapTask, lanes: int) -> int:
    """Return an upper bound for the bytes that `lanes` lanes carry over to the next panel."""
    tiles = task.plan.lanes.tiles
    return 4 * task.layers * lanes * tiles.stride * (tiles.tile_px - tiles.stride) * (len(task.plan.lanes.panels) > 1)


def predict(
    run: StrPath | Sequence[StrPath],
    rasters: StrPath | RasterInput | Sequence[StrPath | RasterInput],
    out: StrPath,
    config: PredictConfig | None = None,
    aoi: StrPath | None = None,
    dry_run: bool = False,
) -> Prediction:
    """Write the class map of `rasters` as a Cloud-Optimised GeoTIFF.

    The probabilities and thresholds of several runs are averaged, with tiles of their largest size: the map does not
    depend on the order of the runs. If `out` is a .tif, all rasters become one map: they must share one grid, and where
    they overlap, the first valid pixel is used. Otherwise `out` is a folder with one map per raster, named after it.
    MAP.probabilities.tif, MAP.uncertainty.tif and MAP.applicability.tif (of the first run) are written next to MAP.tif
    on request. Finished strips are stored in the folder .MAP.part until the map is complete: after an interruption the
    same call resumes from them, and the result is identical to the bit.

    `aoi` is a vector file: only pixels inside its polygons are mapped, and only blocks that intersect them are read.
    With `dry_run` nothing is written, and the cost is estimated.

    Invalid pixels are replaced by the mean of each band before prediction, and the raster is mirrored beyond its
    borders. Invalid pixels and pixels outside `aoi` are 255 in the map. Uncertainty ranges from 0 to 1: for one run the
    entropy of the class probabilities divided by its maximum; for several runs twice the standard deviation of their
    probabilities, of the class where it is largest.

    `rasters` and runs may be addresses (https://, s3://, gs://, az://), and `out` one in a bucket: the map is then
    written on this machine and put there when it is complete (see `geograft.outputs`).

    Memory does not depend on the size of the raster, apart from GDAL's block cache (`GDAL_CACHEMAX`; the command line
    sets it to 64 MB, the library leaves it as it is).

    Raises:
        InputError: if a run cannot be used; if a raster does not fit it, cannot be read, has no valid pixel or changes
            while it is read; if an interrupted job left a ledger of another model, raster or setting.
        SettingError: if the device or the backend is not available, or the thresholds do not fit the classes.
        OutputError: if a map exists already or cannot be written.
    """
    place = to_place(out)
    if isinstance(place, Location) and config and config.keep_going:
        raise SettingError("--keep-going needs a local folder as --out: what is in a bucket is complete.")
    if isinstance(place, Location) and not dry_run:
        with bucket_output(place) as local:
            return _moved(predict(run, rasters, local, config, aoi), local, place)
    rasters, aoi = to_inputs(rasters), optional_path(aoi)
    out = local_path(place) if isinstance(place, Location) else place
    settings = config or PredictConfig()
    runs = to_runs(run)
    _refuse_workers_folder(out)
    card = map_card(runs, settings)
    failures: list[str] | None = [] if settings.keep_going else None
    if failures is not None:
        rasters = usable_rasters(card, rasters, out, settings, failures)
    tasks = [MapTask(source, runs, card, settings) for source in map_sources(card, rasters, out, settings, aoi)]
    if settings.applicability:
        from geograft.mapping.applicability import check_training_features  # noqa: PLC0415  (imports SciPy)

        check_training_features(runs[0])
    models = _load_models(tasks)
    tasks = [_with_origin(task, model) for task, model in _with_models(tasks, models)]
    own = (note for model in models.values() for note in model.notes)
    by_task = (note for task in tasks for note in task_notes(task))
    notes = tuple(dict.fromkeys((*own, *by_task)))
    words = "; ".join(dict.fromkeys(describe_model(task, models[task.window[0]]) for task in tasks))
    if dry_run:
        return Prediction(out, (), notes, tuple(forecast_map(*pair) for pair in _with_models(tasks, models)), words)
    maps = write_maps(_with_models(tasks, models), out, failures)
    notes = (*notes, *(note for result in maps for note in result.notes))
    return Prediction(out, maps, notes, model=words, failures=tuple(failures or ()))


def load_task(task: MapTask, backend: Any) -> tuple[MapTask, EnsemblePredictor]:
    """Return a task with its origin, and its predictor for a backend."""
    options = {"compile": task.settings.compile, "spread": task.has_std_layer}
    model = RunModel.open(task.runs, task.settings, **options).with_backend(backend)
    predictor = model.predictor(task.window[0], task.plan.batch_size, task.sample_windows)
    return _with_origin(task, predictor), predictor


def _moved(prediction: Prediction, local: Path, place: Location) -> Prediction:
    """Return a prediction with the addresses of its files in place of their local paths."""

    def move(path: Place | None) -> Place | None:
        return place.parent / path.relative_to(local.parent).as_posix() if isinstance(path, Path) else path

    names = ("path", "probabilities", "uncertainty", "applicability")
    moved: list[dict[str, Any]] = [{name: move(getattr(one, name)) for name in names} for one in prediction.maps]
    maps = tuple(replace(one, **changes) for one, changes in zip(prediction.maps, moved, strict=True))
    notes = tuple(note.replace(str(local), str(place)) for note in prediction.notes)
    return replace(prediction, path=place, maps=maps, notes=notes)


def describe_model(task: MapTask, model: EnsemblePredictor) -> str:
    """Return the backend, the precision and the windows of a map in words."""
    size, overlap = task.window
    return f"{model.backend} in {task.precision}, windows of {size} pixels that overlap by {overlap}"


def _refuse_workers_folder(out: Path) -> None:
    """Raise OutputError if workers share the folder `out`: a job of one process would write among their files."""
    if (out / JOB).is_file() and (out / STATE).is_dir():
        raise OutputError(f"{out} is a job of workers. Add --worker to take part in it, or choose another --out.")


def _load_models(tasks: Sequence[MapTask]) -> dict[int, EnsemblePredictor]:
    """Return the predictors by the size of their windows.

    Backends are compared on the first windows of the first map of each size.
    """
    by_size: dict[int, list[MapTask]] = {}
    for task in tasks:
        by_size.setdefault(task.window[0], []).append(task)
    return {size: _load_model(size, mine) for size, mine in by_size.items()}


def _load_model(size: int, tasks: Sequence[MapTask]) -> EnsemblePredictor:
    first, settings = tasks[0], tasks[0].settings
    model = RunModel.open(first.runs, settings, compile=settings.compile, spread=first.has_std_layer)
    return model.with_backend(backend_for(tasks)).predictor(size, first.plan.batch_size, first.sample_windows)


def task_notes(task: MapTask) -> list[str]:
    """Return warnings about the resolution of the raster and the order of its bands, one line each."""
    # With --bands, the user chose the order.
    in_order = [] if task.settings.bands else band_order_notes(task.source, task.card)
    return [*resolution_notes(task), *in_order]


def _with_origin(task: MapTask, model: EnsemblePredictor) -> MapTask:
    half = model.precision != "float32"
    words = f"{model.precision}, probabilities within {model.difference:.2g} of float32's on the first windows"
    found = origin(task, model.backend, model.precision)
    return replace(task, origin=found, precision=words if half else model.precision)


def _with_models(
    tasks: Sequence[MapTask], models: Mapping[int, EnsemblePredictor]
) -> list[tuple[MapTask, EnsemblePredictor]]:
    return [(task, models[task.window[0]]) for task in tasks]
