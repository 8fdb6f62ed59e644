"""Polygons of a map whose run has a cleaning of objects: it is the default, and the same as of labels."""

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from numpy import ndarray
from rasterio.features import rasterize

from geograft.card import ModelCard, ensemble_card, read_card
from geograft.commands.polygons import PolygonSummary, polygons
from geograft.config import Cleaning, PolygonConfig
from geograft.errors import InputError, SettingError
from geograft.geo.rasters.tags import map_tags
from geograft.legend import IGNORE, Legend
from geograft.mapping.polygons import outlines, regions
from geograft.metrics.cleaning import clean_labels
from tests.commands.test_polygons import METRE, write_map
from tests.metrics.test_cleaning import as_mapped, houses
from tests.support.runs import COVERS, TREES, make_run

CLEANING = Cleaning("trees", 30.0, 25.0, 1)


def mapped_with(folder: Path, values: ndarray, cleaning: Cleaning | None, legend: Legend = TREES) -> Path:
    """Write a map with the card of a run."""
    run = make_run(folder / "run", legend)
    card: ModelCard = read_card(run)
    content = card.content | ({"cleaning": cleaning.__dict__} if cleaning else {})
    (run / "card.json").write_text(json.dumps(content))
    path = write_map(folder / "map.tif", values, None)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(**map_tags(read_card(run), "0"))
    return path


def test_the_cleaning_of_the_run_is_that_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By blocks: a closing reaches over their borders."""
    labels = as_mapped(houses())
    labels[50:54, 60:90] = IGNORE
    values = np.where(labels == IGNORE, IGNORE, np.array(TREES.values)[np.minimum(labels, 1)])
    path = mapped_with(tmp_path, values, CLEANING)
    for module in (regions, outlines):
        monkeypatch.setattr(module, "BLOCK_PX", 37)
    summary = polygons(path, tmp_path / "map.gpkg", PolygonConfig(connectivity=8))
    assert any("30" in note and "25" in note and "trees" in note for note in summary.notes)
    shapes = geopandas.read_file(tmp_path / "map.gpkg").geometry
    burnt = rasterize([(shape, 1) for shape in shapes], values.shape, transform=METRE)
    np.testing.assert_array_equal(burnt, clean_labels(labels, 1, CLEANING, 1.0) == 1)


def totals(summary: PolygonSummary) -> tuple[int, float]:
    total = summary.classes["trees"]
    return total.polygons, total.area


def test_settings_of_ones_own_come_first(tmp_path: Path) -> None:
    values = np.array(TREES.values)[as_mapped(houses())]
    none = PolygonConfig(min_area_m2=0, fill_holes_m2=0, close_px=0)
    path = mapped_with(tmp_path, values, CLEANING)
    plain = polygons(path, tmp_path / "none.gpkg", none)
    cleaned = polygons(path, tmp_path / "cleaned.gpkg")
    assert totals(plain)[0] > totals(cleaned)[0] == (houses() == 1).sum() / 144
    same = PolygonConfig(min_area_m2=30, fill_holes_m2=25, close_px=1)
    path = mapped_with(tmp_path / "other", values, None)
    assert totals(polygons(path, tmp_path / "same.gpkg", same)) == totals(cleaned)
    assert totals(polygons(path, tmp_path / "raw.gpkg")) == totals(plain)


def test_it_is_not_used_for_several_classes(tmp_path: Path) -> None:
    values = np.array(COVERS.values)[as_mapped(houses())]
    path = mapped_with(tmp_path, values, Cleaning(COVERS.names[1], 1e6), COVERS)
    summary = polygons(path, tmp_path / "map.gpkg")
    assert summary.classes[COVERS.names[1]].polygons > 10
    assert any(COVERS.names[1] in note and "not used" in note for note in summary.notes)
    with pytest.raises(SettingError, match="--close-px"):
        polygons(path, tmp_path / "closed.gpkg", PolygonConfig(close_px=1))


def test_a_card_with_a_cleaning_of_another_class_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", TREES)
    content = json.loads((run / "card.json").read_text())
    assert "cleaning" not in content
    for cleaning in (
        {"objects": "cars"},
        {"objects": "trees", "min_area_m2": -1},
        {"objects": "trees", "close_px": 1e9},
    ):
        (run / "card.json").write_text(json.dumps(content | {"cleaning": cleaning}))
        with pytest.raises(InputError, match=r"card\.json"):
            read_card(run)


def test_an_ensemble_has_the_cleaning_that_all_its_runs_have(tmp_path: Path) -> None:
    cards = [
        read_card(make_run(tmp_path / f"{area}-{n}", cleaning=Cleaning("trees", area)))
        for n, area in enumerate((1.0, 1.0, 2.0))
    ]
    assert ensemble_card(cards[:2]).cleaning == Cleaning("trees", 1.0)
    assert ensemble_card(cards[1:]).cleaning is None
    assert ensemble_card(cards[:0:-1]).cleaning is None
