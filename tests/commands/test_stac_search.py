"""STAC as input: searches, collections and items; requests only to the hosts that were named."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from geograft.cli import app
from geograft.commands.stac import find_assets
from geograft.config import StacConfig
from geograft.errors import InputError, SettingError
from geograft.geo.rasters.raster import Image
from geograft.locations import Location
from tests.support.rasters import textured, write_raster
from tests.support.web_server import WebServer, serve_web

CONFORMS = [
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/collections",
]


def item(name: str, href: str, day: str = "2026-06-01", west: float = 10.0, **assets: str) -> dict[str, Any]:
    box = [west, 50.0, west + 1, 51.0]
    corners = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]], [box[0], box[1]]]
    listed = {"visual": href, **assets}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "scenes",
        "geometry": {"type": "Polygon", "coordinates": [corners]},
        "bbox": box,
        "properties": {"datetime": f"{day}T10:00:00Z"},
        "links": [],
        "assets": {key: {"href": link, "type": "image/tiff; application=geotiff"} for key, link in listed.items()},
    }


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serve_web() as server:
        yield server


@pytest.fixture
def api(web: WebServer) -> WebServer:
    """An API with three items, two a page; the search is by POST."""
    pytest.importorskip("pystac_client", reason="pystac-client is not installed")
    days = [("b", "2026-06-02", 10.0), ("a", "2026-06-01", 10.0), ("c", "2026-06-03", 12.0)]
    items = [item(name, f"{web.url}/{name}/scene.tif", day, west) for name, day, west in days]

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes] | None:
        parts = urlsplit(path)
        root = {"rel": "root", "href": f"{web.url}/api", "type": "application/json"}
        if parts.path == "/api":
            search = {
                "rel": "search",
                "href": f"{web.url}/api/search",
                "type": "application/geo+json",
                "method": "POST",
            }
            found: Any = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "test"}
            return 200, json.dumps(found | {"conformsTo": CONFORMS, "links": [root, search]}).encode()
        if parts.path == "/api/search":
            asked = json.loads(body) if body else {}
            page = int(asked.get("page") or parse_qs(parts.query).get("page", ["0"])[0])
            box = asked.get("bbox") or [-180, -90, 180, 90]
            matching = [one for one in items if one["bbox"][0] <= box[2] and one["bbox"][2] >= box[0]]
            shown = matching[2 * page : 2 * page + 2]
            following = {"rel": "next", "href": f"{web.url}/api/search", "method": "POST", "merge": True}
            links = [following | {"body": {"page": page + 1}}] if len(matching) > 2 * page + 2 else []
            return 200, json.dumps({"type": "FeatureCollection", "features": shown, "links": links}).encode()
        return None

    web.answer = answer
    return web


def test_a_search_finds_the_assets_of_all_pages_in_order_of_time(api: WebServer) -> None:
    found = find_assets(StacConfig(f"{api.url}/api", collections=("scenes",), assets=("visual",)))
    assert [str(place) for place in found] == [f"{api.url}/{name}/scene.tif" for name in "abc"]
    boxed = find_assets(StacConfig(f"{api.url}/api", bbox=(10.0, 50.0, 10.5, 51.0), datetime="2026-06-01/2026-06-30"))
    assert len(boxed) == 2
    with pytest.raises(InputError, match="2"):
        find_assets(StacConfig(f"{api.url}/api", max_items=2))


def test_a_found_asset_is_a_raster(api: WebServer, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", textured(3, 70, 80))
    api.put("a/scene.tif", path.read_bytes())
    with Image.open(find_assets(StacConfig(f"{api.url}/api"))[0]) as image:
        assert (image.info.grid.height, image.info.grid.width) == (70, 80)


def test_an_item_and_a_static_collection_are_read_as_files(web: WebServer, tmp_path: Path) -> None:
    content = item("one", "./scene.tif", extra="scene-b.tif")
    (tmp_path / "item.json").write_text(json.dumps(content))
    local = find_assets(StacConfig(str(tmp_path / "item.json"), assets=("visual", "extra")))
    assert local == (tmp_path / "scene.tif", tmp_path / "scene-b.tif")
    address = web.put("items/one/item.json", json.dumps(content).encode())
    (remote,) = find_assets(StacConfig(f"{address}?token=1", assets=("visual",)))
    assert isinstance(remote, Location)
    assert remote.url == f"{web.url}/items/one/scene.tif"
    with pytest.raises(InputError, match="visual, extra"):
        find_assets(StacConfig(address))
    later = item("two", "scene.tif", "2026-07-01", 20.0)
    web.put("items/two/item.json", json.dumps(later).encode())
    links = [{"rel": "item", "href": f"./{name}/item.json"} for name in ("two", "one")]
    collection = web.put("items/collection.json", json.dumps({"type": "Collection", "links": links}).encode())
    chosen = {
        "box": {"bbox": (19.0, 0.0, 22.0, 60.0)},
        "time": {"datetime": "2026-06-15/.."},
        "day": {"datetime": "2026-07-01"},
    }
    for options in chosen.values():
        (found,) = find_assets(StacConfig(collection, assets=("visual",), **options))  # type: ignore[arg-type]
        assert str(found) == f"{web.url}/items/two/scene.tif"
    assert len(find_assets(StacConfig(collection, assets=("visual",)))) == 2


@pytest.mark.parametrize(
    "href", ["https://elsewhere.example/a.tif", "s3://bucket/a.tif", "http://169.254.169.254/a.tif"]
)
def test_other_hosts_are_read_only_where_they_are_named(web: WebServer, href: str) -> None:
    address = web.put("item.json", json.dumps(item("one", href)).encode())
    host = href.rpartition("/")[0].removeprefix("https://").removeprefix("http://")
    with pytest.raises(InputError, match=f"--asset-hosts {host}"):
        find_assets(StacConfig(address))
    assert str(find_assets(StacConfig(address, asset_hosts=(host,)))[0]) == href


@pytest.mark.parametrize("href", ["file:///etc/passwd", "/vsizip/a.zip/a.tif"])
def test_an_item_on_the_web_leads_to_no_local_file(web: WebServer, href: str) -> None:
    address = web.put("item.json", json.dumps(item("one", href)).encode())
    try:
        found = find_assets(StacConfig(address))
    except InputError:
        return
    assert all(isinstance(place, Location) for place in found)


@pytest.mark.parametrize(
    "content", [b"no json", b"[]", b"{}", b'{"type": "Feature"}', b'{"type": "FeatureCollection"}']
)
def test_what_is_not_stac_is_one_clear_error(web: WebServer, content: bytes) -> None:
    address = web.put("item.json", content)
    with pytest.raises(InputError, match=r"item\.json"):
        find_assets(StacConfig(f"{address}?token=secret"))


def test_an_api_that_fails_is_one_clear_error(api: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.commands.stac.ATTEMPTS", 1)
    before = api.answer
    api.answer = lambda *asked: (500, b"no") if asked[1].endswith("search") else before(*asked)
    with pytest.raises(InputError, match="cannot be searched"):
        find_assets(StacConfig(f"{api.url}/api"))


def test_choices_without_a_catalogue_are_refused() -> None:
    with pytest.raises(SettingError, match="--stac-url"):
        app(
            ["predict", "run", "--out", "map.tif", "--bbox", "1", "2", "3", "4"], exit_on_error=False, print_error=False
        )
    with pytest.raises(SettingError, match="--bbox"):
        find_assets(StacConfig("item.json", bbox=(1.0, 2.0)))
