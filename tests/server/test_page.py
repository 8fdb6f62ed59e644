"""The page of `geograft serve`: the committed bundle is that of the sources in web/, and complete in itself."""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image as Picture

from geograft.config import ServeConfig

ROOT = Path(__file__).parents[2]
WEB, PAGE = ROOT / "web", ROOT / "src" / "geograft" / "server" / "page"


def source_hash() -> str:
    """The SHA-256 that web/bundle.ts computes."""
    listed = re.search(r"SOURCES = (\[.*?\]);", (WEB / "bundle.ts").read_text(encoding="utf-8"), re.DOTALL)
    assert listed
    given = [WEB / name for name in json.loads(listed[1])]
    files = [each for path in given for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()]
    found = hashlib.sha256()
    for name in sorted(file.relative_to(WEB).as_posix() for file in files):
        content = (WEB / name).read_bytes().replace(b"\r\n", b"\n")
        found.update(name.encode() + b"\0" + content + b"\0")
    return found.hexdigest()


CHROMIUM = os.environ.get("GEOGRAFT_CHROMIUM", "/usr/bin/chromium")


def require_packages() -> None:
    """Skip the test where Node or the packages of web/ are missing."""
    if reason := _missing():
        pytest.skip(reason)


def require_browser() -> None:
    """Skip the test where Node, the packages of web/ or Chromium are missing; fail if the environment requires them."""
    reason = _missing() or ("" if Path(CHROMIUM).is_file() else f"{CHROMIUM} is not installed")
    if reason and os.environ.get("GEOGRAFT_REQUIRE_BROWSER"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def _missing() -> str:
    if shutil.which("node") is None:
        return "Node is not installed"
    return "" if (WEB / "node_modules").is_dir() else "the packages of web/ are not installed: run `npm ci` there"


def run(*command: str, **environment: str) -> str:
    """Run a tool of web/node_modules with Node and return what it prints."""
    tool = ["node", str(WEB / "node_modules" / command[0]), *command[1:]]
    done = subprocess.run(tool, cwd=WEB, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_bundle_is_built_from_these_sources() -> None:
    assert (PAGE / "source.sha256").read_text().strip() == source_hash(), "run `npm ci` and `npm run build` in web/"


def test_the_bundle_is_complete_and_loads_nothing_from_elsewhere() -> None:
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    names = re.findall(r'(?:src|href)="([^"]+)"', index)
    assert any(name.endswith(".js") for name in names)
    for name in names:
        assert (PAGE / name.removeprefix("/")).is_file(), name
    assert "<script>" not in index and "style=" not in index  # the server's policy forbids both
    assert "javascript:" not in index


def test_the_licences_of_what_is_bundled_are_with_it() -> None:
    texts = (PAGE / "LICENSES.txt").read_text(encoding="utf-8")
    for name, version in json.loads((WEB / "package.json").read_text())["dependencies"].items():
        assert f"{name} {version} (" in texts
    assert not re.search("GNU (AFFERO |LESSER )?GENERAL PUBLIC", texts, re.IGNORECASE)


def test_versions_are_exact_and_the_lock_file_names_no_host() -> None:
    package = json.loads((WEB / "package.json").read_text())
    for version in {**package["dependencies"], **package["devDependencies"]}.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert '"resolved"' not in (WEB / "package-lock.json").read_text()


def test_building_again_gives_the_committed_bundle(tmp_path: Path) -> None:
    require_packages()
    run("vite/bin/vite.js", "build", GEOGRAFT_PAGE_OUT=str(tmp_path / "page"))
    built = {path.relative_to(tmp_path / "page"): path.read_bytes() for path in (tmp_path / "page").rglob("*.*")}
    assert built == {path.relative_to(PAGE): path.read_bytes() for path in PAGE.rglob("*.*")}


def test_the_page_passes_its_own_tests() -> None:
    require_packages()
    run("typescript/bin/tsc", "--noEmit")
    run("vitest/vitest.mjs", "run")


@pytest.mark.slow
def test_the_page_does_in_a_browser_what_it_should() -> None:
    require_browser()
    run("../tests/browser.mjs", GEOGRAFT_CHROMIUM=CHROMIUM)


@contextmanager
def tile_server() -> Iterator[tuple[str, list[str]]]:
    """Serve an empty tile for every path; yield host and port, and the headers Referer of the requests."""
    referrers: list[str] = []
    buffer = io.BytesIO()
    Picture.new("RGB", (256, 256), "#888888").save(buffer, "PNG")

    class Tiles(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            referrers.append(self.headers.get("referer", ""))
            self.send_response(200)
            self.send_header("access-control-allow-origin", "*")
            self.send_header("content-type", "image/png")
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Tiles) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", referrers
        server.shutdown()
        thread.join()


def test_the_page_and_the_server_work_together(tmp_path: Path) -> None:
    require_browser()
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from geograft.geo.vectors.label_file import read_label_file
    from geograft.server.app import create_app
    from geograft.server.guard import Access
    from tests.support.serving import TOKEN, make_project

    # 64 x 64 pixels; the probability of column c is 3 c / 250, without the upper 8 rows.
    subject = make_project(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, tile_server() as (tiles, referrers):
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        basemap = ServeConfig(f"http://{tiles}/{{z}}/{{x}}/{{y}}.png", "A server of this test")
        access = Access(TOKEN, (host,), basemap_origin=basemap.basemap_origin)
        app = create_app(replace(subject, basemap=basemap), access)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            seen = json.loads(run("../tests/serve.mjs", f"http://{host}/#{TOKEN}", GEOGRAFT_CHROMIUM=CHROMIUM))
        finally:
            server.should_exit = True
            thread.join()
    assert seen["errors"] == [] and seen["tileRequests"] == []
    assert seen["hostsBefore"] == [host] and seen["hostsAfter"] == [host, tiles]
    assert set(referrers) == {f"http://{host}/"}
    assert seen["counts"].split() == ["trees", "3", "1"]  # name, labels, key
    found = read_label_file(tmp_path / "labels.gpkg")
    drawn = found.polygons_in(None).shapes[-1]
    assert shapely.get_num_interior_rings(shapely.get_geometry(drawn, 0)) == 1
    assert len(found.areas) == 3 and found.areas[-1].labelled
    assert (found.areas[-1].role, found.areas[-1].origin) == ("training", "drawn")
    assert seen["area"]["pixels"] == 56 * int((np.arange(64) * 3 >= 175).sum())
    assert "Probability of trees" in seen["values"]


def test_files_are_imported_on_the_page(tmp_path: Path) -> None:
    require_browser()
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from PIL import Image

    from geograft.commands.project import project
    from geograft.commands.serve import project_subject
    from geograft.config.recipes import AreaConfig
    from geograft.geo.vectors.label_file import read_label_file
    from geograft.server.app import create_app
    from geograft.server.guard import Access
    from tests.support.rasters import textured, write_raster
    from tests.support.serving import TOKEN

    image = write_raster(tmp_path / "scene.tif", textured(3, 96, 96))
    folder = project(tmp_path / "project", image, ["trees", "water"], AreaConfig(1, 32)).folder
    mask = np.zeros((96, 96), np.uint8)
    mask[:8, :8] = mask[20:30, 20:30] = mask[40:60, 5:9] = mask[70:80, 70:90] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "bad.geojson").write_text("<VRTDataset/>")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(project_subject(folder), Access(TOKEN, (host,), max_upload_bytes=10**6))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            files = str(tmp_path / "mask.png"), str(tmp_path / "bad.geojson")
            seen = json.loads(run("../tests/import.mjs", f"http://{host}/#{TOKEN}", *files, GEOGRAFT_CHROMIUM=CHROMIUM))
        finally:
            server.should_exit = True
            thread.join()
    assert seen["errors"] == [] and seen["disabled"] and not seen["open"]
    assert "GeoPackage" in seen["refused"] and "4 labels imported: trees 4" in seen["said"]
    content = read_label_file(folder / "labels.gpkg")
    assert content.polygons_in(None).classes == ("trees",) * 4 and content.suggested.all()
