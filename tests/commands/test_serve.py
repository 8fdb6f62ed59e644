"""`geograft serve` as a user starts it: what it shows, what it refuses, and how it ends."""

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geograft.commands.serve import (
    listening_socket,
    project_subject,
    reduced_images,
    serve,
    served_subject,
    shown_basemap,
)
from geograft.config import ServeConfig
from geograft.errors import InputError, SettingError
from geograft.geo.webmap import lonlat_to_mercator
from geograft.server.layers import layers_of
from tests.support.rasters import textured, write_raster
from tests.support.runs import TREES, make_run
from tests.support.serving import PIXELS, client_of, write_map

START = "import sys; from geograft.cli import main; main(sys.argv[1:])"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    from geograft.commands.project import project
    from geograft.config.recipes import AreaConfig

    image = write_raster(tmp_path / "scene.tif", textured(3, 128, 128))
    areas = AreaConfig(scoring_areas=2, area_px=32)
    return project(tmp_path / "trees", image, ["tree", "water"], areas).folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", TREES)


def test_a_project_is_shown_with_its_classes_and_what_go_makes(project: Path) -> None:
    subject = project_subject(project)
    assert [layer.kind for layer in layers_of(subject)] == ["image"]
    assert [(one.value, one.name) for one in subject.classes] == [(1, "tree"), (2, "water")]
    assert subject.maps == (("scene", project / "maps" / "scene.tif"),)
    write_map(project / "maps" / "scene.tif", np.zeros((PIXELS, PIXELS), np.uint8))
    assert [layer.kind for layer in layers_of(subject)] == ["image", "classes", "probability"]


def test_a_run_is_shown_with_images_and_maps(run: Path, tmp_path: Path) -> None:
    image = write_raster(tmp_path / "scene.tif", textured(3, PIXELS, PIXELS))
    made = write_map(tmp_path / "map.tif", np.full((PIXELS, PIXELS), 200, np.uint8))
    subject = served_subject(run, (image, made))
    assert [(layer.raster.group, layer.kind) for layer in layers_of(subject)] == [
        ("scene", "image"), ("map", "classes"), ("map", "probability"),
    ]  # fmt: skip
    assert [(one.value, one.name) for one in subject.classes] == [(2, "trees")]
    assert {"map.tif", "map.probabilities.tif", "map.gpkg"} <= set(subject.downloads)


def test_a_large_image_without_overviews_gets_a_copy_once(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    subject = project_subject(project)
    assert reduced_images(subject) == {}
    monkeypatch.setattr("geograft.geo.webmap.LARGE_PX", 1000)
    ((revision, copy),) = reduced_images(subject).items()
    state = copy.stat()
    assert reduced_images(subject) == {revision: copy} and copy.stat() == state
    with client_of(replace(subject, reduced={revision: copy})) as client:
        layer = client.get("/api/project").json()["layers"][0]
        west, south, east, north = layer["bounds"]
        z = layer["maxzoom"] - 4
        u, v = lonlat_to_mercator(np.array([[(west + east) / 2, (south + north) / 2]]))
        answer = client.get(f"/api/layers/{layer['id']}/tiles/{z}/{int(u[0] * 2**z)}/{int(v[0] * 2**z)}.png")
        assert answer.status_code == 200
        # A copy of another state of the image is not used.
        write_raster(tmp_path / "scene.tif", textured(3, 128, 128, seed=1))
        (layer,) = layers_of(subject)
        assert layer.raster.revision != revision


def test_what_cannot_be_shown_is_refused(run: Path, project: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("no image")
    for path, rasters in ((run, ()), (run, (text,)), (tmp_path, ()), (tmp_path / "none", ()), (text, ())):
        with pytest.raises(InputError):
            serve(path, rasters)
    with pytest.raises(SettingError):
        serve(project, text)
    (project / "project.toml").write_text("title =")
    with pytest.raises(SettingError):
        serve(project)


@pytest.mark.parametrize(
    ("address", "origin"),
    [
        ("https://tile.openstreetmap.org/{z}/{x}/{y}.png", "https://tile.openstreetmap.org"),
        ("http://127.0.0.1:8080/{z}/{y}/{x}?key=a-b_c", "http://127.0.0.1:8080"),
        ("http://[::1]:80/{z}/{x}/{y}", "http://[::1]:80"),
        ("", ""),
    ],
)
def test_a_basemap_is_an_address_of_tiles(address: str, origin: str) -> None:
    assert ServeConfig(address).basemap_origin == origin


@pytest.mark.parametrize(
    "address",
    [
        "tile.example/{z}/{x}/{y}.png", "https://tile.example/{z}/{x}.png", "https://{s}.tile.example/{z}/{x}/{y}.png",
        "https://user:secret@tile.example/{z}/{x}/{y}", "file:///{z}/{x}/{y}", "javascript:alert(1)//{z}{x}{y}",
        "https://tile.example; script-src */{z}/{x}/{y}", "https://tile.example /{z}/{x}/{y}", "https:///{z}/{x}/{y}",
        "https://tile.example/{z}/{x}/{y}/{z}", "https://{z}.example/{x}/{y}/", "https://t.example/{z}/{x}/{y}\n",
    ],
)  # fmt: skip
def test_what_is_no_address_of_tiles_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address of map tiles"):
        ServeConfig(address)


def test_a_project_names_its_basemap_and_a_map_without_crs_has_none(project: Path, tmp_path: Path) -> None:
    path = project / "project.toml"
    address = "https://tile.example/{z}/{x}/{y}.png"
    path.write_text(f'{path.read_text()}\n[serve]\nbasemap = "{address}"\nattribution = "Someone"\n')
    subject = project_subject(project)
    assert subject.basemap == ServeConfig(address, "Someone")
    assert shown_basemap(subject, ServeConfig()) == subject.basemap
    other = ServeConfig("https://other.example/{z}/{x}/{y}.png")
    assert shown_basemap(subject, other) == other
    flat = write_raster(tmp_path / "flat.tif", textured(3, 16, 16), crs=None)
    assert shown_basemap(replace(subject, images=(("flat", flat),)), other) == ServeConfig()
    with client_of(subject) as client:
        assert client.get("/api/project").json()["basemap"] == {
            "url": address, "origin": "https://tile.example", "attribution": "Someone"
        }  # fmt: skip
    path.write_text(path.read_text().replace("https:", "ftp:"))
    with pytest.raises(SettingError, match="ftp"):
        project_subject(project)


def test_a_port_that_is_in_use_or_impossible_is_refused() -> None:
    with listening_socket(0) as taken:
        for port in (taken.getsockname()[1], -1, 70_000):
            with pytest.raises(SettingError, match=str(port)):
                listening_socket(port)


def fetch(address: str, token: str) -> tuple[int, bytes]:
    request = urllib.request.Request(address, headers={"X-Geograft-Token": token})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_server_prints_its_address_answers_and_ends_at_an_interrupt(project: Path) -> None:
    command = [sys.executable, "-c", START, "serve", str(project), "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        match = re.search(r"(http://127\.0\.0\.1:(\d+))/#(\S+)$", server.stderr.readline())
        assert match is not None
        address, port, token = match.groups()
        assert fetch(f"{address}/api/project", token)[0] == 200
        assert fetch(f"{address}/api/project", "wrong")[0] == 401
        assert fetch(f"http://localhost:{port}/api/labels", token)[0] == 200
        # Not reachable by other addresses of this machine.
        with socket.socket() as other:
            other.settimeout(5)
            assert other.connect_ex(("127.0.0.2", int(port))) != 0
        server.send_signal(signal.SIGINT)
        rest = server.stderr.read()
        assert server.wait(60) == 0
    assert "Traceback" not in rest
