"""Outputs in a bucket: the bytes of the local output, one writer, and nothing lost by a kill."""

import json
import os
import platform
from pathlib import Path

import pytest

from geograft import outputs
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.errors import InputError, OutputError
from geograft.locations import Location, to_place
from geograft.locks import lock_output
from geograft.outputs import bucket_output, local_path
from geograft.storage import Bucket, Storage, open_storage
from tests.commands.test_predict import network, run
from tests.support.rasters import textured, write_raster
from tests.support.s3 import bucket

__all__ = ["bucket", "network", "run"]

SETTINGS = PredictConfig(window_px=64, uncertainty=True)


@pytest.fixture
def folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(outputs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return f"{bucket}/{tmp_path.name}"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_raster(tmp_path / "scene.tif", textured(3, 15, 18).repeat(10, 1).repeat(10, 2))


def keys(storage: Storage) -> list[str]:
    return [one.key for one in storage.list()]


def left(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_map_and_its_polygons_are_those_written_locally(folder: str, tmp_path: Path, run: Path, scene: Path) -> None:
    predict(run, scene, tmp_path / "map.tif", SETTINGS)
    found = predict(run, scene, f"{folder}/map.tif", SETTINGS)
    assert f"{folder}/map.tif: 180 x 150" in "".join(found.lines())
    assert str(found.maps[0].uncertainty) == f"{folder}/map.uncertainty.tif"
    storage = open_storage(folder)
    names = [path.name for path in tmp_path.iterdir() if path.name.startswith("map.")]
    assert keys(storage) == sorted(names)
    for name in names:
        assert storage.get(name) == (tmp_path / name).read_bytes(), name
    summary = polygons(f"{folder}/map.tif", f"{folder}/map.geojson")
    polygons(tmp_path / "map.tif", tmp_path / "map.geojson")
    assert storage.get("map.geojson") == (tmp_path / "map.geojson").read_bytes()
    assert str(summary.path) == f"{folder}/map.geojson"
    assert not left(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        predict(run, scene, Path(f"{folder}/map.tif"), SETTINGS)


def test_an_interrupted_upload_is_gone_on_with(
    folder: str, tmp_path: Path, run: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise OutputError("the network is down.")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put_new", lambda self, key, content: True if "lock" in key else fail())
        with pytest.raises(OutputError, match="kept in"):
            predict(run, scene, f"{folder}/map.tif", SETTINGS)
    assert "map.tif" not in keys(open_storage(folder))
    monkeypatch.setattr("geograft.mapping.job.write_map", fail)
    predict(run, scene, f"{folder}/map.tif", SETTINGS)
    assert {"map.tif", "map.uncertainty.tif"} <= set(keys(open_storage(folder)))
    assert not left(tmp_path)


def test_a_second_writer_is_refused_and_names_the_first(folder: str, tmp_path: Path) -> None:
    location = to_place(f"{folder}/map.tif")
    assert isinstance(location, Location)
    storage, key = open_storage(folder), ".map.tif.geograft-lock"
    with bucket_output(location) as path:
        assert json.loads(storage.get(key))["process"] == os.getpid()
        with pytest.raises(OutputError, match=str(os.getpid())), bucket_output(location):
            pass
        path.write_bytes(b"map")
    assert keys(storage) == ["map.tif"]
    storage.delete("map.tif")
    elsewhere = {"process": 1, "machine": "elsewhere", "id": "", "since": "2026-01-01T00:00:00Z"}
    for content in (json.dumps(elsewhere).encode(), b"damaged"):
        storage.put(key, content)
        with (
            pytest.raises(OutputError, match="elsewhere" if b"else" in content else "unknown"),
            bucket_output(location),
        ):
            pass
        assert storage.get(key) == content
    gone = elsewhere | {"machine": platform.node(), "process": 2**22 + 1}
    storage.put(key, json.dumps(gone).encode())
    with bucket_output(location) as path:
        path.write_bytes(b"of a process that ended")
    assert storage.get("map.tif") == b"of a process that ended"


def test_after_an_error_the_partial_results_stay_and_the_lock_does_not(folder: str) -> None:
    location = to_place(f"{folder}/map.tif")
    assert isinstance(location, Location)
    with pytest.raises(InputError), bucket_output(location) as path:
        (path.parent / "part").write_bytes(b"strip")
        raise InputError("the raster is damaged.")
    assert keys(open_storage(folder)) == []
    with bucket_output(location) as path:
        assert (path.parent / "part").read_bytes() == b"strip"


@pytest.mark.parametrize("out", ["https://host/map.tif", "s3://bucket/", "s3://bucket"])
def test_an_output_that_cannot_be_put_is_refused(out: str) -> None:
    location = to_place(out)
    assert isinstance(location, Location)
    with pytest.raises(OutputError, match=out):
        local_path(location)


def test_other_outputs_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="local path"), lock_output(Path("s3://bucket/out")):
        pass
    assert not list(tmp_path.iterdir())
