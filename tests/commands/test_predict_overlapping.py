"""Maps of classes that overlap: a band each, from probabilities that stand for themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy import ndarray

from geograft.card import ModelCard, read_card
from geograft.commands.predict import predict
from geograft.config import ModelConfig, PredictConfig, TrainConfig
from geograft.errors import InputError
from geograft.geo.rasters.tags import legend_from_tags
from geograft.geo.rasters.writer import downsample_2x
from geograft.inference.predictor import EnsembleMember, EnsemblePredictor
from geograft.inference.probability import output_layers
from geograft.inference.runners import TileWorkers
from geograft.inference.torch_networks import TorchRunner
from geograft.mapping.ledger import Ledger
from geograft.training.loop import fit
from tests.support.overlapping import LEGEND, overlapping_blocks, overlapping_data
from tests.support.rasters import textured, write_raster
from tests.support.runs import USES, BandPredictor, make_run
from tests.support.training import TinyNetwork

CUTS = (0.2, 0.5, 0.8)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.mapping.models.EnsemblePredictor", BandPredictor)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", USES, thresholds=CUTS)


@pytest.fixture
def pixels() -> ndarray:
    """Values that are not within the map's rounding of a threshold, with a hole."""
    found = np.stack([textured(1, 150, 1100, seed=seed)[0] for seed in range(3)])
    found[np.isin(found, [51, 204])] += 1
    found[:, 20:90, 30:60] = 0
    return found


def read(path: Path) -> ndarray:
    with rasterio.open(path) as raster:
        found: ndarray = raster.read()
    return found


def test_a_map_has_a_band_of_every_class(tmp_path: Path, run: Path, pixels: ndarray) -> None:
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    made = predict(run, (scene,), tmp_path / "map.tif", PredictConfig(probabilities="uint8", uncertainty=True)).maps[0]
    valid = (pixels != 0).any(axis=0)
    p = pixels / 255
    expected = np.where(valid, p >= np.array(CUTS)[:, None, None], 255)
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)
    assert made.pixels == dict(zip(USES.names, (expected == 1).sum(axis=(1, 2)).tolist(), strict=True))
    share = (expected[1] == 1).sum() / valid.sum()
    assert f"  trees {share:7.1%}" in made.lines()
    likely = read(tmp_path / "map.probabilities.tif")
    assert np.abs(likely - 250 * p)[:, valid].max() <= 0.5 + 1e-2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))
    uncertain = read(tmp_path / "map.uncertainty.tif")[0]
    assert np.abs(uncertain - 250 * terms.mean(axis=0))[valid].max() <= 0.5 + 1e-2


def test_the_file_says_which_band_is_which_class(tmp_path: Path, run: Path, pixels: ndarray) -> None:
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    predict(run, (scene,), tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert (raster.count, raster.dtypes, raster.nodata) == (3, ("uint8",) * 3, 255)
        assert raster.descriptions == USES.names
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.tags()["CLASS_1"] == "of the band's class"
        assert legend_from_tags(raster.tags()) == USES
        assert raster.overviews(1) == [2, 4]
        whole = raster.read()
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as raster:
        np.testing.assert_array_equal(raster.read(), downsample_2x(whole, "mode", 255))


def test_a_map_that_was_stopped_ends_with_the_same_bytes(
    tmp_path: Path, run: Path, pixels: ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=0)
    settings = PredictConfig(probabilities="float16", uncertainty=True)
    predict(run, (scene,), tmp_path / "whole" / "map.tif", settings)
    add, left = Ledger.add, [4]

    def failing(self: Ledger, *rest: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise InputError("the cable is out")
        add(self, *rest)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"% .*\.map\.part"):
        patch.setattr(Ledger, "add", failing)
        predict(run, (scene,), tmp_path / "map.tif", settings)
    made = predict(run, (scene,), tmp_path / "map.tif", settings).maps[0]
    assert made.computed_px < pixels[0].size
    for name in ("map.tif", "map.probabilities.tif", "map.uncertainty.tif"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_card_keeps_its_thresholds_and_others_know_nothing_of_them(tmp_path: Path, run: Path) -> None:
    card = read_card(run)
    assert (card.output_thresholds, card.thresholds, card.legend) == (CUTS, CUTS, USES)
    plain = make_run(tmp_path / "plain")
    assert read_card(plain).output_thresholds == (0.5,)
    assert "overlapping" not in (plain / "card.json").read_text()
    assert "thresholds" not in (plain / "card.json").read_text()
    assert read_card(make_run(tmp_path / "even", USES)).output_thresholds == (0.5,) * 3


def test_a_trained_network_maps_each_class_by_itself(tmp_path: Path) -> None:
    model = TinyNetwork(outputs=2)
    config = TrainConfig(epochs=12, batch_size=4, decoder_lr=0.02, encoder_lr=0.02, ema=0, workers=0, device="cpu")
    history = fit(model, overlapping_data(), config, tmp_path)
    card = ModelCard(
        "run", ModelConfig(), "random", LEGEND, ("a", "b", "c"), "uint8", (130.0,) * 3, (30.0,) * 3, 16, None, 0.5, 1
    )
    images, shares = (np.stack(part) for part in zip(*overlapping_blocks(5, 1), strict=True))
    valid = np.isfinite(shares).all(axis=1)
    member = EnsembleMember(card.mean, card.std, 1.0, TorchRunner(model, torch.device("cpu")))
    found = EnsemblePredictor(card, [member], TileWorkers(1))(images, valid)
    with torch.inference_mode():
        logits = model(torch.from_numpy(np.where(valid[:, None], (images - 130) / 30, 0).astype(np.float32))).double()
    np.testing.assert_allclose(found, logits.sigmoid().numpy(), rtol=1e-4, atol=1e-6)
    right = (found >= 0.5)[np.isfinite(shares)] == shares[np.isfinite(shares)]
    assert right.mean() > 0.95
    assert history.best.val_iou > 0.9


def test_probabilities_of_overlapping_classes_are_sigmoids() -> None:
    logits = 5 * torch.randn(2, 3, 4, 4)
    np.testing.assert_allclose(output_layers(logits.numpy(), overlapping=True), logits.sigmoid(), rtol=1e-6)
    np.testing.assert_allclose(output_layers(logits.numpy()), logits.softmax(dim=1), rtol=1e-6)
