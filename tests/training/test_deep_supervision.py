"""Training with the auxiliary outputs of the light network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from geograft.config import ModelConfig, TrainConfig
from geograft.networks.network import Network, build
from geograft.training.loop import fit
from tests.support.training import TinyNetwork, training_data

LIGHT = ModelConfig(encoder="test_efficientnet", weights="none")
CONFIG = TrainConfig(epochs=1, batch_size=4, workers=0, device="cpu", augment="none", ema=0)


def trained(folder: Path, config: TrainConfig) -> tuple[Network, Network]:
    """Return a light network before and after an epoch."""
    torch.manual_seed(0)
    network = build(LIGHT, 3, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit(network, training_data(), config, folder)
    first = build(LIGHT, 3, 1)
    first.load_state_dict(before)
    return first, network


def test_auxiliary_heads_are_trained_only_with_an_auxiliary_loss(tmp_path: Path) -> None:
    for folder, weight, moves in (("plain", 0.0, False), ("deep", 0.4, True)):
        (tmp_path / folder).mkdir()
        before, after = trained(tmp_path / folder, replace(CONFIG, auxiliary_weight=weight))
        names = [name for name in after.state_dict() if ".coarse." in name]
        assert len(names) >= 2
        moved = [not torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in names]
        assert moved == [moves] * len(names)


def test_a_network_without_auxiliary_outputs_ignores_the_auxiliary_weight(tmp_path: Path) -> None:
    weights = []
    for folder, weight in (("plain", 0.0), ("deep", 1.0)):
        (tmp_path / folder).mkdir()
        torch.manual_seed(0)
        network = TinyNetwork()
        fit(network, training_data(), replace(CONFIG, auxiliary_weight=weight), tmp_path / folder)
        weights.append(network.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_reported_training_loss_is_without_auxiliary_outputs(tmp_path: Path) -> None:
    """With a negligible learning rate both runs report the loss of the same network."""
    losses = []
    for folder, weight in (("plain", 0.0), ("deep", 1.0)):
        (tmp_path / folder).mkdir()
        torch.manual_seed(0)
        still = replace(CONFIG, decoder_lr=1e-12, encoder_lr=1e-12, weight_decay=0, auxiliary_weight=weight)
        history = fit(build(LIGHT, 3, 1), training_data(), still, tmp_path / folder)
        losses.append(history.epochs[0].train_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
