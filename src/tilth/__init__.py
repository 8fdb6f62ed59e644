"""Maps from satellite and aerial images with few labels, by transfer learning.

Each verb of the command line is a function here: `tilth.prepare(...)`, `tilth.train(...)`. They load on first use, so
that `import tilth` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.config import (
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
    from tilth.errors import InputError, OutputError, SettingError, TilthError, WeightsError
    from tilth.geo.tilesets.sources import DstlSource, MaskSource, VectorSource
    from tilth.geo.tilesets.tileset import TileSet
    from tilth.verbs.area import area
    from tilth.verbs.audit import audit
    from tilth.verbs.calibrate import calibrate
    from tilth.verbs.compare import compare
    from tilth.verbs.curve import curve
    from tilth.verbs.demo import demo
    from tilth.verbs.evaluate import evaluate
    from tilth.verbs.find import find
    from tilth.verbs.jaccard import jaccard
    from tilth.verbs.model import model
    from tilth.verbs.polygons import polygons
    from tilth.verbs.predict import predict
    from tilth.verbs.prepare import prepare
    from tilth.verbs.report import report
    from tilth.verbs.review import review
    from tilth.verbs.sample import sample
    from tilth.verbs.suggest import suggest
    from tilth.verbs.train import train

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
        "tilth.config",
    ),
    **dict.fromkeys(("InputError", "OutputError", "SettingError", "TilthError", "WeightsError"), "tilth.errors"),
    **dict.fromkeys(("DstlSource", "MaskSource", "VectorSource"), "tilth.geo.tilesets.sources"),
    "TileSet": "tilth.geo.tilesets.tileset",
    "load_recipe": "tilth.config",
    **{
        verb: f"tilth.verbs.{verb}"
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
    "TilthError",
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

        return version("tilth")
    if name not in _HOMES:
        raise AttributeError(f"module 'tilth' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
