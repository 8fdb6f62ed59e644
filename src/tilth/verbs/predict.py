"""Maps from a run and rasters of any size, in constant memory; a killed job goes on where it was."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from tilth.card import CARD, WEIGHTS, ModelCard, read_card
from tilth.config import PredictConfig
from tilth.errors import InputError, OutputError, TilthError
from tilth.files import file_digest, json_digest, refuse_existing
from tilth.geo.blend import Model, Read, TileGrid, blend
from tilth.geo.classmap import (
    CLASSES,
    PROBABILITIES,
    class_pixels,
    class_values,
    probability_bytes,
    write_class_map,
    write_probabilities,
)
from tilth.geo.grid import Window
from tilth.geo.ledger import Ledger, is_complete
from tilth.geo.maptags import ORIGIN_TAG, map_tags
from tilth.geo.mosaic import Mosaic
from tilth.geo.raster import Image, ImageInfo
from tilth.learn.inference import Predictor
from tilth.legend import Legend
from tilth.progress import meter

RESOLUTION_OFF = 1.5
"""From this ratio on, a raster's pixels are said to be larger or smaller than those of training."""
MAP_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class MadeMap:
    """One map that was written."""

    path: Path
    probabilities: Path | None
    shape: tuple[int, int]
    """Rows and columns."""
    pixels: dict[str, int]
    """Valid pixels by class name; empty for a map that an earlier job finished."""
    computed_px: int = 0
    """Pixels of the raster that this job computed; the rest a job before it that was killed."""
    seconds: float = 0.0
    """Time that this job took to compute them."""

    def lines(self) -> list[str]:
        """Return size, speed and the shares of the classes as text."""
        size = f"{self.path}: {self.shape[1]:,} x {self.shape[0]:,} pixels"
        if not self.pixels:
            return [f"{size}, finished before"]
        mpx, before = self.computed_px / 1e6, (self.shape[0] * self.shape[1] - self.computed_px) / 1e6
        speed = f", {mpx:.2f} Mpx in {self.seconds:.1f} s ({mpx / self.seconds:.2g} Mpx/s)" if mpx else ""
        speed += f", {before:.2f} Mpx kept from before" if before else ""
        total, wide = sum(self.pixels.values()), max(map(len, self.pixels))
        shares = [f"  {name:{wide}} {count / total:7.1%}" for name, count in self.pixels.items()]
        also = [f"{self.probabilities}: the probability of every class"] if self.probabilities else []
        return [f"{size}{speed}", *shares, *also]


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote."""

    path: Path
    """The map, or the folder of maps."""
    maps: tuple[MadeMap, ...]
    notes: tuple[str, ...]
    """What the user should know about the result, a line each."""

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        return [line for made in self.maps for line in made.lines()] + [f"Note: {note}" for note in self.notes]


def predict(run: Path, rasters: Sequence[Path], out: Path, config: PredictConfig | None = None) -> Prediction:
    """Write the class map of `rasters` as a Cloud-Optimised GeoTIFF and say what is in it.

    With `out` a .tif, all rasters become one map; they must lie on one grid, and where they overlap the first valid
    pixel counts. Otherwise `out` is a folder and gets one map a raster, under the raster's name. Beside MAP.tif come
    MAP.probabilities.tif, when asked for, and, until all is written, the folder .MAP.part with what is finished: after
    a kill the same call goes on from there and ends with the same bytes.

    Pixels that are not valid are shown to the network as the mean of each band and are 255 in the map. Memory does not
    depend on the raster's height: about 2 kB a class for each column, with tiles of 224 pixels.

    Raises:
        InputError: when the run cannot be used; when a raster does not fit it, cannot be read or has no valid pixel;
            when what a killed job left belongs to another model, raster or setting.
        OutputError: when a map exists already or cannot be written.
    """
    settings = config or PredictConfig()
    card = read_card(run)
    plan = _plan(rasters, out)
    for info in (info for infos, _ in plan for info in infos):
        _check_fits(info, card)
    tasks = [_Task(card, settings, Mosaic(infos), path, _origin(run, infos, settings)) for infos, path in plan]
    made = [_made_before(task) if task.path != out else None for task in tasks]
    for task, done in zip(tasks, made, strict=True):
        if not done:
            _refuse_existing(task)
    predictor = Predictor.load(run, settings.device)
    maps = tuple(done or _make(task, predictor) for task, done in zip(tasks, made, strict=True))
    return Prediction(out, maps, tuple(note for task in tasks for note in _notes(task)))


@dataclass(frozen=True)
class _Task:
    """One map to make."""

    card: ModelCard
    settings: PredictConfig
    mosaic: Mosaic
    path: Path
    origin: dict[str, Any]
    """Everything that decides what the map holds, as JSON."""

    @property
    def probabilities(self) -> Path | None:
        """Where they go, when they are asked for."""
        return self.path.with_name(f"{self.path.stem}.probabilities.tif") if self.settings.probabilities else None

    @property
    def folder(self) -> Path:
        """Where finished strips lie until the map is whole."""
        return self.path.with_name(f".{self.path.stem}.part")

    @property
    def shape(self) -> tuple[int, int]:
        return self.mosaic.grid.height, self.mosaic.grid.width


def _plan(rasters: Sequence[Path], out: Path) -> list[tuple[tuple[ImageInfo, ...], Path]]:
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


def _check_fits(info: ImageInfo, card: ModelCard) -> None:
    if info.bands != len(card.band_names):
        raise InputError(
            f"{info.path} has {info.bands} bands; the run was trained on {len(card.band_names)} "
            f"({', '.join(card.band_names)}). Give a raster with these bands in this order."
        )
    if info.dtype != card.dtype:
        raise InputError(
            f"{info.path} holds {info.dtype}; the run was trained on {card.dtype}. "
            "Give a raster in the units of training; a conversion must scale the values as it was done for training."
        )


def _origin(run: Path, infos: Sequence[ImageInfo], settings: PredictConfig) -> dict[str, Any]:
    states = [(info.path.resolve(), info.path.stat()) for info in infos]
    return {
        "run": str(run.resolve()),
        "weights": file_digest(run / WEIGHTS),
        "card": file_digest(run / CARD),
        "settings": asdict(settings),
        "rasters": [{"path": str(path), "bytes": s.st_size, "modified": _when(s.st_mtime_ns)} for path, s in states],
    }


def _when(ns: int) -> str:
    """Return a time in UTC to the nanosecond."""
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}.{ns % 10**9:09d}"


def _made_before(task: _Task) -> MadeMap | None:
    """Return the map when an earlier job finished it from the same origin."""
    if (
        not task.path.exists()
        or task.folder.exists()
        or _info(task.path).tags.get(ORIGIN_TAG) != json_digest(task.origin)
    ):
        return None
    return MadeMap(task.path, task.probabilities, task.shape, {})


def _refuse_existing(task: _Task) -> None:
    """Raise OutputError when files are there already, but for those that a killed job was putting in their places."""
    if is_complete(task.folder):
        return
    refuse_existing(task.path)
    if task.probabilities:
        refuse_existing(task.probabilities)


def _make(task: _Task, predictor: Model) -> MadeMap:
    legend, grid = task.card.legend, task.mosaic.grid
    ledger = Ledger(task.folder, task.origin, grid.height)
    rows, started = grid.height - ledger.rows_done, time.perf_counter()
    with _keeping(ledger):
        _compute(task, ledger, predictor)
        seconds = time.perf_counter() - started
        pixels = class_pixels(ledger, legend)
        if not any(pixels.values()):
            ledger.rows_done = 0
            raise InputError(f"{task.mosaic.name} has no valid pixel: all is nodata. Check its nodata value and mask.")
        ledger.finish()
        tags = map_tags(task.card, json_digest(task.origin))
        if task.probabilities:
            write_probabilities(task.probabilities, grid, ledger, legend, tags)
        write_class_map(task.path, grid, ledger, legend, tags)
    ledger.remove()
    return MadeMap(task.path, task.probabilities, task.shape, pixels, rows * grid.width, seconds)


def _compute(task: _Task, ledger: Ledger, predictor: Model) -> None:
    """Add the strips that the ledger does not hold yet."""
    card, grid = task.card, task.mosaic.grid
    tiles = TileGrid(grid.height, grid.width, card.tile_px, task.settings.overlap)
    model, channels = _model(predictor, card.legend)
    read = _filled(task.mosaic, np.array(card.mean, np.float32))
    strips = blend(tiles, read, model, channels, task.settings.batch_size, tiles.strip_from(ledger.rows_done))
    mpx = grid.height * grid.width / 1e6
    with meter(f"predict {task.path.name}", mpx, "Mpx") as bar, closing(task.mosaic), closing(strips):
        bar.advance(ledger.rows_done * grid.width / 1e6)
        for strip in strips:
            arrays = {CLASSES: class_values(strip, card.legend, card.threshold)}
            if task.probabilities:
                arrays[PROBABILITIES] = probability_bytes(strip, card.legend)
            ledger.add(strip.window.stop_row, arrays)
            bar.advance(strip.window.height * grid.width / 1e6)


def _filled(mosaic: Mosaic, fill: Float32[ndarray, " b"]) -> Read:
    """Return a reader of `mosaic` that puts `fill` where pixels are not valid."""

    def read(window: Window) -> tuple[Float32[ndarray, "b h w"], Bool[ndarray, "h w"]]:
        pixels, valid = mosaic.read(window)
        return np.where(valid, pixels.astype(np.float32), fill[:, None, None]), valid

    return read


def _model(predictor: Model, legend: Legend) -> tuple[Model, int]:
    """Return what a tile is blended from: the probability of class 1, or with more than two classes of each."""
    return (lambda batch: predictor(batch)[:, 1:], 1) if legend.binary else (predictor, len(legend.names))


@contextmanager
def _keeping(ledger: Ledger) -> Iterator[None]:
    """Say in an error's message what is kept; remove the ledger when it holds nothing."""
    try:
        yield
    except TilthError as error:
        if not ledger.rows_done:
            ledger.remove()
            raise
        rows = f"{ledger.rows_done} of {ledger.rows} rows are kept in {ledger.folder}"
        raise type(error)(f"{error} {rows}; the same command with the same files goes on from there.") from error


def _notes(task: _Task) -> list[str]:
    here, there = task.mosaic.grid.resolution_m, task.card.resolution_m
    if not here or not there or max(here / there, there / here) <= RESOLUTION_OFF:
        return []
    return [
        f"a pixel of {task.mosaic.name} is {here:.3g} m on the ground, the run was trained at {there:.3g} m. "
        f"Resample the raster to about {there:.3g} m for a better map."
    ]
