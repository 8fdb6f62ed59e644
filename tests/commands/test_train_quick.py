"""`geograft train --quick`: an ordinary run, whose linear classifier is fitted in a moment."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from geograft.card import CARD, WEIGHTS, read_card
from geograft.cli import app
from geograft.commands.adapt import adapt
from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.export import export
from geograft.commands.predict import predict
from geograft.commands.train import train
from geograft.config import AdaptConfig, EvaluateConfig, ExportConfig, PredictConfig, Recipe
from geograft.errors import GeograftError, SettingError
from geograft.training import linear
from tests.support.exports import BINARY, make_run

QUICK = Recipe().with_settings(
    model={"architecture": "linear", "encoder": "test_efficientnet", "weights": "none"}, train={"device": "cpu"}
)
OPTIONS = ("--quick", "--encoder", "test_efficientnet", "--weights", "none", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "user_cache_path", lambda *_, **__: folder)
        yield


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "quick", QUICK).run


def test_the_command_writes_the_same_run(run: Path, tiles: Path, tmp_path: Path) -> None:
    app(["train", str(tiles), "--out", str(tmp_path / "quick"), *OPTIONS], result_action="return_value")
    assert (tmp_path / "quick" / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    mine, other = (json.loads((folder / CARD).read_bytes()) for folder in (run, tmp_path / "quick"))
    assert mine == other and mine["model"]["architecture"] == "linear" and mine["epochs"] == 1 and mine["finished"]
    # Resumed, it is read.
    app(["train", str(tiles), "--out", str(tmp_path / "quick"), "--resume", *OPTIONS], result_action="return_value")
    assert json.loads((tmp_path / "quick" / CARD).read_bytes()) == mine


def test_it_is_calibrated_scored_and_mapped_like_any_run(run: Path, fields: Path, tiles: Path, tmp_path: Path) -> None:
    scores = evaluate(run, config=EvaluateConfig(backend="torch", device="cpu"), out=tmp_path / "scores.json")
    assert scores.headline["iou"].value > 0.9
    copied = train(tiles, tmp_path / "copy", QUICK).run
    assert calibrate(copied).after.temperature != 1
    settings = PredictConfig(backend="torch", device="cpu", probabilities="uint8")
    (made,) = predict(run, fields / "scene.tif", tmp_path / "map.tif", settings).maps
    with rasterio.open(made.path) as raster:
        classes = raster.read(1)
    # One pixel in four belongs to a field.
    assert np.isclose((classes == 2).mean(), 0.25, atol=0.05) or np.isclose((classes == 1).mean(), 0.25, atol=0.05)


@pytest.mark.parametrize("target", ["onnx", "deepness", "openvino", "torch"])
def test_it_goes_through_each_export(target: str, run: Path, tmp_path: Path) -> None:
    from tests.commands.test_export import SUFFIXES, opened  # skipped there without the extras
    from tests.exports.test_program import images, reference

    out = tmp_path / f"model{SUFFIXES[target]}"
    export(run, out, target, ExportConfig(window_px=64 if target == "deepness" else 0))
    pixels, valid = images(read_card(run), 2, 64)
    np.testing.assert_allclose(opened(out, target)(pixels, valid), reference(run, pixels, valid), atol=1e-4)


def test_no_training_starts_from_it_and_it_from_no_run(run: Path, tiles: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "run", BINARY)
    for model in ({"start": str(run)}, {"start": str(other), "architecture": "linear"}):
        with pytest.raises(SettingError, match="pretrained"):
            train(tiles, tmp_path / "new", Recipe().with_settings(model=model))
    with pytest.raises(GeograftError):
        adapt(run, tiles, tmp_path / "new", AdaptConfig(device="cpu"))
    with pytest.raises(SettingError, match="one process"):
        train(tiles, tmp_path / "new", QUICK.with_settings(train={"devices": 2}))
    with pytest.raises(SettingError, match="--quick"):
        app(["train", str(tiles), "--out", str(tmp_path / "new"), *OPTIONS, "--architecture", "unet"])
    assert not (tmp_path / "new").exists()
