"""The work of `geograft go` on a project folder: what is done, from which inputs, and where its files are.

Tile set, run, maps and suggestions are made in the hidden folder .go of the project, and replace those of the last time
when they are finished. done.json there says what each was made from: a step whose inputs have not changed is not
repeated, and an interrupted one is resumed.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import shapely

from geograft.card import CARD
from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.config.recipes import RUN, TILES, ProjectSettings
from geograft.dataset.scenes import scene_names
from geograft.errors import OutputError, SettingError
from geograft.files import file_digest, json_digest, translate_write_errors, write_json
from geograft.geo.grid import Window
from geograft.geo.rasters.opening import raster_state
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.styles import sidecar_paths
from geograft.geo.rasters.tags import sibling_path
from geograft.geo.vectors.label_file import LabelFile
from geograft.geo.vectors.reader import Features
from geograft.geo.vectors.writer import Layer, write_geopackage
from geograft.progress import announce
from geograft.text import join_names

STAGING, DONE_FILE, READY_FILE = ".go", "done.json", "ready.json"
TRAIN = "train"
WINDOW = re.compile(r"(.+)@(\d+),(\d+),(\d+),(\d+)")
VIEW = Layer("view", "View", "The part of the image that is mapped.")


@dataclass
class Work:
    """A project folder, what of it is done, and what is not."""

    folder: Path
    settings: ProjectSettings
    chosen: frozenset[str]
    """The settings of network and training that project.toml has."""
    minutes: float | None
    labels: LabelFile
    notes: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    """The steps of this call, in order, done now or before."""
    repeated: list[str] = field(default_factory=list)

    @cached_property
    def images(self) -> dict[str, Path]:
        """The images by their names."""
        paths = [self.folder / path for path in self.settings.images]
        return dict(zip(scene_names(paths), paths, strict=True))

    @cached_property
    def states(self) -> dict[str, dict[str, Any]]:
        """Size and time of the images, by their names."""
        return {name: raster_state(path) for name, path in self.images.items()}

    @property
    def staging(self) -> Path:
        """The folder of what is in progress."""
        return self.folder / STAGING

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.folder / RUN

    @cached_property
    def done(self) -> dict[str, dict[str, Any]]:
        """What was done, by step: a digest of its inputs, its lines and seconds. Empty if the file is damaged."""
        return read_steps(self.staging / DONE_FILE)

    @cached_property
    def training_digest(self) -> str:
        """A digest of all that the run depends on. Polygons outside of labelled areas do not count."""
        areas, layer = self.labels.labelled_areas, self.labels.polygons_in(None)
        inside = shapely.intersects(layer.shapes, shapely.union_all([area.shape for area in areas])).tolist()
        rows = zip(layer.shapes, layer.classes, self.labels.suggested.tolist(), inside, strict=True)
        content = {
            "areas": [(area.shape.wkb_hex, area.role, area.origin, area.scene) for area in areas],
            "polygons": [(shape.wkb_hex, name, suggested) for shape, name, suggested, kept in rows if kept],
            "images": self.states,
            "classes": self.settings.names,
            "minutes": self.minutes,
        }
        return json_digest(content | {"recipe": asdict(self.settings.recipe)})

    def digest_with_run(self, *inputs: Any) -> str:
        """Return a digest of the run as it is now, which may have been calibrated since, and of other inputs."""
        return json_digest([file_digest(self.run / CARD), *inputs])

    def is_done(self, step: str, inputs: str, files: Sequence[Path]) -> bool:
        """Return whether a step was done with these inputs and its files are there."""
        known = self.done.get(step)
        return known is not None and known["inputs"] == inputs and all(file.exists() for file in files)

    def do(self, step: str, inputs: str, action: Callable[[], Sequence[str]], files: Sequence[Path] = ()) -> None:
        """Do a step and record it, unless it is done."""
        self.steps.append(step)
        if self.is_done(step, inputs, files):
            return
        announce(f"{step} ...")
        if step not in self.done:
            # Before the step writes anything, which would else be taken for files of others after a kill.
            self.record({step: {"inputs": "", "lines": [], "seconds": 0.0}})
        started = time.monotonic()
        lines = list(action())
        entries = {step: {"inputs": inputs, "lines": lines, "seconds": time.monotonic() - started}}
        if step == TRAIN:
            write_json(self.staging / READY_FILE, entries)
            self.complete_training()
        else:
            self.record(entries)
        self.repeated.append(step)

    def record(self, entries: Mapping[str, dict[str, Any]]) -> None:
        """Record steps that are done."""
        self.done.update(entries)
        write_json(self.staging / DONE_FILE, self.done)

    def complete_training(self) -> None:
        """Move tile set and run to their places and record the step, if they are ready: now, or after a kill."""
        ready = self.staging / READY_FILE
        entries = read_steps(ready)
        if TRAIN in entries:
            for name in (TILES, RUN):
                replace_folder(self.staging / name, self.folder / name)
            self.record(entries)
        ready.unlink(missing_ok=True)

    def refuse_foreign(self, path: Path, step: str) -> None:
        """Raise OutputError if there is something at `path` that no earlier `go` wrote in `step`."""
        if os.path.lexists(path) and step not in self.done:
            raise OutputError(
                f"{path} was not written by `geograft go`, which needs this name; nothing was changed. Move it "
                "elsewhere or remove it."
            )


def read_steps(path: Path) -> dict[str, dict[str, Any]]:
    """Return the digest of the inputs, the lines and the seconds of each step in a file; empty if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
        return {
            name: {"inputs": str(one["inputs"]), "lines": [*map(str, one["lines"])], "seconds": float(one["seconds"])}
            for name, one in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def replace_folder(new: Path, place: Path) -> None:
    """Move a folder to its place, if it is not there yet, and remove the one that was there."""
    if not new.exists():
        return
    old = new.with_name(f"old-{new.name}")
    with translate_write_errors(place):
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.replace(old)
        new.replace(place)
        shutil.rmtree(old, ignore_errors=True)


def parse_first(text: str, images: Mapping[str, Path]) -> tuple[str, Window | None]:
    """Return the image that is mapped before the others, and the part of it that is mapped before the rest, if any.

    `text` is NAME or NAME@ROW,COL,HEIGHT,WIDTH, in pixels from the upper left corner of the image.

    Raises:
        SettingError: if the project has no such image, or the window is empty or reaches beyond it.
    """
    match = None if text in images else WINDOW.fullmatch(text)
    name = match[1] if match else text
    if name not in images:
        raise SettingError(f"--first {text}: the images of the project are called {join_names(images)}.")
    if match is None:
        return name, None
    with Image.open(images[name]) as image:
        grid = image.info.grid
    row, col, height, width = map(int, match.groups()[1:])
    if not (height and width and row + height <= grid.height and col + width <= grid.width):
        raise SettingError(f"--first {text}: the image has {grid.height} rows and {grid.width} columns.")
    return name, Window(row, col, height, width)


def predict_window(run: Path, image: Path, window: Window, out: Path, settings: PredictConfig) -> None:
    """Map a window of an image: there, the map has the pixels of that of the whole image.

    It replaces a map at `out` when it is complete. An interrupted one is not resumed.

    Raises:
        GeograftError: as `predict`.
    """
    part = out.parent / "part"
    with translate_write_errors(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    with Image.open(image) as opened:
        grid = opened.info.grid
    outline, made = part / "view.gpkg", part / out.name
    write_geopackage(outline, [Features([grid.footprint(window)], {})], grid.crs, VIEW)
    predict(run, image, made, settings, aoi=outline)
    with translate_write_errors(out):
        for file in map_files(made):
            if file.exists():
                file.replace(out.with_name(file.name))
        shutil.rmtree(part, ignore_errors=True)


def map_files(path: Path) -> list[Path]:
    """Return all files that a map at `path` may have, the map itself last: whoever sees it finds the others."""
    rasters = [*(sibling_path(path, what) for what in ("applicability", "uncertainty", "probabilities")), path]
    return [file for raster in rasters for file in (*sidecar_paths(raster), raster)]
