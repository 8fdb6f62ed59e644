"""From the first polygon to a map in a browser: quick map, training, threshold, reload, and a server that is killed."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy import ndarray
from PIL import Image as Picture

from geograft.commands.demo import SCENES
from geograft.commands.project import project
from geograft.config import EvaluateConfig, ModelConfig, PredictConfig, PrepareConfig, SuggestConfig, TrainConfig
from geograft.config.recipes import QUICK, RUN, AreaConfig
from geograft.geo.grid import Window
from geograft.geo.rasters.raster import Image
from geograft.geo.vectors.label_file import read_label_file
from geograft.geo.vectors.reader import read_polygons
from geograft.geo.webmap import Place, Plane
from geograft.server.jobs import RECORD
from tests.server.test_page import CHROMIUM, WEB, require_browser
from tests.support.rasters import write_raster

PART = Window(656, 256, 256, 256)
"""A part of a demo scene: a road, trees and their shadows."""
AREA = (20.0, 132.0, 108.0, 244.0)
"""First column and row, last column and row there, of an area with three crowns."""
NODATA = 0
CPU: dict[str, Any] = {"device": "cpu", "backend": "torch"}
SETTINGS: dict[str, Any] = {
    "prepare": PrepareConfig(tile_px=32, buffer_px=0),
    "model": ModelConfig(encoder="test_efficientnet", weights="none"),
    "train": TrainConfig(epochs=12, device="cpu"),
    "evaluate": EvaluateConfig(**CPU),
    "predict": PredictConfig(**CPU, probabilities="uint8"),
    "suggest": SuggestConfig(**CPU, tiles=3),
}
COLOUR_TOLERANCE = 3
"""Of a colour that went through the GPU."""


def scene(path: Path) -> tuple[Place, list[ndarray]]:
    """Write the part of the demo scene, without its upper right corner; return its place and the crowns in the area."""
    with Image.open(SCENES / "elsewhere.tif") as image:
        pixels, _ = image.read(PART)
        grid = image.info.grid
    rows, cols = np.indices(pixels.shape[1:])
    pixels = np.where(cols - rows > 190, NODATA, pixels.clip(1)).astype(np.uint8)
    transform = grid.transform @ Affine.translation(PART.col, PART.row)
    write_raster(path, pixels, transform, f"EPSG:{grid.crs.to_epsg()}" if grid.crs else None, nodata=NODATA)
    with Image.open(path) as image:
        own = image.info.grid
    place = Place(own, Plane(own.crs))
    crowns = read_polygons(SCENES / "elsewhere.gpkg", own.crs, "class").shapes
    outlines = [np.stack((~own.transform) @ tuple(shapely.get_coordinates(crown)[::4].T), axis=1) for crown in crowns]
    first_col, first_row, last_col, last_row = AREA
    low, high = np.array([first_col, first_row]), np.array([last_col, last_row])
    return place, [each[:-1] for each in outlines if (each > low).all() and (each < high).all()]


class Server:
    """`geograft serve` as a process of its own."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.log = log
        command = (sys.executable, "-P", "-m", "geograft", "serve", str(folder), "--port", "0")
        environment = os.environ | {"XDG_CACHE_HOME": str(log.parent / "cache")}
        with log.open("wb") as stream:
            self.process = subprocess.Popen(command, stderr=stream, stdout=subprocess.DEVNULL, env=environment)

    def address(self) -> str:
        """Wait until the server has told its address, and return it."""
        while " is at " not in (text := self.log.read_text()):
            assert self.process.poll() is None, text
            time.sleep(0.02)
        return text.split(" is at ")[1].split()[0]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Browser:
    """The script of the story, which tells an event and waits for the answer."""

    def __init__(self, *arguments: str) -> None:
        command = ("node", str(WEB / "tests" / "story.mjs"), *arguments)
        environment = os.environ | {"GEOGRAFT_CHROMIUM": CHROMIUM}
        self.process = subprocess.Popen(
            command, cwd=WEB, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )

    def hear(self, event: str) -> dict[str, Any]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        told: dict[str, Any] = json.loads(line)
        assert told["event"] == event
        return told

    def answer(self, content: Any = None) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(content).encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def started() -> Iterator[Callable[[Any], Any]]:
    """Return what ends processes with the test."""
    with ExitStack() as stack:

        def keep(process: Any) -> Any:
            stack.callback(process.close if isinstance(process, Browser) else process.kill)
            return process

        yield keep


def probabilities(path: Path) -> ndarray:
    """Return the steps of the probability of a tree."""
    with rasterio.open(path) as raster:
        steps: ndarray = raster.read(2)
    return steps


def shown_pixels(moved: dict[str, Any], place: Place) -> tuple[list[ndarray], ndarray]:
    """Return the pictures as (height, width, 3), and column and row in the scene of each of their pixels."""
    pictures = [
        np.asarray(Picture.open(io.BytesIO(base64.b64decode(each["png"]))).convert("RGB")).astype(int)
        for each in moved["seen"]
    ]
    height, width = pictures[0].shape[:2]
    west, south, east, north = moved["bounds"]
    lng = west + (np.arange(width) + 0.5) / width * (east - west)
    lat = north - (np.arange(height) + 0.5) / height * (north - south)
    lonlat = np.stack(np.meshgrid(lng, lat), axis=-1).reshape(-1, 2)
    return pictures, place.to_pixels(lonlat).reshape(height, width, 2)


def surroundings(steps: ndarray, where: ndarray) -> ndarray:
    """Return the steps at positions and of the pixels beside them, as (9, height, width); 255 outside of the scene."""
    padded = np.pad(steps, 2, constant_values=255)
    col, row = np.moveaxis(np.floor(where).astype(int).clip(-2, np.array(steps.shape[::-1]) + 1), -1, 0) + 2
    size = np.array(padded.shape) - 1
    near = [(dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
    return np.stack([padded[(row + dr).clip(0, size[0]), (col + dc).clip(0, size[1])] for dr, dc in near])


def check_colours(moved: dict[str, Any], steps: ndarray, place: Place) -> None:
    """Every pixel has the colour of the class where the map has it, and is clear elsewhere, also without a value."""
    pictures, where = shown_pixels(moved, place)
    ground = pictures[0][2, 2]
    near = surroundings(steps, where)
    colours = set()
    for each, picture in zip(moved["seen"], pictures, strict=True):
        first = round(each["threshold"] * 250)
        belongs = (near >= first) & (near <= 250)
        is_ground = (np.abs(picture - ground) <= COLOUR_TOLERANCE).all(axis=-1)
        coloured = picture[belongs.all(axis=0)]
        colour = np.median(coloured, axis=0)
        colours.add(tuple(colour))
        is_class = (np.abs(picture - colour) <= COLOUR_TOLERANCE).all(axis=-1)
        assert (is_ground | is_class).all()
        assert is_class[belongs.all(axis=0)].all() and is_ground[~belongs.any(axis=0)].all()
        assert each["pixels"] == ((steps >= first) & (steps <= 250)).sum()
    # Edges of what has no value are in the picture, beside pixels of the class and others.
    edge = (near == 255).any(axis=0) & (near != 255).any(axis=0)
    assert edge.sum() > 100 and len(colours) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_from_the_first_polygon_to_a_map(tmp_path: Path, started: Callable[[Any], Any]) -> None:
    require_browser()
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    place, crowns = scene(tmp_path / "scene.tif")
    assert len(crowns) == 3
    made = project(tmp_path / "trees", tmp_path / "scene.tif", ["tree"], AreaConfig(1, 32, seed=2))
    folder = made.folder
    (folder / "project.toml").write_text(replace(made.settings, **SETTINGS).toml())
    area = np.array(AREA).reshape(2, 2)
    drawn = {
        "area": place.to_lonlat(area).tolist(),
        "polygons": [place.to_lonlat(crown).tolist() for crown in crowns],
    }
    server = started(Server(folder, tmp_path / "first.log"))
    browser = started(Browser(server.address(), json.dumps(drawn)))

    browser.hear("quick")
    quick = probabilities(folder / QUICK / "scene.probabilities.tif")
    assert (quick <= 250).any() and not (folder / RUN).exists()
    assert len(read_label_file(folder / "labels.gpkg").polygons_in(None).shapes) == 2
    browser.answer()

    browser.hear("trained")
    steps = probabilities(folder / "maps" / "scene.probabilities.tif")
    rows, cols = np.indices(steps.shape)
    np.testing.assert_array_equal(steps == 255, cols - rows > 190)
    low, high = np.quantile(steps[steps <= 250], [0.4, 0.8]) / 250
    browser.answer([round(float(low), 2), round(float(high), 2)])
    moved = browser.hear("moved")
    assert moved["tiles"] == []
    check_colours(moved, steps, place)
    browser.answer()

    browser.hear("training")
    server.kill()
    assert json.loads((folder / RECORD).read_text())["state"] == "running"
    browser.answer()
    browser.hear("disconnected")
    server = started(Server(folder, tmp_path / "second.log"))
    browser.answer(server.address())
    assert browser.hear("done")["errors"] == []
    job = json.loads((folder / RECORD).read_text())
    assert (job["id"], job["state"]) == (2, "done") and "Resuming" in server.log.read_text()
    assert (probabilities(folder / "maps" / "scene.probabilities.tif") != steps).any()
    assert len(read_label_file(folder / "labels.gpkg").polygons_in(None).shapes) == 3
