"""What to predict: rasters and the maps they become, checks against the run, and how the work is divided.

Also the origin of a map: everything that determines its content, compared when an interrupted job is resumed.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.card import CARD, FEATURES_FILE, WEIGHTS, ModelCard, ensemble_card
from geograft.config import InferenceConfig, PredictConfig
from geograft.cores import usable_cores
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, OutputError, SettingError
from geograft.files import check_output, file_digest
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.nodata import ValidityRule
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.rasterize import AreaOfInterest
from geograft.geo.rasters.scene_image import read_info
from geograft.geo.rasters.tags import BACKEND_TAG, sibling_path
from geograft.geo.scene import BandChoice, RasterInput, band_numbers, is_named, only_numbers
from geograft.inference.backends import backend_device
from geograft.inference.predictor import PixelBatch
from geograft.inference.runners import EXPORT_BACKENDS, TORCH
from geograft.locations import Location, Place
from geograft.mapping.batches import CHUNK_TILES, RasterSource, TileBatch, batch_tiles, iterate_tiles, spread_tiles
from geograft.mapping.blend import BlendPlan
from geograft.mapping.places import place_file, read_cards_at
from geograft.mapping.windows import Lanes, TileGrid, fit_window, panel_width
from geograft.memory import check_batch, check_map_size
from geograft.resume import read_origin
from geograft.runs import run_file_digest, run_location

MAX_RESOLUTION_RATIO = 1.5
"""Ratio between the pixel sizes of a raster and of training above which a note is given."""
BATCH_BYTES = 2**25
"""Size of a batch of windows, as stored, if the settings leave it open."""
MAX_BATCH_WINDOWS = 8
"""Maximum number of windows in such a batch."""
GPU_BATCH_BYTES, MAX_GPU_WINDOWS = 2**27, 64
"""The same on an NVIDIA GPU, which computes fewer at once if its memory is short."""
MAX_DECODING_THREADS = 8
COMPARED_WINDOWS = 2
"""Number of windows that backends are compared on."""
MAP_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class MapSource:
    """The rasters of one map and where it is written. Tiles are read from it (`RasterSource`)."""

    path: Path
    rasters: tuple[Place, ...]
    mosaic: Mosaic
    aoi: Path | None
    area: AreaOfInterest | None
    band_names: tuple[tuple[str, ...], ...] = ()
    """Band names of each raster."""

    @property
    def grid(self) -> Grid:
        """The grid of the map."""
        return self.mosaic.grid

    def is_empty(self, window: Window) -> bool:
        """Whether a window is known, without reading it, to have no valid pixel of interest."""
        return (self.area is not None and not self.area.intersects(window)) or self.mosaic.is_empty(window)

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the bands and spectral indices of a window, and a mask of the valid pixels."""
        return self.mosaic.read(window)

    def mask_of_interest(self, window: Window) -> Bool[ndarray, "h w"] | None:
        """Return a mask of the pixels of a window inside the area of interest; None without one."""
        return self.area.mask(window) if self.area else None


@dataclass(frozen=True)
class MapTask:
    """One map to write, and everything that determines its content."""

    source: MapSource
    runs: tuple[Path, ...]
    card: ModelCard
    """Card of the ensemble, with the thresholds of this map; see `map_card`."""
    settings: PredictConfig
    origin: dict[str, Any] = field(default_factory=dict)
    """Everything that determines the map, as JSON; empty until the backend is chosen."""
    precision: str = "float32"
    """The precision of the network in words, for the map's tags."""

    @property
    def folder(self) -> Path:
        """Folder of the finished strips until the map is complete."""
        return self.source.path.with_name(f".{self.source.path.stem}.part")

    @property
    def probabilities(self) -> Path | None:
        """Path of the probabilities, if requested."""
        return sibling_path(self.source.path, "probabilities") if self.settings.probabilities != "none" else None

    @property
    def uncertainty(self) -> Path | None:
        """Path of the uncertainty, if requested."""
        return sibling_path(self.source.path, "uncertainty") if self.settings.uncertainty else None

    @property
    def applicability(self) -> Path | None:
        """Path of the area of applicability, if requested."""
        return sibling_path(self.source.path, "applicability") if self.settings.applicability else None

    @property
    def device(self) -> str:
        """The device that predicts: cpu, cuda or mps."""
        return backend_device(str(self.origin.get("backend", self.settings.backend)), self.settings.device)

    @property
    def has_std_layer(self) -> bool:
        """Whether the model's last layer is the standard deviation over the runs."""
        return self.settings.uncertainty and len(self.runs) > 1

    @property
    def layers(self) -> int:
        """Number of layers that the model returns per pixel."""
        return self.card.legend.outputs + self.has_std_layer

    @cached_property
    def plan(self) -> BlendPlan:
        """How the work is divided."""
        return plan_windows(self.source.mosaic, self.card, self.settings, self.layers)

    @property
    def window(self) -> tuple[int, int]:
        """Size and overlap of the windows in pixels."""
        tiles = self.plan.lanes.tiles
        return tiles.tile_px, tiles.tile_px - tiles.stride

    def first_batch(self) -> TileBatch | None:
        """Return the first batch of windows; None if no pixel is valid."""
        with closing(self.source.mosaic):
            return first_windows(self.plan, self.source, self.plan.batch_size)

    def sample_windows(self) -> PixelBatch | None:
        """Return the windows to compare backends on; None if no pixel is valid."""
        with closing(self.source.mosaic):
            return sample_windows(self.plan, self.source)

    def spread_windows(self, count: int) -> PixelBatch | None:
        """Return up to `count` windows, spread over the raster, and their valid pixels; None if no pixel is valid."""
        with closing(self.source.mosaic):
            found = spread_tiles(self.plan.lanes.tiles, self.source, count)
            return (found.pixels, found.valid) if found else sample_windows(self.plan, self.source)


def plan_windows(mosaic: Mosaic, card: ModelCard, settings: InferenceConfig, layers: int) -> BlendPlan:
    """Return how a raster is predicted by a run: the size and positions of its windows, and their batches.

    Everything that predicts pixels uses it: maps, scores, calibration, reviews and suggestions.
    """
    pixel_bytes = mosaic.bands * np.dtype(mosaic.dtype).itemsize
    return plan_blend((mosaic.grid.height, mosaic.grid.width), pixel_bytes, card, settings, layers)


def plan_blend(
    shape: tuple[int, int], pixel_bytes: int, card: ModelCard, settings: InferenceConfig, layers: int
) -> BlendPlan:
    """Return the same for `shape` rows and columns of pixels with `pixel_bytes` bytes, indices included."""
    size, overlap = requested_window(card, settings)
    if not settings.window_px:
        size, fitted = fit_window(size, overlap, *shape, card.tile_px)
        overlap = fitted if settings.overlap is None else round(size * settings.overlap)
    tiles = TileGrid(*shape, size, overlap / size)
    batch = settings.batch_size or _batch_windows(settings, size**2 * pixel_bytes)
    return BlendPlan(Lanes(tiles, panel_width(tiles, layers, pixel_bytes)), layers, batch, min(batch, CHUNK_TILES))


def decoding_threads(settings: InferenceConfig) -> int:
    """Return the number of threads that decode a raster: one beside a network on a CPU, several beside a GPU."""
    return min(MAX_DECODING_THREADS, usable_cores()) if _on_gpu(settings) else 1


def _on_gpu(settings: InferenceConfig) -> bool:
    return backend_device(settings.backend, settings.device) == "cuda"


def _batch_windows(settings: InferenceConfig, window_bytes: int) -> int:
    """Return the number of windows of `window_bytes` bytes in a batch, if the settings leave it open."""
    room, most = (GPU_BATCH_BYTES, MAX_GPU_WINDOWS) if _on_gpu(settings) else (BATCH_BYTES, MAX_BATCH_WINDOWS)
    return max(1, min(most, room // window_bytes))


def first_windows(plan: BlendPlan, source: RasterSource, count: int) -> TileBatch | None:
    """Return the first `count` windows that are predicted; None if there is none."""
    return next(batch_tiles(iterate_tiles(plan.lanes, source, chunk_tiles=count), count), None)


def sample_windows(plan: BlendPlan, source: RasterSource) -> PixelBatch | None:
    """Return the first windows and their valid pixels, to compare backends on; None if there is none."""
    found = first_windows(plan, source, COMPARED_WINDOWS)
    return None if found is None else (found.pixels, found.valid)


def requested_window(card: ModelCard, settings: InferenceConfig) -> tuple[int, int]:
    """Return the size and the overlap of the windows in pixels that the settings ask for, or else the card."""
    size = settings.window_px or card.window[0]
    overlap = min(card.window[1], size // 2) if settings.overlap is None else round(size * settings.overlap)
    return size, overlap


def map_card(runs: Sequence[Path], settings: PredictConfig) -> ModelCard:
    """Return the card of an ensemble of `runs`, with the thresholds of the settings if these have any.

    Raises:
        InputError: if one of `runs` is not a finished run, or differs from the first.
        SettingError: if the number of thresholds is not that of the map.
    """
    card = ensemble_card(read_cards_at(runs, settings.place))
    if not settings.threshold:
        return card
    shown, names = " ".join(f"{value:g}" for value in settings.threshold), card.legend.names
    needed = len(card.used_thresholds)
    if not needed:
        raise SettingError(
            f"--threshold {shown} cannot be used: these {len(names)} classes exclude each other, and the most "
            "probable one is mapped. Omit it."
        )
    if len(settings.threshold) != needed:
        mapped = ", then ".join(names if card.legend.overlapping else names[1:])
        raise SettingError(
            f"--threshold {shown} has {len(settings.threshold)} values; the map needs {needed}. Give one for {mapped}."
        )
    return card.with_thresholds(settings.threshold)


def map_sources(
    card: ModelCard, rasters: Sequence[RasterInput], out: Path, settings: PredictConfig, aoi: Path | None
) -> list[MapSource]:
    """Return the maps to write from `rasters`, after checking that these fit the run of `card`.

    Raises:
        InputError: if a raster cannot be used, does not fit the run or the other rasters, or is too large for one map.
        SettingError: if a batch of tiles would exceed `geograft.memory.MAX_BATCH_BYTES`.
        OutputError: if `out` is neither a .tif nor a folder.
    """
    jobs = []
    resolution = _resolution(card) if settings.resample else None
    check_output(out)
    for infos, path in _pairs(_infos(card, rasters, settings), out):
        numbers = () if any(info.scene or info.selected for info in infos) else only_numbers(settings.bands)
        mosaic = Mosaic(infos, numbers, resolution, card.indices, decoding_threads(settings))
        check_memory(mosaic, card, settings)
        area = AreaOfInterest.read(aoi, mosaic.grid) if aoi else None
        paths, names = tuple(info.path for info in infos), tuple(info.band_names for info in infos)
        jobs.append(MapSource(path, paths, mosaic, aoi, area, names))
    return jobs


def check_memory(mosaic: Mosaic, card: ModelCard, settings: PredictConfig) -> None:
    """Raise an error if the map or a batch of tiles exceeds the bounds of `geograft.memory`. Allocates nothing.

    Raises:
        InputError: if the map has too many strips, or rows and columns of tiles.
        SettingError: if a batch of tiles is too large.
    """
    layers, image_bytes = card.legend.outputs + settings.uncertainty, mosaic.bands * np.dtype(mosaic.dtype).itemsize
    height, width = mosaic.grid.height, mosaic.grid.width
    size, overlap = requested_window(card, settings)
    check_batch(settings.batch_size or 1, size, image_bytes + 4 * layers)
    tiles = TileGrid(height, width, size, overlap / size)
    rows, cols = (-(-length // tiles.stride) + 1 for length in (height, width))
    panels = -(-cols // max(1, panel_width(tiles, layers, image_bytes) // tiles.stride))
    check_map_size(mosaic.name, (height, width), rows, cols, panels)


def resolution_notes(task: MapTask) -> list[str]:
    """Return a note if the pixel size of a map differs much from that of training."""
    note = resolution_note(task.source.mosaic.name, resolution_m(task.source.grid), task.card)
    return [f"{note} Give --resample for a better map."] if note else []


def resolution_note(name: str, pixel_m: float | None, card: ModelCard) -> str:
    """Return a note if a pixel of `name` is much larger or smaller than those of training; empty otherwise."""
    trained_m = card.resolution_m
    if not pixel_m or not trained_m or max(pixel_m / trained_m, trained_m / pixel_m) <= MAX_RESOLUTION_RATIO:
        return ""
    return f"a pixel of {name} is {pixel_m:.3g} m wide, the run was trained at {trained_m:.3g} m."


def band_order_notes(source: MapSource, card: ModelCard) -> list[str]:
    """Return a note for the first raster of a map whose bands have the run's names in another order."""
    notes = (
        band_order_note(str(path), names, card) for path, names in zip(source.rasters, source.band_names, strict=True)
    )
    return [note for note in notes if note][:1]


def tile_set_band_notes(tile_set: TileSet, card: ModelCard) -> list[str]:
    """Return a note if a tile set has the run's bands in another order."""
    meta = tile_set.meta
    names, chosen = meta.band_names[: meta.bands], only_numbers(meta.settings.bands)
    note = band_order_note(tile_set.title, names, card, "Prepare the tile set with", chosen)
    return [note] if note else []


def band_order_note(
    what: str, names: Sequence[str], card: ModelCard, advice: str = "Give", chosen: Sequence[int] = ()
) -> str:
    """Return a note if the bands called `names` are those of the run in another order; empty otherwise.

    `advice` says where --bands is given; `chosen` are the numbers of the bands in the file, if not all are read.
    """
    numbers = card.band_numbers(names)
    if len(names) != card.bands or numbers in ((), tuple(range(1, card.bands + 1))):
        return ""
    right = " ".join(str(chosen[number - 1] if chosen else number) for number in numbers)
    return (
        f"the bands of {what} are {', '.join(names)}, but the run was trained on "
        f"{', '.join(card.band_names[: card.bands])}, and bands are used by position. {advice} --bands {right} if the "
        "names are right."
    )


def _pairs(infos: tuple[ImageInfo, ...], out: Path) -> list[tuple[tuple[ImageInfo, ...], Path]]:
    """Return the rasters of each map and its path."""
    if not infos:
        raise InputError("No raster was given. Give one or more.")
    if out.suffix.lower() in MAP_SUFFIXES:
        return [(infos, out)]
    if out.suffix and not out.is_dir():
        raise OutputError(f"{out}: maps are written as .tif. Choose this suffix, or a folder for one map per raster.")
    names = _map_names([info.path for info in infos])
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates:
        raise InputError(
            f"Several rasters are called {duplicates[0]}, and so would their maps be. Map them separately."
        )
    return [((info,), out / f"{name}.tif") for info, name in zip(infos, names, strict=True)]


def _map_names(places: Sequence[Place]) -> list[str]:
    """Return the names of maps: stems of the rasters; of remote ones with their folder, where that tells them apart."""
    count = Counter(place.stem for place in places)
    return [
        f"{place.parent.name}_{place.stem}" if isinstance(place, Location) and count[place.stem] > 1 else place.stem
        for place in places
    ]


def _infos(card: ModelCard, rasters: Sequence[RasterInput], settings: PredictConfig) -> tuple[ImageInfo, ...]:
    """Return the metadata of rasters, and of scenes with the bands of the settings, or else those of the card by name.

    Bands of scenes, and bands that are chosen by name, are in the order of the run's bands. The first that cannot be
    used is the error.
    """
    rule = ValidityRule(settings.nodata or card.nodata, card.alpha)
    own = BandChoice(card.band_names[: card.bands], resolution_m=_resolution(card) if settings.resample else 0.0)
    infos = []
    for path in rasters:
        infos.append(read_info(path, BandChoice(settings.bands, settings.mask), rule, own))
        _check_fits(infos[-1], card, settings)
    if not is_named(settings.bands) and not any(info.scene for info in infos):
        return tuple(infos)
    return tuple(
        info if info.scene else info.select(band_numbers(settings.bands, info.band_names, info.path)) for info in infos
    )


def _check_fits(info: ImageInfo, card: ModelCard, settings: PredictConfig) -> None:
    names = ", ".join(card.band_names[: card.bands])
    if settings.bands and len(settings.bands) != card.bands:
        raise InputError(
            f"--bands lists {len(settings.bands)} bands; the run was trained on {card.bands} ({names}). "
            "List one for each of these, in this order."
        )
    if not settings.bands and info.bands != card.bands:
        right = " ".join(["", *map(str, card.band_numbers(info.band_names))])
        raise InputError(
            f"{info.path} has {info.bands} bands; the run was trained on {card.bands} ({names}). "
            f"Give a raster with these bands in this order, or select them with --bands{right}."
        )
    if info.dtype != card.dtype:
        raise InputError(
            f"{info.path} holds {info.dtype}; the run was trained on {card.dtype}. "
            "Give a raster in the units of training; a conversion must scale the values as for training."
        )


def _resolution(card: ModelCard) -> float:
    if card.resolution_m is None:
        raise InputError(
            "--resample needs the pixel size of training in metres, and this run was trained on images without a CRS. "
            "Resample the rasters yourself, or map them as they are."
        )
    return card.resolution_m


def runs_origin(runs: Sequence[Path], settings: InferenceConfig) -> dict[str, Any]:
    """Return what determines how runs predict, as digests: weights, cards, and the place of the settings."""
    return {
        "runs": [
            {"path": run_location(run), "weights": run_file_digest(run, WEIGHTS), "card": run_file_digest(run, CARD)}
            for run in runs
        ],
        "places": [run_file_digest(run, place_file(settings.place)) for run in runs] if settings.place else [],
    }


def origin(task: MapTask, backend: str, precision: str = "float32") -> dict[str, Any]:
    """Return everything that determines a map: runs, rasters, area, settings and backend. Reads the weights once."""
    job, settings = task.source, task.settings
    # Those used: asking for the run's own thresholds or windows is no other setting.
    size, overlap = task.window
    used = {"window_px": size, "overlap_px": overlap, "threshold": list(task.card.used_thresholds)}
    given = {name: value for name, value in asdict(settings).items() if name not in ("overlap", "keep_going", "mask")}
    given |= {"mask": list(settings.mask)} if settings.mask else {}  # so that other maps keep their origin
    return {
        **runs_origin(task.runs, settings),
        "known": run_file_digest(task.runs[0], FEATURES_FILE) if settings.applicability else None,
        "settings": given | {"bands": list(settings.bands)} | used,
        "backend": backend,
        "precision": precision,
        "versions": {name: version(name) for name in ("geograft", "torch")},
        "area": {"path": str(job.aoi.resolve()), "digest": file_digest(job.aoi)} if job.aoi else None,
        "rasters": job.mosaic.states(),
    }


def backend_for(tasks: Sequence[MapTask]) -> Any:
    """Return the backend of the settings; for "auto" that of the interrupted job, if there is one.

    The fastest backend may differ from day to day, and a map must be completed with the backend it was started with.
    """
    requested = tasks[0].settings.backend
    if requested != "auto":
        return requested
    found = (_earlier_backend(task) for task in tasks)
    return next((backend for backend in found if backend in (TORCH, *EXPORT_BACKENDS)), requested)


def map_tags_of(path: Path) -> dict[str, str]:
    """Return the metadata of a map; empty if there is no raster."""
    try:
        with Image.open(path) as image:
            return image.info.tags
    except InputError:
        return {}


def _earlier_backend(task: MapTask) -> str | None:
    ledger = read_origin(task.folder)
    return ledger.get("backend") if ledger else map_tags_of(task.source.path).get(BACKEND_TAG)


def time_batch(model: Callable[[ndarray, ndarray], object], batch: TileBatch | None) -> float | None:
    """Return the seconds that `model` takes for a batch, after a warm-up call; None without a batch."""
    if batch is None:
        return None
    model(batch.pixels, batch.valid)
    started = time.perf_counter()
    model(batch.pixels, batch.valid)
    return time.perf_counter() - started
