"""`geograft train`: the files of a run, reproducibility, and resuming after a kill."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from geograft.card import CARD, STATE, WEIGHTS, read_card
from geograft.commands.train import check_networks, train
from geograft.config import Recipe, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.errors import InputError, OutputError, SettingError, WeightsError
from geograft.training.checkpoint import LAST
from geograft.training.history import read_history

SMALL = Recipe().with_settings(
    model={"architecture": "unet"}, train={"epochs": 3, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"}
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
    assert load_recipe(run / "recipe.toml") == SMALL
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
    matching = Recipe().with_settings(model={"encoder": "resnet10t", "weights": str(path)}).model
    check_networks(TileSet.open(tiles), [matching, SMALL.model, matching])
    with pytest.raises(WeightsError, match="mobilenetv3_small_050"):
        check_networks(TileSet.open(tiles), [matching, replace(matching, encoder="mobilenetv3_small_050")])
    with pytest.raises(WeightsError, match="mobilenetv3_small_050"):
        train(tiles, tmp_path / "run", Recipe(model=replace(matching, encoder="mobilenetv3_small_050")))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=CARD):
        check_networks(TileSet.open(tiles), [replace(matching, start=str(tmp_path))])
