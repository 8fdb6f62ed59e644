"""Quick maps: the process that makes them, when it runs and ends, and what the page shows of it."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS

from geograft.commands.predict import predict
from geograft.commands.project import project
from geograft.commands.quick_maps import QuickMapper, Request, View, parse_request, serve_requests
from geograft.commands.serve import project_subject
from geograft.config import PredictConfig
from geograft.config.recipes import QUICK, RUN, AreaConfig
from geograft.geo.grid import Grid
from geograft.geo.vectors.label_file import Area, Label, read_label_file, write_label_file
from geograft.geo.webmap import Place, Plane
from geograft.server.layers import Subject, layers_of
from geograft.server.quick import MAX_SIDE_PX, QuickMaps, parse_state, window_within
from geograft.training import linear
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.serving import WRITE, client_of, make_project, square

SETTINGS = """
[prepare]
tile_px = 32

[model]
encoder = "test_efficientnet"
weights = "none"
"""
FAKE = """
import json, sys
def say(**state): print(json.dumps(state), flush=True)
say(state="ready")
print("no state", flush=True)
for number, line in enumerate(sys.stdin):
    open(sys.argv[1] + "/asked", "a").write(line)
    say(state="done", seconds=number, text="x" * 1000)
"""
EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)
WRONG_BOUNDS = ([0, 0, 0], [0, 0, 0, 91], [0, 0, 181, 1], [-200, 0, 0, 1], "x", [None] * 4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one image and no labels, whose encoder has random weights."""
    monkeypatch.setattr(linear, "user_cache_path", lambda *_, **__: tmp_path / "user")
    pixels = textured(3, 160, 160) // 2
    pixels[:, 40:56, 40:56] += 120
    pixels[:, 20:30, 70:90] += 120
    image = write_raster(tmp_path / "scene.tif", pixels)
    made = project(tmp_path / "trees", image, ["tree"], AreaConfig(scoring_areas=1, area_px=32)).folder
    (made / "project.toml").write_text((made / "project.toml").read_text() + SETTINGS)
    return made


def draw(folder: Path, *labels: Label) -> None:
    """Add a labelled training area with these labels."""
    found = read_label_file(folder / "labels.gpkg")
    areas = [*found.areas, Area(square(10, 10, 90), "training", "drawn", labelled=True)]
    write_label_file(folder / "labels.gpkg", areas, labels, found.crs)


TREES = (Label(square(40, 40, 16), "tree"), Label(square(70, 20, 10), "tree"))
VIEW = View("scene", (0, 0, 128, 160))


def test_the_map_is_that_of_the_run_in_the_view(folder: Path, tmp_path: Path) -> None:
    mapper = QuickMapper(folder)
    mapper.warm_up()
    assert not mapper.update([VIEW]) and not (folder / QUICK).exists()
    draw(folder, *TREES)
    assert mapper.update([VIEW, View("another", (0, 0, 8, 8))])
    settings = PredictConfig(device="cpu", backend="torch", overlap=0.25, probabilities="uint8")
    predict(folder / QUICK / RUN, tmp_path / "scene.tif", tmp_path / "map.tif", settings)
    for name, whole in {"scene.tif": "map.tif", "scene.probabilities.tif": "map.probabilities.tif"}.items():
        with rasterio.open(folder / QUICK / name) as mine, rasterio.open(tmp_path / whole) as theirs:
            assert mine.transform == theirs.transform
            assert (mine.read()[:, 128:] == 255).all()
            np.testing.assert_array_equal(mine.read()[:, :128], theirs.read()[:, :128])
    with rasterio.open(folder / QUICK / "scene.probabilities.tif") as raster:
        probability = raster.read(2).astype(float)
    assert probability[44:52, 44:52].mean() > probability[60:90, 20:60].mean() + 50
    # The same labels are not fitted again, others are.
    state = (folder / QUICK / RUN / "card.json").stat()
    assert mapper.update([VIEW]) and (folder / QUICK / RUN / "card.json").stat() == state
    draw(folder, TREES[0])
    assert mapper.update([VIEW]) and (folder / QUICK / RUN / "card.json").stat() != state
    assert not (folder / QUICK / "part").exists()


def test_requests_are_answered_one_by_one_and_faults_are_told(folder: Path) -> None:
    assert parse_request('{"views": [{"scene": "scene", "window": [0, 0, 8, 8]}]}') == Request(
        (View("scene", (0, 0, 8, 8)),)
    )
    for line in ("", "{", "[]", '{"views": [1]}', '{"views": [{"scene": "a", "window": [0, 0, 8]}]}'):
        assert parse_request(line) is None
    said: SimpleQueue[Mapping[str, Any]] = SimpleQueue()
    requests: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(
        target=serve_requests, args=(QuickMapper(folder), requests, lambda **each: said.put(each)), daemon=True
    ).start()
    requests.put(Request())
    assert [said.get()["state"], said.get()["state"]] == ["working", "waiting"]
    (folder / "labels.gpkg").write_bytes(b"damaged")
    requests.put(Request())
    assert said.get()["state"] == "working"
    failed = said.get()
    assert failed["state"] == "failed" and "\n" not in failed["text"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_process_ends_with_its_input(folder: Path) -> None:
    command = (sys.executable, "-P", "-m", "geograft.commands.quick_maps", str(folder))
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    assert json.loads(process.stdout.readline()) == {"state": "ready"}
    process.stdin.close()
    assert process.wait(30) == 0
    process.stdout.close()


class Recorder:
    """The states that were published."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []

    def __call__(self, kind: str, data: Mapping[str, Any]) -> None:
        assert kind == "quick"
        self.seen.append(data)

    def wait_for(self, state: str) -> Mapping[str, Any]:
        while not (self.seen and self.seen[-1]["state"] == state):
            time.sleep(0.01)
        return self.seen[-1]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def quick_of(subject: Subject, folder: Path, recorder: Recorder, script: str = FAKE) -> QuickMaps:
    return QuickMaps(lambda: subject, recorder, folder, (sys.executable, "-c", script))


def asked(folder: Path, count: int) -> list[Any]:
    while len(lines := (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []) < count:
        time.sleep(0.01)
    return [json.loads(line) for line in lines]


def test_the_view_is_mapped_when_it_or_the_labels_change(folder: Path, recorder: Recorder) -> None:
    quick = quick_of(project_subject(folder), folder, recorder)
    assert quick.look_at(EVERYWHERE) and not quick.look_at(EVERYWHERE)
    quick.refresh()
    quick.refresh()
    whole = {"views": [{"scene": "scene", "window": [0, 0, 160, 160]}]}
    assert asked(folder, 2) == [whole, whole]
    assert recorder.wait_for("done")["text"] == "x" * 500
    quick.look_at((0.0, 0.0, 1.0, 1.0))  # beside the image
    quick.refresh()
    quick.look_at(EVERYWHERE)
    quick.refresh()
    assert asked(folder, 3) == [whole] * 3
    quick.close()
    recorder.wait_for("off")
    quick.refresh()
    assert recorder.seen[-1]["state"] == "off"
    assert {each["state"] for each in recorder.seen} <= {"off", "starting", "ready", "done"}


def test_it_ends_when_a_network_has_mapped_all_images(folder: Path, tmp_path: Path, recorder: Recorder) -> None:
    subject = project_subject(folder)
    quick = quick_of(subject, folder, recorder)
    quick.refresh()
    recorder.wait_for("ready")
    quick.stop_if_mapped()
    assert recorder.seen[-1]["state"] == "ready"
    (folder / "maps").mkdir()
    (folder / "maps" / "scene.tif").write_bytes(b"a map")
    quick.stop_if_mapped()
    assert recorder.seen[-1]["state"] == "off"
    quick.refresh()
    assert recorder.seen[-1]["state"] == "off"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_process_that_ends_is_told_and_started_again_a_few_times(folder: Path, recorder: Recorder) -> None:
    quick = quick_of(project_subject(folder), folder, recorder, "import os; os.kill(os.getpid(), 9)")
    for _ in range(5):
        quick.refresh()
        recorder.wait_for("failed")
    assert [each["state"] for each in recorder.seen] == ["off", *["starting", "failed"] * 3]


def test_what_is_no_state_is_ignored() -> None:
    for line in (b"", b"{", b"[]", b"{}", b'{"state": 3}', b'{"state": "odd"}', b"[" * 100_000):
        assert parse_state(line) is None
    assert parse_state(b'{"state": "done", "seconds": true}') == parse_state(b'{"state": "done"}')


@given(st.tuples(*[st.floats(-200, 400)] * 4), st.integers(1, 3000), st.integers(1, 3000))
def test_a_window_lies_in_the_image_and_around_the_middle(
    pixels: tuple[float, float, float, float], height: int, width: int
) -> None:
    grid = Grid(height, width, TENTH_METRE, CRS(UTM12))
    place = Place(grid, Plane(grid.crs))
    (west, north), (east, south) = place.to_lonlat(np.array([pixels[:2], pixels[2:]]))
    west, east, south, north = min(west, east), max(west, east), min(south, north), max(south, north)
    window = window_within(place, (west, south, east, north), MAX_SIDE_PX)
    if window is None:
        return
    assert 0 < window.height <= MAX_SIDE_PX and 0 < window.width <= MAX_SIDE_PX
    assert window.row >= 0 and window.stop_row <= height and window.col >= 0 and window.stop_col <= width


def test_layers_of_quick_maps_are_shown_until_there_is_a_map(folder: Path) -> None:
    mapper = QuickMapper(folder)
    draw(folder, *TREES)
    mapper.update([VIEW])
    subject = project_subject(folder)
    quick = [layer for layer in layers_of(subject) if layer.quick]
    assert [layer.kind for layer in quick] == ["classes", "probability"]
    assert quick[1].threshold == 0.5 and quick[1].class_name == "tree"
    (folder / "maps").mkdir()
    for name in ("scene.tif", "scene.probabilities.tif"):
        (folder / "maps" / name).write_bytes((folder / QUICK / name).read_bytes())
    assert not any(layer.quick for layer in layers_of(subject))


def test_the_server_takes_views_of_a_project_only(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    with client_of(subject) as client:
        assert client.get("/api/project").json()["quick"]
        assert client.put("/api/view", json={"bounds": EVERYWHERE}, headers=WRITE).status_code == 204
        for bounds in WRONG_BOUNDS:
            assert client.put("/api/view", json={"bounds": bounds}, headers=WRITE).status_code == 422
            job = client.post("/api/jobs", json={"kind": "go", "view": bounds}, headers=WRITE)
            assert job.status_code == 422, "one check of views for both"
    with client_of(subject, read_only=True) as client:
        assert not client.get("/api/project").json()["quick"]
    with client_of(replace(subject, kind="run", folder=None)) as client:
        assert client.put("/api/view", json={"bounds": EVERYWHERE}, headers=WRITE).status_code == 403
