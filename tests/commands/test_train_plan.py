"""The plan of a training: settings from the tile set alone, and epochs that fit into a time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import geograft.commands.training_plan as training
from geograft.card import WEIGHTS, read_card
from geograft.cli import app
from geograft.commands.train import read_recipe, train
from geograft.commands.training_plan import (
    MAX_PASSES,
    MIN_STEPS,
    PLANNED_STEPS,
    fit_minutes,
    mean_overlap,
    plan_freezing,
    plan_training,
    should_compile,
)
from geograft.config import ModelConfig, Recipe, TrainConfig, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.errors import SettingError
from geograft.networks.network import build
from geograft.networks.pyramid import build_pyramid
from geograft.training.checkpoint import LAST
from geograft.training.loop import expected_epoch_seconds, fit
from geograft.training.sampling import make_batches
from tests.support.training import TinyNetwork, training_data

UNET = ("--architecture", "unet", "--batch-size", "4", "--decoder-lr", "3e-3", "--device", "cpu")
SMALL = Recipe().with_settings(
    model={"architecture": "unet"}, train={"epochs": 2, "batch_size": 4, "decoder_lr": 3e-3, "device": "cpu"}
)


@pytest.fixture(scope="module")
def tile_set(tiles: Path) -> TileSet:
    return TileSet.open(tiles)


def run(*arguments: str) -> None:
    app(arguments, result_action="return_value")


def with_training_tiles(tile_set: TileSet, count: int, **changes: Any) -> TileSet:
    """Return the tile set with `count` training tiles side by side, of which each is the first one with `changes`."""
    first = replace(tile_set.split("train")[0], **changes)
    windows = (replace(first.window, col=number * first.window.width) for number in range(count))
    return replace(tile_set, tiles=tuple(replace(first, window=window) for window in windows))


def steps(tiles: int, config: TrainConfig) -> int:
    return config.epochs * len(make_batches(range(tiles * config.repeat), config.batch_size))


@pytest.mark.parametrize("count", [1, 2, 5, 20, 64, 92, 192, 200, 1000])
def test_few_tiles_are_repeated_for_about_a_number_of_steps(tile_set: TileSet, count: int) -> None:
    plan, default = plan_training(with_training_tiles(tile_set, count), Recipe()), TrainConfig()
    planned = plan.recipe.train
    assert replace(planned, repeat=1) == default
    assert (planned.repeat > 1) == (count <= 192) == (steps(count, default) <= PLANNED_STEPS / 1.5)
    passes = planned.epochs * planned.repeat
    # To half a repetition, and a step per epoch for the remainder.
    tolerance = steps(count, default) / 2 + passes
    assert count > 192 or steps(count, planned) <= PLANNED_STEPS + tolerance
    assert passes <= MAX_PASSES or abs(steps(count, planned) - MIN_STEPS) <= tolerance
    assert count > 192 or passes >= MAX_PASSES or abs(steps(count, planned) - PLANNED_STEPS) <= tolerance
    few = [line for line in plan.lines if "few" in line]
    assert [f"comes {planned.repeat} times" in line for line in few] == [True] * (count <= 192)


@pytest.mark.parametrize(("step", "passes"), [(1.0, 80), (0.5, 40), (0.25, 40)])
def test_passes_over_overlapping_tiles_count_by_pixel(tile_set: TileSet, step: float, passes: int) -> None:
    """Or there are as many as give 120 steps."""
    apart = with_training_tiles(tile_set, 24)
    windows = (replace(tile.window, col=int(step * tile.window.col)) for tile in apart.tiles)
    tiles = tuple(replace(tile, window=window) for tile, window in zip(apart.tiles, windows, strict=True))
    near = replace(apart, tiles=tiles)
    assert mean_overlap(near.tiles) == pytest.approx(1 / step, rel=0.15)
    planned = plan_training(near, Recipe()).recipe.train
    assert planned.epochs * planned.repeat == passes


@pytest.mark.parametrize("name", ["epochs", "repeat", "batch_size", "accumulate"])
def test_a_chosen_length_is_kept(tile_set: TileSet, name: str) -> None:
    plan = plan_training(with_training_tiles(tile_set, 5), Recipe(), {name})
    assert plan.recipe == Recipe()


def test_tiles_of_rare_classes_are_drawn_more_often(tile_set: TileSet) -> None:
    empty, rare = ({"class_fractions": (1 - fraction, fraction), "valid": 1.0} for fraction in (0.0, 0.05))
    tiles = with_training_tiles(tile_set, 190, **empty).tiles + with_training_tiles(tile_set, 10, **rare).tiles
    with_rare_class = replace(tile_set, tiles=tiles)
    plan = plan_training(with_rare_class, Recipe())
    assert plan.recipe == Recipe().with_settings(train={"sampling": "classes"})
    assert any("fields covers 0.25 % of the labelled pixels, in 10 of 200 tiles" in line for line in plan.lines)
    for chosen in ("sampling", "class_weights", "copy_paste"):
        assert plan_training(with_rare_class, Recipe(), {chosen}).recipe == Recipe()
    # In every tile, sampling by class could not draw other tiles; and absent is not rare.
    everywhere = {"class_fractions": (0.995, 0.005), "valid": 1.0}
    for fractions in (everywhere, empty):
        assert plan_training(with_training_tiles(tile_set, 200, **fractions), Recipe()).recipe == Recipe()


@pytest.mark.parametrize(("tile_px", "advised"), [(32, True), (224, False), (2048, True)])
def test_another_tile_size_is_advised(tile_set: TileSet, tile_px: int, advised: bool) -> None:
    meta = replace(tile_set.meta, settings=replace(tile_set.meta.settings, tile_px=tile_px))
    plan = plan_training(replace(with_training_tiles(tile_set, 200), meta=meta), Recipe())
    assert plan.recipe == Recipe()
    assert any("--tile-px" in line for line in plan.lines) == advised


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_no_stage_is_frozen_under_weights_for_other_bands(tmp_path: Path, bands: int) -> None:
    own = tmp_path / "own.safetensors"
    # The names sort before that of the first convolution, whose inputs count.
    save_file({"blocks.0.conv_dw.weight": torch.ones(8, 1, 3, 3), "conv_stem.weight": torch.ones(8, bands, 3, 3)}, own)
    for weights in ("hub", "package", "none", str(own)):
        recipe = Recipe().with_settings(model={"weights": weights})
        plan = plan_freezing(recipe, bands, 5)
        released = weights in ("hub", "package") and bands != 3
        assert plan.recipe == recipe.with_settings(model={"frozen_stages": 0 if released else 2})
        assert len(plan.lines) == released
    one = recipe.with_settings(model={"frozen_stages": 1, "weights": "package"})
    assert plan_freezing(one, bands, 5).recipe == one


@pytest.mark.parametrize(("bands", "frozen"), [(3, 1), (4, 0)])
def test_a_built_network_has_the_frozen_stages_of_the_plan(tmp_path: Path, bands: int, frozen: int) -> None:
    """Plain vision transformers have one stage, so that is what can be frozen."""
    source, path = build(ModelConfig(encoder="test_vit", weights="none"), 3, 1), tmp_path / "vit.safetensors"
    pyramid = build_pyramid("test_vit", 3, "none")[0]
    assert source.frozen == 0
    save_file({key: tensor.contiguous() for key, tensor in pyramid.state_dict().items()}, path)
    recipe = Recipe().with_settings(model={"encoder": "test_vit", "weights": str(path)})
    network = build(recipe.model, bands, 1, pretrained=False)
    assert network.frozen == frozen == plan_freezing(recipe, bands, 1).recipe.model.frozen_stages


class StopError(Exception):
    """Ends a training before its first step."""


@contextmanager
def caught_recipe() -> Iterator[list[TrainConfig]]:
    """Collect the configuration that `fit` gets, and train nothing."""
    seen: list[TrainConfig] = []

    def stop(_network: Any, _data: Any, config: TrainConfig, *_: Any, **_options: Any) -> None:
        seen.append(config)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geograft.commands.train.fit", stop)
        yield seen


def test_the_command_plans_without_a_recipe_and_says_so_first(
    tiles: Path, tile_set: TileSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(tiles), "--out", str(tmp_path / "run"), "--architecture", "unet", "--device", "cpu"]
    given = SMALL.with_settings(train={"batch_size": 8})
    with caught_recipe() as seen:
        for more in ([], ["--epochs", "10"], ["--recipe", "default", "--weights", "none"]):
            with pytest.raises(StopError):
                run(*command, *more)
            assert ("few" in capfd.readouterr().err) == (not more)
    planned = plan_training(tile_set, Recipe()).recipe.train.repeat
    assert planned > 1
    assert [config.repeat for config in seen] == [planned, 1, 1]
    assert given.train.repeat == 1
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_recipe(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", str(tiles), "--out", str(out), *UNET, "--epochs", "1", "--schedule", "constant"]
    run(*command, "--seed", "7")
    assert read_recipe(out) == load_recipe(out / "recipe.toml")
    run("train", str(tiles), "--out", str(out), "--epochs", "2", "--resume")
    recipe = load_recipe(out / "recipe.toml")
    assert (recipe.train.seed, recipe.train.epochs, recipe.model.architecture) == (7, 2, "unet")
    assert read_card(out).epochs == 2
    whole = ["train", str(tiles), "--out", str(tmp_path / "whole"), *UNET, "--epochs", "2", "--schedule", "constant"]
    run(*whole, "--seed", "7")
    assert (out / LAST).read_bytes() == (tmp_path / "whole" / LAST).read_bytes()


def test_minutes_lower_the_epochs(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [30.0]
    monkeypatch.setattr(training, "expected_epoch_seconds", lambda *_: seconds[0])
    out, recipe = tmp_path / "run", SMALL.with_settings(train={"epochs": 5})
    done = train(tiles, out, recipe, minutes=1.1)
    assert len(done.history.epochs) == 2
    assert load_recipe(out / "recipe.toml").train.epochs == 2
    whole = train(tiles, tmp_path / "whole", SMALL)
    assert (out / WEIGHTS).read_bytes() == (whole.run / WEIGHTS).read_bytes()
    # A resumed run keeps the number, whatever the machine does now.
    seconds[0] = 1.0
    assert len(train(tiles, out, recipe, resume=True, minutes=1.1).history.epochs) == 2


@pytest.mark.parametrize(
    ("minutes", "seconds", "epochs"), [(10, 60.0, 9), (10, 57.0, 10), (10, 1.0, 10), (10, 1e6, 1), (1e-9, 1.0, 1)]
)
def test_epochs_within_a_time(monkeypatch: pytest.MonkeyPatch, minutes: float, seconds: float, epochs: int) -> None:
    monkeypatch.setattr(training, "expected_epoch_seconds", lambda *_: seconds)
    config, line = fit_minutes(TinyNetwork(), training_data(), TrainConfig(), minutes)
    assert config == TrainConfig(epochs=epochs)
    assert f"{epochs} epoch" in line


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf])
def test_impossible_minutes_are_refused(minutes: float) -> None:
    with pytest.raises(SettingError, match="--minutes"):
        fit_minutes(TinyNetwork(), training_data(), TrainConfig(), minutes)
    with pytest.raises(SettingError, match="one device"):
        fit_minutes(TinyNetwork(), training_data(), TrainConfig(devices=2), 3)


def test_timing_changes_no_weight_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(epochs=1, batch_size=4, device="cpu", workers=0, tensorboard=True, mlflow=str(tmp_path / "m"))
    monkeypatch.chdir(tmp_path)
    network = TinyNetwork()
    assert 0 < expected_epoch_seconds(network, training_data(), config) < 60
    assert not list(tmp_path.iterdir())
    plain = replace(config, tensorboard=False, mlflow="")
    fit(network, training_data(), plain, tmp_path / "timed")
    fit(TinyNetwork(), training_data(), plain, tmp_path / "plain")
    assert (tmp_path / "timed" / LAST).read_bytes() == (tmp_path / "plain" / LAST).read_bytes()


def test_a_long_training_says_its_expected_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(epochs=3, batch_size=4, device="cpu", workers=0)
    monkeypatch.setattr("geograft.training.loop.ANNOUNCED_S", 0)
    fit(TinyNetwork(), training_data(), config, tmp_path / "run")
    first, second, *_ = capfd.readouterr().err.splitlines()
    assert first.startswith("training on 18 tiles")
    assert first.endswith("3 epochs of 5 steps")
    assert second.startswith("expected time: about 0:00:")


@pytest.mark.parametrize(
    ("settings", "device", "tiles", "compiled"),
    [
        ({}, "cuda", 100, False),
        ({"epochs": 100}, "cuda", 10_000, True),
        ({"epochs": 100, "repeat": 10}, "cuda", 1000, True),
        ({"epochs": 100}, "cpu", 10_000, False),
        ({"epochs": 100, "devices": 2}, "cuda", 10_000, False),
        ({"compile": True}, "cuda", 1, True),
        ({"compile": True}, "cpu", 1, True),
        ({"epochs": 100, "compile": False}, "cuda", 10_000, False),
    ],
)
def test_a_long_training_on_a_gpu_is_compiled(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], device: str, tiles: int, *, compiled: bool
) -> None:
    monkeypatch.setattr(training, "find_device", lambda _: device)
    assert should_compile(TrainConfig(**settings), tiles, 224) == compiled


class Compiled(torch.nn.Module):
    """Holds a network as torch.compile does, under the same name."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self._orig_mod = network

    def forward(self, images: torch.Tensor) -> Any:
        return self._orig_mod(images)


def test_a_run_records_that_it_was_compiled_and_keeps_to_it(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, short = tmp_path / "run", SMALL.with_settings(train={"epochs": 1, "schedule": "constant"})
    monkeypatch.setattr(torch, "compile", Compiled)
    train(tiles, out, short.with_settings(train={"compile": True}))
    assert read_recipe(out).train.compile  # type: ignore[union-attr]
    assert read_card(out).versions["torch.compile"] == version("torch")
    assert not [name for name in load_file(out / LAST) if "_orig_mod" in name]
    longer = short.with_settings(train={"epochs": 2})
    with pytest.raises(SettingError, match="compile was True and is False"):
        train(tiles, out, longer.with_settings(train={"compile": False}), resume=True)
    # Left open, it stays as it was.
    train(tiles, out, longer, resume=True)
    assert read_card(out).epochs == 2
    assert load_recipe(out / "recipe.toml").train.compile
