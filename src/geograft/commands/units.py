"""Commands whose work several processes share, on one machine or many; see docs/scale.md.

A job (`UnitJob`) is what the user asked for. It can be pickled; each process joins it, which gives a `Worker`, computes
units, and when all are done, makes one result of them.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypedDict, TypeVar, Unpack, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from geograft.commands.evaluate import scores_of, with_context
from geograft.commands.polygons import PolygonSummary, map_place, open_task
from geograft.commands.predict import describe_model, load_task, task_notes
from geograft.commands.suggest import FILE, SuggestJob, UnitsSuggestions
from geograft.config import EvaluateConfig, PartConfig, PolygonConfig, PredictConfig, SuggestConfig, WorkerConfig
from geograft.dataset.joined import open_run_tiles
from geograft.dataset.tileset import Split
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, file_digest, optional_path, scratch_path, to_json
from geograft.geo.rasters.opening import raster_state
from geograft.geo.scene import RasterInput, to_inputs
from geograft.locations import Location, Place, to_place, to_places
from geograft.locks import lock_output
from geograft.mapping.map_units import MapUnitWriter, propose_map
from geograft.mapping.models import RunModel
from geograft.mapping.plan import MapTask, map_card, map_sources
from geograft.mapping.polygons.joins import OutlineFiles, gather_polygons
from geograft.mapping.polygons.units import PolygonUnitWriter, plan_polygon_units, propose_polygons
from geograft.mapping.score_units import ScoreTask, ScoreUnitWriter, notes_of_job, propose_scores
from geograft.mapping.unit_ledger import RESULT, STATE
from geograft.mapping.unit_outputs import MAP_NAME, Summary, check_one_file, write_unit_outputs
from geograft.mapping.units import JoinTree
from geograft.mapping.worker import Proposal, Worker, check_done, check_file_name, join_job
from geograft.runs import to_runs

Result_co = TypeVar("Result_co", covariant=True)


@runtime_checkable
class UnitJob(Protocol[Result_co]):
    """A job whose units any number of processes compute. It can be pickled."""

    @property
    def out(self) -> Place:
        """The folder or bucket that the processes share."""

    @property
    def worker(self) -> PartConfig:
        """How this process takes part."""

    @property
    def uses_gpu(self) -> bool:
        """Whether units are computed on a GPU where there is one."""

    def join(self) -> Worker[Any]:
        """Join the job, or start it if there is none in `out`. Loads what the units need, such as the network.

        Raises:
            GeograftError: as `geograft.mapping.worker.join_job`, and what the command raises for its inputs.
        """

    def finish(self, worker: Worker[Any]) -> Result_co:
        """Make one result of the units, which are all done, unless another process has; return it."""


def run_job(job: UnitJob[Result_co]) -> Result_co:
    """Take part in a job until all of its units are done, or let a Ray cluster compute them, and return the result.

    Raises:
        InputError: if units failed.
        SettingError: if the cluster cannot be reached or used.
        GeograftError: as `UnitJob.join`, `Worker.run` and `UnitJob.finish`.
    """
    with lock_output(Path(str(job.out)), enabled=isinstance(job.out, Path), shared=True):
        if job.worker.ray:
            from geograft.mapping.ray_workers import run_on_ray  # noqa: PLC0415  (an extra)

            if job.worker.part:
                raise SettingError("--part is for workers that start by themselves. Omit it with --ray.")
            return run_on_ray(job.worker.ray, job.out, job.join, job.finish, job.uses_gpu)
        worker = job.join()
        check_done(worker.ledger, worker.run(), len(worker.job.units))
        return job.finish(worker)


# ---------------------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class UnitsPrediction:
    """What a worker did, and the state of its job when it ended."""

    path: Path | Location
    """The folder or bucket of the job."""
    units: int
    done: int
    """Units that are finished, by all workers."""
    computed: int
    """Units that this worker has finished."""
    summary: Summary
    """Counts of the map."""
    outputs: tuple[Path | Location, ...]
    """The files of the whole map."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, one line each."""
    model: str = ""
    """How pixels are predicted: backend, precision and windows."""

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        total, counts = max(self.summary.pixels, 1), self.summary.classes
        width = max(map(len, counts), default=0)
        classes = [f"  {name:{width}} {count / total:7.1%}" for name, count in counts.items()]
        return [
            f"{self.path}: {self.done:,} of {self.units:,} units are done, {self.computed:,} of them by this command",
            *classes,
            *(f"{path}" for path in self.outputs),
            f"predicted with {self.model}",
            *(f"Note: {note}" for note in self.notes),
        ]


@dataclass(frozen=True)
class MapJob:
    """One map, by several processes; see `predict_units`."""

    runs: tuple[Place, ...]
    rasters: tuple[RasterInput, ...]
    out: Place
    config: PredictConfig = field(default_factory=PredictConfig)
    aoi: Path | None = None
    worker: WorkerConfig = field(default_factory=WorkerConfig)

    @property
    def uses_gpu(self) -> bool:
        """Whether units are computed on a GPU where there is one."""
        return self.config.device != "cpu"

    def join(self) -> Worker[MapUnitWriter]:
        """Join the job, or start it: see `UnitJob`."""
        runs = to_runs(self.runs)
        card = map_card(runs, self.config)
        path = self.out / MAP_NAME if isinstance(self.out, Path) else Path(MAP_NAME)
        (source,) = map_sources(card, self.rasters, path, self.config, self.aoi)
        if self.worker.one_file:
            check_one_file(source.grid)
        task = MapTask(source, runs, card, self.config)

        def propose(backend: str) -> Proposal[MapUnitWriter]:
            return propose_map(*load_task(task, backend))

        return join_job(self.out, "predict", propose, self.worker, self.config.backend)

    def finish(self, worker: Worker[MapUnitWriter]) -> UnitsPrediction:
        """Write the indices, and with `one_file` the single file."""
        task, model = worker.writer.task, worker.writer.model
        summary, outputs = write_unit_outputs(worker.ledger, worker.job, task, self.worker.one_file)
        notes = tuple(dict.fromkeys((*model.notes, *task_notes(task))))
        units = len(worker.job.units)
        return UnitsPrediction(
            self.out, units, units, len(worker.computed), summary, outputs, notes, describe_model(task, model)
        )


def predict_units(
    run: StrPath | Sequence[StrPath],
    rasters: StrPath | RasterInput | Sequence[StrPath | RasterInput],
    out: StrPath,
    config: PredictConfig | None = None,
    aoi: StrPath | None = None,
    worker: WorkerConfig | None = None,
) -> UnitsPrediction:
    """Take part in the computation of one map by several processes, on one machine or many; see docs/scale.md.

    All of them call this with the same arguments. The map is divided into units, squares of whole blocks, which do not
    depend on the number of workers; each is a Cloud-Optimised GeoTIFF in OUT/units. `out` is a folder that the workers
    share, or a bucket. All rasters become one map, as with `predict` and a .tif. Returns when all units are done or
    have failed; the units of workers that were killed are computed by the others.

    On a CPU the units have the pixels of the map that `predict` writes, to the bit.

    Raises:
        InputError: as `predict`; if units failed, or the job has other inputs or settings.
        SettingError: as `predict`; if this worker's hardware or libraries differ from the first one's, and `worker` has
            no tolerance for that.
        OutputError: if the folder cannot be written, has other files, or the job was stopped, because two workers
            computed different pixels or a raster has changed.
    """
    settings, options = config or PredictConfig(), worker or WorkerConfig()
    job = MapJob(to_places(run), to_inputs(rasters), to_place(out), settings, optional_path(aoi), options)
    return run_job(job)


# ------------------------------------------------------------------------------------------------------------ polygons


@dataclass(frozen=True)
class UnitsPolygons:
    """What a worker did, and the polygons of all units."""

    path: Place
    """The folder or bucket of the job."""
    units: int
    computed: int
    """Units that this worker has traced or joined."""
    written: bool
    """Whether this worker has written the file."""
    summary: PolygonSummary

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        own = f"{self.computed:,} of them by this command" + (", which wrote the file" if self.written else "")
        return [f"{self.path}: {self.units:,} of {self.units:,} units and joins are done, {own}", *self.summary.lines()]


@dataclass(frozen=True)
class PolygonJob:
    """The polygons of one class map, by several processes; see `polygon_units`.

    Raises:
        SettingError: if `file` is not a plain name.
    """

    map: Place
    out: Place
    config: PolygonConfig = field(default_factory=PolygonConfig)
    dstl_grid: Path | None = None
    file: str = "polygons.gpkg"
    worker: PartConfig = field(default_factory=PartConfig)

    def __post_init__(self) -> None:
        check_file_name(self.file)

    @property
    def uses_gpu(self) -> bool:
        """Whether units are computed on a GPU where there is one."""
        return False

    def join(self) -> Worker[PolygonUnitWriter]:
        """Join the job, or start it: see `UnitJob`."""
        with ExitStack() as files:
            task = open_task(self.map, self._path(Path()), self.config, self.dstl_grid, files)
            grid = {"dstl_grid": file_digest(self.dstl_grid)} if self.dstl_grid else {}
            states = tuple((place, raster_state(place)) for place in task.class_map.places)
            units = JoinTree(plan_polygon_units(task.target.grid))
            writer = PolygonUnitWriter(self.map, self.out, task.builder, task.class_map.layer_count, units, states)
            origin = task.origin() | {"file": self.file, **grid}
        return join_job(self.out, "polygons", lambda _: propose_polygons(writer, origin), self.worker)

    def finish(self, worker: Worker[PolygonUnitWriter]) -> UnitsPolygons:
        """Write the file of all polygons, or wait until another worker has."""
        found, written = worker.make_result(partial(self._gather, worker))
        units = len(worker.job.units)
        return UnitsPolygons(self.out, units, len(worker.computed), written, self._summary(found))

    def _gather(self, worker: Worker[PolygonUnitWriter]) -> dict[str, Any]:
        local = isinstance(self.out, Path)
        with TemporaryDirectory(prefix="geograft-polygons-") as folder, ExitStack() as files:
            out = self._path(Path(folder))
            files.enter_context(lock_output(out, enabled=local))
            task = open_task(self.map, out, self.config, self.dstl_grid, files)
            outlines = OutlineFiles(worker.ledger, worker.writer.units, Path(folder))
            summary = task.write(scratch_path(out), partial(gather_polygons, outlines, task.builder))
            if not local:
                worker.ledger.files.put(self.file, out)
        return {name: value for name, value in asdict(summary).items() if name != "path"}

    def _path(self, folder: Path) -> Path:
        """Return where the file is written on this machine; in `folder` if it is then put into a bucket."""
        return (self.out if isinstance(self.out, Path) else folder) / self.file

    def _summary(self, found: Mapping[str, Any]) -> PolygonSummary:
        try:
            summary: PolygonSummary = TypeAdapter(PolygonSummary).validate_python(
                {**found, "path": self.out / self.file}
            )
        except ValidationError as error:
            path = f"{self.out}/{STATE}/{RESULT}.done.json"
            raise InputError(f"{path} is corrupt. Remove it to write the file again.") from error
        return summary


def polygon_units(
    map: StrPath | Location,  # noqa: A002 (the word of `polygons`)
    out: StrPath,
    config: PolygonConfig | None = None,
    dstl_grid: StrPath | None = None,
    file: str = "polygons.gpkg",
    worker: PartConfig | None = None,
) -> UnitsPolygons:
    """Take part in polygonizing one class map by several processes, on one machine or many; see docs/scale.md.

    All of them call this with the same arguments. Each traces units, squares of whole blocks, and joins those that are
    done two by two, up to the whole map. One of them then writes OUT/`file`, whose suffix selects the format as in
    `polygons`. `out` is a folder that the processes share, or a bucket. `map` may also be the folder of a map that
    workers have computed. The polygons are those that `polygons` writes for the whole map, to the bit: the same order,
    outlines and attributes.

    Raises:
        InputError: as `polygons`; if units failed, or the job is of another command, or has other inputs or settings.
        SettingError: as `polygons`; if this worker's hardware or libraries differ from the first one's, and `worker`
            has no tolerance.
        OutputError: as `polygons`; if the folder has other files, or the job was stopped.
    """
    place, settings, options = map_place(map), config or PolygonConfig(), worker or PartConfig()
    return run_job(PolygonJob(place, to_place(out), settings, optional_path(dstl_grid), file, options))


# --------------------------------------------------------------------------------------------------------- suggestions


class SuggestOptions(TypedDict, total=False):
    """Options of `suggest_units` beside those of all commands: `known` and `aoi` as in `suggest`."""

    known: StrPath | None
    aoi: StrPath | None
    file: str
    """Name of the file in the folder; by default suggestions.gpkg."""


def suggest_units(
    run: StrPath | Sequence[StrPath],
    rasters: StrPath | RasterInput | Sequence[StrPath | RasterInput],
    out: StrPath,
    config: SuggestConfig | None = None,
    worker: PartConfig | None = None,
    **options: Unpack[SuggestOptions],
) -> UnitsSuggestions:
    """Take part in choosing the tiles to label next by several processes, on one machine or many; see docs/scale.md.

    All of them call this with the same arguments. Each collects the candidates of units, squares of whole tiles of the
    rasters, and one merges them and writes OUT/suggestions.gpkg. `out` is a folder that the processes share, or a
    bucket. On a CPU the file has the bytes that `suggest` writes in one process.

    Raises:
        InputError: as `suggest`; if units failed, or the job is of another command, or has other inputs or settings.
        SettingError: as `suggest`; if this worker's hardware or libraries differ from the first one's, and `worker`
            has no tolerance for that.
        OutputError: as `suggest`; if the folder has other files, or the job was stopped, because two workers computed
            different candidates.
    """
    known, aoi = optional_path(options.get("known")), optional_path(options.get("aoi"))
    shared = (to_places(run), to_inputs(rasters), to_place(out), config or SuggestConfig(), known, aoi)
    return run_job(SuggestJob(*shared, options.get("file", FILE), worker or PartConfig()))


# -------------------------------------------------------------------------------------------------------------- scores

SCORES = "scores.json"


@dataclass(frozen=True)
class UnitsScores:
    """What a worker did, and the scores of all units."""

    path: Place
    """The folder or bucket of the job."""
    units: int
    computed: int
    """Units that this worker has counted."""
    joined: bool
    """Whether this worker has joined the units."""
    scores: Mapping[str, Any]
    """The content of OUT/scores.json."""
    text: tuple[str, ...]
    """The scores as text, as `geograft evaluate` prints them."""

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        own = f"{self.computed:,} of them by this command" + (", which joined them" if self.joined else "")
        return [f"{self.path}: {self.units:,} of {self.units:,} units are done, {own}", *self.text]


@dataclass(frozen=True)
class ScoreJob:
    """The scores of one split, by several processes; see `evaluate_units`."""

    runs: tuple[Place, ...]
    out: Place
    split: Split = "test"
    tiles: Path | None = None
    config: EvaluateConfig = field(default_factory=EvaluateConfig)
    worker: PartConfig = field(default_factory=PartConfig)

    @property
    def uses_gpu(self) -> bool:
        """Whether units are computed on a GPU where there is one."""
        return self.config.device != "cpu"

    def join(self) -> Worker[ScoreUnitWriter]:
        """Join the job, or start it: see `UnitJob`."""
        runs = to_runs(self.runs)
        tile_set = open_run_tiles(runs[0], self.tiles)

        def propose(backend: Any) -> Proposal[ScoreUnitWriter]:
            model = RunModel.open(runs, self.config).with_backend(backend)
            return propose_scores(ScoreTask.plan(model, tile_set, self.split, self.config))

        return join_job(self.out, "evaluate", propose, self.worker, self.config.backend)

    def finish(self, worker: Worker[ScoreUnitWriter]) -> UnitsScores:
        """Join the units and write the scores, or wait until another worker has."""
        found, joined = worker.make_result(partial(self._write, worker))
        try:
            content = TypeAdapter(dict[str, Any]).validate_json(worker.ledger.files.get(SCORES))
            text = TypeAdapter(tuple[str, ...]).validate_python(found.get("text"))
        except (FileNotFoundError, ValidationError) as error:
            path = f"{self.out}/{STATE}/{RESULT}.done.json"
            raise InputError(f"{path} or {SCORES} is corrupt. Remove the former to join the units again.") from error
        return UnitsScores(self.out, len(worker.job.units), len(worker.computed), joined, content, text)

    def _write(self, worker: Worker[ScoreUnitWriter]) -> dict[str, Any]:
        task, notes = worker.writer.task, notes_of_job(worker.ledger, worker.job)
        with TemporaryDirectory(prefix="geograft-scores-") as folder:
            counts = worker.writer.join(worker.ledger, Path(folder))
        result = with_context(scores_of(task, counts, notes), task.tile_set)
        worker.ledger.files.put(SCORES, to_json(result.content(Path(SCORES).stem)).encode())
        return {"text": result.lines()}


def evaluate_units(
    run: StrPath | Sequence[StrPath],
    out: StrPath,
    split: Split = "test",
    tiles: StrPath | None = None,
    config: EvaluateConfig | None = None,
    worker: PartConfig | None = None,
) -> UnitsScores:
    """Take part in scoring a run on one split by several processes, on one machine or many; see docs/scale.md.

    All of them call this with the same arguments. Each counts units, some blocks or scenes of the tile set, and one
    joins them and writes OUT/scores.json. `out` is a folder that the processes share, or a bucket. On a CPU the file
    has the bytes that `evaluate` writes with `out` = scores.json.

    Raises:
        InputError: as `evaluate`; if units failed, or the job is of another command, or has other inputs or settings.
        SettingError: as `evaluate`; if this worker's hardware or libraries differ from the first one's, and `worker`
            has no tolerance for that.
        OutputError: if the folder has other files, or the job was stopped, because two workers counted differently or
            the tile set has changed.
    """
    places, settings = to_places(run), config or EvaluateConfig()
    return run_job(ScoreJob(places, to_place(out), split, optional_path(tiles), settings, worker or PartConfig()))
