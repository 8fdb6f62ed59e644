"""`geograft train --start`: training from the weights of an earlier run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from geograft.card import CARD, WEIGHTS, read_card
from geograft.cli import app
from geograft.commands.train import StartingRun, train
from geograft.config import ModelConfig, Recipe, load_recipe
from geograft.dataset.tileset import META, TileSet
from geograft.errors import InputError, SettingError
from geograft.files import file_digest, write_json
from geograft.training.checkpoint import LAST
from geograft.training.history import read_history
from geograft.training.loader import Scaling

SMALL = Recipe().with_settings(
    model={"architecture": "unet"}, train={"epochs": 1, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"}
)


@pytest.fixture(scope="module")
def first(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiles, tmp_path_factory.mktemp("runs") / "first", SMALL).run


CONSTANT = {
    "epochs": 1,
    "batch_size": 4,
    "decoder_lr": 1e-3,
    "encoder_lr": 1e-3,
    "schedule": "constant",  # a cosine schedule cannot be resumed with more epochs
    "device": "cpu",
}


def recipe_from(first: Path, **settings: object) -> Recipe:
    return Recipe().with_settings(
        model={"start": str(first), "frozen_stages": 1},
        train=CONSTANT | settings,
    )


def test_training_starts_from_the_weights_of_another_run(first: Path, tiles: Path, tmp_path: Path) -> None:
    training = train(tiles, tmp_path / "second", recipe_from(first))
    card = training.card
    digest = file_digest(first / WEIGHTS)[:12]
    assert card.model == replace(SMALL.model, start=str(first), frozen_stages=1)
    assert card.weights_from == f"run first, sha256 {digest} (nothing new), first random"
    assert training.notes[0] == f"starts from {first}, epoch 1: nothing new"
    assert (card.mean, card.std) == (read_card(first).mean, read_card(first).std)
    assert load_recipe(training.run / "recipe.toml").model == card.model
    # The frozen stage equals the first run's bit for bit, batch norm included; the others changed.
    old, new = load_file(first / WEIGHTS), load_file(training.run / WEIGHTS)
    kept = {name for name in old if (old[name] == new[name]).all()}
    assert kept == {name for name in old if name.startswith("body.stages.0.")}
    assert training.history.epochs[0].train_loss < read_history(first).epochs[0].train_loss


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_resuming_is_bit_identical_and_needs_the_same_start(
    fraction: float, first: Path, tiles: Path, tmp_path: Path
) -> None:
    one, two = (
        recipe_from(first, epochs=epochs).with_settings(model={"start_fraction": fraction}) for epochs in (1, 2)
    )
    whole = train(tiles, tmp_path / "whole", two).run
    train(tiles, tmp_path / "halves", one)
    halves = train(tiles, tmp_path / "halves", two, resume=True).run
    assert (halves / LAST).read_bytes() == (whole / LAST).read_bytes()
    with pytest.raises(SettingError, match="start was"):
        train(tiles, halves, recipe_from(whole, epochs=2), resume=True)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_saved_weights_are_averaged_with_those_of_the_start(
    ema: float, first: Path, tiles: Path, tmp_path: Path
) -> None:
    recipe = recipe_from(first, ema=ema)
    trained = train(tiles, tmp_path / "trained", recipe)
    averaged = train(tiles, tmp_path / "averaged", recipe.with_settings(model={"start_fraction": 0.25}))
    before, after, saved = (load_file(run / WEIGHTS) for run in (first, trained.run, averaged.run))
    for name, value in saved.items():
        expected = 0.25 * before[name] + 0.75 * after[name] if value.is_floating_point() else after[name]
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    # The training is the same, and the saved weights are those that are validated.
    rows = trained.history.epochs[0], averaged.history.epochs[0]
    assert rows[0].train_loss == rows[1].train_loss and rows[0].val_loss != rows[1].val_loss
    assert averaged.card.model.start_fraction == load_recipe(averaged.run / "recipe.toml").model.start_fraction == 0.25


def test_an_average_needs_a_start_with_the_same_layers(first: Path, tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="start"):
        train(tiles, tmp_path / "run", SMALL.with_settings(model={"start_fraction": 0.25}))
    named = Path(shutil.copytree(tiles, tmp_path / "named"))
    names = [*TileSet.open(tiles).meta.band_names[:2], "nir"]
    write_json(named / META, json.loads((tiles / META).read_text()) | {"band_names": names})
    with pytest.raises(SettingError, match="band nir new"):
        train(named, tmp_path / "run", recipe_from(first).with_settings(model={"start_fraction": 0.25}))
    assert not (tmp_path / "run").exists()


def test_the_start_flag(first: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    flags = ["--start", str(first), "--epochs", "1", "--device", "cpu"]
    app(["train", str(tiles), "--out", str(out), *flags], result_action="return_value")
    assert f"starts from {first}, epoch 1: nothing new" in capsys.readouterr().out
    assert read_card(out).model.start == str(first)


def test_a_start_that_is_not_a_finished_run_is_refused_before_writing(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        train(tiles, tmp_path / "run", recipe_from(tmp_path / "nowhere"))
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused_before_writing(first: Path, tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / CARD).write_bytes((first / CARD).read_bytes())
    tensors = load_file(first / WEIGHTS)
    tensors.pop("body.bottleneck.0.bias")
    save_file(tensors, tmp_path / "start" / WEIGHTS)
    with pytest.raises(InputError, match=r"body\.bottleneck\.0\.bias \(80,\)"):
        train(tiles, tmp_path / "run", recipe_from(tmp_path / "start"))
    assert not (tmp_path / "run").exists()


def test_a_new_band_unfreezes_the_stages(first: Path, tiles: Path, tmp_path: Path) -> None:
    whole = TileSet.open(tiles)
    named = tmp_path / "named"
    shutil.copytree(tiles, named)
    one, two, three = whole.meta.band_names
    write_json(named / META, json.loads((tiles / META).read_text()) | {"band_names": [one, two, "nir"]})
    training = train(named, tmp_path / "run", recipe_from(first))
    assert training.notes[0].endswith(f"band nir new (zero weights); band {three} dropped; no stage frozen")
    assert training.card.model.frozen_stages == load_recipe(training.run / "recipe.toml").model.frozen_stages == 0
    stem = load_file(training.run / WEIGHTS)["body.stages.0.0.weight"]
    assert stem[:, 2].any()


def test_known_bands_keep_their_scaling(first: Path, tiles: Path) -> None:
    start = StartingRun.from_config(ModelConfig(start=str(first)))
    assert start
    card = start.card
    names = (card.band_names[2], "nir", card.band_names[0])
    meta = replace(TileSet.open(tiles).meta, band_names=names)
    own = Scaling((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert start.scaling(meta, own) == Scaling((card.mean[2], 2.0, card.mean[0]), (card.std[2], 5.0, card.std[0]))
    assert start.scaling(replace(meta, dtype="uint16"), own) == own
