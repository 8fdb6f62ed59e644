"""STAC as input: searches, collections and items; requests only to the hosts that were named."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geograft.cli import app
from geograft.commands.stac import find_assets
from geograft.config import StacConfig
from geograft.errors import GeograftError, InputError, SettingError
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


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"features": 5}', b'{"features": [5]}', b"[" * 10**5, b"\xff"])
def test_an_answer_that_is_no_page_is_one_clear_error(api: WebServer, body: bytes) -> None:
    """The first page is right; the second is not."""
    before = api.answer
    api.answer = lambda *asked: (200, body) if b'"page"' in asked[2] else before(*asked)
    with pytest.raises(InputError, match="cannot be searched"):
        find_assets(StacConfig(f"{api.url}/api"))


def test_a_page_that_fails_is_asked_for_again(api: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.commands.stac.FIRST_PAUSE_S", 0.0)
    before, failures = api.answer, [(503, b"busy"), (500, b"no")]
    api.answer = lambda *asked: failures.pop() if failures and b'"page"' in asked[2] else before(*asked)
    assert len(find_assets(StacConfig(f"{api.url}/api"))) == 3
    assert not failures


@pytest.mark.parametrize("way", ["next", "redirect"])
def test_credentials_stay_at_the_host_of_the_catalogue(
    api: WebServer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "X-Key: never-to-be-seen")
    before = api.answer
    source = api.url.replace("://", "://me:never-to-be-seen@") + "/api"
    with serve_web() as other:
        empty = json.dumps({"type": "FeatureCollection", "features": [item("d", f"{api.url}/d.tif")], "links": []})
        other.answer = lambda *_: (200, empty.encode())
        if way == "redirect":
            api.redirects["/api/search"] = f"{other.url}/api/search"
        else:
            api.answer = lambda *asked: _elsewhere(before(*asked), other.url)
        with pytest.raises(InputError, match=re.escape(other.url.partition("://")[2])) as caught:
            find_assets(StacConfig(source))
        assert other.requests == []
        assert "never-to-be-seen" not in str(caught.value)
        sent = {header for request in api.requests for header in request.headers}
        assert {"Authorization", "X-Key"} <= sent
        if way == "next":
            named = StacConfig(source, asset_hosts=(other.url.partition("://")[2],))
            assert len(find_assets(named)) == 3, "two of the first page, and that of the other host"
            assert other.requests
            assert all("never-to-be-seen" not in str(request.headers) for request in other.requests)
            assert not {header for request in other.requests for header in request.headers} & {"Authorization", "X-Key"}


def _elsewhere(answer: tuple[int, bytes] | None, url: str) -> tuple[int, bytes] | None:
    """Return a page whose next one is on another host."""
    if answer is None or b'"next"' not in answer[1]:
        return answer
    page = json.loads(answer[1])
    page["links"] = [{"rel": "next", "href": f"{url}/api/search", "method": "GET"}]
    return 200, json.dumps(page).encode()


def test_an_item_on_two_pages_is_one_and_links_lead_from_the_item(api: WebServer) -> None:
    before = api.answer

    def answer(*asked: Any) -> tuple[int, bytes] | None:
        found = before(*asked)
        if found is None or not asked[1].startswith("/api/search"):
            return found
        page = json.loads(found[1])
        again = item("again", "./scene.tif", "2026-05-01")
        again["links"] = [{"rel": "self", "href": f"{api.url}/collections/scenes/items/again.json"}]
        return 200, json.dumps(page | {"features": [*page["features"], again]}).encode()

    api.answer = answer
    found = find_assets(StacConfig(f"{api.url}/api"))
    assert [str(place) for place in found] == [
        f"{api.url}/collections/scenes/items/scene.tif", *(f"{api.url}/{name}/scene.tif" for name in "abc")
    ]  # fmt: skip


def test_a_search_leads_to_no_local_file(api: WebServer, tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text(json.dumps({"type": "FeatureCollection", "features": [item("a", "a.tif")]}))
    before = api.answer

    def answer(*asked: Any) -> tuple[int, bytes] | None:
        found = before(*asked)
        assert found is not None
        return found[0], found[1].replace(f"{api.url}/api/search".encode(), f"{tmp_path}/page.json".encode())

    api.answer = answer
    with pytest.raises(InputError):
        find_assets(StacConfig(f"{api.url}/api"))


def test_links_of_pages_may_be_relative(api: WebServer) -> None:
    before = api.answer

    def answer(*asked: Any) -> tuple[int, bytes] | None:
        found = before(*asked)
        return found and (found[0], found[1].replace(f'"{api.url}/api/search"'.encode(), b'"./search"'))

    api.answer = answer
    before = _with_slash(before)
    assert len(find_assets(StacConfig(f"{api.url}/api/"))) == 3


def _with_slash(answer: Any) -> Any:
    return lambda method, path, body: answer(method, path.rstrip("/"), body)


def test_a_catalogue_of_catalogues_names_them(web: WebServer) -> None:
    links = [{"rel": "child", "href": "./2026/catalog.json"}]
    address = web.put("catalog.json", json.dumps({"type": "Catalog", "links": links}).encode())
    with pytest.raises(InputError, match=re.escape(f"{web.url}/2026/catalog.json")):
        find_assets(StacConfig(address))


ODD = st.sampled_from([None, 5, -1.5, "", "x", "http://[", "\x00", [], {}, [5], {"a": 1}, True, 1e300, "../../a.tif"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_value_in_an_item_gives_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    """One value of an item is another one: rasters are found, or one line says what is wrong."""
    content = item("one", "scene.tif", red="b04.tif")
    content["assets"]["red"] |= {"eo:bands": [{"name": "B04", "common_name": "red"}], "raster:bands": [{"scale": 1e-4}]}
    content["links"] = [{"rel": "self", "href": "http://127.0.0.1:9/item.json"}]
    whole: Any = data.draw(st.sampled_from([content, {"type": "FeatureCollection", "features": [content]}]))
    where = whole
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else list(range(len(where)))))
        if not isinstance(where[key], (dict, list)) or not where[key] or data.draw(st.booleans()):
            where[key] = data.draw(ODD)
            break
        where = where[key]
    (tmp_path / "item.json").write_text(json.dumps(whole))
    with suppress(GeograftError):
        find_assets(StacConfig(
            str(tmp_path / "item.json"),
            assets=data.draw(st.sampled_from([(), ("visual",)])),
            bbox=data.draw(st.sampled_from([(), (0.0, 0.0, 20.0, 60.0)])),
        ))  # fmt: skip


def test_choices_without_a_catalogue_are_refused() -> None:
    with pytest.raises(SettingError, match="--stac-url"):
        app(
            ["predict", "run", "--out", "map.tif", "--bbox", "1", "2", "3", "4"], exit_on_error=False, print_error=False
        )
    with pytest.raises(SettingError, match="--bbox"):
        find_assets(StacConfig("item.json", bbox=(1.0, 2.0)))
