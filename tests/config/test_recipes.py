"""Recipes: round trip through TOML, and errors that name the setting."""

import math
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.card import CARD, read_card
from geograft.config import ModelConfig, PrepareConfig, Recipe, TrainConfig, load_recipe, parse_recipe, recipe_toml
from geograft.config.recipes import RENAMED_SETTINGS
from geograft.dataset.tileset import META, RENAMED_KEYS, TileSet
from geograft.errors import InputError, SettingError
from geograft.files import write_json
from geograft.resume import differences


@given(
    epochs=st.integers(1, 1000),
    dice=st.floats(0, 1),
    title=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
    encoder=st.sampled_from(["efficientnet_b0", "resnet18"]),
)
def test_a_recipe_round_trips_through_toml(epochs: int, dice: float, title: str, encoder: str) -> None:
    recipe = Recipe(title=title).with_settings(
        train={"epochs": epochs, "region_loss_weight": dice}, model={"encoder": encoder}
    )
    assert parse_recipe(tomllib.loads(recipe_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 3", "epochs is not a setting"),
        ("[train]\nepochs = -1", "train.epochs = -1"),
        ("[model]\narchitecture = 'vit'", "model.architecture = 'vit'"),
        ("[[variants]]\nname = 'a'\nmodel = { encodr = 'x' }", "variant 'a': model.encodr is not a setting"),
        ("[[variants]]\nmodel = {}", "variants.0.name is missing"),
        ("[[variants]]\nname = 'a'\ntrain = { epochs = 0 }", "variant 'a': train.epochs = 0"),
        ("[train", "not a TOML file"),
    ],
)
def test_an_error_in_a_recipe_names_file_and_setting(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"recipe\.toml") as caught:
        load_recipe(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


NUMBERS = [
    (table, field.name)
    for table, config in (("train", TrainConfig), ("prepare", PrepareConfig), ("model", ModelConfig))
    for field in fields(config)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]


@pytest.mark.parametrize(("table", "name"), NUMBERS)
def test_every_number_has_a_range_of_finite_values(table: str, name: str) -> None:
    for value in (math.nan, math.inf, -math.inf, -2, -(10**23)):
        with pytest.raises(SettingError, match=rf"{table}\.{name}") as caught:
            Recipe().with_settings(**{table: {name: value}})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 10**23), ("seed", 2**63), ("workers", 100_000), ("decoder_lr", 1e300)]
)
def test_numbers_that_libraries_do_not_accept_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingError, match=rf"train\.{name} = {re.escape(str(value))}"):
        Recipe().with_settings(train={name: value})


def test_seeds_of_a_comparison_have_the_range_of_a_seed() -> None:
    assert Recipe().with_seeds((3, 2**63 - 1)).seeds == (3, 2**63 - 1)
    assert Recipe(seeds=(4,)).with_seeds(()).seeds == (4,)
    for seed in (-1, 10**23):
        with pytest.raises(SettingError, match=rf"seeds.* = {seed}"):
            Recipe().with_seeds((0, seed))


def test_a_variant_changes_only_its_settings() -> None:
    recipe = load_recipe(Path("demo-article"))
    scratch = next(variant for variant in recipe.variants if variant.model.get("weights") == "none")
    changed = recipe.variant(scratch, seed=7)
    assert changed.model.weights == "none" and changed.train.seed == 7
    assert changed.model.encoder == recipe.model.encoder
    assert changed.train.epochs == recipe.train.epochs


@pytest.mark.parametrize("old", RENAMED_SETTINGS)
def test_the_error_for_a_renamed_setting_names_the_new_one(old: str, tmp_path: Path) -> None:
    table, key = old.split(".")
    new = RENAMED_SETTINGS[old]
    path = tmp_path / "recipe.toml"
    for text in (f"[{table}]\n{key} = 1\nepochs = 0", f"[[variants]]\nname = 'a'\n{table} = {{ {key} = 1 }}"):
        path.write_text(text)
        with pytest.raises(SettingError, match=r"recipe\.toml") as caught:
            load_recipe(path)
        assert f"{old} is now {new}." in str(caught.value) and "\n" not in str(caught.value)
    assert key not in TrainConfig.__pydantic_fields__  # type: ignore[attr-defined]
    assert new.split()[0].removeprefix("train.") in TrainConfig.__pydantic_fields__  # type: ignore[attr-defined]
    assert differences({table: {key: 1}}, {table: {"epochs": 3}}) == [f"{old} is now {new}"]


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_the_error_for_a_renamed_key_of_a_tile_set_names_the_new_one(old: str, tmp_path: Path) -> None:
    write_json(tmp_path / META, {old: True})
    with pytest.raises(InputError, match=rf"tileset\.json: {old} is now {RENAMED_KEYS[old]}\. ") as caught:
        TileSet.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_error_for_an_invalid_card_names_the_key(tmp_path: Path) -> None:
    write_json(tmp_path / CARD, {})
    with pytest.raises(InputError, match=r"card\.json .*\bname\b"):
        read_card(tmp_path)
