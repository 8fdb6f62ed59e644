"""`geograft train`: the files of a run, reproducibility, and resuming after a kill."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from geograft.card import CARD, STATE, WEIGHTS, read_card
from geograft.commands.compare import compare
from geograft.commands.curve import curve
from geograft.commands.find import find
from geograft.commands.train import check_trainings, train
from geograft.config import Recipe, Variant, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.errors import GeograftError, InputError, OutputError, SettingError, WeightsError
from geograft.training.checkpoint import LAST
from geograft.training.history import read_history

# Without calibration: maps and scores at a threshold of 0.5, as in training.
SMALL = Recipe().with_settings(
    model={"architecture": "unet"},
    train={"epochs": 3, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu", "calibrate": False},
)


@pytest.fixture(scope="module")
def run(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "unet", SMALL).run


def test_a_run_learns_and_writes_its_files(run: Path) -> None:
    history, card = read_history(run), read_card(run)
    assert len(history.epochs) == 3
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert card.epoch == history.best.epoch
    assert card.legend.names == ("background", "fields")
    assert card.scores["iou"] == history.best.val_iou
    assert card.resolution_m == pytest.approx(0.1, rel=0.01)
    # Whether to compile was left open, and is recorded as decided.
    assert load_recipe(run / "recipe.toml") == SMALL.with_settings(model={"frozen_stages": 2}, train={"compile": False})
    assert {WEIGHTS, LAST, STATE, "history.csv", "card.json", "tiles.json"} <= {path.name for path in run.iterdir()}


def test_the_same_seed_gives_bit_identical_weights(run: Path, tiles: Path, tmp_path: Path) -> None:
    again = train(tiles, tmp_path / "again", SMALL).run
    assert (again / LAST).read_bytes() == (run / LAST).read_bytes()
    assert (again / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()
    other = train(tiles, tmp_path / "other", SMALL.with_settings(train={"seed": 1})).run
    assert (other / LAST).read_bytes() != (run / LAST).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_resumes_to_bit_identical_weights(run: Path, tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "geograft", "train", str(tiles), "--out", str(out), "--recipe", str(run / "recipe.toml"),
        "--save-minutes", "0.0001", "--resume",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not (out / STATE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert (out / STATE).exists()
    assert not (out / "card.json").exists() or not read_card(out).finished, "the run finished before it was killed"
    subprocess.run(command, check=True, capture_output=True)
    assert (out / LAST).read_bytes() == (run / LAST).read_bytes()
    assert (out / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


def test_a_run_is_never_overwritten(run: Path, tiles: Path, tmp_path: Path) -> None:
    before = (run / LAST).read_bytes()
    with pytest.raises(OutputError, match="--resume"):
        train(tiles, run, SMALL)
    assert (run / LAST).read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=tmp_path.name):
        train(tiles, tmp_path, SMALL)


def test_resuming_with_other_settings_is_refused(run: Path, tiles: Path) -> None:
    with pytest.raises(SettingError):
        train(tiles, run, SMALL.with_settings(train={"decoder_lr": 1e-3}), resume=True)
    with pytest.raises(SettingError):
        train(tiles, run, SMALL.with_settings(model={"architecture": "transfer", "weights": "none"}), resume=True)


def test_a_folder_that_is_not_a_tile_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="geograft prepare"):
        train(tmp_path, tmp_path / "run", SMALL)
    assert not list(tmp_path.iterdir())


def test_scaling_by_weights_needs_pretrained_weights(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="pretrained"):
        train(tiles, tmp_path / "run", SMALL.with_settings(train={"normalise": "weights"}))
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_match_are_said_before_the_first_of_several_trainings(tiles: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    matching = Recipe().with_settings(model={"encoder": "resnet10t", "weights": str(path)})
    other = matching.with_settings(model={"encoder": "mobilenetv3_small_050"})
    check_trainings(TileSet.open(tiles), [matching, SMALL, matching])
    with pytest.raises(WeightsError, match="mobilenetv3_small_050"):
        check_trainings(TileSet.open(tiles), [matching, other])
    with pytest.raises(WeightsError, match="mobilenetv3_small_050"):
        train(tiles, tmp_path / "run", other)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=CARD):
        check_trainings(TileSet.open(tiles), [matching.with_settings(model={"start": str(tmp_path)})])


WRONG: tuple[dict[str, dict[str, Any]], ...] = (
    {"model": {"architecture": "transfer", "encoder": "nonsense", "weights": "none"}},
    {"model": {"architecture": "transfer", "encoder": "resnet18", "weights": "missing.pth"}},
    {"model": {"start": "missing"}},
    {"train": {"normalise": "weights"}},
    {"train": {"class_weights": "1,2,3"}},
    {"train": {"device": "mps"}},
    {"train": {"batch_size": 10**9, "repeat": 10**6}},
    {"train": {"devices": 50, "batch_size": 2}},
)


@pytest.mark.skipif(sys.platform == "darwin", reason="mps is a device there")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_in_the_last_of_several_trainings_is_said_before_the_first(
    tiles: Path, tmp_path: Path, wrong: dict[str, dict[str, Any]]
) -> None:
    recipe = replace(SMALL, seeds=(0, 1), variants=(Variant("right"), Variant("wrong", **wrong)))
    for several in (
        lambda: compare(tiles, recipe, tmp_path / "out"),
        lambda: compare(tiles, recipe, tmp_path / "out", folds=2),
        lambda: curve(tiles, tmp_path / "out", recipe, (50.0, 100.0)),
        lambda: find(tiles, tmp_path / "out", SMALL.with_settings(**wrong)),
    ):
        with pytest.raises(GeograftError):
            several()
        assert not list(tmp_path.iterdir())
