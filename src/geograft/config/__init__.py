"""Settings: names, defaults, units and validation. Command-line flags and recipes are generated from these fields."""

from geograft.config.inference import (
    Cleaning,
    EvaluateConfig,
    ExportConfig,
    InferenceConfig,
    PolygonConfig,
    PredictConfig,
    ReviewConfig,
    SampleConfig,
    StacConfig,
    SuggestConfig,
)
from geograft.config.recipes import (
    AreaConfig,
    ProjectClass,
    ProjectSettings,
    Recipe,
    Variant,
    describe_fault,
    load_recipe,
    parse_recipe,
    read_project,
    recipe_toml,
)
from geograft.config.training import AdaptConfig, ModelConfig, PrepareConfig, TrainConfig

__all__ = [
    "AdaptConfig",
    "AreaConfig",
    "Cleaning",
    "EvaluateConfig",
    "ExportConfig",
    "InferenceConfig",
    "ModelConfig",
    "PolygonConfig",
    "PredictConfig",
    "PrepareConfig",
    "ProjectClass",
    "ProjectSettings",
    "Recipe",
    "ReviewConfig",
    "SampleConfig",
    "StacConfig",
    "SuggestConfig",
    "TrainConfig",
    "Variant",
    "describe_fault",
    "load_recipe",
    "parse_recipe",
    "read_project",
    "recipe_toml",
]
