"""`geograft review`: planted label errors are found; the error raster is the difference of label and prediction."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from numpy import ndarray
from shapely import box

from geograft.commands.prepare import prepare
from geograft.commands.review import review
from geograft.config import PrepareConfig, ReviewConfig
from geograft.dataset.sources import VectorSource
from geograft.errors import InputError, OutputError
from geograft.legend import Legend
from tests.support.gis import qgis_layers
from tests.support.rasters import TENTH_METRE, UTM12
from tests.support.runs import PixelwisePredictor, make_run

FIELDS = Legend(("background", "fields"))
MISSING, EXTRA = (16, 16), (208, 48)
"""Upper left corners (row, col) of a field missing from the labels, and of a false field of 16 pixels."""


class Oracle(PixelwisePredictor):
    """Predicts a field with high probability where the first band is bright."""

    def predict_run(self, seen: ndarray) -> ndarray:
        field = np.where(seen[:, 0] > 120, 0.94, 0.04).astype(np.float32)
        return np.stack([1 - field, field], axis=1)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", Oracle)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", FIELDS)


def square(row: int, col: int, size: int = 32) -> Any:
    return box(*(TENTH_METRE @ (col, row + size)), *(TENTH_METRE @ (col + size, row)))


@pytest.fixture(scope="module")
def flawed(fields: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tile set of `fields`, all held out, with one field missing from the labels and one false field."""
    folder = tmp_path_factory.mktemp("flawed")
    labels = geopandas.read_file(fields / "fields.gpkg")
    labels = labels[~labels.geometry.intersects(square(*MISSING).buffer(-0.5))]
    labels = geopandas.GeoDataFrame(geometry=[*labels.geometry, square(*EXTRA, size=16)], crs=UTM12)
    labels.to_file(folder / "fields.gpkg")
    config = PrepareConfig(tile_px=48, overlap=0.0, split="scene", val=0.0, test=1.0)
    prepare(VectorSource(images=(fields / "scene.tif",), labels=folder / "fields.gpkg"), folder / "tiles", config)
    return folder / "tiles"


def read_errors(folder: Path) -> ndarray:
    with rasterio.open(folder / "errors" / "scene.tif") as raster:
        assert raster.nodata == 255
        assert raster.tags()["CLASS_1"] == "fields: false negative"
        pixels: ndarray = raster.read(1)
    return pixels


def test_planted_label_errors_are_found(run: Path, flawed: Path, tmp_path: Path) -> None:
    review(run, tmp_path / "review", flawed)
    layer = geopandas.read_file(tmp_path / "review" / "suspects.gpkg")
    assert layer.crs == UTM12
    assert list(layer["rank"]) == [1, 2]
    missing, extra = layer.iloc[0], layer.iloc[1]
    assert (missing["labelled"], missing["predicted"]) == ("background", "fields")
    assert (extra["labelled"], extra["predicted"]) == ("fields", "background")
    assert missing.geometry.symmetric_difference(square(*MISSING)).area == pytest.approx(0, abs=1e-6)
    assert extra.geometry.symmetric_difference(square(*EXTRA, size=16)).area == pytest.approx(0, abs=1e-6)
    assert missing["area_m2"] == pytest.approx(10.24, rel=2e-3)
    assert missing["confidence"] == pytest.approx(0.94, abs=0.003)
    assert missing["label_probability"] == pytest.approx(0.06, abs=0.003)


def test_the_error_raster_is_the_difference_of_label_and_prediction(run: Path, flawed: Path, tmp_path: Path) -> None:
    found = review(run, tmp_path / "review", flawed)
    expected = np.zeros((256, 256), np.uint8)
    expected[MISSING[0] :, MISSING[1] :][:32, :32] = 2
    expected[EXTRA[0] :, EXTRA[1] :][:16, :16] = 1
    np.testing.assert_array_equal(read_errors(tmp_path / "review"), expected)
    assert found.findings.error_rate == pytest.approx((expected > 0).mean())
    assert {path.name for path in (tmp_path / "review").iterdir()} == {"errors", "worst.gpkg", "suspects.gpkg"}


def test_the_worst_tiles_are_ranked_by_error_rate(run: Path, flawed: Path, tmp_path: Path) -> None:
    review(run, tmp_path / "review", flawed, ReviewConfig(worst=3))
    layer = geopandas.read_file(tmp_path / "review" / "worst.gpkg")
    errors = read_errors(tmp_path / "review")
    assert 0 < len(layer) <= 3
    assert layer["error_rate"].is_monotonic_decreasing
    first = layer.iloc[0]
    part = errors[first["row"] : first["row"] + 48, first["col"] : first["col"] + 48]
    assert first["error_rate"] == pytest.approx((part > 0).mean())
    (left, top) = TENTH_METRE @ (first["col"], first["row"])
    assert first.geometry.bounds == pytest.approx((left, top - 4.8, left + 4.8, top))


def test_the_canvas_size_does_not_change_the_result(
    run: Path, flawed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = review(run, tmp_path / "whole", flawed).findings.worst
    monkeypatch.setattr("geograft.mapping.canvases.CANVAS_PX", 100)
    assert review(run, tmp_path / "cut", flawed).findings.worst == whole
    np.testing.assert_array_equal(read_errors(tmp_path / "cut"), read_errors(tmp_path / "whole"))


def test_small_suspects_are_not_listed(run: Path, flawed: Path, tmp_path: Path) -> None:
    found = review(run, tmp_path / "review", flawed, ReviewConfig(suspect_px=300))
    assert [place.pixels for place in found.findings.suspects] == [32 * 32]


def test_runs_of_several_folds_share_one_error_raster(run: Path, tiles: Path, flawed: Path, tmp_path: Path) -> None:
    for name, held in (("a", tiles), ("b", flawed)):
        make_run(tmp_path / name, FIELDS)
        (tmp_path / name / "tiles.json").write_text(f'{{"tiles": "{held}"}}')
    review([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    assert (read_errors(tmp_path / "both") == 255).sum() == 0
    review(tmp_path / "a", tmp_path / "one")
    assert (read_errors(tmp_path / "one") == 255).sum() > 0


def test_invalid_input_is_refused_and_leaves_no_folder(run: Path, flawed: Path, fields: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tiles"):
        review(run, tmp_path / "review")
    config = PrepareConfig(tile_px=48, overlap=0.0, split="scene", val=0.0, test=0.0)
    only = prepare(VectorSource(images=(fields / "scene.tif",), labels=fields / "fields.gpkg"), tmp_path / "t", config)
    (make_run(tmp_path / "own", FIELDS) / "tiles.json").write_text(f'{{"tiles": "{only.folder}"}}')
    with pytest.raises(InputError, match=r"own.*--test"):
        review(tmp_path / "own", tmp_path / "review")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(OutputError, match="there exists"):
        review(run, tmp_path / "there", flawed)
    assert not (tmp_path / "review").exists()


def test_qgis_shows_errors_by_name_and_suspects_with_verdicts(run: Path, flawed: Path, tmp_path: Path) -> None:
    review(run, tmp_path / "review", flawed)
    names = ("errors/scene.tif", "worst.gpkg", "suspects.gpkg")
    errors, worst, suspects = qgis_layers(*(tmp_path / "review" / name for name in names))
    assert errors["legend"][1:] == ["correct", "fields: false negative", "fields: false positive"]
    assert (worst["renderer"], worst["title"]) == ("graduatedSymbol", "Worst tiles")
    assert (suspects["legend"], suspects["widgets"]["verdict"]) == (["1", "2"], "ValueMap")
    for layer in (worst, suspects):
        assert layer["drawn"] == layer["features"] > 0
        assert layer["abstract"]
