"""Which rasters become which map, whether they fit the run, and how the work on a map is cut.

Everything that decides what a map holds, and whether it is still the same.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

from geograft.card import CARD, WEIGHTS, ModelCard
from geograft.config import PredictConfig
from geograft.errors import InputError, OutputError
from geograft.files import file_digest
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.mosaic import Mosaic
from geograft.geo.rasters.raster import Image, ImageInfo, raster_state
from geograft.geo.rasters.rasterize import Area
from geograft.geo.rasters.tags import BACKEND_TAG, beside
from geograft.mapping.batches import Batch, batches, tiles_of
from geograft.mapping.blend import Plan
from geograft.mapping.windows import Lanes, TileGrid, panel_width
from geograft.metrics.applicability import KNOWN
from geograft.resume import origin_of

RESOLUTION_OFF = 1.5
"""From this ratio on, a raster's pixels are said to be larger or smaller than those of training."""
MAP_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Job:
    """What one map is made from, and where it goes. It is what tiles are read from."""

    path: Path
    rasters: tuple[Path, ...]
    mosaic: Mosaic
    aoi: Path | None
    area: Area | None

    @property
    def grid(self) -> Grid:
        """The grid of the map."""
        return self.mosaic.grid

    def empty(self, window: Window) -> bool:
        """Return True only where it is known without reading that no pixel of a window is valid and wanted."""
        return (self.area is not None and not self.area.touches(window)) or self.mosaic.empty(window)

    def read(self, window: Window) -> tuple[Shaped[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        """Return the pixels of a window, the run's indices after the bands, and which are valid."""
        return self.mosaic.read(window)

    def wanted(self, window: Window) -> Bool[ndarray, "h w"] | None:
        """Return which pixels of a window lie in the area of interest; None without one."""
        return self.area.mask(window) if self.area else None


@dataclass(frozen=True)
class Task:
    """One map to make, and all that decides what it holds."""

    job: Job
    runs: tuple[Path, ...]
    card: ModelCard
    """Of the first run."""
    settings: PredictConfig
    origin: dict[str, Any] = field(default_factory=dict)
    """Everything that decides what the map holds, as JSON; known when it is known what computes it."""

    @property
    def folder(self) -> Path:
        """Where finished strips lie until the map is whole."""
        return self.job.path.with_name(f".{self.job.path.stem}.part")

    @property
    def probabilities(self) -> Path | None:
        """Where they go, when they are asked for."""
        return beside(self.job.path, "probabilities") if self.settings.probabilities != "none" else None

    @property
    def uncertainty(self) -> Path | None:
        """Where it goes, when it is asked for."""
        return beside(self.job.path, "uncertainty") if self.settings.uncertainty else None

    @property
    def applicability(self) -> Path | None:
        """Where it goes, when it is asked for."""
        return beside(self.job.path, "applicability") if self.settings.applicability else None

    @property
    def spread(self) -> bool:
        """Whether the model's last layer is the standard deviation over runs."""
        return self.settings.uncertainty and len(self.runs) > 1

    @property
    def layers(self) -> int:
        """Layers that the model gives a pixel."""
        return self.card.legend.outputs + self.spread

    @cached_property
    def plan(self) -> Plan:
        """How the work is cut."""
        mosaic, settings = self.job.mosaic, self.settings
        tiles = TileGrid(mosaic.grid.height, mosaic.grid.width, self.card.tile_px, settings.overlap)
        width = panel_width(tiles, self.layers, mosaic.bands * np.dtype(mosaic.dtype).itemsize)
        return Plan(Lanes(tiles, width), self.layers, settings.batch_size)

    def first_batch(self) -> Batch | None:
        """Return the first tiles that are computed; None when no pixel is valid. Reads until the batch is full."""
        with closing(self.job.mosaic):
            return next(batches(tiles_of(self.plan.lanes, self.job), self.settings.batch_size), None)


def planned(
    card: ModelCard, rasters: Sequence[Path], out: Path, settings: PredictConfig, aoi: Path | None
) -> list[Job]:
    """Return the maps to make from `rasters`, which fit the run of `card`.

    Raises:
        InputError: for a raster that cannot be used or does not fit the run or the others.
        OutputError: when `out` is neither a .tif nor a folder.
    """
    jobs = []
    for infos, path in _pairs(rasters, out):
        for info in infos:
            _check_fits(info, card, settings)
        resolution = _resolution(card) if settings.resample else None
        mosaic = Mosaic(infos, settings.bands, resolution, card.indices)
        area = Area.read(aoi, mosaic.grid) if aoi else None
        jobs.append(Job(path, tuple(info.path for info in infos), mosaic, aoi, area))
    return jobs


def notes(task: Task) -> list[str]:
    """Return what the user should know about a map, a line each."""
    here, there = resolution_m(task.job.grid), task.card.resolution_m
    if not here or not there or max(here / there, there / here) <= RESOLUTION_OFF:
        return []
    return [
        f"a pixel of {task.job.mosaic.name} is {here:.3g} m on the ground, the run was trained at {there:.3g} m. "
        "Give --resample for a better map."
    ]


def _pairs(rasters: Sequence[Path], out: Path) -> list[tuple[tuple[ImageInfo, ...], Path]]:
    """Return which rasters become which map."""
    infos = tuple(_info(path) for path in rasters)
    if not infos:
        raise InputError("No raster was given. Name one or more.")
    if out.suffix.lower() in MAP_SUFFIXES:
        return [(infos, out)]
    if out.suffix and not out.is_dir():
        raise OutputError(f"{out}: maps are written as .tif. Choose this suffix, or a folder for one map a raster.")
    twice = [name for name, count in Counter(info.path.stem for info in infos).items() if count > 1]
    if twice:
        raise InputError(f"Several rasters are called {twice[0]}, and so would their maps be. Map them one by one.")
    return [((info,), out / f"{info.path.stem}.tif") for info in infos]


def _info(path: Path) -> ImageInfo:
    with Image.open(path) as image:
        return image.info


def _check_fits(info: ImageInfo, card: ModelCard, settings: PredictConfig) -> None:
    names = ", ".join(card.band_names[: card.bands])
    if settings.bands and len(settings.bands) != card.bands:
        raise InputError(
            f"--bands names {len(settings.bands)} bands; the run was trained on {card.bands} ({names}). "
            "Name one for each, in this order."
        )
    if not settings.bands and info.bands != card.bands:
        raise InputError(
            f"{info.path} has {info.bands} bands; the run was trained on {card.bands} ({names}). "
            "Give a raster with these bands in this order, or say which they are with --bands."
        )
    if info.dtype != card.dtype:
        raise InputError(
            f"{info.path} holds {info.dtype}; the run was trained on {card.dtype}. "
            "Give a raster in the units of training; a conversion must scale the values as it was done for training."
        )


def _resolution(card: ModelCard) -> float:
    if card.resolution_m is None:
        raise InputError(
            "--resample needs the ground resolution of training, and this run was trained on images without a CRS. "
            "Resample the rasters yourself, or map them as they are."
        )
    return card.resolution_m


def origin(task: Task, backend: str) -> dict[str, Any]:
    """Return what decides a map: runs, rasters, area, settings, and what computes it. Reads each run's weights once."""
    job, settings = task.job, task.settings
    return {
        "runs": [
            {"path": str(run.resolve()), "weights": file_digest(run / WEIGHTS), "card": file_digest(run / CARD)}
            for run in task.runs
        ],
        "known": file_digest(task.runs[0] / KNOWN) if settings.applicability else None,
        "settings": asdict(settings) | {"bands": list(settings.bands)},
        "backend": backend,
        "versions": {name: version(name) for name in ("geograft", "torch")},
        "area": {"path": str(job.aoi.resolve()), "digest": file_digest(job.aoi)} if job.aoi else None,
        "rasters": [raster_state(path) for path in job.rasters],
    }


def backend_for(tasks: Sequence[Task]) -> str:
    """Return the backend to ask for: that of the settings; for "auto" the one that an earlier job found.

    What is fastest differs from day to day, and a map that was begun with one is not gone on with another.
    """
    asked = tasks[0].settings.backend
    if asked != "auto":
        return asked
    found = (_backend_before(task) for task in tasks)
    return next((backend for backend in found if backend), asked)


def map_tags_of(path: Path) -> dict[str, str]:
    """Return the metadata of a map; none where there is no raster."""
    try:
        with Image.open(path) as image:
            return image.info.tags
    except InputError:
        return {}


def _backend_before(task: Task) -> str | None:
    begun = origin_of(task.folder)
    return begun.get("backend") if begun else map_tags_of(task.job.path).get(BACKEND_TAG)
