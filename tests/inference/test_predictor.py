from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.card import WEIGHTS, ModelCard
from geograft.config import ModelConfig, TrainConfig
from geograft.errors import InputError, SettingError
from geograft.inference.predictor import EnsembleMember, EnsemblePredictor
from geograft.inference.probability import output_layers
from geograft.inference.runners import TileWorkers
from geograft.inference.torch_networks import HALF_TOLERANCE, TorchRunner
from geograft.legend import Legend
from geograft.networks.network import build
from geograft.training.checkpoint import load_weights, save_weights
from geograft.training.loop import fit
from tests.support.tilewise import tile_logits
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


def load(run: Path, **options: Any) -> EnsemblePredictor:
    return EnsemblePredictor.load([run], **{"device": "cpu", "backend": "torch", **options})


def all_valid(pixels: ndarray) -> ndarray:
    return np.ones((len(pixels), *pixels.shape[2:]), bool)


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
    found = load(tmp_path)(pixels, labels != 255)
    with torch.no_grad():
        scaled = torch.from_numpy((pixels - 130) / 30 * (labels != 255)[:, None])
        expected = torch.sigmoid(network.eval()(scaled))[:, 0].numpy()
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    truth, decided = labels[labels != 255], found[:, 0][labels != 255] >= 0.5
    iou = (truth & decided).sum() / np.maximum((truth | decided).sum(), 1)
    assert history.best.val_iou == pytest.approx(iou, abs=1e-6)


@pytest.mark.parametrize("size", [16, 33, 7, 1])
def test_windows_of_any_size(run: Path, size: int) -> None:
    pixels = images(2, size=(size, size))
    found = load(run, window_px=size)(pixels, all_valid(pixels))
    assert (found.shape, found.dtype) == ((2, 1, size, size), np.float32)
    expected = 1 / (1 + np.exp(-tile_logits(run, pixels, all_valid(pixels)).astype(np.float64)))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_equal_batches_give_equal_bits(run: Path) -> None:
    batch = images(3)
    first = load(run)(batch, all_valid(batch))
    assert np.array_equal(first, load(run)(batch, all_valid(batch)))
    # Also when the array lies otherwise in memory.
    assert np.array_equal(first, load(run)(np.asfortranarray(batch), all_valid(batch)))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_bits_do_not_depend_on_the_batch_size_on_a_cpu(run: Path, batch_size: int) -> None:
    batch = images(5)
    expected = load(run)(batch, all_valid(batch))
    model = load(run, batch_size=batch_size)
    parts = [batch[start : start + batch_size] for start in range(0, 5, batch_size)]
    assert np.array_equal(np.concatenate([model(part, all_valid(part)) for part in parts]), expected)


def test_invalid_pixels_do_not_affect_the_result(run: Path) -> None:
    predictor, batch = load(run), images(1)
    valid = np.ones((1, 16, 16), bool)
    valid[:, :5] = False
    wild, filled = batch.copy(), batch.copy()
    wild[:, :, :5] = np.nan
    filled[:, :, :5] = 130
    assert np.array_equal(predictor(wild, valid), predictor(batch, valid))
    assert np.array_equal(predictor(filled, all_valid(filled)), predictor(batch, valid))


def test_predicting_does_not_change_the_network(run: Path) -> None:
    predictor, batch, other = load(run), images(2), 1000 * images(4, seed=1)
    first = predictor(batch, all_valid(batch))
    predictor(other, all_valid(other))
    assert np.array_equal(predictor(batch, all_valid(batch)), first)


def test_several_outputs_use_softmax() -> None:
    card = replace(CARD, legend=Legend(("a", "b", "c", "d")))
    member = EnsembleMember(card.mean, card.std, 1.0, TorchRunner(TinyNetwork(outputs=4), torch.device("cpu")))
    found = EnsemblePredictor(card, [member], TileWorkers(2))(images(2), all_valid(images(2)))
    assert found.shape == (2, 4, 16, 16)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)


@given(st.integers(1, 5), st.sampled_from([1.0, 30.0, 1e4, 1e30]), st.booleans(), st.integers(0, 10**6))
def test_output_layers_are_torchs_for_logits_of_any_size(
    outputs: int, scale: float, overlapping: bool, seed: int
) -> None:
    logits = (np.random.default_rng(seed).standard_normal((2, outputs, 3, 3)) * scale).astype(np.float32)
    exact = torch.from_numpy(logits).double()
    expected = exact.sigmoid() if overlapping or outputs == 1 else exact.softmax(dim=1)
    found = output_layers(logits, overlapping)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_half_precision_is_measured_and_used_if_it_agrees(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch computes bfloat16 on a CPU, too."""
    pixels = images(2)
    exact = load(run)
    assert (exact.precision, exact.difference) == ("float32", 0)
    monkeypatch.setattr("geograft.inference.torch_networks.half_precision", lambda _device: torch.bfloat16)
    half = load(run, sample=(pixels, all_valid(pixels)))
    assert (half.precision, half.notes) == ("bfloat16", ())
    expected, found = exact(pixels, all_valid(pixels)), half(pixels, all_valid(pixels))
    assert found.dtype == np.float32
    assert 0 < half.difference <= HALF_TOLERANCE
    assert half.difference == pytest.approx(float(np.abs(found - expected).max()), abs=1e-6)


def test_half_precision_that_disagrees_is_not_used(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(SETTINGS, 3, 1)
    load_weights(run / WEIGHTS, network)
    with torch.no_grad():
        network.body.head.weight *= 1000
    CARD.write(tmp_path)
    save_weights(tmp_path / WEIGHTS, network)
    pixels = images(2)
    expected = load(tmp_path)(pixels, all_valid(pixels))
    monkeypatch.setattr("geograft.inference.torch_networks.half_precision", lambda _device: torch.bfloat16)
    model = load(tmp_path, sample=(pixels, all_valid(pixels)))
    assert (model.precision, model.difference) == ("float32", 0)
    (note,) = model.notes
    assert "bfloat16" in note and str(HALF_TOLERANCE) in note
    assert np.array_equal(model(pixels, all_valid(pixels)), expected)


def test_unusable_weights_are_rejected(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"card\.json"):
        load(tmp_path)
    CARD.write(tmp_path)
    with pytest.raises(InputError, match=WEIGHTS):
        load(tmp_path)
    content = (run / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=WEIGHTS):
        load(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(content)
    replace(CARD, band_names=("red",), mean=(1.0,), std=(1.0,)).write(tmp_path)
    with pytest.raises(InputError, match=WEIGHTS):
        load(tmp_path)


def test_unknown_devices_are_rejected(run: Path) -> None:
    with pytest.raises(SettingError, match="auto, cpu, cuda or mps"):
        load(run, device="gpu")
