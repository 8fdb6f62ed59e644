"""`predict --threshold`: other thresholds for one map, and the tag that names those used."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geograft.card import read_card
from geograft.cli import main
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.config import PredictConfig
from geograft.errors import InputError, OutputError, SettingError
from geograft.geo.rasters.tags import CARD_TAG, THRESHOLD_TAG
from geograft.legend import Legend
from tests.commands.test_predict import left_in, read
from tests.support.rasters import textured, write_raster
from tests.support.runs import COVERS, TREES, USES, BandPredictor, PixelwisePredictor, make_run

SHARED = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
PROBABILITY = st.floats(0.01, 0.99)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", PixelwisePredictor)


def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", BandPredictor)


def tag(path: Path, name: str = THRESHOLD_TAG) -> str | None:
    with rasterio.open(path) as raster:
        found: str | None = raster.tags().get(name)
    return found


@SHARED
@given(threshold=PROBABILITY)
def test_a_map_with_a_threshold_is_that_of_a_run_with_it(
    tmp_path_factory: pytest.TempPathFactory, threshold: float
) -> None:
    folder = tmp_path_factory.mktemp("binary")
    scene = write_raster(folder / "scene.tif", textured(3, 40, 50))
    run, other = make_run(folder / "run", threshold=0.3), make_run(folder / "other", threshold=threshold)
    predict(run, (scene,), folder / "map.tif", PredictConfig(threshold=(threshold,)))
    predict(other, (scene,), folder / "expected.tif")
    np.testing.assert_array_equal(read(folder / "map.tif"), read(folder / "expected.tif"))
    assert float(tag(folder / "map.tif") or "") == float(tag(folder / "expected.tif") or "") == threshold
    assert json.loads(tag(folder / "map.tif", CARD_TAG) or "")["threshold"] == threshold
    assert read_card(run).threshold == 0.3


@SHARED
@given(thresholds=st.tuples(PROBABILITY, PROBABILITY, PROBABILITY))
def test_overlapping_classes_get_one_each_in_their_order(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, thresholds: tuple[float, float, float]
) -> None:
    overlapping(monkeypatch)
    folder = tmp_path_factory.mktemp("overlapping")
    scene = write_raster(folder / "scene.tif", textured(3, 40, 50))
    run, other = make_run(folder / "run", USES), make_run(folder / "other", USES, thresholds=thresholds)
    predict(run, (scene,), folder / "map.tif", PredictConfig(threshold=thresholds))
    predict(other, (scene,), folder / "expected.tif")
    np.testing.assert_array_equal(read(folder / "map.tif"), read(folder / "expected.tif"))
    assert tuple(map(float, (tag(folder / "map.tif") or "").split())) == thresholds
    assert tag(folder / "expected.tif") == tag(folder / "map.tif")


@pytest.mark.parametrize(("legend", "expected"), [(TREES, "0.5"), (USES, "0.5 0.5 0.5"), (COVERS, None)])
def test_the_tag_names_the_thresholds_of_every_map_that_has_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legend: Legend, expected: str | None
) -> None:
    if legend.overlapping:
        overlapping(monkeypatch)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 40, 50))
    predict(make_run(tmp_path / "run", legend), (scene,), tmp_path / "map.tif")
    assert tag(tmp_path / "map.tif") == expected


@pytest.mark.parametrize(
    ("legend", "threshold", "named"),
    [
        (COVERS, (0.4,), "--threshold 0.4 .* 4 classes"),
        (COVERS, (0.4,) * 4, "--threshold 0.4 0.4 0.4 0.4 .* 4 classes"),
        (TREES, (0.4, 0.6), "--threshold 0.4 0.6 .*2 values.* 1.* trees"),
        (USES, (0.4,), "--threshold 0.4 .*1 values.* 3.* crops, then trees, then roads"),
        (USES, (0.4,) * 4, "4 values.* 3"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_thresholds_that_do_not_fit_the_classes_are_refused(
    tmp_path: Path, legend: Legend, threshold: tuple[float, ...], named: str, dry_run: bool
) -> None:
    run, scene = make_run(tmp_path / "run", legend), write_raster(tmp_path / "scene.tif", textured(3, 40, 50))
    with pytest.raises(SettingError, match=named):
        predict(run, (scene,), tmp_path / "map.tif", PredictConfig(threshold=threshold), dry_run=dry_run)
    assert left_in(tmp_path) == set()


@pytest.mark.parametrize("value", ["0", "1", "-0.1", "1.5", "40", "nan", "inf", "-inf", "half", "0,5"])
def test_a_threshold_lies_between_0_and_1(tmp_path: Path, value: str) -> None:
    run, scene = make_run(tmp_path / "run"), write_raster(tmp_path / "scene.tif", textured(3, 40, 50))
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), str(scene), "--out", str(tmp_path / "map.tif"), f"--threshold={value}"])
    assert "--threshold" in str(ended.value.code)
    assert "\n" not in str(ended.value.code)
    assert left_in(tmp_path) == set()


def test_another_threshold_does_not_resume_a_map_but_the_runs_own_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scene = make_run(tmp_path / "run", threshold=0.3), write_raster(tmp_path / "scene.tif", textured(3, 90, 50))
    predict(run, (scene,), tmp_path / "whole" / "map.tif")
    with monkeypatch.context() as patch:
        patch.setattr("geograft.mapping.job.write_class_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(run, (scene,), tmp_path / "map.tif")
    with pytest.raises(InputError, match=r"settings\.threshold\.0 was 0\.3, is 0\.4"):
        predict(run, (scene,), tmp_path / "map.tif", PredictConfig(threshold=(0.4,)))
    predict(run, (scene,), tmp_path / "map.tif", PredictConfig(threshold=(0.3,)))
    assert (tmp_path / "map.tif").read_bytes() == (tmp_path / "whole" / "map.tif").read_bytes()


def test_a_finished_map_with_another_threshold_is_not_kept(tmp_path: Path) -> None:
    run, scene = make_run(tmp_path / "run"), write_raster(tmp_path / "scene.tif", textured(3, 40, 50))
    predict(run, (scene,), tmp_path / "maps", PredictConfig(threshold=(0.4,)))
    assert not predict(run, (scene,), tmp_path / "maps", PredictConfig(threshold=(0.4,))).maps[0].pixels
    with pytest.raises(OutputError, match=r"scene\.tif"):
        predict(run, (scene,), tmp_path / "maps", PredictConfig(threshold=(0.41,)))


def test_the_command_and_what_reads_its_map(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run"), make_run(tmp_path / "other", threshold=0.9)
    scene = write_raster(tmp_path / "scene.tif", textured(3, 60, 70))
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *map(str, ["predict", run, scene, "--ensemble", other, "--out", tmp_path / "map.tif"]),
                "--threshold",
                ".2",
            ]
        )
    assert not ended.value.code
    assert tag(tmp_path / "map.tif") == "0.2"
    made = polygons(tmp_path / "map.tif", tmp_path / "trees.gpkg")
    assert made.path.exists()
