"""Training on fractional labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray

from geograft.config import TrainConfig
from geograft.training.loop import fit
from tests.support.training import Tile, TinyNetwork, training_data

CONFIG = TrainConfig(epochs=10, batch_size=4, decoder_lr=1e-2, encoder_lr=1e-2, workers=0, device="cpu")


def mixed_tile(rng: np.random.Generator, k: int) -> Tile:
    """Return a tile of mixed pixels, whose bands are the class fractions, with an unlabelled corner."""
    fractions = rng.dirichlet([2] * k, (4, 4)).transpose(2, 0, 1).repeat(4, 1).repeat(4, 2).astype(np.float32)
    image = np.stack([fractions[i % k] for i in range(3)]) * 60 + 100
    fractions[:, :3, :3] = np.nan
    return image.astype(np.float32), fractions[1:] if k == 2 else fractions


def probabilities(network: TinyNetwork, image: ndarray) -> ndarray:
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy((image[None] - 130) / 30))[0]
    return (logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=0)).numpy()


@pytest.mark.parametrize("k", [2, 3])
def test_a_network_learns_the_class_fractions(k: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, val = ([mixed_tile(rng, k) for _ in range(count)] for count in (18, 5))
    network = TinyNetwork(outputs=1 if k == 2 else k)
    history = fit(network, training_data(k, train=train, val=val), CONFIG, tmp_path)
    assert history.best.val_iou > 0.65
    errors = [np.abs(probabilities(network, image) - fractions)[:, 3:, 3:].mean() for image, fractions in val]
    assert np.mean(errors) < 0.1
    whole = [(image, np.where(np.isnan(fractions), fractions, fractions.round())) for image, fractions in train]
    rounded = TinyNetwork(outputs=1 if k == 2 else k)
    fit(rounded, training_data(k, train=whole, val=val), CONFIG, tmp_path / "rounded")
    rounded_errors = [np.abs(probabilities(rounded, image) - fractions)[:, 3:, 3:].mean() for image, fractions in val]
    assert np.mean(errors) < np.mean(rounded_errors)
