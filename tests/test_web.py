"""Reading from web servers: retries, cut bodies, and credentials that stay where they belong."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import geograft.web
from geograft.errors import InputError, OutputError
from geograft.storage import open_storage
from geograft.web import ATTEMPTS, pause_s
from tests.support.web_server import WebServer, serve_web

CONTENT = bytes(range(256)) * 20


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with serve_web() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(geograft.web, "FIRST_PAUSE_S", 0.0)
        server.put("data/file.bin", CONTENT)
        yield server


@pytest.fixture(autouse=True)
def no_faults(web: WebServer) -> None:
    web.count, web.fault = 0, lambda _: ""
    web.requests.clear()


def test_a_file_is_read_whole_and_in_parts(web: WebServer, tmp_path: Path) -> None:
    storage = open_storage(f"{web.url}/data")
    assert storage.get("file.bin") == CONTENT
    assert storage.get_range("file.bin", 100, 300) == CONTENT[100:300]
    assert storage.get_range("file.bin", len(CONTENT) - 5, len(CONTENT) + 100) == CONTENT[-5:]
    storage.download("file.bin", tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    found = storage.head("file.bin")
    assert found is not None
    assert (found.size, bool(found.etag)) == (len(CONTENT), True)
    assert web.requests[-1].sent == 1, "head costs one byte"


def test_a_missing_file_is_no_error_of_the_connection(web: WebServer) -> None:
    storage = open_storage(web.url)
    assert storage.head("missing") is None
    with pytest.raises(FileNotFoundError):
        storage.get("missing")
    assert len(web.requests) == 2, "no repetition"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["", "status", "drop", "short"]), max_size=ATTEMPTS - 1))
def test_any_faults_before_the_last_attempt_leave_the_content(web: WebServer, faults: list[str]) -> None:
    web.count, web.fault = 0, lambda number: faults[number] if number < len(faults) else ""  # type: ignore[return-value]
    assert open_storage(web.url).get("data/file.bin") == CONTENT
    web.count = 0
    assert open_storage(web.url).get_range("data/file.bin", 7, 4000) == CONTENT[7:4000]


@pytest.mark.parametrize("fault", ["status", "drop", "short"])
def test_a_lasting_fault_is_one_clear_error(web: WebServer, fault: str, tmp_path: Path) -> None:
    web.fault = lambda _: fault  # type: ignore[assignment, return-value]
    storage = open_storage(f"{web.url}/data")
    for read in (lambda: storage.get("file.bin"), lambda: storage.download("file.bin", tmp_path / "file.bin")):
        web.requests.clear()
        with pytest.raises(InputError, match=f"{web.url}/data/file.bin"):
            read()
        assert len(web.requests) == ATTEMPTS
    assert not list(tmp_path.iterdir())


def test_a_server_without_ranges_is_refused_for_parts(web: WebServer) -> None:
    web.fault = lambda _: "no range"
    with pytest.raises(InputError, match="range"):
        open_storage(web.url).get_range("data/file.bin", 0, 10)


def test_credentials_go_to_the_host_and_into_no_message(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{web.url.replace('//', '//me:secret@')}/data/missing?sig=signature"
    with pytest.raises(FileNotFoundError) as caught:
        open_storage(address).get("")
    assert web.requests[-1].headers["Authorization"].startswith("Basic ")
    assert "secret" not in str(caught.value)
    assert "signature" not in str(caught.value)
    monkeypatch.setenv("GDAL_HTTP_HEADERS", "X-Key: a, b,Other: c")
    monkeypatch.setenv("GDAL_HTTP_BEARER", "token")
    open_storage(web.url).get("data/file.bin")
    sent = web.requests[-1].headers
    assert (sent["X-Key"], sent["Other"], sent["Authorization"]) == ("a, b", "c", "Bearer token")


def test_web_addresses_are_not_written(web: WebServer) -> None:
    storage = open_storage(web.url)
    for write in (lambda: storage.put("a", b""), lambda: storage.put_new("a", b""), lambda: storage.delete("a")):
        with pytest.raises(OutputError):
            write()


def test_pauses_grow_and_are_bounded() -> None:
    bounds = [(min(pause_s(n) for _ in range(50)), max(pause_s(n) for _ in range(50))) for n in range(12)]
    assert all(low <= high <= geograft.web.MAX_PAUSE_S for low, high in bounds)
    assert all(before[0] <= after[1] for before, after in pairwise(bounds))
