"""Runs as objects: their methods are the commands, and results show themselves in notebooks."""

import inspect
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import rasterio
from numpy import ndarray

import geograft
from geograft.card import read_card
from geograft.errors import InputError, SettingError
from geograft.inference.predictor import EnsemblePredictor
from geograft.legend import Legend
from tests.support.rasters import TENTH_METRE, textured, write_raster
from tests.support.runs import COVERS, TREES, USES, BandPredictor, ContextPredictor, make_run

pytestmark = pytest.mark.usefixtures("only_torch")

mpl.use("agg")
METHODS = ("predict", "evaluate", "calibrate", "suggest", "review", "report")


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> geograft.Run:
    """A run of one epoch on the fields."""
    recipe = geograft.Recipe().with_settings(
        model={"architecture": "unet"}, train={"epochs": 1, "batch_size": 4, "device": "cpu"}
    )
    out = tmp_path_factory.mktemp("runs") / "run"
    geograft.train(geograft.TileSet.open(tiles), str(out), recipe)
    return geograft.load(str(out))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parameters_of_its_function(name: str) -> None:
    """Nothing that a command can do is missing from the method: all but the run and the settings, which are options."""
    method = inspect.signature(getattr(geograft.Run, name)).parameters
    function = inspect.signature(getattr(geograft, name)).parameters
    missing = set(function) - set(method) - {"run", "runs", "run_or_comparison", "config"}
    assert not missing


def test_the_facts_are_those_of_the_card(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", TREES, threshold=0.4, scores={"iou": 0.7})
    run = geograft.load(path)
    card = read_card(path)
    assert (run.card, run.name, run.classes) == (card, card.name, ("other", "trees"))
    assert run.bands == ("red", "green", "blue")
    assert (run.thresholds, run.scores, run.resolution_m) == ({"trees": 0.4}, {"iou": 0.7}, 0.1)
    assert os.fspath(run) == str(path)
    assert "trees" in run._repr_html_()
    several = geograft.load([path, make_run(tmp_path / "other", TREES, threshold=0.6)])
    assert several.thresholds == {"trees": 0.5}
    with pytest.raises(SettingError, match="one run, not 2"):
        os.fspath(several)
    assert not geograft.load(make_run(tmp_path / "covers", COVERS)).thresholds
    assert list(geograft.load(make_run(tmp_path / "uses", USES)).thresholds) == list(USES.names)


def test_what_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        geograft.load(tmp_path / "nowhere")
    with pytest.raises(SettingError):
        geograft.load([])


@pytest.mark.parametrize("legend", [TREES, COVERS, USES], ids=["binary", "classes", "overlapping"])
@pytest.mark.parametrize(("height", "width"), [(20, 30), (70, 90)])
def test_an_array_has_the_probabilities_of_its_map(
    legend: Legend, height: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor: Any = BandPredictor if legend.overlapping else ContextPredictor
    monkeypatch.setattr(EnsemblePredictor, "load", predictor.load)
    run = geograft.load(make_run(tmp_path / "run", legend, window_px=32, overlap_px=8))
    pixels = textured(3, height, width)
    pixels[:, :5, :7] = 0
    write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    found = run.predict_array(pixels, valid=(pixels != 0).any(axis=0))
    run.predict(tmp_path / "scene.tif", tmp_path / "map.tif", probabilities="float16")
    with rasterio.open(tmp_path / "map.probabilities.tif") as raster:
        expected = raster.read()
    np.testing.assert_array_equal(found.astype(np.float16), expected)
    assert np.isnan(found[:, :5, :7]).all()
    assert np.isfinite(found).sum() == len(legend.names) * (height * width - 35)


def test_a_trained_network_gives_an_array_the_map(trained: geograft.Run, fields: Path, tmp_path: Path) -> None:
    with rasterio.open(fields / "scene.tif") as raster:
        pixels = raster.read()
    found = trained.predict_array(pixels, backend="torch")
    trained.predict(fields / "scene.tif", tmp_path / "map.tif", probabilities="float16", backend="torch")
    with rasterio.open(tmp_path / "map.probabilities.tif") as raster:
        np.testing.assert_array_equal(found.astype(np.float16), raster.read())
    np.testing.assert_array_equal(trained.predict_array(pixels, backend="torch"), found)
    assert len(trained._models) == 1, "the network stays loaded"


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((3, 8), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((3, 8, 8)), np.zeros((3, 0, 8), np.uint8)],
    ids=["dimensions", "bands", "dtype", "empty"],
)
def test_an_array_that_does_not_fit_is_an_error(pixels: ndarray, tmp_path: Path) -> None:
    run = geograft.load(make_run(tmp_path / "run"))
    with pytest.raises(InputError, match="the array"):
        run.predict_array(pixels)


def test_an_array_without_valid_pixels_has_no_probability(tmp_path: Path) -> None:
    run = geograft.load(make_run(tmp_path / "run", dtype="float32"))
    assert np.isnan(run.predict_array(np.full((3, 8, 8), np.nan, np.float32))).all()
    with pytest.raises(InputError, match="shape"):
        run.predict_array(np.ones((3, 8, 8), np.float32), np.ones((8, 9), bool))


def test_results_show_themselves(trained: geograft.Run, fields: Path, tiles: Path, tmp_path: Path) -> None:
    tile_set = geograft.TileSet.open(tiles)
    assert len(tile_set.to_geodataframe()) == len(tile_set.tiles)
    scores = trained.evaluate(out=tmp_path / "scores.json")
    prediction = trained.predict(str(fields / "scene.tif"), str(tmp_path / "map.tif"), threshold=(0.01,))
    outlines = geograft.polygons(str(tmp_path / "map.tif"), str(tmp_path / "map.gpkg"))
    frame = outlines.to_geodataframe()
    assert len(frame) == sum(one.polygons for one in outlines.classes.values()) > 0
    elsewhere = TENTH_METRE @ TENTH_METRE.translation(5000, 0)
    write_raster(tmp_path / "other.tif", textured(3, 96, 96), elsewhere)
    suggested = trained.suggest(tmp_path / "other.tif", tmp_path / "next.gpkg", tiles=2)
    assert list(suggested.to_geodataframe()["rank"]) == [1, 2]
    for result in (tile_set, scores, prediction, outlines, suggested, trained):
        html = result._repr_html_()
        assert html.startswith("<table>")
        assert html.count("<tr>") == html.count("</tr>") > 0
    for drawn in (tile_set.plot(), scores.plot(), scores.plot("f1"), prediction.plot(), outlines.plot()):
        drawn.figure.canvas.draw()
        assert drawn.has_data() or drawn.images


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of affine, in rioxarray
def test_a_map_is_an_xarray_with_its_classes(trained: geograft.Run, fields: Path, tmp_path: Path) -> None:
    pytest.importorskip("rioxarray", reason="the extra xarray is not installed")
    prediction = trained.predict(fields / "scene.tif", tmp_path / "map.tif")
    found = prediction.to_xarray()
    with rasterio.open(tmp_path / "map.tif") as raster:
        np.testing.assert_array_equal(found.values, raster.read())
        assert found.rio.transform() == raster.transform
    assert found.attrs["flag_values"] == [0, 1]
    assert found.attrs["flag_meanings"] == "background fields"


def test_calibration_changes_the_card_that_the_run_shows(trained: geograft.Run) -> None:
    trained.calibrate(backend="torch")
    assert trained.card.calibrated
