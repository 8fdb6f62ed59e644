"""`geograft suggest`: choose the tiles to label next (active learning).

Tiles are ranked by how much of the runs' uncertainty they cover, after a few random ones where the run has no labels
yet, and written as a styled layer for a GIS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy import ndarray
from pydantic import TypeAdapter

from geograft.card import FEATURES_FILE, ModelCard, read_card
from geograft.config import PartConfig, PredictConfig, SuggestConfig
from geograft.dataset.joined import check_fit, open_run_tiles
from geograft.dataset.tileset import META, TileSet
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import StrPath, file_digest, optional_path, refuse_existing
from geograft.geo.grid import Grid
from geograft.geo.measure import resolution_m
from geograft.geo.scene import RasterInput, place_of, to_inputs
from geograft.geo.vectors.reader import Features, read_frame
from geograft.geo.vectors.styles import FieldForm, ranked_style
from geograft.geo.vectors.writer import Layer, tile_outlines, write_polygons
from geograft.inference.embedding import load_cell_encoder
from geograft.locations import Place
from geograft.locks import lock_output
from geograft.mapping.plan import (
    MapSource,
    band_order_notes,
    map_sources,
    resolution_note,
    runs_origin,
    tile_set_band_notes,
)
from geograft.mapping.pool import (
    Embedder,
    Pool,
    PoolRaster,
    Suggestion,
    collect_candidates,
    draw_first,
    labelled_area,
    load_pool_model,
    no_candidate_error,
    rank_candidates,
)
from geograft.mapping.pool_units import PoolUnitWriter, merge_units, propose_pool
from geograft.mapping.unit_ledger import RESULT, STATE
from geograft.mapping.worker import Proposal, Worker, check_file_name, join_job
from geograft.metrics.applicability import Applicability
from geograft.outputs import local_file, writes_output
from geograft.runs import run_file, run_file_digest, to_runs
from geograft.text import format_table, html_table, pluralise

NEW_PLACE_TILES = 5
"""Random tiles with which the suggestions for a place without labels begin."""
PRINTED_ROWS = 10
"""Number of suggestions that are printed; the file has all."""
HEADER = ("rank", "origin", "score", "uncertainty", "dissimilarity", "row", "col", "raster")


@dataclass(frozen=True)
class Suggestions:
    """The result of `suggest`."""

    path: Place
    rasters: tuple[Place, ...]
    tiles: tuple[Suggestion, ...]
    """Suggestions in the order in which to label them."""
    unlabelled_tiles: int
    """Number of unlabelled tiles considered."""
    labelled_tiles: int
    """Number of tiles skipped because they are already labelled."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the summary that the command line prints: the first suggestions as a table, and notes."""
        tiles = pluralise(len(self.tiles), "tile")
        random = sum(one.origin == "random" for one in self.tiles)
        return [
            f"{self.path}: {tiles} to label, of {self.unlabelled_tiles:,} unlabelled"
            + (f" ({self.labelled_tiles:,} are labelled)" if self.labelled_tiles else ""),
            *format_table([HEADER, *map(self._cells, self._top)]),
            *([f"and {len(self.tiles) - PRINTED_ROWS:,} more"] if len(self.tiles) > PRINTED_ROWS else []),
            *([_random_line(random, len(self.tiles))] if random else []),
            f"Together they cover {sum(one.score for one in self.tiles):.0%} of the run's uncertainty.",
            *(f"Note: {note}" for note in self.notes),
        ]

    def to_geodataframe(self) -> Any:
        """Return the suggested tiles as a GeoDataFrame, in the order in which to label them."""
        return read_frame(local_file(self.path))

    def _repr_html_(self) -> str:
        return html_table(str(self.path), [HEADER, *map(self._cells, self._top)], self.notes)

    @property
    def _top(self) -> tuple[Suggestion, ...]:
        return self.tiles[:PRINTED_ROWS]

    def _cells(self, one: Suggestion) -> tuple[str, ...]:
        dissimilarity = "" if one.dissimilarity is None else f"{one.dissimilarity:.2f}"
        numbers = (
            f"{one.score:.1%}",
            f"{one.uncertainty:.3f}",
            dissimilarity,
            f"{one.window.row:,}",
            f"{one.window.col:,}",
        )
        return (str(one.rank), one.origin, *numbers, self.rasters[one.raster].name)


def _random_line(random: int, tiles: int) -> str:
    first = "All are" if random == tiles else f"The first {random} are" if random > 1 else "The first is"
    return (
        f"{first} drawn at random, every tile with the same probability: thresholds (geograft calibrate --place-tiles) "
        "and scores from them are unbiased."
    )


LAYER = "suggestions"
ALIASES = {
    "rank": "Order in which to label",
    "role": "Role of the area once it is labelled",
    "origin": "Drawn at random or suggested",
    "labelled": "Everything inside is labelled",
    "scene": "Name of the raster",
    "score": "Fraction of the uncertainty covered in addition",
    "uncertainty": "Mean uncertainty, 0 to 1",
    "dissimilarity": "Dissimilarity to the training data, outside above 1",
    "row": "First row",
    "col": "First column",
}
"""The fields in words."""


def check_suffix(path: Path) -> None:
    """Raise OutputError unless `path` is a GeoPackage."""
    if path.suffix.lower() != ".gpkg":
        raise OutputError(f"{path}: unknown suffix for suggestions. Use .gpkg.")


def write_suggestions(path: Path, suggestions: Sequence[Suggestion], rasters: Sequence[tuple[Place, Grid]]) -> None:
    """Write suggestions with their outlines, in the rasters' CRS, or in WGS 84 if they have several.

    Raises:
        OutputError: when the file cannot be written.
    """
    names = [str(number) for number in range(len(rasters))]
    windows = [(names[one.raster], one.window) for one in suggestions]
    shapes, crs = tile_outlines(windows, dict(zip(names, (grid for _, grid in rasters), strict=True)))
    columns: dict[str, Sequence[Any] | ndarray] = {
        "rank": np.array([one.rank for one in suggestions], np.int64),
        "role": ["training" for _ in suggestions],
        "origin": [one.origin for one in suggestions],
        "labelled": np.zeros(len(suggestions), bool),
        "scene": [rasters[one.raster][0].stem for one in suggestions],
        "score": np.array([one.score for one in suggestions], float),
        "uncertainty": np.array([one.uncertainty for one in suggestions], float),
        "dissimilarity": np.array(
            [np.nan if one.dissimilarity is None else one.dissimilarity for one in suggestions], float
        ),
        "raster": [str(rasters[one.raster][0]) for one in suggestions],
    }
    for side in ("row", "col", "height", "width"):
        columns[side] = np.array([getattr(one.window, side) for one in suggestions], np.int64)
    about = "The tiles to label next, rank 1 first: uncertain ones that resemble many others but not those before them."
    style = ranked_style("rank", len(suggestions), FieldForm(ALIASES, label="rank"))
    write_polygons(path, [Features(shapes, columns)], crs, Layer(LAYER, "Tiles to label next", about, style))


DEFAULT = SuggestConfig()
FILE = "suggestions.gpkg"
"""Name of the file that workers make in their folder."""


@writes_output
def suggest(
    run: StrPath | Sequence[StrPath],
    rasters: StrPath | RasterInput | Sequence[StrPath | RasterInput],
    out: StrPath,
    config: SuggestConfig = DEFAULT,
    known: StrPath | None = None,
    aoi: StrPath | None = None,
) -> Suggestions:
    """Choose the tiles of `rasters` to label next, write them as a GeoPackage, the best first, and return them.

    A tile is worth labelling if the runs are uncertain of it and if it is similar to many other uncertain tiles, but
    not to the tiles suggested before it: see `geograft.metrics.selection`. On rasters where no tile is labelled, the
    first five are drawn at random instead, all tiles with the same probability (`first`). Uncertainty is computed from
    all runs, embeddings from the first. `rasters` may also be one tile set, which stands for its images. Tiles of the
    tile set `known`, of any split, count as labelled and are not suggested; by default it is the tile set given as
    `rasters`, or the one that the first run was trained on, if it still exists. `aoi` is a vector file of polygons:
    only tiles in them are suggested.

    On one machine, the same runs, rasters and settings give the same suggestions, and a smaller `tiles` gives the first
    of them. Takes about as long as `predict`, and a pass of the encoder. Memory does not grow with the rasters.

    Raises:
        InputError: when a run cannot be used; when a raster does not fit it or cannot be read; when there is no tile to
            suggest.
        SettingError: when the device or backend is not available, or for disagreement of one run without TTA.
        OutputError: when `out` exists, is not a .gpkg, or cannot be written.
    """
    out = Path(out)
    refuse_existing(out)
    check_suffix(out)
    task = open_task(to_runs(run), to_inputs(rasters), config, optional_path(known), optional_path(aoi))
    embedder = task.load_embedder(config.backend)
    found = task.rank(collect_candidates(embedder, task.rasters), out)
    return task.suggestions(out, found, embedder)


@dataclass(frozen=True)
class RankedTiles:
    """The tiles to label, and of how many tiles they were chosen."""

    tiles: tuple[Suggestion, ...]
    unlabelled_tiles: int
    labelled_tiles: int


@dataclass(frozen=True)
class SuggestTask:
    """The rasters to search, and everything else that determines what is suggested."""

    runs: tuple[Path, ...]
    card: ModelCard
    """Card of the first run."""
    inputs: "_Inputs"
    config: SuggestConfig
    aoi: Path | None
    labels: TileSet | None
    """The tile set whose tiles are labelled; None if it is unknown."""
    rasters: tuple[PoolRaster, ...]

    @property
    def sources(self) -> list[MapSource]:
        """The rasters as the sources of their tiles."""
        return [raster.source for raster in self.rasters]

    def load_embedder(self, backend: Any) -> Embedder:
        """Load the runs and the encoder of the first one with the same backend; "auto" means the fastest for pixels.

        Raises:
            InputError: if a run cannot be used, a raster cannot be read, or no pixel is valid.
            SettingError: if the device or the backend is not available.
        """
        config = replace(self.config, backend=backend)
        pixels = load_pool_model(self.runs, config, config.acquisition, self.sources)
        if pixels is None:
            raise no_candidate_error(self.inputs.places, 0)
        path = run_file(self.runs[0], FEATURES_FILE)
        features = Applicability.read(path) if path.exists() else None
        encoder = load_cell_encoder(
            self.runs[0], self.card, config.device, pixels.predictor.backend, pixels.model.card.tile_px
        )
        return Embedder(pixels, config.acquisition, encoder, features, config.seed)

    def rank(self, pool: Pool, out: Path) -> RankedTiles:
        """Choose the tiles to label of a pruned pool, and write them.

        Raises:
            InputError: if there is no tile to suggest.
            OutputError: if the file cannot be written.
        """
        if not pool.unlabelled_tiles:
            raise no_candidate_error(self.inputs.places, pool.labelled_tiles)
        first = draw_first(pool.sample, _random_tiles(self.config, pool), self.config.seed)
        tiles = rank_candidates(pool.candidates, self.config.tiles, first)
        write_suggestions(out, tiles, [(source.rasters[0], source.grid) for source in self.sources])
        return RankedTiles(tiles, pool.unlabelled_tiles, pool.labelled_tiles)

    def origin(self, backend: str) -> dict[str, Any]:
        """Return the runs, settings and area of a job of workers; the states of its rasters and labels are added."""
        features = run_file(self.runs[0], FEATURES_FILE).exists()
        return {
            **runs_origin(self.runs, self.config),
            "features": run_file_digest(self.runs[0], FEATURES_FILE) if features else None,
            "settings": asdict(self.config),
            "backend": backend,
            "area": {"path": str(self.aoi.resolve()), "digest": file_digest(self.aoi)} if self.aoi else None,
        }

    def suggestions(self, path: Place, found: RankedTiles, embedder: Embedder) -> Suggestions:
        """Return the result of `suggest`: what was written to `path`, with notes for the user."""
        notes = [*embedder.pixels.model.notes, *_notes(self.runs[0], embedder.training_features, self.labels)]
        notes += _band_order_notes(self.card, self.inputs, self.sources, self.config)
        sizes = (resolution_note(one.mosaic.name, resolution_m(one.grid), self.card) for one in self.sources)
        notes += [note for note in sizes if note][:1]
        return Suggestions(
            path, self.inputs.places, found.tiles, found.unlabelled_tiles, found.labelled_tiles, tuple(notes)
        )


def open_task(
    runs: Sequence[Path], rasters: Sequence[RasterInput], config: SuggestConfig, known: Path | None, aoi: Path | None
) -> SuggestTask:
    """Return what is to be searched by the arguments of `suggest`, without loading a network.

    Raises:
        InputError: when the first run cannot be used; when a raster or the tile set `known` does not fit it or cannot
            be read.
        SettingError: for disagreement of one run without TTA.
    """
    _check_views(config, runs)
    card = read_card(runs[0])
    inputs = _inputs(card, rasters)
    sources = _sources(card, inputs, config, aoi)
    labels = _labelled_tiles(runs[0], known, inputs.tile_set)
    areas = [labelled_area(source.rasters[0], source.grid, labels) for source in sources]
    again = _sources(card, inputs, config, aoi)
    pool_rasters = tuple(PoolRaster(i, *each) for i, each in enumerate(zip(sources, areas, again, strict=True)))
    return SuggestTask(tuple(runs), card, inputs, config, aoi, labels, pool_rasters)


@dataclass(frozen=True)
class UnitsSuggestions:
    """What a worker did, and the suggestions from all units."""

    path: Place
    """The folder or bucket of the job."""
    units: int
    computed: int
    """Units that this worker has finished."""
    merged: bool
    """Whether this worker has merged the units."""
    suggestions: Suggestions

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        own = f"{self.computed:,} of them by this command" + (", which merged them" if self.merged else "")
        return [f"{self.path}: {self.units:,} of {self.units:,} units are done, {own}", *self.suggestions.lines()]


@dataclass(frozen=True)
class SuggestJob:
    """The tiles to label next, by several processes; see `geograft.commands.units.suggest_units`.

    Raises:
        SettingError: if `file` is not a plain name.
        OutputError: if it is not a .gpkg.
    """

    runs: tuple[Place, ...]
    rasters: tuple[RasterInput, ...]
    out: Place
    config: SuggestConfig = DEFAULT
    known: Path | None = None
    aoi: Path | None = None
    file: str = FILE
    worker: PartConfig = field(default_factory=PartConfig)

    def __post_init__(self) -> None:
        check_file_name(self.file)
        check_suffix(Path(self.file))

    @property
    def uses_gpu(self) -> bool:
        """Whether units are computed on a GPU where there is one."""
        return self.config.device != "cpu"

    def join(self) -> Worker[PoolUnitWriter]:
        """Join the job, or start it: see `geograft.commands.units.UnitJob`."""
        task = self._open()

        def propose(backend: str) -> Proposal[PoolUnitWriter]:
            embedder = task.load_embedder(backend)
            origin = task.origin(embedder.pixels.predictor.backend) | {"file": self.file}
            return propose_pool(embedder, task.rasters, task.labels, origin, self.config.device)

        return join_job(self.out, "suggest", propose, self.worker, self.config.backend)

    def finish(self, worker: Worker[PoolUnitWriter]) -> UnitsSuggestions:
        """Merge the units and write the file, or wait until another worker has."""
        task, units = self._open(), len(worker.job.units)
        found, merged = worker.make_result(partial(self._merge, task, worker))
        suggestions = task.suggestions(self.out / self.file, self._ranked(found, task), worker.writer.embedder)
        return UnitsSuggestions(self.out, units, len(worker.computed), merged, suggestions)

    def _open(self) -> SuggestTask:
        return open_task(to_runs(self.runs), self.rasters, self.config, self.known, self.aoi)

    def _merge(self, task: SuggestTask, worker: Worker[PoolUnitWriter]) -> dict[str, Any]:
        with TemporaryDirectory(prefix="geograft-suggest-") as folder:
            out = (self.out if isinstance(self.out, Path) else Path(folder)) / self.file
            with lock_output(out, enabled=isinstance(self.out, Path)):
                found = task.rank(merge_units(worker.ledger, worker.writer, Path(folder)), out)
            if not isinstance(self.out, Path):
                worker.ledger.files.put(self.file, out)
        return asdict(found)

    def _ranked(self, found: Mapping[str, Any], task: SuggestTask) -> RankedTiles:
        try:
            ranked: RankedTiles = TypeAdapter(RankedTiles).validate_python(found)
            if any(one.raster not in range(len(task.rasters)) for one in ranked.tiles):
                raise ValueError("a tile is of no raster")
        except ValueError as error:
            path = f"{self.out}/{STATE}/{RESULT}.done.json"
            raise InputError(f"{path} is corrupt. Remove it to merge the units again.") from error
        return ranked


def _random_tiles(config: SuggestConfig, pool: Pool) -> int:
    """Return the number of random tiles with which the suggestions begin."""
    if config.first is not None:
        return config.first
    return 0 if pool.labelled_tiles else NEW_PLACE_TILES


@dataclass(frozen=True)
class _Inputs:
    rasters: tuple[RasterInput, ...]
    tile_set: TileSet | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the rasters are."""
        return tuple(map(place_of, self.rasters))


def _inputs(card: ModelCard, rasters: Sequence[RasterInput]) -> _Inputs:
    """Return the given rasters, or the images of the given tile set."""
    sets = [path for path in rasters if isinstance(path, Path) and (path / META).exists()]
    if not sets:
        return _Inputs(tuple(rasters))
    if len(rasters) > 1:
        raise InputError(f"{sets[0]} is a tile set. Give one tile set alone, or only rasters.")
    tile_set = TileSet.open(sets[0])
    check_fit(card, tile_set)
    return _Inputs(tuple(tile_set.image_path(scene) for scene in tile_set.scenes), tile_set)


def _sources(card: ModelCard, inputs: _Inputs, config: SuggestConfig, aoi: Path | None) -> list[MapSource]:
    """Return the sources to read tiles from, one per raster; their map paths are not used."""
    rasters, tile_set = inputs.rasters, inputs.tile_set
    if not rasters:
        raise InputError("No raster given. Give one or more rasters, or a tile set.")
    bands = config.bands or (tile_set.meta.settings.bands if tile_set else ())
    settings = PredictConfig(
        nodata=tile_set.meta.settings.nodata if tile_set else None,
        bands=bands,
        mask=config.mask,
        resample=config.resample,
        batch_size=config.batch_size,
        window_px=config.window_px,
    )
    return [map_sources(card, (raster,), Path(f"{place_of(raster).stem}.tif"), settings, aoi)[0] for raster in rasters]


def _band_order_notes(
    card: ModelCard, inputs: _Inputs, sources: Sequence[MapSource], config: SuggestConfig
) -> list[str]:
    """Return a note if bands have the run's names in another order; none with --bands."""
    if config.bands:
        return []
    if inputs.tile_set:
        return tile_set_band_notes(inputs.tile_set, card)
    return [note for source in sources for note in band_order_notes(source, card)][:1]


def _labelled_tiles(run: Path, known: Path | None, given: TileSet | None) -> TileSet | None:
    """Return the tile set whose tiles are labelled; None if it is unknown."""
    if known is not None:
        return TileSet.open(known)
    if given is not None:
        return given
    try:
        return open_run_tiles(run)
    except InputError:
        return None


def _check_views(config: SuggestConfig, runs: Sequence[Path]) -> None:
    if config.acquisition == "disagreement" and config.tta == 1 and len(runs) == 1:
        raise SettingError(
            "--acquisition disagreement needs several predictions per pixel, and one run gives one. Give more runs "
            "(--ensemble) or use test-time augmentation (--tta 4)."
        )


def _notes(run: Path, features: Applicability | None, labels: TileSet | None) -> tuple[str, ...]:
    """Return notes on missing inputs, one line each."""
    no_labels = f"the tile set of {run} does not exist, so labelled tiles are not skipped. Give it with --known TILES."
    no_features = f"{run} has no {FEATURES_FILE}, so the field dissimilarity is empty."
    return (*([] if labels else [no_labels]), *([] if features else [no_features]))
