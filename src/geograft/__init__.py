"""Semantic segmentation of satellite and aerial images with few labels, by transfer learning.

    tiles = geograft.prepare_vector("scene.tif", labels="crowns.gpkg", out="tiles")
    geograft.train(tiles, "runs/crowns")
    run = geograft.load("runs/crowns")
    run.evaluate()
    run.predict("region.tif", out="map.tif")
    geograft.polygons("map.tif", "map.gpkg")

Each command is also a function: `geograft.train(...)`, `geograft.polygons(...)`. Paths may be strings. Results have
`lines()`, are tables in a notebook, and many have `plot()`. Functions are imported on first use, so that
`import geograft` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geograft.api.run import Run, load
    from geograft.api.tile_sets import prepare_coco, prepare_dstl, prepare_masks, prepare_vector
    from geograft.commands.adapt import adapt
    from geograft.commands.area import area
    from geograft.commands.audit import audit
    from geograft.commands.calibrate import calibrate
    from geograft.commands.compare import compare
    from geograft.commands.curve import curve
    from geograft.commands.demo import demo
    from geograft.commands.evaluate import evaluate
    from geograft.commands.export import export
    from geograft.commands.find import find
    from geograft.commands.go import go
    from geograft.commands.import_labels import import_labels
    from geograft.commands.jaccard import jaccard
    from geograft.commands.jobs import jobs
    from geograft.commands.model import model
    from geograft.commands.polygons import polygons
    from geograft.commands.predict import predict
    from geograft.commands.prepare import prepare
    from geograft.commands.project import project
    from geograft.commands.push import push
    from geograft.commands.qgis import qgis
    from geograft.commands.report import report
    from geograft.commands.review import review
    from geograft.commands.sample import sample
    from geograft.commands.serve import serve
    from geograft.commands.show import show
    from geograft.commands.suggest import suggest
    from geograft.commands.train import train
    from geograft.commands.units import evaluate_units, polygon_units, predict_units, suggest_units
    from geograft.config import (
        AdaptConfig,
        EvaluateConfig,
        ExportConfig,
        ModelConfig,
        PartConfig,
        PolygonConfig,
        PredictConfig,
        PrepareConfig,
        Recipe,
        ReviewConfig,
        SampleConfig,
        SuggestConfig,
        TrainConfig,
        Variant,
        WorkerConfig,
        load_recipe,
    )
    from geograft.config.recipes import AreaConfig
    from geograft.dataset.sources import CocoSource, DstlSource, MaskSource, VectorSource
    from geograft.dataset.tileset import TileSet
    from geograft.errors import GeograftError, InputError, OutputError, SettingError, WeightsError

_MODULES = {
    **dict.fromkeys(
        (
            "AdaptConfig",
            "EvaluateConfig",
            "ExportConfig",
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
            "WorkerConfig",
            "PartConfig",
        ),
        "geograft.config",
    ),
    **dict.fromkeys(("InputError", "OutputError", "SettingError", "GeograftError", "WeightsError"), "geograft.errors"),
    **dict.fromkeys(("CocoSource", "DstlSource", "MaskSource", "VectorSource"), "geograft.dataset.sources"),
    **dict.fromkeys(("evaluate_units", "predict_units", "polygon_units", "suggest_units"), "geograft.commands.units"),
    "TileSet": "geograft.dataset.tileset",
    **dict.fromkeys(("Run", "load"), "geograft.api.run"),
    **dict.fromkeys(("prepare_coco", "prepare_dstl", "prepare_masks", "prepare_vector"), "geograft.api.tile_sets"),
    "load_recipe": "geograft.config",
    "AreaConfig": "geograft.config.recipes",
    **{
        verb: f"geograft.commands.{verb}"
        for verb in (
            "adapt",
            "area",
            "audit",
            "calibrate",
            "compare",
            "curve",
            "demo",
            "evaluate",
            "export",
            "find",
            "go",
            "import_labels",
            "jaccard",
            "jobs",
            "model",
            "polygons",
            "predict",
            "prepare",
            "project",
            "push",
            "qgis",
            "report",
            "review",
            "sample",
            "serve",
            "show",
            "suggest",
            "train",
        )
    },
}

__all__ = [
    "AdaptConfig",
    "AreaConfig",
    "CocoSource",
    "DstlSource",
    "EvaluateConfig",
    "ExportConfig",
    "GeograftError",
    "InputError",
    "MaskSource",
    "ModelConfig",
    "OutputError",
    "PartConfig",
    "PolygonConfig",
    "PredictConfig",
    "PrepareConfig",
    "Recipe",
    "ReviewConfig",
    "Run",
    "SampleConfig",
    "SettingError",
    "SuggestConfig",
    "TileSet",
    "TrainConfig",
    "Variant",
    "VectorSource",
    "WeightsError",
    "WorkerConfig",
    "adapt",
    "area",
    "audit",
    "calibrate",
    "compare",
    "curve",
    "demo",
    "evaluate",
    "evaluate_units",
    "export",
    "find",
    "go",
    "import_labels",
    "jaccard",
    "jobs",
    "load",
    "load_recipe",
    "model",
    "polygon_units",
    "polygons",
    "predict",
    "predict_units",
    "prepare",
    "prepare_coco",
    "prepare_dstl",
    "prepare_masks",
    "prepare_vector",
    "project",
    "push",
    "qgis",
    "report",
    "review",
    "sample",
    "serve",
    "show",
    "suggest",
    "suggest_units",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("geograft")
    if name not in _MODULES:
        raise AttributeError(f"module 'geograft' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
