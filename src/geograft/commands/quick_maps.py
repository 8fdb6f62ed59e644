"""Quick maps of a project for `geograft serve`, by a process that stays warm: from labels to a map within seconds.

    python -m geograft.commands.quick_maps PROJECT

Each line on standard input is a request as JSON: `{"views": [{"scene": ..., "window": [row, col, height, width]}]}`.
Each line on standard output tells a state as JSON: ready, working, waiting (for labels), done or failed. Only the last
request that has not started counts. The end of standard input ends the process at once.

The linear classifier of `geograft train --quick` is fitted to the labelled areas, as `geograft go` prepares them, and
maps the views. All is in the folder .quick of the project; a map replaces the last one when it is complete.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from pydantic import TypeAdapter, ValidationError

from geograft.commands.demo import with_weights
from geograft.commands.prepare import prepare
from geograft.commands.project_work import Work, predict_window
from geograft.commands.train import train
from geograft.commands.training_plan import LINEAR
from geograft.config import Recipe
from geograft.config.recipes import LABEL_FILE, QUICK, RUN, TILES, read_project
from geograft.dataset.sources import VectorSource
from geograft.errors import GeograftError
from geograft.files import translate_write_errors
from geograft.geo.grid import Window
from geograft.geo.vectors.label_file import read_label_file
from geograft.locks import lock_output

OVERLAP = 0.25
"""Overlap of adjacent windows: half the time of half overlap."""
NICENESS = 5
"""So that the server answers meanwhile."""


@dataclass(frozen=True)
class View:
    """A part of an image that someone looks at."""

    scene: str
    window: tuple[int, int, int, int]
    """Row, column, height and width."""


@dataclass(frozen=True)
class Request:
    """What to map."""

    views: tuple[View, ...] = ()


@dataclass
class QuickMapper:
    """The quick maps of a project, and what they were made from."""

    folder: Path
    available: dict[str, Recipe] = field(default_factory=dict)
    """The recipe with weights that are available, by the one that project.toml has."""
    fitted: str = ""
    """Digest of what the classifier was fitted to."""

    @property
    def home(self) -> Path:
        """The folder of the quick maps."""
        return self.folder / QUICK

    def warm_up(self) -> None:
        """Build the network once, which looks up its weights.

        Raises:
            GeograftError: if the project or the weights cannot be read.
        """
        self._recipe(read_project(self.folder)[0].recipe)

    def update(self, views: Sequence[View]) -> bool:
        """Fit the classifier to the labels, if they have changed, and map the views; return whether there are labels.

        Raises:
            GeograftError: if the labels cannot be used, or a map cannot be written.
        """
        settings, chosen = read_project(self.folder)
        work = Work(self.folder, settings, chosen, None, read_label_file(self.folder / LABEL_FILE))
        areas = [area for area in work.labels.labelled_areas if area.role == "training"]
        if not areas or not len(work.labels.polygons_in(None).shapes):
            return False
        with translate_write_errors(self.home):
            self.home.mkdir(exist_ok=True)
        with lock_output(self.home):
            self._fit(work)
            for view in views:
                if view.scene in work.images:
                    self._map(work, view)
        return True

    def _fit(self, work: Work) -> None:
        run = self.home / RUN
        if work.training_digest == self.fitted and run.exists():
            return
        with translate_write_errors(self.home):
            for name in (TILES, RUN):
                shutil.rmtree(self.home / name, ignore_errors=True)
        # Every labelled area is fitted to: nothing is chosen on validation tiles.
        config = replace(work.settings.prepare, val=0.0)
        tiles = prepare(VectorSource(tuple(work.images.values()), work.labels.path), self.home / TILES, config)
        train(tiles, run, self._recipe(work.settings.recipe))
        self.fitted = work.training_digest

    def _recipe(self, recipe: Recipe) -> Recipe:
        """Return the linear classifier of a project's encoder, or of one whose weights are available."""
        key = repr(recipe)
        if key not in self.available:
            quick = recipe.with_settings(model={"architecture": LINEAR, "start": "", "start_fraction": 0.0})
            self.available[key] = with_weights(quick)[0]
        return self.available[key]

    def _map(self, work: Work, view: View) -> None:
        settings = replace(
            work.settings.predict,
            probabilities="uint8",
            uncertainty=False,
            applicability=False,
            backend="torch",
            place="",
            threshold=(),
            window_px=0,
            overlap=OVERLAP,
            tta=1,
        )
        image, target = work.images[view.scene], self.home / f"{view.scene}.tif"
        predict_window(self.home / RUN, image, Window(*view.window), target, settings)


def parse_request(line: str) -> Request | None:
    """Return the request in a line; None if it is none."""
    try:
        return TypeAdapter(Request).validate_json(line)
    except ValidationError:
        return None


def serve_requests(mapper: QuickMapper, requests: "SimpleQueue[Request]", say: Callable[..., None]) -> None:
    """Answer requests for ever; of several that wait, only the last."""
    while True:
        request = requests.get()
        while not requests.empty():
            request = requests.get()
        say(state="working")
        began = time.monotonic()
        try:
            found = mapper.update(request.views)
            say(state="done" if found else "waiting", seconds=round(time.monotonic() - began, 2))
        except GeograftError as error:
            say(state="failed", text=str(error))


def _listen(stream: TextIO, requests: "SimpleQueue[Request]") -> None:
    """Pass requests on until the stream ends, and with it the process: then nobody waits for a map any more."""
    for line in stream:
        request = parse_request(line)
        if request is not None:
            requests.put(request)
    os._exit(0)


def _say(**state: Any) -> None:
    content: Mapping[str, Any] = state
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def main(folder: Path) -> None:
    """Run until standard input ends."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    requests: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin, requests), daemon=True).start()
    mapper = QuickMapper(folder)
    try:
        mapper.warm_up()
        _say(state="ready")
    except GeograftError as error:
        _say(state="failed", text=str(error))
    serve_requests(mapper, requests, _say)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
