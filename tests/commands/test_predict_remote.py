"""Maps of rasters on a web server: the same map, few bytes, and a changed or failing file is one error."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.shutil

from geograft.cli import app
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.sample import sample
from geograft.config import PolygonConfig, PredictConfig
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, RasterChangedError, SettingError
from geograft.geo.rasters import opening
from geograft.geo.rasters.raster import Image
from geograft.locations import to_place
from geograft.mapping.ledger import Ledger
from geograft.storage import open_storage
from tests.commands.test_predict import left_in, network, read, run
from tests.support.rasters import textured, write_raster
from tests.support.s3 import bucket
from tests.support.web_server import WebServer, serve_web

__all__ = ["bucket", "network", "run"]

SETTINGS = PredictConfig(window_px=64, overlap=0.25)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr("geograft.web.FIRST_PAUSE_S", 0.0)
    monkeypatch.setitem(opening.REMOTE_OPTIONS, "GDAL_HTTP_RETRY_DELAY", "0.001")
    with serve_web() as server:
        yield server


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = textured(3, 60, 50).repeat(10, 1).repeat(10, 2)
    pixels[:, :200, :200] = 0
    plain = write_raster(tmp_path / "plain.tif", pixels, nodata=0)
    rasterio.shutil.copy(plain, tmp_path / "scene.tif", driver="COG", blocksize=128, compress="deflate")
    plain.unlink()
    return tmp_path / "scene.tif"


def test_the_map_and_its_polygons_are_those_of_the_local_file(
    tmp_path: Path, web: WebServer, scene: Path, run: Path
) -> None:
    url = web.put("scene.tif", scene.read_bytes())
    predict(run, scene, tmp_path / "local.tif", SETTINGS)
    web.fault = lambda number: "short" if number in (3, 6) else "drop" if number == 9 else ""
    result = predict(run, f"{url}?token=secret", tmp_path / "map.tif", SETTINGS)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "local.tif"))
    assert "secret" not in (tmp_path / "map.tif").read_bytes().decode("latin-1")
    assert "secret" not in "".join(result.lines())
    web.fault = lambda _: ""
    mapped = web.put("map.tif", (tmp_path / "map.tif").read_bytes())
    for name, source in {"remote": mapped, "local": tmp_path / "map.tif"}.items():
        (tmp_path / name).mkdir()
        polygons(source, tmp_path / name / "map.geojson", PolygonConfig())
        sample(source, tmp_path / name / "points.gpkg")
    assert (tmp_path / "remote/map.geojson").read_bytes() == (tmp_path / "local/map.geojson").read_bytes()


def test_a_job_reads_little_more_than_the_blocks(tmp_path: Path, web: WebServer, run: Path) -> None:
    plain = write_raster(tmp_path / "plain.tif", textured(3, 900, 700))
    rasterio.shutil.copy(plain, tmp_path / "scene.tif", driver="COG", blocksize=128, compress="deflate")
    url = web.put("scene.tif", (tmp_path / "scene.tif").read_bytes())
    predict(run, url, tmp_path / "map.tif", SETTINGS)
    with Image.open(tmp_path / "scene.tif") as image, opening.open_raster(tmp_path / "scene.tif") as raster:
        tags = [f"BLOCK_SIZE_{col}_{row}" for row in range(-(-900 // 128)) for col in range(-(-700 // 128))]
        blocks = sum(int(raster.get_tag_item(tag, "TIFF", bidx=1)) for tag in tags)
        assert image.info.bands == 3
    assert web.sent("/scene.tif") <= 1.3 * blocks


def test_maps_of_files_with_one_name_are_told_apart_by_their_folders(
    tmp_path: Path, web: WebServer, scene: Path, run: Path
) -> None:
    urls = [web.put(f"{day}/B04.tif", scene.read_bytes()) for day in ("monday", "tuesday")]
    predict(run, urls, tmp_path / "maps", SETTINGS)
    assert left_in(tmp_path / "maps") == {"monday_B04.tif", "tuesday_B04.tif"}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_file_that_changes_stops_the_job(
    tmp_path: Path, web: WebServer, scene: Path, run: Path, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.put("scene.tif", scene.read_bytes())
    monkeypatch.setattr(opening, "CHECK_S", 0.0 if at_once else 60.0)
    predict(run, url, tmp_path / "other.tif", SETTINGS)
    asked = web.count

    def change(number: int) -> str:
        # In the last third of what was asked for the first time.
        if number == asked + 2 * asked // 3:
            web.etags["/scene.tif"] = '"other"'
        return ""

    web.fault = change  # type: ignore[assignment]
    with pytest.raises(InputError, match="changed while it was read"):
        predict(run, url, tmp_path / "map.tif", SETTINGS)
    assert left_in(tmp_path) == {"other.tif"}, "no map, and no strips of two versions"


@pytest.mark.parametrize("where", ["web", "bucket"])
def test_a_file_that_is_replaced_between_two_strips_stops_the_job(
    tmp_path: Path, scene: Path, run: Path, where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = request.getfixturevalue("bucket") if where == "bucket" else ""
    storage = open_storage(address) if address else None
    server = request.getfixturevalue("web") if storage is None else None

    def put(content: bytes) -> str:
        if storage is None:
            return str(server.put("scene.tif", content))
        storage.put("scene.tif", content)
        return f"{address}/scene.tif"

    url, strips, add = put(scene.read_bytes()), list[int](), Ledger.add

    def add_and_replace(self: Ledger, *strip: Any) -> None:
        add(self, *strip)
        strips.append(len(strips))
        if len(strips) == 2:
            put(scene.read_bytes()[:-1] + b"x")

    monkeypatch.setattr(Ledger, "add", add_and_replace)
    with pytest.raises(RasterChangedError, match=re.escape(url)):
        predict(run, url, tmp_path / "map.tif", SETTINGS)
    assert len(strips) < 10, "of 13: only what was read ahead"
    assert left_in(tmp_path) == set(), "no map, and no strips of two versions"


def test_an_interrupted_job_is_resumed_only_with_the_same_file(
    tmp_path: Path, web: WebServer, scene: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = web.put("scene.tif", scene.read_bytes())
    predict(run, url, tmp_path / "whole.tif", SETTINGS)
    asked = web.count
    web.fault = lambda number: "status" if number > asked + 3 * asked // 4 else ""
    with pytest.raises(InputError, match="kept in"):
        predict(run, url, tmp_path / "map.tif", SETTINGS)
    web.fault, tag = (lambda _: ""), web.etags
    tag["/scene.tif"] = '"other"'
    with pytest.raises(InputError, match=r"rasters\.0\.etag"):
        predict(run, url, tmp_path / "map.tif", SETTINGS)
    tag.clear()
    predict(run, url, tmp_path / "map.tif", SETTINGS)
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert to_place(url)


def test_prepare_copies_a_remote_image_into_the_tile_set(
    tmp_path: Path, web: WebServer, fields: Path, tiles: Path
) -> None:
    url = web.put("scene.tif", (fields / "scene.tif").read_bytes())
    config = TileSet.open(tiles).meta.settings
    prepare(VectorSource((f"{url}?token=secret",), fields / "fields.gpkg"), tmp_path / "tiles", config)
    found, local = TileSet.open(tmp_path / "tiles"), TileSet.open(tiles)
    assert found.tiles == local.tiles
    assert found.image_path("scene").is_relative_to(tmp_path / "tiles")
    np.testing.assert_array_equal(read(found.image_path("scene")), read(fields / "scene.tif"))
    assert not [path for path in (tmp_path / "tiles").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


# ------------------------------------------------------------------------------------------------------ many files


def test_bad_files_are_skipped_and_the_others_mapped(tmp_path: Path, web: WebServer, scene: Path, run: Path) -> None:
    small = write_raster(tmp_path / "in/small.tif", textured(3, 70, 60))
    other = write_raster(tmp_path / "in/bands.tif", textured(2, 70, 60))
    (tmp_path / "in/text.tif").write_text("no raster")
    late = write_raster(tmp_path / "in/late.tif", textured(3, 300, 70))
    late.write_bytes(late.read_bytes()[:-20_000])
    rasters = [small, other, tmp_path / "in/text.tif", web.url + "/missing.tif", late]
    keep_going = replace(SETTINGS, keep_going=True)
    result = predict(run, rasters, tmp_path / "maps", keep_going)
    assert [one.path.name for one in result.maps] == ["small.tif"]
    names = ("bands.tif", "text.tif", "missing.tif", "late.tif")
    assert all(name in failure for name, failure in zip(names, result.failures, strict=True))
    predict(run, small, tmp_path / "alone.tif", SETTINGS)
    np.testing.assert_array_equal(read(tmp_path / "maps/small.tif"), read(tmp_path / "alone.tif"))
    with pytest.raises(InputError, match=r"bands\.tif"):
        predict(run, rasters, tmp_path / "other", SETTINGS)
    # What was skipped is tried again, and what is finished is not.
    write_raster(late, textured(3, 300, 70))
    assert "inputs" in predict(run, [small, late], tmp_path / "maps", keep_going).failures[0]
    shutil.rmtree(tmp_path / "maps/.late.part")
    again = predict(run, [small, late], tmp_path / "maps", keep_going)
    assert [bool(one.pixels) for one in again.maps] == [False, True]
    assert again.failures == ()


def test_keep_going_needs_a_folder_and_something_to_map(tmp_path: Path, scene: Path, run: Path) -> None:
    keep_going = replace(SETTINGS, keep_going=True)
    for out in (tmp_path / "map.tif", "s3://bucket/maps"):
        with pytest.raises(SettingError, match="folder"):
            predict(run, scene, out, keep_going)
    with pytest.raises(InputError, match="None of the 1"):
        predict(run, tmp_path / "missing.tif", tmp_path / "maps", keep_going)


def test_the_command_exits_with_1_if_a_raster_was_skipped(tmp_path: Path, scene: Path, run: Path) -> None:
    arguments = ["predict", str(run), str(scene), str(tmp_path / "missing.tif"), "--out", str(tmp_path / "maps")]
    with pytest.raises(InputError, match="1 raster of 2"):
        app([*arguments, "--keep-going", "--window-px", "64"], exit_on_error=False, print_error=False)
    assert left_in(tmp_path / "maps") == {"scene.tif"} or (tmp_path / "maps/scene.tif").exists()
