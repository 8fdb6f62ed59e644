"""Attacks on uploads, one table: each is refused in one line, writes nothing, and leaves a server that answers."""

import asyncio
import io
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import geopandas
import numpy as np
import pytest
import rasterio
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely import box
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from geograft.commands.project import project
from geograft.commands.serve import project_subject
from geograft.config.recipes import AreaConfig
from geograft.cores import can_limit_process
from geograft.geo.vectors.label_file import read_label_file
from geograft.server import uploads
from geograft.server.service import Service
from geograft.server.uploads import Uploads
from tests.support import fork_import
from tests.support.rasters import TENTH_METRE, UTM12, textured, write_raster
from tests.support.serving import TOKEN, WRITE, client_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked processes and their limits")
PATH, SIZE, MAX_BYTES = "/api/uploads/labels", 128, 4_000_000
FILE = WRITE | {"content-type": "application/octet-stream"}
OWN = {"x-geograft-token": TOKEN}
BY_CLASS = f"{PATH}?class=tree"


class ForkedImports:
    """Runs imports as `Uploads._run` does, by `tests.support.fork_import`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", fork_import.__name__], env=dict(environment), text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, command: list[str], folder: Path, answer: BinaryIO) -> int:
        assert self._process.stdin and self._process.stdout
        request = {"folder": str(folder), "answer": answer.name, "request": command[-1]}
        self._process.stdin.write(json.dumps(request) + "\n")
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.communicate()


def make_project(folder: Path) -> Path:
    image = write_raster(folder / "scene.tif", textured(3, SIZE, SIZE))
    return project(folder / "trees", image, ["tree", "water"], AreaConfig(1, 32)).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("uploads"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    subject = project_subject(folder)
    environment = Uploads(subject, folder, MAX_BYTES)._environment()
    imports = ForkedImports(environment | {"PYTHONPATH": os.pathsep.join(sys.path)})
    # Types of arguments are checked with random numbers, also in this thread, which Hypothesis takes for its own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "watch", lambda service: None)
        with client_of(subject, max_upload_bytes=MAX_BYTES) as client:
            client.app._app.state.uploads._run = imports.run  # type: ignore[attr-defined]
            yield client
    imports.close()


def state_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a project, but for what SQLite keeps beside it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --------------------------------------------------------------------------------------------------- valid files


def mask() -> np.ndarray:
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[10:30, 10:40], values[10:30, 40:60], values[70:90, 20:50] = 1, 2, 3
    return values


def tiff(values: np.ndarray | None = None, **options: Any) -> bytes:
    bands = np.atleast_3d(mask() if values is None else values).transpose(2, 0, 1)
    profile = {"driver": "GTiff", "count": len(bands), "height": SIZE, "width": SIZE, "dtype": bands.dtype}
    with rasterio.MemoryFile() as memory:
        with memory.open(**(profile | {"crs": UTM12, "transform": TENTH_METRE} | options)) as raster:
            if "SPARSE_OK" not in options:
                raster.write(bands)
        return bytes(memory.read())


def png(values: np.ndarray | None = None) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask() if values is None else values).save(content, "PNG")
    return content.getvalue()


SQUARES = [box(*(TENTH_METRE @ (left, 40)), *(TENTH_METRE @ (left + 30, 10))) for left in (10, 60)]


def layer(path: Path) -> Path:
    frame = geopandas.GeoDataFrame({"class": ["tree", "water"]}, geometry=SQUARES, crs=UTM12)
    frame.to_file(path)
    return path


def geopackage(folder: Path, *statements: str) -> bytes:
    path = layer(folder / "a.gpkg")
    with closing(sqlite3.connect(path)) as file:
        for statement in statements:
            file.execute(statement)
        file.commit()
    content = path.read_bytes()
    path.unlink()
    return content


def geojson(**members: Any) -> bytes:
    frame = geopandas.GeoDataFrame({"class": ["tree", "water"]}, geometry=SQUARES, crs=UTM12).to_crs(4326)
    return json.dumps(json.loads(frame.to_json(drop_id=True)) | members).encode()


def ring(*points: tuple[float, float]) -> bytes:
    """Return GeoJSON of one polygon."""
    geometry = {"type": "Polygon", "coordinates": [[*points, points[0]]]}
    return geojson(features=[{"type": "Feature", "properties": {"class": "tree"}, "geometry": geometry}])


VALID: dict[str, Callable[[Path], bytes]] = {
    "GeoTIFF": lambda _: tiff(),
    "PNG": lambda _: png(),
    "GeoPackage": geopackage,
    "GeoJSON": lambda _: geojson(),
}


@pytest.mark.parametrize("kind", VALID)
def test_a_file_of_each_format_becomes_labels(client: TestClient, folder: Path, tmp_path: Path, kind: str) -> None:
    before = len(client.get("/api/labels").json()["features"])
    is_mask = kind in ("GeoTIFF", "PNG")
    content = VALID[kind](tmp_path)
    query, headers = "?class=water" if is_mask else "?origin=drawn", FILE | {"content-disposition": "../../evil.tif"}
    answer = client.post(PATH + query, headers=headers, content=content)
    assert answer.status_code == 200, answer.text
    features = client.get("/api/labels").json()["features"][before:]
    assert len(features) == sum(answer.json()["added"].values())
    origins = {feature["properties"]["origin"] for feature in features}
    assert origins <= {"suggested"} if is_mask else origins <= {"drawn"}
    assert not [path for path in folder.parent.rglob("*") if "evil" in path.name or "upload" in path.name]


def test_an_upload_by_the_real_process_is_one_transaction(tmp_path: Path) -> None:
    folder = make_project(tmp_path)
    with client_of(project_subject(folder), max_upload_bytes=MAX_BYTES) as client:
        assert client.get("/api/project").json()["can"]["upload"]
        answer = client.post(BY_CLASS, headers=FILE, content=tiff())
        assert answer.json()["added"] == {"tree": 3} and answer.json()["suggested"] == 3
        assert client.post(BY_CLASS, headers=FILE, content=b"II*\0" + bytes(100)).status_code == 422
        assert len(client.get("/api/labels").json()["features"]) == 3
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


# --------------------------------------------------------------------------------------------------- the attacks


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    """Return a PNG whose few bytes say that it has side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def looped_tiff() -> bytes:
    """Return a TIFF whose first directory is followed by itself."""
    content = bytearray(tiff())
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    content[start + 2 + 12 * count :][:4] = struct.pack("<I", start)
    place = start + 2 + 12 * count
    content[place : place + 4] = struct.pack("<I", start)
    return bytes(content)


def with_overview_file(folder: Path) -> bytes:
    path = folder / "a.tif"
    path.write_bytes(tiff())
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="../scene.tif")
    return path.read_bytes()


VRT = (
    "<VRTDataset rasterXSize='128' rasterYSize='128'><VRTRasterBand dataType='Byte' band='1'><SimpleSource>"
    "<SourceFilename relativeToVRT='0'>{}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
)
SPARSE = {"SPARSE_OK": "TRUE", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
LINK = {"crs": {"type": "link", "properties": {"href": "http://127.0.0.1:9/crs", "type": "proj4"}}}
FOREIGN: dict[str, bytes] = {
    "nothing": b"",
    "a VRT of a file": VRT.format("/etc/passwd").encode(),
    "a VRT of a URL": b"\n" + VRT.format("/vsicurl/http://127.0.0.1:9/a.tif").encode(),
    "a WMS description": b"<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service>",
    "an OGR VRT": b"<OGRVRTDataSource><OGRVRTLayer><SrcDataSource>/etc/passwd</SrcDataSource>",
    "KML with a link": b"<kml><NetworkLink><href>http://127.0.0.1:9/</href></NetworkLink></kml>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "HTML": b"<!DOCTYPE html><script>alert(1)</script>",
    "a name with /vsicurl/": b"/vsicurl/http://127.0.0.1:9/a.tif",
    "a name with /vsizip/": b"/vsizip//vsicurl/http://127.0.0.1:9/a.zip/a.shp",
    "a connection string": b"GPKG:/etc/passwd:a",
    "a path": b"../../labels.gpkg",
    "a zip file": b"PK\x03\x04" + bytes(100),
    "a shapefile": b"\0\0\x27\x0a" + bytes(96),
    "a JPEG": b"\xff\xd8\xff\xe0" + bytes(100),
    "a program": b"\x7fELF" + bytes(100),
    "a pickle": b"\x80\x04\x95" + bytes(20),
    "NetCDF": b"CDF\x01" + bytes(100),
    "a database without its application": b"SQLite format 3\0" + bytes(200),
    "a list": b"[1, 2]",
    "text": b"a,b\n1,2\n",
}
ATTACKS: dict[str, Callable[[Path], bytes]] = {
    "a TIFF of 10^10 pixels": lambda _: tiff(height=100_000, width=100_000, **SPARSE),
    "a TIFF of 16,000 x 16,000 x 8": lambda _: tiff(height=16_000, width=16_000, count=8, **SPARSE),
    "a TIFF of 10^9 zeros": lambda _: tiff(height=30_000, width=30_000, **SPARSE),
    "a PNG of 60,000 x 60,000": lambda _: png_bomb(60_000),
    "a PNG that ends early": lambda _: png_bomb(5000),
    "a PNG of zeros": lambda _: png(np.zeros((3000, 3000), np.uint8)),
    "a photograph": lambda _: png(textured(3, SIZE, SIZE).transpose(1, 2, 0)),
    "a picture without place": lambda _: png(np.ones((50, 60), np.uint8)),
    "noise": lambda _: png((np.random.default_rng(0).random((SIZE, SIZE)) < 0.4).astype(np.uint8)),
    "half a TIFF": lambda _: tiff()[: len(tiff()) // 2],
    "a TIFF's header": lambda _: tiff()[:8],
    "a TIFF of complex numbers": lambda _: tiff(mask().astype("complex64")),
    "a TIFF elsewhere": lambda _: tiff(crs="EPSG:32755"),
    "a TIFF with an external overview": with_overview_file,
    "half a PNG": lambda _: png()[: len(png()) // 2],
    "half a GeoPackage": lambda folder: geopackage(folder)[:30_000],
    "a GeoPackage's header": lambda folder: geopackage(folder)[:100],
    "a GeoPackage of zeros": lambda folder: geopackage(folder)[:100] + bytes(50_000),
    "a view": lambda folder: geopackage(folder, "CREATE VIEW v AS SELECT * FROM a"),
    "a recursive view": lambda folder: geopackage(
        folder, "CREATE VIEW v AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
    ),
    "a trigger": lambda folder: geopackage(
        folder, "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM a; END"
    ),
    "a computed column": lambda folder: geopackage(
        folder, "CREATE TABLE b (x INTEGER, y TEXT GENERATED ALWAYS AS (hex(zeroblob(x))) VIRTUAL)"
    ),
    "a virtual table": lambda folder: geopackage(
        folder, "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master VALUES ('table', 'w', 'w', 0, 'CREATE VIRTUAL TABLE w USING VirtualOGR(x)')",
    ),
    "geometries that are none": lambda folder: geopackage(
        folder, "DROP TRIGGER IF EXISTS rtree_a_geom_update6", "DROP TRIGGER IF EXISTS rtree_a_geom_update7",
        "DROP TRIGGER IF EXISTS rtree_a_geom_update1", "DROP TRIGGER IF EXISTS rtree_a_geom_update2",
        "DROP TRIGGER IF EXISTS rtree_a_geom_update4", "DROP TRIGGER IF EXISTS rtree_a_geom_update5",
        "UPDATE a SET geom = x'00'",
    ),
    "no JSON": lambda _: b'{"type": "FeatureCollection", "features": [',
    "binary JSON": lambda _: b'{"type": "FeatureCollection"' + bytes(range(256)),
    "deep lists": lambda _: b'{"type": "FeatureCollection", "features": ' + b"[" * 1_000_000,
    "deep objects": lambda _: b'{"a":' * 500_000,
    "deep coordinates": lambda _: b'{"type": "Polygon", "coordinates": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep lists with a link": lambda _: b'{"crs": {"href": 1}, "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a CRS that is a link": lambda _: geojson(**LINK),
    "a CRS that is a file": lambda _: geojson(crs={"type": "link", "properties": {"href": "../secret.prj"}}),
    "an ESRI service": lambda _: b'{"url": "http://127.0.0.1:9/FeatureServer", "esriGeometryType": "x"}',
    "an STAC list": lambda _: b'{"type": "FeatureCollection", "stac_version": "1.0.0", "features": []}',
    "NaN": lambda _: ring((float("nan"), 1), (1, 1), (2, 2)),
    "infinity": lambda _: ring((0, 0), (1, 0), (1, 1e999)),
    "far away": lambda _: ring((0, 0), (1e300, 0), (1e300, 1e300)),
    "no feature": lambda _: geojson(features=[]),
    "another class": lambda _: geojson().replace(b'"tree"', b'"oak"'),
    "2,000 features": lambda _: geojson(features=json.loads(geojson())["features"] * 1000),
}  # fmt: skip


def refused(client: TestClient, folder: Path, content: bytes, status: int, query: str = "") -> str:
    """Send a file that must be refused, check that nothing else happened, and return the reason."""
    before = state_of(folder.parent)
    answer = client.post(PATH + query, headers=FILE, content=content)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert set(answer.json()) == {"detail"} and "\n" not in detail and len(detail) <= 1000
    assert str(folder.parent) not in detail and "Traceback" not in detail
    assert state_of(folder.parent) == before
    assert client.get("/api/project").status_code == 200
    return str(detail)


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_of_no_format_is_refused_before_it_is_opened(client: TestClient, folder: Path, name: str) -> None:
    assert "GeoPackage" in refused(client, folder, FOREIGN[name], 415)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_by_content_are_refused(client: TestClient, folder: Path, tmp_path: Path, name: str) -> None:
    (folder.parent / "secret.prj").write_text("secret")
    is_raster = ATTACKS[name](tmp_path)[:4] in (b"II*\0", b"\x89PNG")
    detail = refused(client, folder, ATTACKS[name](tmp_path), 422, "?class=tree" if is_raster else "")
    assert "exit code" not in detail and "secret" not in detail


def test_a_directory_that_follows_itself_ends(client: TestClient, folder: Path) -> None:
    assert client.post(BY_CLASS, headers=FILE, content=looped_tiff()).status_code in (200, 422)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/octet-stream"}, 403),
        (FILE | {"origin": "http://evil.example"}, 403),
        (FILE | {"x-geograft-token": "wrong"}, 401),
        (WRITE | {"content-type": "multipart/form-data; boundary=x"}, 415),
        (WRITE | {"content-type": "application/json"}, 415),
        (WRITE | {"content-type": "image/tiff"}, 415),
        (FILE | {"content-length": "99999999999999999999999"}, 413),
        (FILE | {"content-length": "-1"}, 413),
        (FILE | {"content-length": str(MAX_BYTES + 1)}, 413),
    ],
)
def test_attacks_by_headers_are_refused(client: TestClient, folder: Path, headers: dict[str, str], status: int) -> None:
    before = state_of(folder)
    assert client.post(BY_CLASS, headers=headers, content=tiff()).status_code == status
    assert state_of(folder) == before


def test_a_body_longer_than_it_says_or_without_length_is_cut(client: TestClient, folder: Path) -> None:
    pieces = [tiff(), *[bytes(100_000)] * 50]
    before = state_of(folder)
    assert client.post(BY_CLASS, headers=FILE, content=iter(pieces)).status_code == 413
    headers = FILE | {"content-length": "10"}
    assert client.post(BY_CLASS, headers=headers, content=b"".join(pieces)).status_code == 413
    assert state_of(folder) == before


def test_other_paths_keep_their_small_limit(client: TestClient) -> None:
    headers = WRITE | {"content-type": "application/json"}
    for path in ("/api/labels", "/api/upload", "//api/uploads/labels", "/api/Uploads/labels"):
        assert client.post(path, headers=headers, content=b'"' + bytes(2**20) + b'"').status_code == 413


@pytest.mark.parametrize("query", ["?class=oak", "?class=../x", "?class=" + "n" * 200, "?origin=random", "?origin=%00"])
def test_classes_and_origins_are_those_of_a_list(client: TestClient, folder: Path, query: str) -> None:
    refused(client, folder, tiff(), 422, query)


def test_uploads_are_off_by_default_and_for_who_may_only_look(folder: Path) -> None:
    for options in ({}, {"read_only": True, "max_upload_bytes": MAX_BYTES}):
        with client_of(project_subject(folder), **options) as client:  # type: ignore[arg-type]
            assert not client.get("/api/project").json()["can"]["upload"]
            before = state_of(folder)
            assert client.post(BY_CLASS, headers=FILE, content=tiff()).status_code == 403
            assert state_of(folder) == before


# ------------------------------------------------------------------------------------------- links, disk and time


def test_nothing_is_written_through_symbolic_links(client: TestClient, tmp_path: Path) -> None:
    folder = make_project(tmp_path)
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "kept.txt").write_text("kept")
    with client_of(project_subject(folder), max_upload_bytes=MAX_BYTES) as other:
        (folder / ".upload.part").symlink_to(target, target_is_directory=True)
        refused(other, folder, tiff(), 409, "?class=tree")
        (folder / ".upload.part").unlink()
        shutil.move(folder / "labels.gpkg", target / "labels.gpkg")
        (folder / "labels.gpkg").symlink_to(target / "labels.gpkg")
        assert "link" in refused(other, folder, tiff(), 422, "?class=tree")
    assert sorted(path.name for path in target.iterdir()) == ["kept.txt", "labels.gpkg"]


def test_a_folder_of_somebody_else_is_left_alone(client: TestClient, folder: Path) -> None:
    (folder / ".upload.part").mkdir()
    (folder / ".upload.part" / "mine.txt").write_text("mine")
    refused(client, folder, tiff(), 409, "?class=tree")
    shutil.rmtree(folder / ".upload.part")


def test_a_full_disk_is_told_before_it_is_full(
    client: TestClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=uploads.EXTRA_BYTES))
    refused(client, folder, tiff(), 413, "?class=tree")


async def chunks_of(*parts: bytes, pause_s: float = 0, error: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
        await asyncio.sleep(pause_s)
    if error:
        raise error


def received(folder: Path, chunks: Any, command: tuple[str, ...] = ()) -> int:
    """Return the status of an upload that fails."""
    taker = Uploads(project_subject(folder), folder, MAX_BYTES, command)
    with pytest.raises(HTTPException) as found:
        asyncio.run(taker.receive(chunks, "tree", "suggested"))
    return found.value.status_code


def test_a_client_that_leaves_or_waits_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(folder)
    assert received(folder, chunks_of(tiff()[:5000], error=ClientDisconnect())) == 400
    monkeypatch.setattr(uploads, "IDLE_S", 0.05)
    assert received(folder, chunks_of(tiff()[:5000], b"x", pause_s=5)) == 408
    assert state_of(folder) == before


def test_an_import_that_hangs_or_dies_is_ended_with_its_children(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(folder)
    for code in ("import os; os.abort()", "import sys; sys.exit(3)", "print('[1]')", "print('x' * 10**6)"):
        assert received(folder, chunks_of(tiff()), (sys.executable, "-c", code)) == 422
    monkeypatch.setattr(uploads, "WALL_S", 0.5)
    marker = tmp_path / "alive"
    script = f"(sleep 2; touch {marker}) & sleep 60"
    assert received(folder, chunks_of(tiff()), ("/bin/sh", "-c", script)) == 422
    time.sleep(2)
    assert not marker.exists()
    assert state_of(folder) == before


def test_one_file_at_a_time_in_one_server_and_in_two(folder: Path) -> None:
    taker = Uploads(project_subject(folder), folder, MAX_BYTES)
    other = Uploads(project_subject(folder), folder, MAX_BYTES)

    async def both() -> tuple[int, int, int]:
        first = asyncio.create_task(taker.receive(chunks_of(b"", tiff()[:100], pause_s=0.4), "tree", "drawn"))
        await asyncio.sleep(0.1)
        with pytest.raises(HTTPException) as busy:
            await taker.receive(chunks_of(tiff()), "tree", "drawn")
        with pytest.raises(HTTPException) as locked:
            await other.receive(chunks_of(tiff()), "tree", "drawn")
        with pytest.raises(HTTPException) as ended:
            await first
        return busy.value.status_code, locked.value.status_code, ended.value.status_code

    assert asyncio.run(both()) == (409, 409, 422)


def test_the_end_of_the_server_ends_the_import(folder: Path) -> None:
    taker = Uploads(project_subject(folder), folder, MAX_BYTES, ("/bin/sh", "-c", "sleep 60"))

    async def end() -> None:
        upload = asyncio.create_task(taker.receive(chunks_of(tiff()), "tree", "drawn"))
        while taker._process is None:
            await asyncio.sleep(0.01)
        taker.close()
        with pytest.raises(HTTPException):
            await upload

    asyncio.run(end())
    assert not (folder / ".upload.part").exists()


def test_the_import_gets_neither_keys_nor_drivers_that_it_does_not_need(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("GDAL_DRIVER_PATH", "/evil")
    environment = Uploads(project_subject(folder), folder, MAX_BYTES)._environment()
    assert not {"AWS_SECRET_ACCESS_KEY", "GDAL_DRIVER_PATH"} & set(environment)
    script = (
        "import json, rasterio, pyogrio\nwith rasterio.Env() as e: names = set(e.drivers())\n"
        "print(json.dumps([sorted(names), sorted(pyogrio.list_drivers())]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    for found in json.loads(done.stdout):
        assert set(found) <= uploads.DRIVERS and "GPKG" in found


@pytest.mark.parametrize(
    ("limits", "code", "ended"),
    [
        ((2**29, 10, 2**20), "bytearray(2**30)", b"MemoryError"),
        ((2**31, 1, 2**20), "while True: pass", b""),
        (
            (2**31, 10, 1000),
            "open('a', 'wb', 0).write(bytes(2000)) == 1000 and open('a', 'ab', 0).write(b'x')",
            b"OSError",
        ),
        ((2**31, 10, 2**20), "limit_process(2**40, 100, 2**40); bytearray(2**32)", b"MemoryError"),
    ],
)
def test_a_process_ends_at_its_limits(tmp_path: Path, limits: tuple[int, ...], code: str, ended: bytes) -> None:
    assert can_limit_process()
    script = f"from geograft.cores import limit_process\nlimit_process{limits}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode != 0 and ended in done.stderr


# ---------------------------------------------------------------------------------------------------- random bytes


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    return [make(folder) for make in VALID.values()]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 3), st.data())
def test_damaged_files_are_refused_or_give_valid_labels(
    client: TestClient, folder: Path, seeds: list[bytes], number: int, data: st.DataObject
) -> None:
    content = bytearray(seeds[number])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 2000)))
        match data.draw(st.sampled_from(("flip", "cut", "drop", "fill"))):
            case "flip":
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[max(place, 8) :]
            case "drop":
                del content[place : place + data.draw(st.integers(1, 300))]
            case _:
                content[place : place + 8] = data.draw(st.binary(min_size=8, max_size=8))
        if not content:
            break
    names = {path.name for path in folder.iterdir()}
    answer = client.post(BY_CLASS if number < 2 else PATH, headers=FILE, content=bytes(content))
    assert answer.status_code in (200, 415, 422), answer.text
    assert "\n" not in answer.json().get("detail", "")
    assert {path.name for path in folder.iterdir()} == names
    assert {shape.is_valid for shape in read_label_file(folder / "labels.gpkg").polygons_in(None).shapes} <= {True}
