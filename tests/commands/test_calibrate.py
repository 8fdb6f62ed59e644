"""`geograft calibrate`: fitted on validation tiles, stored in the card, used by evaluate and predict."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import f1_score, log_loss

from geograft.card import read_card
from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.train import train
from geograft.config import EvaluateConfig, InferenceConfig, PredictConfig, PrepareConfig
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META, Tile, TileSet
from geograft.errors import InputError, SettingError
from geograft.files import write_json
from geograft.mapping.held_out import predict_tiles
from geograft.mapping.models import RunModel
from tests.commands.test_evaluate_equals_map import (
    Case,
    Kind,
    build,
    config_of,
    make_run,
    make_tiles,
    scene_and_label,
)
from tests.commands.test_train import SMALL
from tests.support.tilewise import TILEWISE, tile_logits

pytestmark = pytest.mark.usefixtures("only_torch")

# Without warm-up and EMA the run is confident after a few steps.
QUICK = SMALL.with_settings(train={"optimizer": "adam", "schedule": "exponential", "warmup_epochs": 0, "ema": 0})


@pytest.fixture
def run(tiles: Path, tmp_path: Path) -> Path:
    return train(tiles, tmp_path / "unet", QUICK).run


def test_fitted_values_are_in_the_card_and_improve_val(run: Path) -> None:
    before = read_card(run)
    flat = evaluate(run, "val").metrics
    result = calibrate(run)
    card = read_card(run)
    assert card == result.card
    assert (card.temperature, card.threshold) != (before.temperature, before.threshold)
    assert "validation tiles" in card.calibrated
    assert replace(card, temperature=1.0, threshold=0.5, calibrated="") == before
    assert result.after.log_loss <= result.before.log_loss
    again = evaluate(run, "val")
    assert again.metrics["overall"]["f1"].value >= flat["overall"]["f1"].value
    # evaluate computes the same scores independently.
    assert again.metrics["overall"]["f1"].value == pytest.approx(result.after.f1, abs=1e-3)
    assert again.metrics["brier"]["brier"].value == pytest.approx(result.after.brier, abs=1e-6)
    assert flat["brier"]["brier"].value == pytest.approx(result.before.brier, abs=1e-6)
    assert "validation tiles" in again.notes[0]
    record = json.loads((run / "calibration.json").read_text())
    assert record["after"]["temperature"] == card.temperature
    assert sum(row["pixels"] for row in record["reliability_after"]) == record["pixels"]


def test_training_ends_with_the_same_calibration(run: Path, tiles: Path) -> None:
    plain = read_card(run)
    assert (plain.temperature, plain.threshold, plain.calibrated) == (1, 0.5, "")
    # A resumed run may be calibrated, which does not change its weights.
    trained = train(tiles, run, QUICK.with_settings(train={"calibrate": True}), resume=True)
    assert trained.card == read_card(run) == calibrate(run, config=InferenceConfig(backend="torch", device="cpu")).card
    assert trained.card.weights_digest == plain.weights_digest and trained.card.temperature != 1
    assert any(f"threshold {trained.card.threshold:.3f}" in line for line in trained.lines())


def test_a_threshold_that_the_tiles_do_not_decide_is_that_of_the_uncalibrated_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.metrics.calibration.MIN_CERTAINTY", 1.1)
    card = calibrate(run).card
    assert card.threshold == pytest.approx(expit(logit(0.5) / card.temperature)) == 0.5
    assert card.temperature != 1


def test_objects_are_cleaned_as_does_their_f1_good(run: Path) -> None:
    config = EvaluateConfig(objects="fields")
    calibrate(run)
    plain = evaluate(run, "val", config=config)
    result = calibrate(run, objects="fields")
    choice = result.cleaning
    assert choice is not None and choice.f1 >= choice.f1_before
    assert read_card(run).cleaning == choice.cleaning and choice.cleaning.objects == "fields"
    cleaned = evaluate(run, "val", config=config)
    # Pixels are those of the map; objects are those that `polygons` writes.
    assert np.array_equal(cleaned.confusion, plain.confusion)
    assert cleaned.metrics["objects"]["f1"].value >= plain.metrics["objects"]["f1"].value
    # A calibration without objects keeps it.
    assert calibrate(run).card.cleaning == choice.cleaning
    with pytest.raises(SettingError, match="meadow"):
        calibrate(run, objects="meadow")


def test_calibration_is_deterministic_and_kept_by_a_resumed_run(run: Path, tiles: Path) -> None:
    first = calibrate(run).card
    assert calibrate(run).card == first
    train(tiles, run, QUICK, resume=True)
    assert read_card(run) == first


def test_test_tiles_are_not_used(run: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    samples = TileSet.samples
    monkeypatch.setattr(
        TileSet,
        "samples",
        lambda self, split, unique_pixels=False: asked.append(split) or samples(self, split, unique_pixels),
    )
    predicted: list[Tile] = []
    monkeypatch.setattr(
        "geograft.mapping.logit_sample.predict_tiles",
        lambda model, tile_set, tiles, title: predicted.extend(tiles) or predict_tiles(model, tile_set, tiles, title),
    )
    calibrate(run)
    assert asked == ["val"]
    assert predicted
    assert {tile.split for tile in predicted} == {"val"}


def test_a_sample_of_pixels_gives_nearly_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate(run)
    monkeypatch.setattr("geograft.mapping.logit_sample.MAX_PIXELS", whole.pixels // 4)
    part = calibrate(run)
    assert part.pixels == pytest.approx(whole.pixels / 4, rel=0.1)
    assert part.card.temperature == pytest.approx(whole.card.temperature, rel=0.1)
    # The threshold is fitted to all pixels.
    assert part.after.f1 == whole.after.f1


def test_multiclass_models_have_a_temperature_and_no_threshold(fields: Path, tmp_path: Path) -> None:
    import geopandas

    squares = geopandas.read_file(fields / "fields.gpkg")
    squares["kind"] = ["wheat", "maize"] * 8
    squares.to_file(tmp_path / "kinds.gpkg")
    config = PrepareConfig(tile_px=32, overlap=0.0, split="block", block_px=64, buffer_px=0, val=0.3, test=0.2)
    source = VectorSource(images=(fields / "scene.tif",), labels=tmp_path / "kinds.gpkg", class_field="kind")
    tiles = prepare(source, tmp_path / "tiles", config).folder
    run = train(tiles, tmp_path / "run", QUICK).run
    before = evaluate(run, "test").confusion
    result = calibrate(run)
    assert result.after.log_loss <= result.before.log_loss
    assert (read_card(run).threshold, result.after.f1) == (0.5, None)
    # The temperature does not change the predicted classes.
    np.testing.assert_array_equal(evaluate(run, "test").confusion, before)


def test_probabilities_use_logits_divided_by_the_temperature(run: Path) -> None:
    calibrate(run)
    card = read_card(run)
    assert card.temperature != 1
    image = np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32), dtype=np.uint8)
    valid = np.ones((1, 32, 32), bool)
    found = RunModel.open(run, TILEWISE).predictor(32, 1, lambda: None)(image, valid)
    np.testing.assert_allclose(found, expit(tile_logits(run, image, valid) / card.temperature), rtol=1e-5)


def test_another_tile_set_raises_and_the_card_is_unchanged(run: Path, tiles: Path, tmp_path: Path) -> None:
    before = (run / "card.json").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "tiles.gpkg").write_bytes((tiles / "tiles.gpkg").read_bytes())
    write_json(other / META, json.loads((tiles / META).read_text()) | {"fingerprint": "another"})
    with pytest.raises(InputError, match=f"{re.escape(str(other))} .*{re.escape(str(run))}"):
        calibrate(run, other)
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        calibrate(tmp_path)
    assert (run / "card.json").read_bytes() == before
    assert not (run / "calibration.json").exists()


@pytest.mark.parametrize("kind", ["binary", "overlapping"])
def test_temperature_and_thresholds_fit_the_probabilities_of_the_map(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geograft.inference.torch_networks.build", build)
    case = Case(kind, split="val")
    tiles = make_tiles(case, tmp_path)
    run = make_run(tmp_path / "run", tiles, 0, {})
    settings = PredictConfig(**asdict(config_of(case)), probabilities="float16")
    predict(run, (tiles.image_path("0"),), tmp_path / "map.tif", settings)
    with rasterio.open(tmp_path / "map.probabilities.tif") as raster:
        p = raster.read().astype(float) if kind == "overlapping" else raster.read([2]).astype(float)
    inside = np.zeros(p.shape[1:], bool)
    for tile in tiles.split("val"):
        inside[tile.window.slices] = True
    _, label = scene_and_label(case, 0)
    known = [inside & (band != 255) for band in label]
    truth = [band[there] for band, there in zip(label == 1, known, strict=True)]
    logits = [logit(band[there].clip(1e-4, 1 - 1e-4)) for band, there in zip(p, known, strict=True)]

    def loss(temperature: float) -> float:
        return float(log_loss(np.concatenate(truth), expit(np.concatenate(logits) / temperature)))

    plain = evaluate(run, "val", config=EvaluateConfig(**asdict(config_of(case)))).metrics["overall"]["f1"].value
    card = calibrate(run, config=config_of(case)).card
    best = minimize_scalar(loss, bounds=(0.2, 19), method="bounded").x
    assert 1.1 < best < 18
    assert card.temperature == pytest.approx(best, rel=0.01)
    for mine, scores, threshold in zip(truth, logits, card.output_thresholds, strict=True):
        cuts = logit(np.linspace(0.01, 0.99, 99))
        found = f1_score(mine, scores / card.temperature >= logit(threshold))
        assert found >= max(f1_score(mine, scores >= cut) for cut in cuts) - 2e-3
    after = evaluate(run, "val", config=EvaluateConfig(**asdict(config_of(case))))
    assert after.metrics["overall"]["f1"].value >= plain
