"""Rasters on web servers and in object stores: equal pixels, few bytes, and one clear error for whatever fails."""

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import given, settings
from hypothesis import strategies as st

from geograft.errors import InputError, RasterChangedError
from geograft.geo.grid import Window, block_windows
from geograft.geo.rasters import opening
from geograft.geo.rasters.opening import raster_state, unchanged_condition
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.writer import copy_tiled
from geograft.locations import to_place
from geograft.storage import open_storage
from geograft.web import StoredObject
from tests.support.azure import az_container
from tests.support.gs import gs_bucket
from tests.support.rasters import textured, write_raster
from tests.support.s3 import bucket
from tests.support.web_server import Fault, WebServer, serve_web

__all__ = ["az_container", "bucket", "gs_bucket"]

SIDE, BLOCK = 1400, 256


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cog")
    smooth = np.random.default_rng(0).integers(1, 255, (3, SIDE // 4, SIDE // 4), np.uint8).repeat(4, 1).repeat(4, 2)
    plain = write_raster(folder / "plain.tif", smooth)
    rasterio.shutil.copy(plain, folder / "cog.tif", driver="COG", blocksize=BLOCK, compress="deflate")
    return folder / "cog.tif"


@pytest.fixture(scope="module")
def module_web(cog: Path) -> Iterator[WebServer]:
    with serve_web() as server, pytest.MonkeyPatch.context() as patch:
        server.put("scene.tif", cog.read_bytes())
        patch.setattr("geograft.web.FIRST_PAUSE_S", 0.0)
        patch.setitem(opening.REMOTE_OPTIONS, "GDAL_HTTP_RETRY_DELAY", "0.001")
        yield server


@pytest.fixture
def web(module_web: WebServer) -> WebServer:
    module_web.count, module_web.fault = 0, lambda _: ""
    module_web.etags.clear()
    module_web.conditions = "kept"
    module_web.requests.clear()
    return module_web


def reading_windows(size: int, overlap: int) -> list[Window]:
    """Return the windows of a map, row by row, as prediction reads them."""
    starts = range(0, SIDE - overlap, size - overlap)
    return [Window(row, col, min(size, SIDE - row), min(size, SIDE - col)) for row in starts for col in starts]


def touched_bytes(path: Path, windows: list[Window]) -> int:
    """Return the compressed size of the blocks that the windows touch."""
    with rasterio.open(path) as raster:
        blocks = {
            (row, col)
            for window in windows
            for row in range(window.row // BLOCK, -(-window.stop_row // BLOCK))
            for col in range(window.col // BLOCK, -(-window.stop_col // BLOCK))
        }
        return sum(int(raster.get_tag_item(f"BLOCK_SIZE_{col}_{row}", "TIFF", bidx=1)) for row, col in blocks)


@pytest.mark.parametrize(("size", "overlap"), [(640, 80), (320, 80), (224, 112)])
def test_pixels_are_equal_and_bytes_are_those_of_the_blocks(web: WebServer, cog: Path, size: int, overlap: int) -> None:
    windows = reading_windows(size, overlap)
    with Image.open(f"{web.url}/scene.tif") as remote, Image.open(cog) as local:
        assert remote.info.grid == local.info.grid
        for window in windows:
            assert np.array_equal(remote.read(window)[0], local.read(window)[0])
    assert touched_bytes(cog, windows) <= web.sent("/scene.tif") <= 1.3 * touched_bytes(cog, windows)
    assert {one.path for one in web.requests} == {"/scene.tif"}, "no sidecar is asked for"


def test_a_single_window_costs_its_blocks_and_the_header(web: WebServer, cog: Path) -> None:
    window = Window(300, 300, 400, 400)
    with Image.open(f"{web.url}/scene.tif") as remote:
        remote.read(window)
    header = int(opening.REMOTE_OPTIONS["GDAL_INGESTED_BYTES_AT_OPEN"]) + opening.MAGIC_BYTES
    assert web.sent("/scene.tif") - header <= 1.3 * touched_bytes(cog, [window])


def test_empty_blocks_are_known_without_reading_them(web: WebServer, tmp_path: Path) -> None:
    pixels = np.zeros((1, 512, 512), np.uint8)
    pixels[:, :64, :64] = 7
    path = write_raster(tmp_path / "sparse.tif", pixels, nodata=0, SPARSE_OK=True)
    with Image.open(web.put("sparse.tif", path.read_bytes())) as remote:
        assert [remote.is_empty(block) for block in block_windows(Window(0, 0, 128, 64), 64, 64)] == [False, True]


FAULTS: list[Fault] = ["", "", "", "status", "drop", "short"]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sampled_from(FAULTS), min_size=1, max_size=14))
def test_faults_anywhere_leave_equal_pixels_or_one_error(module_web: WebServer, cog: Path, faults: list[Fault]) -> None:
    web = module_web
    web.count, web.fault = 0, lambda number: faults[number] if number < len(faults) else ""
    with Image.open(cog) as local, Image.open(f"{web.url}/scene.tif") as remote:
        for window in reading_windows(640, 80):
            assert np.array_equal(remote.read(window)[0], local.read(window)[0])


@pytest.mark.parametrize("fault", ["status", "drop", "short"])
def test_a_server_that_fails_for_good_is_one_error_that_names_the_file(web: WebServer, fault: Fault) -> None:
    with Image.open(f"{web.url.replace('//', '//me:word@')}/scene.tif?token=secret") as remote:
        remote.read(Window(0, 0, 64, 64))
        web.fault = lambda _: fault
        with pytest.raises(InputError, match=re.escape(f"{web.url}/scene.tif?...")) as caught:
            remote.read(Window(1100, 1100, 200, 200))
    assert not {"secret", "word"} & set(re.findall(r"\w+", str(caught.value)))
    assert caught.value.__cause__ is None


def test_a_changed_file_is_noticed(web: WebServer, cog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = raster_state(to_place(f"{web.url}/scene.tif"))
    with Image.open(f"{web.url}/scene.tif") as remote:
        remote.read(Window(0, 0, 64, 64))
        web.etags["/scene.tif"] = '"other"'
        monkeypatch.setattr(opening, "CHECK_S", 0.0)
        with pytest.raises(InputError, match="other"):
            remote.read(Window(1100, 1100, 64, 64))
    assert raster_state(to_place(f"{web.url}/scene.tif")) == before | {"etag": '"other"'}


@pytest.fixture
def other_cog(cog: Path, tmp_path: Path) -> bytes:
    """A file of the same size with other pixels: without compression, its blocks are where those of the first are."""
    with rasterio.open(cog) as raster:
        plain = write_raster(tmp_path / "plain.tif", 255 - raster.read())
    rasterio.shutil.copy(plain, tmp_path / "other.tif", driver="COG", blocksize=BLOCK, compress="none")
    return (tmp_path / "other.tif").read_bytes()


def test_not_one_window_of_a_replaced_file_is_read(web: WebServer, other_cog: bytes) -> None:
    url = web.put("replaced.tif", other_cog)
    with Image.open(url) as remote:
        remote.read(Window(0, 0, 64, 64))
        web.put("replaced.tif", other_cog[:-1] + b"x")
        sent = web.sent("/replaced.tif")
        with pytest.raises(RasterChangedError, match=re.escape(url)):
            remote.read(Window(1100, 1100, 64, 64))
    assert web.sent("/replaced.tif") - sent == opening.MAGIC_BYTES, "to find that it is another file"


def test_a_file_that_is_replaced_while_it_is_copied_is_an_error(
    web: WebServer, other_cog: bytes, tmp_path: Path
) -> None:
    for conditions in ("kept", "ignored"):
        web.count, web.conditions = 0, conditions  # type: ignore[assignment]
        url = web.put("replaced.tif", other_cog)

        def replace(number: int) -> Fault:
            if number == 6:
                web.put("replaced.tif", other_cog[:-1] + b"x")
            return ""

        web.fault = replace
        with pytest.raises(RasterChangedError, match=re.escape(url)):
            copy_tiled(to_place(url), tmp_path / "copy.tif")
        assert not (tmp_path / "copy.tif").exists()
        web.fault = lambda _: ""


def test_a_server_that_refuses_conditions_is_read_without_them(web: WebServer, cog: Path) -> None:
    web.conditions = "refused"
    window = Window(300, 300, 400, 400)
    with Image.open(f"{web.url}/scene.tif") as remote, Image.open(cog) as local:
        assert np.array_equal(remote.read(window)[0], local.read(window)[0])


@pytest.mark.parametrize(("etag", "header"), [('"1"', "If-Match"), ('W/"1"', "If-Unmodified-Since"), ("", "")])
def test_the_condition_is_one_that_the_server_can_fulfil(etag: str, header: str) -> None:
    changed = datetime(2026, 6, 1, 12, 30, 5, tzinfo=UTC) if header else None
    assert [*unchanged_condition(StoredObject("a", 1, etag, changed))] == [header] * bool(header)


@pytest.mark.parametrize("name", ["scene.vrt", "scene.tif"])
def test_only_geotiffs_are_read_remotely(web: WebServer, name: str) -> None:
    vrt = b'<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    with pytest.raises(InputError, match="not a GeoTIFF"):
        Image.open(web.put(f"other/{name}", vrt))
    with pytest.raises(InputError, match="404"):
        Image.open(f"{web.url}/missing.tif")


def test_a_server_without_range_requests_is_refused(web: WebServer) -> None:
    web.fault = lambda _: "no range"
    with pytest.raises(InputError, match="range requests"):
        Image.open(f"{web.url}/scene.tif")


@pytest.mark.parametrize("server", ["bucket", "gs_bucket", "az_container"])
def test_a_bucket_is_read_like_a_file(cog: Path, server: str, request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue(server)
    storage, address = open_storage(bucket), f"{bucket}/a b/scene.tif"
    storage.put("a b/scene.tif", cog)
    window = Window(500, 600, 300, 300)
    with Image.open(address) as remote, Image.open(cog) as local:
        assert np.array_equal(remote.read(window)[0], local.read(window)[0])
        assert str(remote.info.path) == address
        storage.put("a b/scene.tif", cog.read_bytes()[:-1] + b"x")
        with pytest.raises(RasterChangedError, match=re.escape(address)):
            remote.read(Window(0, 0, 300, 300))
    assert raster_state(to_place(address))["etag"]
    with pytest.raises(InputError, match="does not exist"):
        Image.open(f"{bucket}/missing.tif")


def test_a_raster_at_google_is_refused_without_credentials(
    cog: Path, gs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(gs_bucket).put("scene.tif", cog)
    account = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account.with_name("other.json")))
    with pytest.raises(InputError, match="403"):
        Image.open(f"{gs_bucket}/scene.tif")


def test_a_small_raster_without_tiles_is_read_too(web: WebServer, tmp_path: Path) -> None:
    pixels = textured(3, 50, 40)
    path = write_raster(tmp_path / "small.tif", pixels, tiled=False)
    with Image.open(web.put("small.tif", path.read_bytes())) as remote:
        assert np.array_equal(remote.read(Window(0, 0, 50, 40))[0], pixels)
