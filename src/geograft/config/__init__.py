"""Settings: what each is called, its default, its unit, its check. Flags and recipes are made from these fields."""

from geograft.config.inference import (
    EvaluateConfig,
    PolygonConfig,
    PredictConfig,
    ReviewConfig,
    SampleConfig,
    SuggestConfig,
)
from geograft.config.recipes import Recipe, Variant, load_recipe, parse_recipe, recipe_toml
from geograft.config.training import ModelConfig, PrepareConfig, TrainConfig

__all__ = [
    "EvaluateConfig",
    "ModelConfig",
    "PolygonConfig",
    "PredictConfig",
    "PrepareConfig",
    "Recipe",
    "ReviewConfig",
    "SampleConfig",
    "SuggestConfig",
    "TrainConfig",
    "Variant",
    "load_recipe",
    "parse_recipe",
    "recipe_toml",
]
