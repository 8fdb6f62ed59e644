"""Whatever a client sends to any operation of the API, the answer is no internal error, and errors are one line."""

import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.support.serving import WRITE, client

__all__ = ["client"]

STREAM, JOBS = "/api/events", "/api/jobs"
LAYERS = ("image-0", "classes-0-0", "probability-0-1", "labels", "areas", "1", "2")
ODD = st.one_of(
    st.sampled_from(("", "0", "-1", "1e400", "nan", "inf", "null", "true", "..", "%00", "9" * 30, "1,2,3", "\u0660")),
    st.text(max_size=8),
    st.floats().map(str),
    st.integers(0, 30).map(str),
)
IN_PATH = st.one_of(st.sampled_from(LAYERS), ODD).map(lambda text: quote(text, safe=""))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(("Polygon", "go")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
POSITIONS = st.lists(st.lists(st.one_of(st.floats(-200, 200), st.none()), min_size=1, max_size=3), max_size=6)
GEOMETRY = st.fixed_dictionaries(
    {"type": st.sampled_from(("Polygon", "MultiPolygon", "Point"))},
    optional={"coordinates": st.lists(POSITIONS, max_size=2) | JSON},
)
PROPERTIES = st.dictionaries(
    st.sampled_from(("class", "role", "origin", "labelled", "rank", "scene", "note")),
    st.one_of(JSON, st.sampled_from(("trees", "training", "scoring", "random", "drawn", "suggested"))),
)
FEATURE = st.fixed_dictionaries({}, optional={"geometry": GEOMETRY | JSON, "properties": PROPERTIES | JSON})
BODY = st.one_of(
    JSON,
    st.fixed_dictionaries({"feature": FEATURE}),
    st.fixed_dictionaries({"geometry": GEOMETRY}),
    st.just({"kind": "go"}),
)


@pytest.fixture(scope="module")
def operations(client: TestClient) -> list[tuple[str, str, list[str]]]:
    """Method, path and names of the parameters in the query of each operation, except for streams and new jobs."""
    paths = client.get("/api/openapi.json").json()["paths"]
    return [
        (method, path, [each["name"] for each in operation.get("parameters", ()) if each["in"] == "query"])
        for path, entry in paths.items()
        for method, operation in entry.items()
        if path != STREAM and (method, path) != ("post", JOBS)
    ]


def test_the_description_has_every_operation(operations: list[tuple[str, str, list[str]]]) -> None:
    found = {(method, path) for method, path, _ in operations}
    assert len(found) >= 16
    assert {("put", "/api/{layer}/{identity}"), ("get", "/api/layers/{identity}/tiles/{z}/{x}/{y}.png")} <= found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_no_request_is_an_internal_error(
    client: TestClient, operations: list[tuple[str, str, list[str]]], data: st.DataObject
) -> None:
    method, template, names = data.draw(st.sampled_from(operations))
    path = template
    while "{" in path:
        before, _, rest = path.partition("{")
        path = before + data.draw(IN_PATH) + rest.partition("}")[2]
    query = {name: data.draw(ODD) for name in names if data.draw(st.booleans())}
    body: Any = data.draw(BODY) if method in ("post", "put") else None
    revision = client.get("/api/labels").json()["revision"] if data.draw(st.booleans()) else "x"
    headers = WRITE | {"if-match": revision} | ({} if body is None else {"content-type": "application/json"})
    content = None if body is None else json.dumps(body).encode("utf-8", "replace")
    answer = client.request(method, path, params=query, headers=headers, content=content)
    assert answer.status_code < 500
    if answer.status_code >= 400 and "collection" not in answer.text:
        assert set(answer.json()) == {"detail"} and "\n" not in answer.json()["detail"]
