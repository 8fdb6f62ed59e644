"""Settings: recipes come back as they went, and every mistake names its place."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.config import Recipe, load_recipe, parse_recipe, recipe_toml
from geograft.errors import SettingError


@given(
    epochs=st.integers(1, 1000),
    dice=st.floats(0, 1),
    title=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30),
    encoder=st.sampled_from(["efficientnet_b0", "resnet18"]),
)
def test_a_recipe_written_as_toml_reads_back_equal(epochs: int, dice: float, title: str, encoder: str) -> None:
    recipe = Recipe(title=title).with_settings(train={"epochs": epochs, "region_loss_weight": dice}, model={"encoder": encoder})
    assert parse_recipe(tomllib.loads(recipe_toml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = 3", "epochs is not a setting"),
        ("[train]\nepochs = -1", "train.epochs = -1"),
        ("[model]\narchitecture = 'vit'", "model.architecture = 'vit'"),
        ("[[variants]]\nname = 'a'\nmodel = { encodr = 'x' }", "variant 'a': model.encodr is not a setting"),
        ("[[variants]]\nname = 'a'\ntrain = { epochs = 0 }", "variant 'a': train.epochs = 0"),
        ("[train", "not a TOML file"),
    ],
)
def test_a_mistake_in_a_recipe_names_its_place(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"recipe\.toml") as caught:
        load_recipe(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_variant_changes_only_what_it_names() -> None:
    recipe = load_recipe(Path("demo"))
    scratch = next(variant for variant in recipe.variants if variant.model.get("weights") == "none")
    changed = recipe.variant(scratch, seed=7)
    assert changed.model.weights == "none" and changed.train.seed == 7
    assert changed.model.encoder == recipe.model.encoder
    assert changed.train.epochs == recipe.train.epochs
