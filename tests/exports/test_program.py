"""The model from raw pixels to probabilities: equal to the predictor's, at any size, with indices inside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geograft.card import ModelCard, read_card
from geograft.config import ModelConfig
from geograft.exports.program import any_size_model, nan_where_invalid, one_size_model
from geograft.indices import Index, append_indices
from geograft.inference.predictor import EnsemblePredictor, typical_tile
from tests.support.exports import BINARY, KINDS, TF_MODEL, make_run, tiny

# TensorFlow-like padding in the encoder; the article's network; its U-Net.
NETWORKS = {
    "tf": replace(BINARY, model=TF_MODEL),
    "tf transfer": replace(BINARY, model=replace(TF_MODEL, architecture="transfer")),
    "resnet": replace(BINARY, model=ModelConfig(weights="none", encoder="resnet18")),
    "unet": BINARY,
}


def reference(run: Path, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the probabilities of a map's predictor."""
    card = read_card(run)
    every = [append_indices(image, mask, card.indices) for image, mask in zip(pixels, valid, strict=True)]
    return EnsemblePredictor.load([run], device="cpu", backend="torch")(np.stack(every), valid)


def images(card: ModelCard, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise with an invalid corner: whole numbers, or floats with a NaN elsewhere."""
    pixels = typical_tile(card, side)[0][:, : card.bands]
    pixels = pixels if card.dtype == "float32" else np.rint(pixels).clip(1, np.iinfo(card.dtype).max)
    pixels = np.concatenate([np.roll(pixels, number, axis=3) for number in range(count)]).astype(np.float32)
    valid = np.ones((count, side, side), bool)
    valid[:, :7, :5] = False
    if card.dtype == "float32":
        pixels[0, 0, 9, 9] = np.nan
    return pixels, valid


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_predictor(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geograft.inference.torch_networks.build", tiny)
    run = make_run(tmp_path / "run", KINDS[kind], tiny)
    card = read_card(run)
    pixels, valid = images(card, 2, 32)
    expected = reference(run, pixels, valid)
    assert expected.std() > 0.01
    model, stride = any_size_model(run, card)
    assert stride == 2
    with torch.no_grad():
        masked = model(torch.from_numpy(pixels), torch.from_numpy(valid)).numpy()
        marked = model(torch.from_numpy(nan_where_invalid(pixels, valid))).numpy()
    np.testing.assert_allclose(masked, expected, atol=2e-6)
    np.testing.assert_array_equal(marked, masked)


@pytest.mark.parametrize("network", NETWORKS)
def test_padding_by_a_constant_is_the_networks_own_at_every_size(network: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", NETWORKS[network])
    card = read_card(run)
    (model, stride), whole = any_size_model(run, card), one_size_model(run, card)
    for height, width in ((2, 2), (3, 4), (5, 2)):
        image = torch.randn(1, 3, height * stride, width * stride) * 30 + 100
        with torch.no_grad():
            torch.testing.assert_close(model(image), whole(image), atol=1e-6, rtol=0)


@given(st.sampled_from(["b1 / b2", "(b1 - b2) / (b1 + b2 + 0.5)", "-b1 * 2", "1 / 0 * b1 + b2"]), st.integers(0, 99))
def test_an_index_in_torch_is_that_of_the_reader(formula: str, seed: int) -> None:
    index = Index("x", formula)
    bands = np.random.default_rng(seed).integers(0, 4, (2, 3, 3)).astype(np.uint16)
    with np.errstate(all="ignore"):
        found = index.evaluate(
            lambda band: torch.from_numpy(bands[band - 1].astype(np.float64)),
            lambda number: torch.tensor(number, dtype=torch.float64),
        ).float()
    found = torch.where(found.isfinite(), found, torch.nan)
    np.testing.assert_array_equal(found.numpy(), index.compute(bands))
