"""Attacks on the server: other pages, other hosts, no token, paths and bodies that lead elsewhere."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from geograft.server.app import create_app
from geograft.server.guard import MAX_BODY_BYTES, Access, Guard
from tests.support.serving import HOST, TOKEN, WRITE, client_of, make_project, polygon

OWN = {"x-geograft-token": TOKEN}
FEATURE = {"feature": {"geometry": polygon([(0, 0), (1, 0), (1, 1)]), "properties": {"class": "trees"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    subject = make_project(folder)
    (folder / "secret.txt").write_text("secret")
    with client_of(subject, headers={}) as client:
        yield client


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8000.evil.example", "[::1]:8000", ""],
)
@pytest.mark.parametrize("path", ["/", "/api/project"])
def test_another_host_is_refused_so_that_dns_rebinding_reads_nothing(client: TestClient, host: str, path: str) -> None:
    answer = client.get(path, headers=OWN | {"host": host})
    assert answer.status_code == 421 and "Trees" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/api/project",
        "/api/labels",
        "/api/events",
        "/api/openapi.json",
        "/API/project",
        "//api/project",
        "/api",
        "/api/x",
    ],
)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "\xff"])
def test_nothing_of_the_api_is_read_without_the_token(client: TestClient, path: str, token: str | None) -> None:
    headers = {} if token is None else {b"x-geograft-token": token.encode("latin-1")}
    assert client.get(f"http://{HOST}{path}", headers=headers).status_code == 401


def test_two_tokens_are_none(client: TestClient) -> None:
    headers = [("x-geograft-token", TOKEN), ("x-geograft-token", "wrong")]
    assert client.get("/api/project", headers=headers).status_code == 401


def test_the_token_in_the_address_or_a_cookie_does_not_count(client: TestClient) -> None:
    assert client.get(f"/api/project?token={TOKEN}").status_code == 401
    assert client.get("/api/project", headers={"cookie": f"x-geograft-token={TOKEN}"}).status_code == 401
    assert client.get("/api/project", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 401


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://evil.example", "https://127.0.0.1:8000", "http://127.0.0.1", "http://localhost:8000x"],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/labels"), ("PUT", "/api/labels/1"), ("DELETE", "/api/labels/1"), ("POST", "/api/jobs"),
     ("POST", "/api/labels/1/subtract"), ("PATCH", "/api/labels/1"), ("OPTIONS", "/api/labels")],
)  # fmt: skip
def test_another_page_changes_nothing_even_with_the_token(
    client: TestClient, folder: Path, method: str, path: str, origin: str | None
) -> None:
    before = (folder / "labels.gpkg").read_bytes()
    headers = OWN | {"if-match": client.get("/api/labels", headers=OWN).json()["revision"]}
    headers |= {} if origin is None else {"origin": origin}
    answer = client.request(method, path, headers=headers, json=FEATURE)
    assert answer.status_code == 403
    assert (folder / "labels.gpkg").read_bytes() == before


def test_another_page_reads_nothing_even_with_the_token(client: TestClient) -> None:
    for other in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}):
        answer = client.get("/api/project", headers=OWN | other)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_server_that_is_read_only_changes_nothing(folder: Path) -> None:
    with client_of(make_project(folder / "other"), read_only=True) as client:
        revision = client.get("/api/labels").json()["revision"]
        assert not any(client.get("/api/project").json()["can"][what] for what in ("label", "train"))
        for method, path in (("POST", "/api/labels"), ("DELETE", "/api/labels/1"), ("POST", "/api/jobs")):
            answer = client.request(method, path, headers=WRITE | {"if-match": revision}, json=FEATURE)
            assert answer.status_code == 403
        assert client.get("/api/labels").json()["revision"] == revision


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_form_can_send_is_refused(client: TestClient, kind: str) -> None:
    answer = client.post("/api/jobs", headers=OWN | WRITE | {"content-type": kind}, content=b'{"kind": "go"}')
    assert answer.status_code == 415


def test_a_large_body_is_refused_with_and_without_its_length(client: TestClient) -> None:
    headers = OWN | WRITE | {"content-type": "application/json", "if-match": "x"}
    body = b'"' + b"a" * MAX_BODY_BYTES + b'"'
    assert client.post("/api/labels", headers=headers, content=body).status_code == 413
    assert client.post("/api/labels", headers=headers, content=iter([body[:1000], body])).status_code == 413
    assert client.post("/api/labels", headers=headers | {"content-length": "-1"}, content=b"{}").status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/assets/..%5c..%5csecret.txt",
        "/api/files/../secret.txt", "/api/files/..%2fsecret.txt", "/api/files/%2fetc%2fpasswd",
        "/api/files/labels.gpkg",
        "/api/layers/..%2f..%2fsecret.txt/tiles/0/0/0.png",
        "/api/layers/%2fvsicurl%2fhttp:%2f%2fevil.example%2fa.tif/pixel",
        "/api/layers/image-0/tiles/0/0/0.png?filename=/etc/passwd&url=http://evil.example/a.tif&expression=b1",
        "/api/../secret.txt", "//evil.example/secret.txt", "/file:///etc/passwd",
    ],
)  # fmt: skip
def test_no_path_or_address_of_a_client_is_opened(client: TestClient, path: str) -> None:
    answer = client.get(f"http://{HOST}{path}", headers=OWN)
    assert "secret" not in answer.text.replace("secret.txt", "") and "root:" not in answer.text
    if "image-0" not in path:
        assert answer.status_code in (400, 404, 401)


def test_a_vrt_in_disguise_is_not_opened(tmp_path: Path) -> None:
    subject = make_project(tmp_path)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "scene.tif").write_text(
        '<VRTDataset rasterXSize="6" rasterYSize="1">'
        '<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        '<SourceFilename relativetoVRT="1">secret.txt</SourceFilename></VRTRasterBand></VRTDataset>'
    )
    with client_of(subject) as client:
        answer = client.get("/api/layers/image-0/tiles/0/0/0.png")
        assert answer.status_code == 422 and "VRT" in answer.json()["detail"]


def test_a_link_in_the_page_leads_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html><title>Map</title>")
    (page / "assets" / "main-1.js").write_text("let a")
    (tmp_path / "secret.txt").write_text("secret")
    (page / "link.txt").symlink_to(tmp_path / "secret.txt")
    app = create_app(make_project(tmp_path / "project"), Access(TOKEN, (HOST,)), page)
    with TestClient(app, base_url=f"http://{HOST}") as client:
        assert client.get("/link.txt").status_code == 404
        start, script = client.get("/"), client.get("/assets/main-1.js")
        assert start.headers["cache-control"] == "no-cache" and "Map" in start.text
        assert script.headers["content-type"].startswith("text/javascript")
        assert "immutable" in script.headers["cache-control"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/api/project", "/api/nothing"])
def test_every_answer_forbids_what_a_page_does_not_need(client: TestClient, path: str) -> None:
    for headers in ({}, OWN, {"host": "evil.example"}):
        answer = client.get(path, headers=headers)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers


def test_the_page_may_load_pictures_of_one_other_server_and_only_if_it_was_named(tmp_path: Path) -> None:
    origin = "https://tiles.example:8443"
    access = Access(TOKEN, (HOST,), basemap_origin=origin)
    with TestClient(create_app(make_project(tmp_path), access), base_url=f"http://{HOST}") as client:
        policy = client.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert {name for name, value in rules.items() if "http" in value} == {"img-src", "connect-src"}
    assert rules["connect-src"] == f"'self' {origin}" and rules["script-src"] == "'self'"


def test_the_content_of_the_api_is_not_stored_except_for_tiles(client: TestClient) -> None:
    assert client.get("/api/project", headers=OWN).headers["cache-control"] == "no-store"


def test_a_long_query_is_refused(client: TestClient) -> None:
    assert client.get(f"/api/project?{'a' * 5000}", headers=OWN).status_code == 414


def test_there_are_no_web_sockets(client: TestClient) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def app(*_: Any) -> None:
        raise AssertionError("the application was reached")

    scope = {"type": "websocket", "path": "/api/events", "headers": []}
    asyncio.run(Guard(app, Access(TOKEN, (HOST,)))(scope, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_refusal_is_one_line_of_json(client: TestClient) -> None:
    answer = client.get("/api/project")
    assert set(json.loads(answer.content)) == {"detail"} and "\n" not in answer.json()["detail"]
