"""Labels and areas that are changed in the browser, in a file that others have open too."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from shapely.geometry import mapping, shape
from starlette.testclient import TestClient

from geograft.geo.vectors.label_edits import decode_geometry, edit_features, encode_geometry, read_features
from geograft.geo.vectors.label_file import read_label_file
from geograft.server.labels import LAYERS
from tests.support.gis import PYTHON, require_qgis, start_qgis
from tests.support.serving import WRITE, client_of, make_project, square

LONLAT = Transformer.from_crs(32612, 4326, always_xy=True)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(make_project(tmp_path)) as client:
        yield client


def in_degrees(polygon: shapely.Polygon) -> dict[str, Any]:
    """Return a polygon in the CRS of the scene as GeoJSON."""
    moved = shapely.transform(polygon, lambda xy: np.stack(LONLAT.transform(*xy.T), axis=1))
    found: dict[str, Any] = mapping(moved)
    return found


def send(client: TestClient, method: str, path: str, body: Any = None, revision: str | None = None) -> Any:
    """Send a change with the file's present revision."""
    revision = client.get("/api/labels").json()["revision"] if revision is None else revision
    return client.request(method, f"/api/{path}", json=body, headers=WRITE | {"if-match": f'"{revision}"'})


def label(polygon: shapely.Polygon, **properties: Any) -> dict[str, Any]:
    return {
        "feature": {"type": "Feature", "geometry": in_degrees(polygon), "properties": {"class": "trees"} | properties}
    }


def in_gdal(folder: Path, layer: str, **options: Any) -> Any:
    return pyogrio.read_dataframe(folder / "labels.gpkg", layer=layer, fid_as_index=True, **options)


def test_labels_and_areas_are_geojson_with_one_revision(client: TestClient) -> None:
    labels, areas = client.get("/api/labels"), client.get("/api/areas")
    assert labels.json()["revision"] == areas.json()["revision"]
    assert labels.headers["etag"] == f'"{labels.json()["revision"]}"'
    first = labels.json()["features"][0]
    assert first["id"] == 1 and first["properties"] == {"class": "trees", "origin": "drawn", "note": None}
    assert shape(first["geometry"]).equals_exact(shape(in_degrees(square(40, 20, 8))), 1e-8, normalize=True)
    assert areas.json()["features"][0]["properties"] == {
        "role": "scoring", "origin": "random", "labelled": True, "rank": 1, "scene": None, "note": None,
    }  # fmt: skip


def test_a_label_is_added_changed_and_deleted_in_the_file(client: TestClient, tmp_path: Path) -> None:
    answer = send(client, "POST", "labels", label(square(50, 50, 5), note="new", unknown=1))
    assert answer.status_code == 200
    feature, revision = answer.json(), answer.headers["etag"].strip('"')
    assert feature["id"] == 3 and feature["properties"] == {"class": "trees", "origin": "drawn", "note": "new"}
    assert revision == client.get("/api/labels").json()["revision"]
    # By the spatial index, as a GIS reads it.
    west, south, east, north = square(51, 51, 1).bounds
    assert list(in_gdal(tmp_path, "labels", bbox=(west, south, east, north)).index) == [3]

    moved = label(square(2, 58, 3))
    del moved["feature"]["properties"]
    changed = send(client, "PUT", "labels/3", moved, revision)
    assert changed.json()["properties"] == feature["properties"]
    assert not len(in_gdal(tmp_path, "labels", bbox=(west, south, east, north)))
    assert list(in_gdal(tmp_path, "labels", bbox=square(3, 59, 1).bounds).index) == [3]

    note = send(client, "PUT", "labels/3", {"feature": {"properties": {"note": "old", "origin": "suggested"}}})
    assert note.json()["geometry"] == changed.json()["geometry"] and note.json()["properties"]["note"] == "old"
    assert send(client, "DELETE", "labels/3").status_code == 200
    assert list(in_gdal(tmp_path, "labels").index) == [1, 2]
    assert send(client, "DELETE", "labels/3").status_code == 404
    assert len(read_label_file(tmp_path / "labels.gpkg").areas) == 2


def test_the_file_stays_valid(client: TestClient, tmp_path: Path) -> None:
    for number in range(5):
        assert send(client, "POST", "labels", label(square(3 * number, 60, 2))).status_code == 200
    send(client, "DELETE", "labels/4")
    with closing(sqlite3.connect(tmp_path / "labels.gpkg")) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert file.execute("SELECT count(*) FROM rtree_labels_geom").fetchone() == (6,)
        assert file.execute("SELECT rtreecheck('rtree_labels_geom')").fetchone() == ("ok",)
        counted = "SELECT feature_count FROM gpkg_ogr_contents WHERE table_name = 'labels'"
        assert file.execute(counted).fetchone() == (6,)
        assert file.execute("SELECT last_change FROM gpkg_contents").fetchone()[0] > "2020"
    assert pyogrio.read_info(tmp_path / "labels.gpkg", layer="labels")["features"] == 6


def test_a_change_by_somebody_else_is_a_conflict_that_changes_nothing(client: TestClient, tmp_path: Path) -> None:
    seen = client.get("/api/labels").json()["revision"]
    area = in_gdal(tmp_path, "areas").iloc[1:].assign(note="GDAL was here")
    pyogrio.write_dataframe(area, tmp_path / "labels.gpkg", layer="areas", append=True)
    for method, path, body in (
        ("POST", "labels", label(square(50, 50, 5))),
        ("PUT", "labels/1", label(square(50, 50, 5))),
        ("DELETE", "labels/1", None),
        ("POST", "labels/1/subtract", {"geometry": in_degrees(square(40, 20, 2))}),
    ):
        answer = send(client, method, path, body, seen)
        assert answer.status_code == 409
        present = answer.json()["collection"]
        assert present["revision"] != seen and f'"{present["revision"]}"' == answer.headers["etag"]
        assert [feature["id"] for feature in present["features"]] == [1, 2]
    assert send(client, "POST", "areas", {"feature": {}}, "").status_code == 428


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_program_that_reads_the_file_does_not_stop_a_change(client: TestClient, tmp_path: Path, journal: str) -> None:
    """QGIS keeps the file open, and switches it to WAL when a layer is edited."""
    with closing(sqlite3.connect(tmp_path / "labels.gpkg")) as other:
        assert other.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
        assert other.execute("SELECT count(*) FROM labels").fetchone() == (2,)
        if journal == "wal":
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM labels").fetchone()
        assert send(client, "POST", "labels", label(square(50, 50, 5))).status_code == 200
        expected = 2 if journal == "wal" else 3
        assert other.execute("SELECT count(*) FROM labels").fetchone() == (expected,)
        if journal == "wal":
            other.execute("COMMIT")
            assert other.execute("SELECT count(*) FROM labels").fetchone() == (3,)


def test_a_file_that_another_program_writes_to_is_an_error_in_one_line(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.geo.vectors.label_edits.WAIT_S", 0.01)
    seen = client.get("/api/labels").json()["revision"]
    with closing(sqlite3.connect(tmp_path / "labels.gpkg")) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = send(client, "POST", "labels", label(square(50, 50, 5)), seen)
        assert answer.status_code == 503 and "locked" in answer.json()["detail"]


def test_of_changes_at_the_same_time_one_wins_and_none_is_lost(client: TestClient, tmp_path: Path) -> None:
    seen = client.get("/api/labels").json()["revision"]
    codes: list[int] = []

    def add(number: int) -> None:
        codes.append(send(client, "POST", "labels", label(square(2 * number, 55, 1)), seen).status_code)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200, 409, 409, 409]
    assert len(in_gdal(tmp_path, "labels")) == 3


def test_a_random_area_is_neither_moved_nor_removed_nor_made(client: TestClient, tmp_path: Path) -> None:
    before = in_gdal(tmp_path, "areas").geometry[1]
    place = in_degrees(square(0, 0, 16))
    for method, path, feature in (
        ("PUT", "areas/1", {"geometry": place}),
        ("PUT", "areas/1", {"properties": {"role": "training"}}),
        ("PUT", "areas/1", {"properties": {"origin": "drawn"}}),
        ("PUT", "areas/1", {"properties": {"rank": 5}}),
        ("DELETE", "areas/1", None),
        ("POST", "areas", {"geometry": place, "properties": {"role": "scoring", "origin": "random"}}),
        ("POST", "areas", {"geometry": place, "properties": {"role": "scoring"}}),
        ("PUT", "areas/2", {"properties": {"role": "scoring"}}),
        ("PUT", "areas/2", {"properties": {"origin": "random"}}),
    ):
        answer = send(client, method, path, None if feature is None else {"feature": feature})
        assert answer.status_code == 422, (method, path, feature)
    assert in_gdal(tmp_path, "areas").geometry[1].equals(before)
    # The page sends all properties; only its state of labelling may differ.
    properties = client.get("/api/areas").json()["features"][0]["properties"] | {"labelled": False, "note": "clouds"}
    answer = send(client, "PUT", "areas/1", {"feature": {"properties": properties}})
    assert answer.json()["properties"]["labelled"] is False
    assert not read_label_file(tmp_path / "labels.gpkg").areas[0].labelled


def test_training_areas_are_drawn_and_removed(client: TestClient, tmp_path: Path) -> None:
    feature = {"geometry": in_degrees(square(0, 48, 16)), "properties": {"role": "training", "origin": "suggested"}}
    identity = send(client, "POST", "areas", {"feature": feature}).json()["id"]
    area = next(area for area in read_label_file(tmp_path / "labels.gpkg").areas if area.id == identity)
    assert (area.role, area.origin, area.labelled) == ("training", "suggested", False)
    assert area.shape.symmetric_difference(square(0, 48, 16)).area < 1e-4
    assert send(client, "DELETE", f"areas/{identity}").status_code == 200


def test_what_is_cut_out_leaves_a_hole_or_parts_or_nothing(client: TestClient) -> None:
    hole = send(client, "POST", "labels/1/subtract", {"geometry": in_degrees(square(42, 22, 2))}).json()
    assert len(hole) == 1 and len(hole[0]["geometry"]["coordinates"]) == 2
    halves = send(
        client,
        "POST",
        "labels/1/subtract",
        {"geometry": in_degrees(shapely.box(*square(43, 0, 2).union(square(43, 60, 2)).bounds))},
    )
    assert sorted(feature["id"] for feature in halves.json()) == [1, 3]
    assert {feature["properties"]["class"] for feature in halves.json()} == {"trees"}
    assert send(client, "POST", "labels/2/subtract", {"geometry": in_degrees(square(0, 0, 60))}).json() == []
    assert [feature["id"] for feature in client.get("/api/labels").json()["features"]] == [1, 3]


@pytest.mark.parametrize(
    "geometry",
    [
        None,
        {},
        {"type": "Point", "coordinates": [0, 0]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": "x"},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[-110, 45], [-110, 45], [-110, 45], [-110, 45]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [1e308, 0], [1, 1], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], [None, 0], [1, 1], [0, 0]]]},
        {"type": "Polygon", "coordinates": [[[179, 89], [180, 90], [-180, 90], [179, 89]]]},
        {"type": "GeometryCollection", "geometries": []},
    ],
)  # fmt: skip
def test_what_is_no_polygon_on_the_map_is_refused(client: TestClient, geometry: Any) -> None:
    body = {"feature": {"geometry": geometry, "properties": {"class": "trees"}}}
    seen = client.get("/api/labels").json()["revision"]
    answer = send(client, "POST", "labels", body, seen)
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"]
    assert client.get("/api/labels").json()["revision"] == seen


@pytest.mark.parametrize(
    ("layer", "properties"),
    [
        ("labels", {}),
        ("labels", {"class": "cars"}),
        ("labels", {"class": None}),
        ("labels", {"class": ["trees"]}),
        ("labels", {"class": "trees", "origin": "random"}),
        ("labels", {"class": "trees", "note": "a\0b"}),
        ("labels", {"class": "trees", "note": "a" * 2000}),
        ("labels", {"class": "trees", "note": {"a": 1}}),
        ("areas", {}),
        ("areas", {"role": "testing"}),
        ("areas", {"role": "training", "rank": 1.5}),
        ("areas", {"role": "training", "rank": True}),
        ("areas", {"role": "training", "labelled": "yes"}),
        ("areas", {"role": "training", "labelled": None}),
        ("areas", {"role": "training", "scene": 3}),
    ],
)
def test_what_a_field_cannot_have_is_refused(client: TestClient, layer: str, properties: dict[str, Any]) -> None:
    body = {"feature": {"geometry": in_degrees(square(50, 50, 5)), "properties": properties}}
    answer = send(client, "POST", layer, body)
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"]


def test_a_damaged_or_foreign_file_is_an_error_in_one_line(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "labels.gpkg"
    content = path.read_bytes()
    for damaged in (content[:5000], b"", b"SQLite format 3\0" + b"x" * 5000, b"not a database at all" * 300):
        path.write_bytes(damaged)
        answer = client.get("/api/labels")
        assert answer.status_code == 422 and "labels.gpkg" in answer.json()["detail"]
        assert str(tmp_path) not in answer.json()["detail"]
    path.write_bytes(content)
    with closing(sqlite3.connect(path)) as file:
        names = file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'rtree_labels%'")
        for (name,) in names.fetchall():
            file.execute(f"DROP TRIGGER {name}")
        file.execute("UPDATE labels SET geom = x'00' WHERE fid = 1")
        file.commit()
    answer = client.get("/api/labels")
    assert answer.status_code == 422 and "feature 1" in answer.json()["detail"]


def test_suggestions_are_shown_with_their_reason(client: TestClient, tmp_path: Path) -> None:
    import geopandas

    assert client.get("/api/suggestions").json() == {"type": "FeatureCollection", "features": []}
    columns = {"rank": [2, 1], "score": [0.1, 0.2], "uncertainty": [0.5, 0.6], "dissimilarity": [0.5, 1.5]}
    shapes = [square(0, 0, 16), square(16, 0, 16)]
    frame = geopandas.GeoDataFrame(columns, geometry=shapes, crs=32612)
    frame.to_file(tmp_path / "suggested.gpkg", layer="suggestions")
    first, second = client.get("/api/suggestions").json()["features"]
    assert (first["properties"]["rank"], second["properties"]["rank"]) == (1, 2)
    assert "unlike" in first["properties"]["reason"] and "unlike" not in second["properties"]["reason"]
    assert first["properties"]["role"] == "training"


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 50), st.sampled_from([0, -1, 4326, 32612, 99999]))
def test_a_geometry_is_encoded_as_geopackages_have_it(x: int, y: int, side: int, srs_id: int) -> None:
    polygon = shapely.box(x, y, x + side, y + side)
    blob = encode_geometry(polygon, srs_id)
    assert decode_geometry(blob).equals_exact(polygon, 0)
    assert blob[:4] == b"GP\0\x03" and len(blob) == 8 + 32 + len(shapely.to_wkb(polygon))


def test_an_error_inside_of_a_change_undoes_all_of_it(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "labels.gpkg"
    with read_features(path, LAYERS) as file:
        revision = file.revision
    with pytest.raises(ZeroDivisionError), edit_features(path, LAYERS, revision) as file:
        file.delete("labels", 1)
        file.insert("labels", square(0, 0, 5), {"class": "trees"})
        raise ZeroDivisionError
    with read_features(path, LAYERS) as file:
        assert file.revision == revision


def test_qgis_edits_the_file_at_the_same_time(client: TestClient, tmp_path: Path) -> None:
    require_qgis()
    seen = client.get("/api/labels").json()["revision"]
    script, spot = Path(__file__).parents[1] / "support" / "qgis_edit.py", square(52, 52, 1).centroid
    command = [PYTHON, str(script), str(tmp_path / "labels.gpkg"), str(spot.x), str(spot.y)]
    with start_qgis(command) as qgis:
        assert qgis.stdin is not None and qgis.stdout is not None
        assert qgis.stdout.readline() == "editing\n"
        # QGIS has a polygon in its edit buffer, and the browser saves another one.
        added = send(client, "POST", "labels", label(square(50, 50, 5)), seen)
        assert added.status_code == 200 and added.json()["id"] == 3
        qgis.stdin.write("save\n")
        qgis.stdin.flush()
        found = json.loads(qgis.stdout.readline())
    assert found == {"saved": True, "features": 4, "at": [3]}
    stale = send(client, "DELETE", "labels/3", revision=added.headers["etag"].strip('"'))
    assert stale.status_code == 409
    assert [feature["id"] for feature in stale.json()["collection"]["features"]] == [1, 2, 3, 4]
    assert send(client, "DELETE", "labels/3").status_code == 200
