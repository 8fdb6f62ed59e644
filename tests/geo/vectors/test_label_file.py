"""labels.gpkg is written and read back unchanged, is edited by other programs, and faults are named."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pyogrio
import pytest
from shapely import box

from geograft.errors import InputError
from geograft.geo.vectors.label_file import (
    AREA_FIELDS,
    LABEL_FIELDS,
    Area,
    Label,
    is_label_file,
    read_label_file,
    write_label_file,
)
from tests.geo.vectors.test_reader import UTM12, WGS84, write_layer
from tests.support.gis import require_qgis, run_qgis

AREAS = (
    Area(box(0, 0, 10, 10), "scoring", "random", True, rank=1, scene="a", note="hay", id=1),
    Area(box(20, 0, 30, 10), "scoring", "random", False, rank=2, id=2),
    Area(box(40, 0, 50, 10), "training", "drawn", True, id=3),
)
LABELS = (Label(box(1, 1, 3, 3), "tree"), Label(box(41, 1, 43, 3), "Wasser & Ufer", "suggested", "check"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "labels.gpkg"
    write_label_file(found, AREAS, LABELS, UTM12)
    return found


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        # Triggers of the spatial index call functions of SpatiaLite.
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute(statement)
        database.commit()


def test_what_is_written_is_read_back(path: Path) -> None:
    assert is_label_file(path)
    content = read_label_file(path)
    assert [(a.role, a.origin, a.labelled, a.rank, a.scene, a.note, a.id) for a in content.areas] == [
        (a.role, a.origin, a.labelled, a.rank, a.scene, a.note, a.id) for a in AREAS
    ]
    assert all(a.shape.equals(b.shape) for a, b in zip(content.areas, AREAS, strict=True))
    assert [area.is_sample for area in content.areas] == [True, True, False]
    assert content.labelled_areas == (content.areas[0], content.areas[2])
    polygons = content.polygons_in(None)
    assert polygons.classes == ("tree", "Wasser & Ufer")
    assert content.suggested.tolist() == [False, True]
    assert content.crs == UTM12


def test_equal_content_gives_equal_bytes_and_plain_layers(path: Path, tmp_path: Path) -> None:
    write_label_file(tmp_path / "again.gpkg", AREAS, LABELS, UTM12)
    assert (tmp_path / "again.gpkg").read_bytes() == path.read_bytes()
    for layer, fields in (("labels", LABEL_FIELDS), ("areas", AREA_FIELDS)):
        info = pyogrio.read_info(path, layer=layer)
        assert tuple(info["fields"]) == fields
        assert info["geometry_type"] == "MultiPolygon"
    assert pyogrio.read_info(path, layer="areas")["ogr_subtypes"][2] == "OFSTBoolean"


def test_empty_layers_keep_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "labels.gpkg"
    write_label_file(path, (), (), UTM12)
    content = read_label_file(path)
    assert content.areas == ()
    assert content.polygons_in(WGS84).classes == ()
    assert content.suggested.tolist() == []
    assert pyogrio.read_info(path, layer="areas")["ogr_types"] == [
        "OFTString", "OFTString", "OFTInteger", "OFTInteger", "OFTString", "OFTString",
    ]  # fmt: skip


def test_areas_and_polygons_are_reprojected_together(path: Path) -> None:
    content = read_label_file(path)
    area, polygon = content.areas_in(WGS84)[0].shape, content.polygons_in(WGS84).shapes[0]
    assert area.contains(polygon)
    assert max(area.bounds) < 90


def test_missing_values_are_drawn_and_not_labelled(path: Path) -> None:
    edit(path, "UPDATE areas SET origin = NULL, labelled = NULL, rank = NULL, scene = NULL, role = '' WHERE fid = 2")
    edit(path, "UPDATE labels SET origin = NULL")
    content = read_label_file(path)
    area = content.areas[1]
    assert (area.role, area.origin, area.labelled, area.rank, area.scene) == ("", "drawn", False, None, "")
    assert [area.rank for area in content.areas] == [1, None, None]
    assert not content.suggested.any()


def test_a_feature_without_geometry_is_left_out(path: Path) -> None:
    edit(path, "UPDATE areas SET geom = NULL WHERE fid = 1")
    edit(path, "UPDATE labels SET geom = NULL WHERE fid = 1")
    content = read_label_file(path)
    assert [area.id for area in content.areas] == [2, 3]
    assert (content.polygons_in(None).classes, content.suggested.tolist()) == (("Wasser & Ufer",), [True])
    assert content.polygons_in(None).dropped_count == 1


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE areas SET role = 'score' WHERE fid = 2", ["role", "area 2", "'score'", "scoring"]),
        ("UPDATE areas SET role = NULL", ["areas 1, 3", "role"]),
        ("UPDATE areas SET origin = 'by hand' WHERE fid = 3", ["origin", "area 3", "'by hand'", "drawn"]),
        ("UPDATE labels SET origin = 'random'", ["origin", "polygon 1", "'random'"]),
        ("ALTER TABLE areas RENAME COLUMN labelled TO done", ["areas", "'labelled'", "done"]),
        ("ALTER TABLE labels RENAME COLUMN class TO kind", ["labels", "'class'", "kind"]),
    ],
)
def test_faults_are_named(path: Path, statement: str, named: list[str]) -> None:
    edit(path, statement)
    with pytest.raises(InputError) as caught:
        read_label_file(path).polygons_in(None)
    assert all(word in str(caught.value) for word in [str(path), *named])
    assert "\n" not in str(caught.value)


def test_a_field_of_text_is_no_boolean(path: Path) -> None:
    edit(path, "ALTER TABLE areas DROP COLUMN labelled")
    edit(path, "ALTER TABLE areas ADD COLUMN labelled TEXT")
    assert read_label_file(path).labelled_areas == ()
    edit(path, "UPDATE areas SET labelled = 'yes' WHERE fid = 2")
    with pytest.raises(InputError, match="labelled of area 2 is 'yes', not true or false"):
        read_label_file(path)


def test_a_polygon_without_class_is_an_error(path: Path) -> None:
    edit(path, "UPDATE labels SET class = NULL WHERE fid = 2")
    with pytest.raises(InputError, match="1 of 2 polygons have no value in 'class'"):
        read_label_file(path).polygons_in(None)


def test_other_files_are_not_label_files(tmp_path: Path) -> None:
    assert not is_label_file(write_layer(tmp_path / "crowns.gpkg", [box(0, 0, 1, 1)]))
    with pytest.raises(InputError, match="no layer 'labels'"):
        read_label_file(write_layer(tmp_path / "crowns.gpkg", [box(0, 0, 1, 1)]))
    assert not is_label_file(tmp_path / "missing.gpkg")
    with pytest.raises(InputError, match=r"missing.gpkg"):
        read_label_file(tmp_path / "missing.gpkg")


@pytest.mark.parametrize("length", [0, 100, 5000, 40000])
def test_a_truncated_file_is_an_error(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=str(path)):
        read_label_file(path)


def test_features_added_by_qgis_are_read(path: Path) -> None:
    require_qgis()
    script = path.with_name("edit.py")
    script.write_text(
        f"""
from qgis.core import QgsApplication, QgsFeature, QgsGeometry, QgsVectorLayer
app = QgsApplication([], False)
app.initQgis()
for name, values in (("areas", [{{"role": "training", "labelled": True}}, {{"role": "training"}}, {{}}]),
                     ("labels", [{{"class": "tree"}}])):
    layer = QgsVectorLayer("{path}|layername=" + name, name, "ogr")
    assert layer.isValid() and layer.startEditing()
    for fields in values:
        feature = QgsFeature(layer.fields())
        feature.setGeometry(QgsGeometry.fromWkt("POLYGON((60 0, 70 0, 70 10, 60 0))"))
        for field, value in fields.items():
            feature[field] = value
        assert layer.addFeature(feature)
    if name == "areas":
        layer.changeAttributeValue(2, layer.fields().indexOf("labelled"), True)
    assert layer.commitChanges(), layer.commitErrors()
print("done")
""",
        encoding="utf-8",
    )
    assert "done" in run_qgis(["/usr/bin/python3", str(script)])
    content = read_label_file(path)
    assert [(a.role, a.origin, a.labelled) for a in content.areas[1:]] == [
        ("scoring", "random", True),
        ("training", "drawn", True),
        ("training", "drawn", True),
        ("training", "drawn", False),
        ("", "drawn", False),
    ]
    assert content.polygons_in(None).classes == ("tree", "Wasser & Ufer", "tree")
    assert np.isfinite(content.areas[-1].shape.bounds).all()
