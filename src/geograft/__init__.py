"""Maps from satellite and aerial images with few labels, by transfer learning.

Each verb of the command line is a function here: `geograft.prepare(...)`, `geograft.train(...)`. They load on first
use, so that `import geograft` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geograft.config import (
        EvaluateConfig,
        ModelConfig,
        PolygonConfig,
        PredictConfig,
        PrepareConfig,
        Recipe,
        ReviewConfig,
        SampleConfig,
        SuggestConfig,
        TrainConfig,
        Variant,
        load_recipe,
    )
    from geograft.errors import GeograftError, InputError, OutputError, SettingError, WeightsError
    from geograft.geo.tilesets.sources import DstlSource, MaskSource, VectorSource
    from geograft.geo.tilesets.tileset import TileSet
    from geograft.verbs.area import area
    from geograft.verbs.audit import audit
    from geograft.verbs.calibrate import calibrate
    from geograft.verbs.compare import compare
    from geograft.verbs.curve import curve
    from geograft.verbs.demo import demo
    from geograft.verbs.evaluate import evaluate
    from geograft.verbs.find import find
    from geograft.verbs.jaccard import jaccard
    from geograft.verbs.model import model
    from geograft.verbs.polygons import polygons
    from geograft.verbs.predict import predict
    from geograft.verbs.prepare import prepare
    from geograft.verbs.report import report
    from geograft.verbs.review import review
    from geograft.verbs.sample import sample
    from geograft.verbs.suggest import suggest
    from geograft.verbs.train import train

_HOMES = {
    **dict.fromkeys(
        (
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
        ),
        "geograft.config",
    ),
    **dict.fromkeys(("InputError", "OutputError", "SettingError", "GeograftError", "WeightsError"), "geograft.errors"),
    **dict.fromkeys(("DstlSource", "MaskSource", "VectorSource"), "geograft.geo.tilesets.sources"),
    "TileSet": "geograft.geo.tilesets.tileset",
    "load_recipe": "geograft.config",
    **{
        verb: f"geograft.verbs.{verb}"
        for verb in (
            "area",
            "audit",
            "calibrate",
            "compare",
            "curve",
            "demo",
            "evaluate",
            "find",
            "jaccard",
            "model",
            "polygons",
            "predict",
            "prepare",
            "report",
            "review",
            "sample",
            "suggest",
            "train",
        )
    },
}

__all__ = [
    "DstlSource",
    "EvaluateConfig",
    "GeograftError",
    "InputError",
    "MaskSource",
    "ModelConfig",
    "OutputError",
    "PolygonConfig",
    "PredictConfig",
    "PrepareConfig",
    "Recipe",
    "ReviewConfig",
    "SampleConfig",
    "SettingError",
    "SuggestConfig",
    "TileSet",
    "TrainConfig",
    "Variant",
    "VectorSource",
    "WeightsError",
    "area",
    "audit",
    "calibrate",
    "compare",
    "curve",
    "demo",
    "evaluate",
    "find",
    "jaccard",
    "load_recipe",
    "model",
    "polygons",
    "predict",
    "prepare",
    "report",
    "review",
    "sample",
    "suggest",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("geograft")
    if name not in _HOMES:
        raise AttributeError(f"module 'geograft' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
