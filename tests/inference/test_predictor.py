from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray

from geograft.card import WEIGHTS, ModelCard
from geograft.config import ModelConfig, TrainConfig
from geograft.errors import InputError, SettingError
from geograft.inference.predictor import Predictor, probabilities
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.training.checkpoint import save_weights
from geograft.training.loop import fit
from tests.support.training import TinyNetwork, blocks, training_data

SETTINGS = ModelConfig(architecture="unet")
CARD = ModelCard(
    name="blocks",
    model=SETTINGS,
    weights_from="random",
    legend=Legend(("rest", "crown")),
    band_names=("red", "green", "blue"),
    dtype="uint8",
    mean=(130.0,) * 3,
    std=(30.0,) * 3,
    tile_px=16,
    resolution_m=None,
    threshold=0.5,
    epoch=1,
)


def images(count: int, seed: int = 0, size: tuple[int, int] = (16, 16)) -> ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, 3, *size)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    CARD.write(folder)
    save_weights(folder / WEIGHTS, build(SETTINGS, 3, 1))
    return folder


def test_predictions_equal_those_of_the_trained_network(tmp_path: Path) -> None:
    network = build(SETTINGS, 3, 1)
    config = TrainConfig(epochs=1, batch_size=4, workers=0, device="cpu")
    history = fit(network, training_data(train=blocks(4, 0), val=blocks(2, 1)), config, tmp_path)
    CARD.write(tmp_path)
    pixels, labels = (np.stack(part) for part in zip(*blocks(2, 1), strict=True))
    found = Predictor.load(tmp_path, "cpu")(pixels, labels != 255)
    with torch.no_grad():
        scaled = torch.from_numpy((pixels - 130) / 30 * (labels != 255)[:, None])
        expected = torch.sigmoid(network.eval()(scaled))[:, 0].numpy()
    np.testing.assert_allclose(found[:, 1], expected, atol=1e-5)
    truth, decided = labels[labels != 255], found[:, 1][labels != 255] >= 0.5
    iou = (truth & decided).sum() / np.maximum((truth | decided).sum(), 1)
    assert history.best.val_iou == pytest.approx(iou, abs=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (33, 7), (1, 1)])
def test_probabilities_sum_to_one_for_images_of_any_size(run: Path, size: tuple[int, int]) -> None:
    found = Predictor.load(run, "cpu")(images(2, size=size))
    assert found.shape == (2, 2, *size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_equal_batches_give_equal_bits(run: Path) -> None:
    batch = images(3)
    first = Predictor.load(run, "cpu")(batch)
    assert np.array_equal(first, Predictor.load(run, "cpu")(batch))
    # Also when the array lies otherwise in memory.
    assert np.array_equal(first, Predictor.load(run, "cpu")(np.asfortranarray(batch)))


def test_invalid_pixels_do_not_affect_the_result(run: Path) -> None:
    predictor, batch = Predictor.load(run, "cpu"), images(1)
    valid = np.ones((1, 16, 16), bool)
    valid[:, :5] = False
    wild, filled = batch.copy(), batch.copy()
    wild[:, :, :5] = np.nan
    filled[:, :, :5] = 130
    assert np.array_equal(predictor(wild, valid), predictor(batch, valid))
    assert np.array_equal(predictor(filled), predictor(batch, valid))


def test_predicting_does_not_change_the_network(run: Path) -> None:
    predictor = Predictor.load(run, "cpu")
    first = predictor(images(2))
    predictor(1000 * images(4, seed=1))
    assert np.array_equal(predictor(images(2)), first)


def test_several_outputs_use_softmax() -> None:
    logits = torch.randn(2, 4, 3, 3)
    assert torch.equal(probabilities(logits), logits.softmax(dim=1))
    found = Predictor(CARD, TinyNetwork(outputs=4), "cpu")(images(2))
    assert found.shape == (2, 4, 16, 16)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


def test_one_output_is_the_probability_of_class_1() -> None:
    found = probabilities(torch.tensor([-30.0, 0.0, 30.0]).reshape(1, 1, 1, 3))
    np.testing.assert_allclose(found[0, :, 0], [[1, 0.5, 0], [0, 0.5, 1]], atol=1e-6)


def test_unusable_weights_are_rejected(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"card\.json"):
        Predictor.load(tmp_path)
    CARD.write(tmp_path)
    with pytest.raises(InputError, match=WEIGHTS):
        Predictor.load(tmp_path)
    content = (run / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=WEIGHTS):
        Predictor.load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    replace(CARD, band_names=("red",), mean=(1.0,), std=(1.0,)).write(tmp_path)
    with pytest.raises(InputError, match=WEIGHTS):
        Predictor.load(tmp_path)


def test_unknown_devices_are_rejected(run: Path) -> None:
    with pytest.raises(SettingError, match="auto, cpu, cuda or mps"):
        Predictor.load(run, "gpu")
