"""`geograft train --resume`: the run folder during training and after an error."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from geograft.card import CARD, FEATURES_FILE, WEIGHTS, read_card, unfinished_notes
from geograft.commands.evaluate import evaluate
from geograft.commands.train import train
from geograft.config import Recipe
from geograft.errors import DivergedError, GeograftError, InputError, SettingError
from geograft.training.checkpoint import STATE, RunFolder
from geograft.training.history import History, read_history
from geograft.training.loop import _Run
from geograft.training.step import Step

pytestmark = pytest.mark.usefixtures("only_torch")

SMALL = Recipe().with_settings(
    model={"architecture": "transfer", "encoder": "mobilenetv3_small_050", "weights": "none"},
    train={"epochs": 1, "batch_size": 4, "schedule": "constant", "device": "cpu"},
)


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("trained") / "run", SMALL).run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a trained run, which a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


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


@contextmanager
def stop_after_epoch(number: int) -> Iterator[None]:
    """Interrupt training after an epoch."""
    end_epoch = _Run.end_epoch

    def ended(self: _Run, val: Any) -> None:
        end_epoch(self, val)
        if self.progress.epoch == number:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Run, "end_epoch", ended)
        yield


LONGER = SMALL.with_settings(train={"epochs": 3})


def test_a_run_with_more_epochs_is_unfinished_until_it_has_them(run: Path, tiles: Path) -> None:
    assert read_card(run).finished
    with stop_after_epoch(2):
        train(tiles, run, LONGER, resume=True)
    card = read_card(run)
    assert (card.finished, card.epochs) == (False, 2)
    assert card.epoch == read_history(run).best.epoch
    # The features belong to the best weights.
    assert (run / FEATURES_FILE).exists() == (card.epoch == 1)
    assert evaluate(run, "val").card == card
    assert "epoch" in unfinished_notes([card])[0]
    assert train(tiles, run, LONGER, resume=True).card.finished
    assert (run / FEATURES_FILE).exists()


@pytest.mark.parametrize(("schedule", "epochs"), [("constant", 2), ("cosine", 2), ("cosine", 1)])
def test_a_run_ends_at_its_best_epoch_with_as_many_epochs_as_it_has(
    tiles: Path, tmp_path: Path, schedule: str, epochs: int
) -> None:
    out, recipe = tmp_path / "run", LONGER.with_settings(train={"schedule": schedule})
    with stop_after_epoch(2):
        train(tiles, out, recipe, resume=True)
    before = content(out)
    done = train(tiles, out, recipe.with_settings(train={"epochs": epochs}), resume=True)
    assert len(done.history.epochs) == 2
    assert done.card.finished
    assert done.card.epoch == done.history.best.epoch
    changed = {name for name, data in content(out).items() if before.get(name) != data}
    assert changed <= {CARD, FEATURES_FILE}
    # It can still be continued to the epochs that it was started with.
    assert len(train(tiles, out, recipe, resume=True).history.epochs) == 3


def test_a_cosine_run_cannot_get_another_length_in_the_middle(tiles: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "run", LONGER.with_settings(train={"schedule": "cosine"})
    with stop_after_epoch(1):
        train(tiles, out, recipe)
    with pytest.raises(SettingError, match="epochs was 3 and is 2"):
        train(tiles, out, recipe.with_settings(train={"epochs": 2}), resume=True)


def test_a_training_that_fails_in_its_first_epoch_leaves_nothing(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Step, "evaluate", _fail)
    with pytest.raises(DivergedError):
        train(tiles, tmp_path / "run", SMALL.with_settings(train={"tensorboard": True}))
    assert not list(tmp_path.iterdir())


def _fail(*_: Any) -> None:
    raise DivergedError("failed")


def test_a_resume_with_a_damaged_state_changes_nothing(run: Path, tiles: Path) -> None:
    state = torch.load(run / STATE, weights_only=True)
    edits: list[tuple[str, str, Any]] = [
        ("progress", "epoch", -1),
        ("progress", "step", 1000),
        ("progress", "confusion", [[0] * 3] * 3),
        ("random", "cpu", torch.zeros(8, dtype=torch.uint8)),
        ("parts", "optimizer", {}),
        ("parts", "network", {}),
    ]
    for table, name, value in edits:
        torch.save({**state, table: {**state[table], name: value}}, run / STATE)
        before = content(run)
        with pytest.raises(GeograftError, match=STATE) as caught:
            train(tiles, run, LONGER, resume=True)
        assert "\n" not in str(caught.value)
        assert content(run) == before


def test_a_calibration_is_kept_as_long_as_the_weights_are_the_same(run: Path, tiles: Path) -> None:
    card = replace(read_card(run), threshold=0.31, temperature=1.7, calibrated="on something")
    card.write(run)
    weights = (run / WEIGHTS).read_bytes()
    done = train(tiles, run, SMALL.with_settings(train={"epochs": 2}), resume=True)
    kept = (run / WEIGHTS).read_bytes() == weights
    assert (done.card.threshold == 0.31) == kept == (done.card.epoch == 1)


def test_resuming_a_run_without_state_suggests_start(run: Path, tiles: Path) -> None:
    (run / STATE).unlink()
    before = content(run)
    with pytest.raises(InputError, match=r"without state\.ckpt.*--start"):
        train(tiles, run, SMALL, resume=True)
    assert content(run) == before


def test_an_undefined_score_is_left_out_of_the_card(run: Path, tmp_path: Path) -> None:
    epoch = read_history(run).best
    nothing = History((replace(epoch, val_iou=float("nan"), val_f1=float("nan")),))
    RunFolder(tmp_path).card_of(read_card(run), nothing).write(tmp_path)
    assert read_card(tmp_path).scores == {"loss": epoch.val_loss}
    assert "NaN" not in (tmp_path / CARD).read_text()
