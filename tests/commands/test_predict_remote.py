"""Maps of rasters on a web server: the same map, few bytes, and a changed or failing file is one error."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil

from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.commands.sample import sample
from geograft.config import PolygonConfig, PredictConfig
from geograft.errors import InputError
from geograft.geo.rasters import opening
from geograft.geo.rasters.raster import Image
from geograft.locations import to_place
from tests.commands.test_predict import left_in, network, read, run
from tests.support.rasters import textured, write_raster
from tests.support.web_server import WebServer, serve_web

__all__ = ["network", "run"]

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
