"""Two processes that write one output at the same time. Run by test_races.py.

    python -m tests.support.race FOLDER COMMAND

FOLDER/alone has the output of an undisturbed process, FOLDER/race that of one whose output a second process wanted
while the first was in the middle of its work. Prints the id of the first process and the error of the second.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image as Picture

import geograft.commands.prepare
import geograft.mapping.models
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.config import PredictConfig, PrepareConfig
from geograft.dataset.sources import MaskSource
from geograft.errors import OutputError
from tests.support.processes import run_in_child
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, ContextPredictor, make_run

# Stands in for the network.
geograft.mapping.models.EnsemblePredictor = ContextPredictor  # type: ignore[misc, assignment]


def predict_map(folder: Path, name: str) -> None:
    predict(folder / "run", (folder / "scene.tif",), folder / name / "map.tif", PredictConfig(batch_size=3))


def prepare_tiles(folder: Path, name: str) -> None:
    source = MaskSource(folder / "images", folder / "masks", {1: "a", 2: "b"})
    prepare(source, folder / name / "tiles", PrepareConfig(tile_px=32, overlap=0.0))


def make_inputs(folder: Path) -> None:
    write_raster(folder / "scene.tif", textured(3, 110, 130), nodata=0)
    make_run(folder / "run", COVERS)
    for side in ("images", "masks"):
        (folder / side).mkdir()
    for number in range(8):
        pixels = np.moveaxis(textured(3, 64, 64, seed=number), 0, 2)
        Picture.fromarray(pixels).save(folder / "images" / f"p{number}.png")
        half = np.repeat([[1, 2]], 32, axis=1).astype(np.uint8)
        Picture.fromarray(np.repeat(half, 64, axis=0)).save(folder / "masks" / f"p{number}.png")


def pausing(owner: object, name: str, pause: Callable[[], None]) -> None:
    """Call `pause` once, before the first call of a function of `owner`."""
    function, paused = getattr(owner, name), []

    def slow(*args: object, **options: object) -> object:
        if not paused:
            paused.append(True)
            pause()
        return function(*args, **options)

    setattr(owner, name, slow)


def main(folder: Path, command: str) -> None:
    make_inputs(folder)
    work = {"predict": predict_map, "prepare": prepare_tiles}[command]
    places = {"predict": (ContextPredictor, "__call__"), "prepare": (geograft.commands.prepare, "write_tile_set")}
    assert run_in_child(lambda: work(folder, "alone")) == 0

    def rival() -> None:
        try:
            work(folder, "race")
        except OutputError as error:
            sys.stdout.write(f"{os.getppid()}\n{error}\n")
            sys.stdout.flush()

    def first() -> None:
        pausing(*places[command], lambda: rival_alone(rival))
        work(folder, "race")

    assert run_in_child(first) == 0


def rival_alone(rival: Callable[[], None]) -> None:
    assert run_in_child(rival) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
