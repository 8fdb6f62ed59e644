"""`geograft find`: trials that are cut short where they are poor, the same after a kill, and a recipe that trains."""

import csv
import math
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.cli.learning import find as command
from geograft.commands import find as module
from geograft.commands.find import BEST, TABLE, TRIALS, SearchResult, find, run_of
from geograft.commands.search import JOURNAL, LEARNING_RATE_SPAN, SearchSpace, should_promote
from geograft.commands.train import train
from geograft.config import Recipe, load_recipe
from geograft.errors import DivergedError, InputError, OutputError, SettingError
from geograft.training.checkpoint import STATE

RECIPE = Recipe().with_settings(
    model={"weights": "none", "encoder": "test_efficientnet"},
    train={"epochs": 4, "batch_size": 8, "decoder_lr": 1e-3, "device": "cpu"},
)
Planted = Callable[[Recipe], float]


def peak(recipe: Recipe) -> float:
    """A landscape with its top at decoder_lr 0.004, lovasz and focal, seen the better the more epochs."""
    away = abs(math.log(recipe.train.decoder_lr / 4e-3)) + abs(recipe.train.region_loss_weight - 0.6)
    other = (recipe.train.region_loss != "lovasz") + (recipe.train.pixel_loss != "focal")
    return (1 - 0.1 * away - 0.1 * other) * (1 - 1 / (5 + recipe.train.epochs))


class Ground:
    """Stands for `train`: writes a state, counts, and gives what is planted; it can be killed in a training."""

    def __init__(self, planted: Planted, killed_in: int = 0) -> None:
        self.planted, self.killed_in = planted, killed_in
        self.trained: list[Recipe] = []

    def __call__(self, _tiles: Path, run: Path, recipe: Recipe, resume: bool) -> Any:
        assert resume
        self.trained.append(recipe)
        if len(self.trained) == self.killed_in:
            raise KeyboardInterrupt
        iou = self.planted(recipe)
        run.mkdir(parents=True, exist_ok=True)
        (run / STATE).write_text("")
        best = SimpleNamespace(val_iou=iou)
        return SimpleNamespace(history=SimpleNamespace(best=best, seconds=2.0 * recipe.train.epochs))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ground]:
    def planting(planted: Planted = peak, killed_in: int = 0) -> Ground:
        ground = Ground(planted, killed_in)
        monkeypatch.setattr(module, "train", ground)
        return ground

    return planting


def told(found: SearchResult) -> list[tuple[Mapping[str, Any], Mapping[int, float]]]:
    return [(dict(trial.values), dict(trial.scores)) for trial in found.trials]


@pytest.fixture(scope="module")
def found(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search with true trainings."""
    return find(tiles, tmp_path_factory.mktemp("find") / "found", RECIPE, trials=4)


def test_the_recipe_that_is_found_trains_to_the_score_that_it_was_found_by(
    found: SearchResult, tiles: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(found.folder / BEST)
    assert recipe == found.recipe
    assert recipe.train.epochs == RECIPE.train.epochs
    again = train(tiles, tmp_path / "again", recipe)
    assert again.history.best.val_iou == found.best.iou
    assert load_recipe(found.run / "recipe.toml") == recipe
    assert not list(found.folder.rglob(STATE))


def test_the_first_trial_is_the_recipe_itself_and_trains_with_all_epochs(found: SearchResult) -> None:
    first = found.trials[0]
    assert list(first.scores) == [1, 2, 4]
    assert found.space.recipe_of(first.values, 4) == RECIPE
    assert found.best.iou >= first.iou


def test_the_table_and_the_csv_hold_every_trial(found: SearchResult) -> None:
    with (found.folder / TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["trial"]) for row in rows] == [1, 2, 3, 4]
    for row, trial in zip(rows, found.trials, strict=True):
        assert int(row["epochs"]) == sum(trial.scores)
        assert float(row["decoder_lr"]) == trial.values["decoder_lr"]
        assert [row[f"val_iou_{epochs}"] for epochs in (1, 2, 4)] == [f"{trial.scores.get(e, '')}" for e in (1, 2, 4)]
        assert [run_of(found.folder, trial.number, epochs).is_dir() for epochs in (1, 2, 4)] == [
            epochs in trial.scores for epochs in (1, 2, 4)
        ]
    lines = found.lines()
    assert lines[0].split()[0] == "trial"
    assert [line.split()[0] for line in lines[1:5]] == [str(trial.number) for trial in found.ranked]
    assert f"4 trials, {found.epochs} epochs" in lines[5]
    assert "each trial in full would be 16" in lines[5]
    assert f"the recipe's own settings: {found.trials[0].iou:.3f}" in lines[6]


def test_a_finished_search_trains_nothing_and_says_the_same(
    found: SearchResult, tiles: Path, plant: Callable[..., Ground]
) -> None:
    ground = plant()
    again = find(tiles, found.folder, RECIPE.with_settings(train={"workers": 0}), trials=4)
    assert again.lines() == found.lines()
    assert not ground.trained


def test_the_search_beats_the_recipe_on_a_planted_landscape_and_poor_trials_stop_early(
    tiles: Path, tmp_path: Path, plant: Callable[..., Ground]
) -> None:
    ground = plant()
    found = find(tiles, tmp_path / "out", RECIPE, trials=30)
    assert found.best.iou > found.trials[0].iou + 0.1
    assert found.best.iou == max(trial.iou for trial in found.trials if trial.epochs == 4)
    lengths = [trial.epochs for trial in found.trials]
    assert lengths.count(1) > len(lengths) / 3
    assert lengths.count(4) < len(lengths) / 2
    # What stopped was not among the best third of those before it; what went on was.
    for trial in found.trials:
        for epochs in set(trial.scores) - {4}:
            before = [t.scores[epochs] for t in found.trials[: trial.number - 1] if epochs in t.scores]
            assert should_promote(trial.scores[epochs], before) == (epochs < trial.epochs)
    assert found.epochs == sum(recipe.train.epochs for recipe in ground.trained)
    # Rates lie around the recipe's, and are short.
    rates = [trial.values["decoder_lr"] for trial in found.trials]
    assert all(
        1e-3 / LEARNING_RATE_SPAN <= float(rate) <= 1e-3 * LEARNING_RATE_SPAN and len(f"{rate:.3g}") < 9
        for rate in rates
    )
    # Three digits near the best meet now and then; that is no reason not to draw another encoder rate with it.
    assert len(set(rates)) > 20


@pytest.mark.parametrize("killed_in", [1, 2, 5, 8])
def test_a_killed_search_goes_on_to_the_same_trials(
    tiles: Path, tmp_path: Path, plant: Callable[..., Ground], killed_in: int
) -> None:
    whole = plant()
    straight = find(tiles, tmp_path / "straight", RECIPE, trials=10)
    killed = plant(killed_in=killed_in)
    with pytest.raises(KeyboardInterrupt):
        find(tiles, tmp_path / "killed", RECIPE, trials=10)
    resumed = plant()
    again = find(tiles, tmp_path / "killed", RECIPE, trials=10)
    assert told(again) == told(straight)
    assert (tmp_path / "killed" / BEST).read_bytes() == (tmp_path / "straight" / BEST).read_bytes()
    # Only the trial that was killed is asked for again, in its own folders, where `train` goes on.
    assert killed.trained[:killed_in] == whole.trained[:killed_in]
    assert resumed.trained == whole.trained[-len(resumed.trained) :]
    assert len(resumed.trained) <= len(whole.trained) - killed_in + 3


def test_more_trials_later_are_those_that_would_have_come_at_once(
    tiles: Path, tmp_path: Path, plant: Callable[..., Ground]
) -> None:
    plant()
    once = find(tiles, tmp_path / "once", RECIPE, trials=9)
    find(tiles, tmp_path / "twice", RECIPE, trials=4)
    assert told(find(tiles, tmp_path / "twice", RECIPE, trials=9)) == told(once)
    other = find(tiles, tmp_path / "other", RECIPE.with_settings(train={"seed": 1}), trials=4)
    assert told(other)[1:] != told(once)[1:4]


def test_no_trial_begins_after_the_minutes_are_spent(tiles: Path, tmp_path: Path, plant: Callable[..., Ground]) -> None:
    ground = plant()
    found = find(tiles, tmp_path / "out", RECIPE, trials=50, minutes=0.5)
    spent = [sum(trial.seconds for trial in found.trials[:n]) for n in range(len(found.trials) + 1)]
    assert spent[-1] >= 30 > spent[-2]
    count = len(ground.trained)
    assert len(find(tiles, tmp_path / "out", RECIPE, trials=50, minutes=0.5).trials) == len(found.trials)
    assert len(ground.trained) == count


def test_a_trial_that_diverges_is_counted_as_nothing_and_the_search_goes_on(
    tiles: Path, tmp_path: Path, plant: Callable[..., Ground]
) -> None:
    def diverging(recipe: Recipe) -> float:
        if recipe.train.decoder_lr >= 1e-3:
            raise DivergedError("The loss became nan")
        return peak(recipe)

    plant(diverging)
    found = find(tiles, tmp_path / "out", RECIPE, trials=8)
    assert found.trials[0].diverged
    assert not found.best.diverged
    assert found.best.epochs == 4
    assert f"{sum(t.diverged for t in found.trials)} of the trials, counted as IoU 0" in "\n".join(found.lines())
    assert "the recipe's own settings diverged" in "\n".join(found.lines())
    plant(lambda recipe: diverging(recipe.with_settings(train={"decoder_lr": 1.0})))
    with pytest.raises(InputError, match="smaller learning rates"):
        find(tiles, tmp_path / "all", RECIPE, trials=2)
    assert not (tmp_path / "all" / BEST).exists()


def test_encoders_are_tried_and_the_best_is_in_the_recipe(
    tiles: Path, tmp_path: Path, plant: Callable[..., Ground]
) -> None:
    plant(lambda recipe: 0.9 if recipe.model.encoder == "test_resnet" else 0.5)
    found = find(tiles, tmp_path / "out", RECIPE, trials=8, encoders=("test_efficientnet", "test_resnet"))
    assert found.trials[0].values["encoder"] == "test_efficientnet"
    assert load_recipe(tmp_path / "out" / BEST).model.encoder == "test_resnet"
    with pytest.raises(SettingError, match=r"is another search: encoders\.0 was test_efficientnet"):
        find(tiles, tmp_path / "out", RECIPE, trials=8, encoders=("test_resnet",))


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0, 1))
def test_the_best_third_goes_on(others: list[float], iou: float) -> None:
    place = sorted([*others, iou], reverse=True).index(iou)
    assert should_promote(iou, others) == (place < max(1, (len(others) + 1) // 3))


@given(st.integers(1, 200), st.floats(0, 9), st.integers(0, 9))
def test_every_rung_has_the_whole_schedule_in_its_epochs(epochs: int, warmup: float, freeze: int) -> None:
    recipe = Recipe().with_settings(train={"epochs": epochs, "warmup_epochs": warmup, "freeze_epochs": freeze})
    space = SearchSpace.around(recipe, ())
    rungs = space.rungs()
    assert rungs[-1] == epochs
    assert rungs == tuple(sorted(set(rungs)))
    assert space.recipe_of(space.default_values(), epochs) == recipe
    for rung in rungs:
        shorter = space.recipe_of(space.default_values(), rung).train
        assert shorter.epochs == rung
        assert shorter.warmup_epochs / rung == pytest.approx(warmup / epochs)
        assert shorter.freeze_epochs <= freeze


def test_what_has_no_pretrained_encoder_has_no_rate_of_it_to_search() -> None:
    assert "encoder_lr" in SearchSpace.around(Recipe(), ()).parameter_names()
    assert "encoder" not in SearchSpace.around(Recipe(), (Recipe().model.encoder,)).parameter_names()
    assert "encoder_lr" not in SearchSpace.around(RECIPE, ()).parameter_names()
    assert (
        SearchSpace.around(Recipe().with_settings(model={"architecture": "unet"}), ()).parameter_names()[0]
        == "decoder_lr"
    )


@pytest.mark.parametrize(
    ("model", "encoders", "trials", "message"),
    [
        ({"architecture": "unet"}, ("resnet18",), 3, "--encoders resnet18: architecture = unet has no encoder"),
        ({"weights": "package"}, ("resnet18", "resnet34"), 3, "are those of one encoder"),
        ({}, ("resnet18", "resnet1b8"), 3, "resnet1b8"),
        ({}, (), 0, "give a trial or more"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tiles: Path, tmp_path: Path, model: dict[str, Any], encoders: tuple[str, ...], trials: int, message: str
) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        find(tiles, tmp_path / "out", RECIPE.with_settings(model=model), trials, encoders=encoders)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_without_optuna_one_line_says_what_to_install(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "geograft.commands.search")
    with pytest.raises(SettingError, match=r"^geograft find needs Optuna: pip install geograft\[find\]$"):
        find(tiles, tmp_path / "out", RECIPE)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_and_a_spoilt_journal_are_refused(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no search"):
        find(tiles, tmp_path, RECIPE)
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_text("no journal\nat all\n")
    with pytest.raises(InputError, match="to begin anew"):
        find(tiles, out, RECIPE)


def test_validation_tiles_that_cannot_be_scored_are_said(
    tiles: Path, tmp_path: Path, plant: Callable[..., Ground]
) -> None:
    plant(lambda _recipe: math.nan)
    with pytest.raises(InputError, match="no validation tile can be scored"):
        find(tiles, tmp_path / "out", RECIPE)


def test_the_commands_defaults_are_the_functions() -> None:
    flags, arguments = signature(command).parameters, signature(find).parameters
    assert flags["trials"].default == arguments["trials"].default == TRIALS
    assert flags["minutes"].default == arguments["minutes"].default
