"""Runs that are read while they are trained: card and weights of one epoch, or an error that says why not."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch.optim import Adam

from geograft.card import CARD, WEIGHTS, check_weights, read_again, read_card
from geograft.config import ModelConfig
from geograft.errors import InputError, RunChangedError
from geograft.inference import predictor as predictors
from geograft.inference.predictor import EnsemblePredictor, typical_tile
from geograft.inference.torch_networks import read_network
from geograft.networks.network import build
from geograft.training.checkpoint import EpochTotals, RunFolder, TrainingProgress
from geograft.training.history import COLUMNS, Epoch, History
from tests.support.runs import make_run

ROW = Epoch(epoch=1, **dict.fromkeys(COLUMNS[1:], 0.5))


def train_to(folder: Path, epoch: int) -> None:
    """Write the first `epoch` epochs of a run, of which the even ones are no better than those before."""
    model = ModelConfig(architecture="unet")
    card = replace(read_card(make_run(folder.with_name("card"), tile_px=16)), model=model, finished=False)
    shutil.rmtree(folder.with_name("card"))
    losses = [1 / (number + number % 2) for number in range(1, epoch + 1)]
    rows = tuple(replace(ROW, epoch=number, val_loss=loss) for number, loss in enumerate(losses, start=1))
    torch.manual_seed(epoch)
    network = build(model, 3, 1)
    progress = TrainingProgress(EpochTotals(np.zeros((2, 2), np.int64)), epoch, history=History(rows))
    RunFolder(folder, card).write_epoch(network, {"o": Adam(network.parameters())}, progress, {})


def predict(run: Path) -> ndarray:
    model = EnsemblePredictor.load([run], backend="torch", device="cpu", window_px=16)
    return model(*typical_tile(model.card, 16))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    train_to(tmp_path / "run", 1)
    return tmp_path / "run"


def test_the_card_names_its_weights_also_after_an_epoch_that_is_not_the_best(run: Path) -> None:
    for epoch, best in ((2, 1), (3, 3), (4, 3)):
        train_to(run, epoch)
        card = read_card(run)
        assert card.epoch == best
        assert card.weights_digest == hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()


def test_a_run_trained_further_between_card_and_weights_is_read_again(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if training committed an epoch at the worst moment: the prediction is that of the new epoch alone."""
    train_to(run.with_name("later"), 3)
    expected = predict(run.with_name("later"))

    def trained_after_reading(runs: list[Path]) -> object:
        cards = read_cards(runs)
        train_to(run, 3)
        return cards

    read_cards: Callable[..., object] = predictors.read_cards
    monkeypatch.setattr(predictors, "read_cards", trained_after_reading)
    assert (predict(run) == expected).all()


def test_old_cards_are_refused_by_all_who_read_weights(run: Path) -> None:
    card = read_card(run)
    train_to(run, 3)
    with pytest.raises(RunChangedError, match="run was trained further"):
        read_network(run, card)
    with pytest.raises(RunChangedError, match="run was trained further"):
        EnsemblePredictor.load([run], cards=[card], backend="torch", device="cpu", window_px=16)
    with pytest.raises(RunChangedError):
        read_again(lambda: check_weights(run, card, read_card(run).weights_digest))


def test_weights_of_another_run_are_damage(run: Path) -> None:
    train_to(run.with_name("other"), 3)
    shutil.copy(run.with_name("other") / WEIGHTS, run)
    with pytest.raises(InputError, match=f"{WEIGHTS} does not belong to {CARD}") as caught:
        read_network(run, read_card(run))
    assert not isinstance(caught.value, RunChangedError)


def test_runs_of_earlier_versions_are_not_checked(run: Path) -> None:
    replace(read_card(run), weights_digest="").write(run)
    train_to(run.with_name("other"), 3)
    shutil.copy(run.with_name("other") / WEIGHTS, run)
    assert read_network(run, read_card(run))
