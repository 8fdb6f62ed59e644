"""A full disk, in every command: an error of one line and no partial output."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from geograft.commands.compare import compare
from geograft.commands.evaluate import evaluate
from geograft.commands.model import model, write_graph
from geograft.commands.polygons import polygons
from geograft.commands.predict import predict
from geograft.commands.report import report
from geograft.commands.train import train
from geograft.errors import OutputError
from geograft.training.checkpoint import LAST
from tests.commands.test_compare import RECIPE
from tests.commands.test_train import SMALL
from tests.support.full_disk import max_file_size

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a limit on file size stands for a full disk")


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL.with_settings(train={"epochs": 1})).run


def refused(verb: Callable[[], object]) -> None:
    with pytest.raises(OutputError) as caught, max_file_size(2000):
        verb()
    assert "\n" not in str(caught.value)


def test_evaluate_report_and_model(run: Path, tmp_path: Path) -> None:
    refused(lambda: report(run, tmp_path / "report.html"))
    refused(lambda: write_graph(model("unet", size=32), tmp_path / "unet.svg"))
    with pytest.raises(OutputError, match=r"scores\.json"), max_file_size(100):
        evaluate(run, "test", out=tmp_path / "scores.json")
    assert not list(tmp_path.iterdir())


def test_predict_and_polygons(run: Path, fields: Path, tmp_path: Path) -> None:
    predict(run, (fields / "scene.tif",), tmp_path / "map.tif")
    refused(lambda: polygons(tmp_path / "map.tif", tmp_path / "map.gpkg"))
    refused(lambda: predict(run, (fields / "scene.tif",), tmp_path / "other.tif"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("other")]


def test_train_and_compare_can_be_repeated_after_a_full_disk(tiles: Path, run: Path, tmp_path: Path) -> None:
    settings = SMALL.with_settings(train={"epochs": 1})
    refused(lambda: train(tiles, tmp_path / "run", settings))
    assert not (tmp_path / "run").exists()
    train(tiles, tmp_path / "run", settings)
    assert (tmp_path / "run" / LAST).read_bytes() == (run / LAST).read_bytes()
    refused(lambda: compare(tiles, RECIPE, tmp_path / "comparison"))
    assert not (tmp_path / "comparison" / "comparison.json").exists()
