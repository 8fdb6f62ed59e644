"""Schemathesis over the OpenAPI page: neither what it allows nor what it forbids is an internal error."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from tests.support.serving import WRITE, client

__all__ = ["client"]

STREAM, JOBS = "/api/events", ("POST", "/api/jobs")


@pytest.fixture(scope="module")
def operations(client: TestClient) -> list[Any]:
    """Every operation but the endless stream and the start of real jobs."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis, of the extra dev, is not installed")
    schema = schemathesis.openapi.from_dict(client.get("/api/openapi.json").json())
    found = [result.ok() for result in schema.get_all_operations()]
    return [each for each in found if each.path != STREAM and (each.method.upper(), each.path) != JOBS]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_that_schemathesis_makes_is_an_internal_error(
    client: TestClient, operations: list[Any], mode: str
) -> None:
    import requests
    from schemathesis import GenerationMode

    assert len(operations) >= 16
    seen: set[int] = set()
    kept = settings(
        max_examples=60, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True, database=None
    )

    @kept
    @given(st.data())
    def check(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(operations), label="operation")
        case = data.draw(operation.as_strategy(generation_mode=GenerationMode(mode)))
        revision = client.get("/api/labels").json()["revision"]
        arguments = {**case.as_transport_kwargs(base_url=str(client.base_url)), "cookies": None}
        with suppress(ValueError):  # what no client can send: such headers, and NaN in JSON
            request = requests.Request(**arguments).prepare()
            headers = {**request.headers, **WRITE, "if-match": revision, **client.headers}
            answer = client.request(str(request.method), str(request.url), headers=headers, content=request.body)
            seen.add(answer.status_code)
            assert answer.status_code < 500, (case, answer.text)

    check()
    assert any(200 <= status < 300 for status in seen) if mode == "positive" else seen & {404, 422}
