"""`geograft find`: successive halving, resuming after a kill, and the best recipe."""

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

from geograft.card import STATE
from geograft.cli.learning import find as command
from geograft.commands import find as module
from geograft.commands.find import BEST, TABLE, TRIALS, SearchResult, find, run_of
from geograft.commands.search import JOURNAL, LEARNING_RATE_SPAN, SearchSpace, should_promote
from geograft.commands.train import train
from geograft.config import Recipe, load_recipe
from geograft.errors import DivergedError, InputError, OutputError, SettingError

RECIPE = Recipe().with_settings(
    model={"weights": "none", "encoder": "test_efficientnet"},
    train={"epochs": 4, "batch_size": 8, "decoder_lr": 1e-3, "device": "cpu"},
)
Objective = Callable[[Recipe], float]


def peak(recipe: Recipe) -> float:
    """An objective with its optimum at decoder_lr 0.004, lovasz and focal, which increases with the epochs."""
    away = abs(math.log(recipe.train.decoder_lr / 4e-3)) + abs(recipe.train.region_loss_weight - 0.6)
    other = (recipe.train.region_loss != "lovasz") + (recipe.train.pixel_loss != "focal")
    return (1 - 0.1 * away - 0.1 * other) * (1 - 1 / (5 + recipe.train.epochs))


class FakeTrain:
    """Replaces `train`: writes a state, records the recipe, and returns the objective; can be killed in a training."""

    def __init__(self, objective: Objective, killed_in: int = 0) -> None:
        self.objective, self.killed_in = objective, killed_in
        self.trained: list[Recipe] = []

    def __call__(self, _tiles: Path, run: Path, recipe: Recipe, resume: bool) -> Any:
        assert resume
        self.trained.append(recipe)
        if len(self.trained) == self.killed_in:
            raise KeyboardInterrupt
        iou = self.objective(recipe)
        run.mkdir(parents=True, exist_ok=True)
        (run / STATE).write_text("")
        best = SimpleNamespace(val_iou=iou)
        return SimpleNamespace(history=SimpleNamespace(best=best, seconds=2.0 * recipe.train.epochs))


@pytest.fixture
def fake_train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTrain]:
    def replace_train(objective: Objective = peak, killed_in: int = 0) -> FakeTrain:
        fake = FakeTrain(objective, killed_in)
        monkeypatch.setattr(module, "train", fake)
        return fake

    return replace_train


def trials_of(found: SearchResult) -> list[tuple[Mapping[str, Any], Mapping[int, float]]]:
    return [(dict(trial.values), dict(trial.scores)) for trial in found.trials]


@pytest.fixture(scope="module")
def found(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search with real training."""
    return find(tiles, tmp_path_factory.mktemp("find") / "found", RECIPE, trials=4)


def test_the_best_recipe_trains_to_the_score_of_its_trial(found: SearchResult, tiles: Path, tmp_path: Path) -> None:
    recipe = load_recipe(found.folder / BEST)
    assert recipe == found.recipe
    assert recipe.train.epochs == RECIPE.train.epochs
    again = train(tiles, tmp_path / "again", recipe)
    assert again.history.best.val_iou == found.best.iou
    assert load_recipe(found.run / "recipe.toml") == recipe.with_settings(
        model={"frozen_stages": 2}, train={"compile": False}
    )
    assert not list(found.folder.rglob(STATE))


def test_the_first_trial_is_the_recipe_and_trains_for_all_epochs(found: SearchResult) -> None:
    first = found.trials[0]
    assert list(first.scores) == [1, 2, 4]
    assert found.space.recipe_of(first.values, 4) == RECIPE
    assert found.best.iou >= first.iou


def test_the_table_and_the_csv_contain_every_trial(found: SearchResult) -> None:
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
    assert [line.split()[0] for line in lines[1:5]] == [str(trial.number) for trial in found.ranked_trials]
    assert f"4 trials, {found.epochs} epochs" in lines[5]
    assert "each trial in full would be 16" in lines[5]
    assert f"the recipe's own settings: {found.trials[0].iou:.3f}" in lines[6]


def test_a_finished_search_trains_nothing(
    found: SearchResult, tiles: Path, fake_train: Callable[..., FakeTrain]
) -> None:
    fake = fake_train()
    again = find(tiles, found.folder, RECIPE.with_settings(train={"workers": 0}), trials=4)
    assert again.lines() == found.lines()
    assert not fake.trained


def test_the_search_improves_on_the_recipe_and_poor_trials_stop_early(
    tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain]
) -> None:
    fake = fake_train()
    found = find(tiles, tmp_path / "out", RECIPE, trials=30)
    assert found.best.iou > found.trials[0].iou + 0.1
    assert found.best.iou == max(trial.iou for trial in found.trials if trial.epochs == 4)
    lengths = [trial.epochs for trial in found.trials]
    assert lengths.count(1) > len(lengths) / 3
    assert lengths.count(4) < len(lengths) / 2
    # Stopped trials were not in the best third of those before them; promoted ones were.
    for trial in found.trials:
        for epochs in set(trial.scores) - {4}:
            before = [t.scores[epochs] for t in found.trials[: trial.number - 1] if epochs in t.scores]
            assert should_promote(trial.scores[epochs], before) == (epochs < trial.epochs)
    assert found.epochs == sum(recipe.train.epochs for recipe in fake.trained)
    # Learning rates are near the recipe's, and rounded.
    rates = [trial.values["decoder_lr"] for trial in found.trials]
    assert all(
        1e-3 / LEARNING_RATE_SPAN <= float(rate) <= 1e-3 * LEARNING_RATE_SPAN and len(f"{rate:.3g}") < 9
        for rate in rates
    )
    # Rounded rates near the optimum coincide now and then.
    assert len(set(rates)) > 20


@pytest.mark.parametrize("killed_in", [1, 2, 5, 8])
def test_a_killed_search_resumes_to_the_same_trials(
    tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain], killed_in: int
) -> None:
    whole = fake_train()
    straight = find(tiles, tmp_path / "straight", RECIPE, trials=10)
    killed = fake_train(killed_in=killed_in)
    with pytest.raises(KeyboardInterrupt):
        find(tiles, tmp_path / "killed", RECIPE, trials=10)
    resumed = fake_train()
    again = find(tiles, tmp_path / "killed", RECIPE, trials=10)
    assert trials_of(again) == trials_of(straight)
    assert (tmp_path / "killed" / BEST).read_bytes() == (tmp_path / "straight" / BEST).read_bytes()
    # Only the killed trial is repeated, in the same folders, where `train` resumes.
    assert killed.trained[:killed_in] == whole.trained[:killed_in]
    assert resumed.trained == whole.trained[-len(resumed.trained) :]
    assert len(resumed.trained) <= len(whole.trained) - killed_in + 3


def test_extending_a_search_gives_the_same_trials_as_one_search(
    tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain]
) -> None:
    fake_train()
    once = find(tiles, tmp_path / "once", RECIPE, trials=9)
    find(tiles, tmp_path / "twice", RECIPE, trials=4)
    assert trials_of(find(tiles, tmp_path / "twice", RECIPE, trials=9)) == trials_of(once)
    other = find(tiles, tmp_path / "other", RECIPE.with_settings(train={"seed": 1}), trials=4)
    assert trials_of(other)[1:] != trials_of(once)[1:4]


def test_no_trial_starts_after_the_given_minutes(
    tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain]
) -> None:
    fake = fake_train()
    found = find(tiles, tmp_path / "out", RECIPE, trials=50, minutes=0.5)
    spent = [sum(trial.seconds for trial in found.trials[:n]) for n in range(len(found.trials) + 1)]
    assert spent[-1] >= 30 > spent[-2]
    count = len(fake.trained)
    assert len(find(tiles, tmp_path / "out", RECIPE, trials=50, minutes=0.5).trials) == len(found.trials)
    assert len(fake.trained) == count


def test_a_diverged_trial_counts_as_zero_and_the_search_continues(
    tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain]
) -> None:
    def diverging(recipe: Recipe) -> float:
        if recipe.train.decoder_lr >= 1e-3:
            raise DivergedError("The loss became nan")
        return peak(recipe)

    fake_train(diverging)
    found = find(tiles, tmp_path / "out", RECIPE, trials=8)
    assert found.trials[0].diverged
    assert not found.best.diverged
    assert found.best.epochs == 4
    assert f"{sum(t.diverged for t in found.trials)} of the trials diverged" in "\n".join(found.lines())
    assert "the recipe's own settings diverged" in "\n".join(found.lines())
    fake_train(lambda recipe: diverging(recipe.with_settings(train={"decoder_lr": 1.0})))
    with pytest.raises(InputError, match=r"every trial in .*all"):
        find(tiles, tmp_path / "all", RECIPE, trials=2)
    assert not (tmp_path / "all" / BEST).exists()


def test_the_best_encoder_is_in_the_recipe(tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain]) -> None:
    fake_train(lambda recipe: 0.9 if recipe.model.encoder == "test_resnet" else 0.5)
    found = find(tiles, tmp_path / "out", RECIPE, trials=8, encoders=("test_efficientnet", "test_resnet"))
    assert found.trials[0].values["encoder"] == "test_efficientnet"
    assert load_recipe(tmp_path / "out" / BEST).model.encoder == "test_resnet"
    with pytest.raises(SettingError, match=r"encoders\.0 was test_efficientnet"):
        find(tiles, tmp_path / "out", RECIPE, trials=8, encoders=("test_resnet",))


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0, 1))
def test_the_best_third_is_promoted(others: list[float], iou: float) -> None:
    place = sorted([*others, iou], reverse=True).index(iou)
    assert should_promote(iou, others) == (place < max(1, (len(others) + 1) // 3))


@given(st.integers(1, 200), st.floats(0, 9), st.integers(0, 9))
def test_every_rung_scales_the_schedule_to_its_epochs(epochs: int, warmup: float, freeze: int) -> None:
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


def test_encoder_lr_is_searched_only_with_a_pretrained_encoder() -> None:
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
        ({"weights": "package"}, ("resnet18", "resnet34"), 3, "weights = 'package'"),
        ({}, ("resnet18", "resnet1b8"), 3, "resnet1b8"),
        ({}, (), 0, "--trials 0"),
    ],
)
def test_invalid_settings_are_refused_before_writing(
    tiles: Path, tmp_path: Path, model: dict[str, Any], encoders: tuple[str, ...], trials: int, message: str
) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        find(tiles, tmp_path / "out", RECIPE.with_settings(model=model), trials, encoders=encoders)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_optuna_is_a_one_line_error(tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "geograft.commands.search")
    with pytest.raises(SettingError, match=r"Optuna: pip install geograft\[find\]$"):
        find(tiles, tmp_path / "out", RECIPE)
    assert not list(tmp_path.iterdir())


def test_other_folders_and_damaged_journals_are_refused(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=tmp_path.name):
        find(tiles, tmp_path, RECIPE)
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_text("no journal\nat all\n")
    with pytest.raises(InputError, match=JOURNAL):
        find(tiles, out, RECIPE)


def test_unlabelled_validation_tiles_are_refused(
    tiles: Path, tmp_path: Path, fake_train: Callable[..., FakeTrain]
) -> None:
    fake_train(lambda _recipe: math.nan)
    with pytest.raises(InputError, match="--val"):
        find(tiles, tmp_path / "out", RECIPE)


def test_the_commands_defaults_match_the_function() -> None:
    flags, arguments = signature(command).parameters, signature(find).parameters
    assert flags["trials"].default == arguments["trials"].default == TRIALS
    assert flags["minutes"].default == arguments["minutes"].default
