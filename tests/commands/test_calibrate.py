"""`geograft calibrate`: chosen on validation tiles, fixed in the card, used by all that follows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geograft.card import read_card
from geograft.commands.calibrate import calibrate
from geograft.commands.evaluate import evaluate
from geograft.commands.prepare import prepare
from geograft.commands.train import train
from geograft.config import PrepareConfig
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META, TileSet
from geograft.errors import InputError
from geograft.files import write_json
from geograft.inference.predictor import Predictor
from tests.commands.test_train import SMALL

# Sure of itself after a few steps; with warm-up and a mean of weights it would have hardly begun.
QUICK = SMALL.changed(train={"optimizer": "adam", "schedule": "exponential", "warmup_epochs": 0, "ema": 0})


@pytest.fixture
def run(tiles: Path, tmp_path: Path) -> Path:
    return train(tiles, tmp_path / "unet", QUICK).run


def test_what_is_chosen_is_in_the_card_and_better_on_val(run: Path) -> None:
    before = read_card(run)
    flat = evaluate(run, "val").figures
    result = calibrate(run)
    card = read_card(run)
    assert card == result.card
    assert (card.temperature, card.threshold) != (before.temperature, before.threshold)
    assert "validation tiles" in card.calibrated
    assert replace(card, temperature=1.0, threshold=0.5, calibrated="") == before
    assert result.after.log_loss <= result.before.log_loss
    again = evaluate(run, "val")
    assert again.figures["overall"]["f1"].value >= flat["overall"]["f1"].value
    # What calibrate promised is what evaluate finds, by another way.
    assert again.figures["overall"]["f1"].value == pytest.approx(result.after.f1, abs=1e-3)
    assert again.figures["brier"]["brier"].value == pytest.approx(result.after.brier, abs=1e-6)
    assert flat["brier"]["brier"].value == pytest.approx(result.before.brier, abs=1e-6)
    assert "flatter" in again.notes[0]
    record = json.loads((run / "calibration.json").read_text())
    assert record["after"]["temperature"] == card.temperature
    assert sum(row["pixels"] for row in record["reliability_after"]) == record["pixels"]


def test_given_again_it_chooses_the_same_and_a_resumed_run_keeps_it(run: Path, tiles: Path) -> None:
    first = calibrate(run).card
    assert calibrate(run).card == first
    train(tiles, run, QUICK, resume=True)
    assert read_card(run) == first


def test_the_test_tiles_have_no_part_in_it(run: Path, tiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    samples = TileSet.samples
    monkeypatch.setattr(
        TileSet, "samples", lambda self, split, once=False: asked.append(split) or samples(self, split, once)
    )
    calibrate(run)
    assert asked == ["val"]


def test_a_sample_chooses_nearly_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = calibrate(run)
    monkeypatch.setattr("geograft.commands.calibrate.MOST_PIXELS", whole.pixels // 4)
    part = calibrate(run)
    assert part.pixels == pytest.approx(whole.pixels / 4, rel=0.1)
    assert part.card.temperature == pytest.approx(whole.card.temperature, rel=0.1)
    # The cut itself is of all pixels.
    assert part.after.f1 == whole.after.f1


def test_more_classes_have_a_temperature_and_no_threshold(fields: Path, tmp_path: Path) -> None:
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
    # A temperature changes how sure the map is, not what it shows.
    np.testing.assert_array_equal(evaluate(run, "test").confusion, before)


def test_probabilities_are_those_of_logits_over_the_temperature(run: Path) -> None:
    calibrate(run)
    predictor = Predictor.load(run)
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, 32, 32)).astype(np.float32)
    expected = 1 / (1 + np.exp(-predictor.logits(image)[:, 0] / predictor.card.temperature))
    np.testing.assert_allclose(predictor(image)[:, 1], expected, rtol=1e-5)


def test_another_tile_set_is_refused_and_the_card_stays(run: Path, tiles: Path, tmp_path: Path) -> None:
    before = (run / "card.json").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    (other / "tiles.gpkg").write_bytes((tiles / "tiles.gpkg").read_bytes())
    write_json(other / META, json.loads((tiles / META).read_text()) | {"fingerprint": "another"})
    with pytest.raises(InputError, match="is not the tile set that trained"):
        calibrate(run, other)
    with pytest.raises(InputError, match="is not a finished run"):
        calibrate(tmp_path)
    assert (run / "card.json").read_bytes() == before
    assert not (run / "calibration.json").exists()
