"""`geograft train --resume`: the run folder during training and after an error."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from geograft.card import CARD, WEIGHTS, read_card
from geograft.commands.train import PREVIOUS_CARD, _card, train
from geograft.config import Recipe
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, SettingError
from geograft.networks.network import build
from geograft.training.checkpoint import STATE
from geograft.training.history import History, read_history
from geograft.training.loader import Scaling
from geograft.training.loop import _Run

SMALL = Recipe().with_settings(
    model={"architecture": "transfer", "encoder": "mobilenetv3_small_050", "weights": "none"},
    train={"epochs": 1, "batch_size": 4, "schedule": "constant", "device": "cpu"},
)


@pytest.fixture
def run(tiles: Path, tmp_path: Path) -> Path:
    return train(tiles, tmp_path / "run", SMALL).run


def content(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"decoder_lr": 0.5}}, "decoder_lr was 0.002 and is 0.5"),
        ({"model": {"encoder": "resnet10t"}}, "encoder was 'mobilenetv3_small_050' and is 'resnet10t'"),
    ],
)
def test_a_refused_resume_changes_nothing(run: Path, tiles: Path, changes: dict[str, Any], message: str) -> None:
    before = content(run)
    with pytest.raises(SettingError, match=message):
        train(tiles, run, SMALL.with_settings(**changes), resume=True)
    assert content(run) == before
    train(tiles, run, SMALL, resume=True)


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt training after the second epoch."""
    end_epoch = _Run.end_epoch

    def ended(self: _Run, val: Any) -> None:
        end_epoch(self, val)
        if self.progress.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(_Run, "end_epoch", ended)
    yield
    monkeypatch.undo()


def test_a_run_with_more_epochs_has_no_card_until_it_is_finished(run: Path, tiles: Path, stopping: None) -> None:
    card = replace(read_card(run), threshold=0.31, temperature=1.7, calibrated="on something")
    card.write(run)
    longer = SMALL.with_settings(train={"epochs": 3})
    with pytest.raises(KeyboardInterrupt):
        train(tiles, run, longer, resume=True)
    with pytest.raises(InputError, match=CARD):
        read_card(run)
    assert read_card(run, PREVIOUS_CARD) == card


def test_a_calibration_is_kept_as_long_as_the_weights_are_the_same(run: Path, tiles: Path) -> None:
    card = replace(read_card(run), threshold=0.31, temperature=1.7, calibrated="on something")
    card.write(run)
    weights = (run / WEIGHTS).read_bytes()
    done = train(tiles, run, SMALL.with_settings(train={"epochs": 2}), resume=True)
    kept = (run / WEIGHTS).read_bytes() == weights
    assert (done.card.threshold == 0.31) == kept == (done.card.epoch == 1)
    assert not (run / PREVIOUS_CARD).exists()


def test_resuming_a_run_without_state_suggests_start(run: Path, tiles: Path) -> None:
    (run / STATE).unlink()
    before = content(run)
    with pytest.raises(InputError, match=r"without state\.ckpt.*--start"):
        train(tiles, run, SMALL, resume=True)
    assert content(run) == before


def test_an_undefined_score_is_left_out_of_the_card(run: Path, tiles: Path, tmp_path: Path) -> None:
    card, epoch = read_card(run), read_history(run).best
    nothing = History((replace(epoch, val_iou=float("nan"), val_f1=float("nan")),))
    network = build(card.model, 3, 1)
    made = _card("other", TileSet.open(tiles).meta, card.model, network, Scaling(card.mean, card.std), nothing)
    made.write(tmp_path)
    assert read_card(tmp_path).scores == {"loss": epoch.val_loss}
    assert "NaN" not in (tmp_path / CARD).read_text()
