"""Runs at addresses: the same run, read once, and nothing that a bundle does not have."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from geograft.bundle import Origin, write_bundle
from geograft.card import CARD, FEATURES_FILE, WEIGHTS, read_card
from geograft.errors import GeograftError, InputError
from geograft.runs import FETCHED, is_bundle, read_members, to_runs
from geograft.storage import open_storage
from tests.support.runs import make_run
from tests.support.s3 import serve_s3
from tests.support.web_server import WebServer, serve_web

DIGEST = hashlib.sha256(b"none").hexdigest()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "trees", weights_digest=DIGEST)
    (folder / FEATURES_FILE).write_bytes(b"features")
    (folder / "tiles.json").write_text("/somewhere")
    return folder


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setattr("geograft.runs.user_cache_path", lambda *_, **__: tmp_path / "cache")
    monkeypatch.setattr("geograft.web.FIRST_PAUSE_S", 0.0)
    with serve_web() as server:
        yield server


def serve_folder(web: WebServer, folder: Path) -> str:
    for path in folder.iterdir():
        web.put(f"runs/{folder.name}/{path.name}", path.read_bytes())
    return f"{web.url}/runs/{folder.name}"


def test_a_folder_on_the_web_is_the_same_run_and_read_once(web: WebServer, run: Path) -> None:
    address = serve_folder(web, run)
    (fetched,) = to_runs(f"{address}?token=secret")
    assert is_bundle(fetched)
    assert read_card(fetched) == read_card(run)
    assert read_members(fetched) == read_members(run)
    assert not [one for one in web.requests if one.path.endswith("tiles.json")]
    web.requests.clear()
    assert to_runs([f"{address}?token=secret"]) == (fetched,)
    assert sum(one.sent for one in web.requests) < 10_000, "the card alone"
    assert "secret" not in str(fetched)


def test_a_bundle_on_the_web_is_read_again_when_it_changes(web: WebServer, run: Path, tmp_path: Path) -> None:
    members = read_members(run)
    write_bundle(tmp_path / "trees.graft", members, Origin("unknown"))
    address = web.put("trees.graft", (tmp_path / "trees.graft").read_bytes())
    (fetched,) = to_runs(address)
    assert fetched.read_bytes() == (tmp_path / "trees.graft").read_bytes()
    write_bundle(tmp_path / "new.graft", members | {"recipe.toml": b""}, Origin("unknown"))
    web.put("trees.graft", (tmp_path / "new.graft").read_bytes())
    assert to_runs(address)[0].read_bytes() == (tmp_path / "new.graft").read_bytes()


def test_a_folder_in_a_bucket_brings_what_its_listing_has(run: Path, web: WebServer) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    (run / "places").mkdir()
    (run / "places" / "hill.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch, serve_s3(patch) as bucket:
        storage = open_storage(f"{bucket}/runs/trees")
        for path in run.rglob("*.*"):
            storage.put(path.relative_to(run).as_posix(), path)
        (fetched,) = to_runs(Path(f"{bucket}/runs/trees"))
        assert read_members(fetched) == read_members(run)
        storage.put("places/hill.json", b'{"a": 1}')
        assert to_runs(f"{bucket}/runs/trees") != (fetched,)


@pytest.mark.parametrize("what", ["no card", "no weights", "other weights", "card", "bundle"])
def test_what_is_no_run_is_one_clear_error(web: WebServer, run: Path, what: str, tmp_path: Path) -> None:
    address = serve_folder(web, run)
    path = "/runs/trees/"
    if what == "bundle":
        address = web.put("trees.graft", b"no bundle")
    elif what == "card":
        web.files[path + CARD] = b"[1"
    elif what == "other weights":
        web.files[path + WEIGHTS] = b"other"
    else:
        del web.files[path + (CARD if what == "no card" else WEIGHTS)]
    for _ in range(2):
        with pytest.raises(GeograftError, match="trees"):
            to_runs(address)
    assert not list((tmp_path / "cache" / FETCHED).rglob("*.graft"))


def test_a_file_that_is_too_large_is_not_read(web: WebServer, run: Path) -> None:
    address = serve_folder(web, run)
    web.files[f"/runs/trees/{CARD}"] = b" " * (2**20 + 1)
    with pytest.raises(InputError, match=CARD):
        to_runs(address)
    assert sum(one.sent for one in web.requests) < 10


def test_local_runs_are_paths_as_before(run: Path) -> None:
    assert to_runs([run, "hf:user/name"]) == (run, Path("hf:user/name"))
