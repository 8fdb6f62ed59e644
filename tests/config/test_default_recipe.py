"""Shipped recipes: the default equals the defaults of the settings, and the article's recipes follow the article."""

from dataclasses import replace
from pathlib import Path

import pytest

from geograft.config import ModelConfig, PrepareConfig, Recipe, TrainConfig, load_recipe


def test_the_default_recipe_equals_the_defaults() -> None:
    assert replace(load_recipe(Path("default")), title="") == Recipe()


def test_ideas_change_one_setting_of_the_default_each() -> None:
    ideas, default = load_recipe(Path("ideas")), load_recipe(Path("default"))
    assert (ideas.model, ideas.train) == (default.model, replace(default.train, auxiliary_weight=0))
    assert [len(variant.model) + len(variant.train) for variant in ideas.variants] == [0] + [1] * 20


def test_the_demo_and_its_last_variant_are_the_default_except_for_epochs_and_augmentation() -> None:
    article, demo, default = (load_recipe(Path(name)) for name in ("demo-article", "demo", "default"))
    variant = article.variants[-1]
    last = article.with_settings(model=variant.model, train=variant.train)
    assert (last.model, last.train, last.prepare) == (demo.model, demo.train, demo.prepare)
    assert last.model == default.model
    assert replace(last.train, epochs=default.train.epochs, augment=default.train.augment) == default.train


@pytest.mark.parametrize("name", ["article", "amazon", "demo-article"])
def test_the_articles_recipes_train_as_in_the_article(name: str) -> None:
    recipe = load_recipe(Path(name))
    assert recipe.model.architecture == "transfer"
    as_in_the_article = {
        "optimizer": "adam",
        "schedule": "exponential",
        "lr_decay": 0.85,
        "warmup_epochs": 0,
        "ema": 0,
        "region_loss": "dice",
        "region_loss_weight": 0.25,
        "pixel_loss": "ce",
        "class_weights": "none",
        "layer_decay": 1,
        "freeze_epochs": 0,
        "label_smoothing": 0,
        "auxiliary_weight": 0,
    }
    assert {key: getattr(recipe.train, key) for key in as_in_the_article} == as_in_the_article


def test_the_articles_recipe_states_every_decisive_setting() -> None:
    recipe = load_recipe(Path("article"))
    assert (recipe.train.decoder_lr, recipe.train.encoder_lr, recipe.train.epochs) == (5e-4, 1.5e-4, 10)
    assert recipe.prepare == PrepareConfig(tile_px=224, overlap=0.5, split="group", val=0.15, test=0.15)
    assert recipe.model == ModelConfig(architecture="transfer", encoder="efficientnet_b0", frozen_stages=2)
    assert recipe.train.batch_size == 64 != TrainConfig().batch_size
