"""A trained run as an object: what its card says, and the commands that use it as methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from geograft.api.keywords import keyword_settings
from geograft.card import ModelCard, ensemble_card, read_cards
from geograft.commands.calibrate import Calibration, calibrate
from geograft.commands.evaluate import Evaluation, evaluate
from geograft.commands.predict import Prediction, predict
from geograft.commands.review import Review, review
from geograft.commands.suggest import Suggestions, suggest
from geograft.config import AdaptConfig, EvaluateConfig, InferenceConfig, PredictConfig, ReviewConfig, SuggestConfig
from geograft.dataset.tileset import Split
from geograft.errors import SettingError
from geograft.files import StrPath, json_digest
from geograft.mapping.arrays import predict_array
from geograft.mapping.models import RunModel
from geograft.runs import to_runs
from geograft.text import html_table

if TYPE_CHECKING:
    import geograft.commands.adapt
    import geograft.commands.report


@dataclass(frozen=True)
class Run:
    """A trained run, or several as an ensemble whose predictions are averaged. `geograft.load` opens it.

    Methods are the functions of the same names with the run as first argument, and their settings as keyword options.
    A Run can be given wherever a function takes the path of a single run.
    """

    paths: tuple[Path, ...]
    """The run folders."""
    _models: dict[str, RunModel] = field(default_factory=dict, repr=False, compare=False)
    """Loaded networks for `predict_array`, by a digest of the cards and the settings."""

    @property
    def card(self) -> ModelCard:
        """The model card: everything needed to use the weights. Read anew, as `calibrate` and training change it."""
        return ensemble_card(read_cards(self.paths))

    @property
    def name(self) -> str:
        """Name of the run; of several, the first one's."""
        return self.card.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        return self.card.legend.names

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the image bands in order, without spectral indices."""
        return self.card.band_names[: self.card.bands]

    @property
    def thresholds(self) -> dict[str, float]:
        """Minimum probability by class; empty where the most probable of several classes is mapped."""
        card = self.card
        names = card.legend.names if card.legend.overlapping else card.legend.names[1:]
        return dict(zip(names, card.used_thresholds, strict=False))

    @property
    def scores(self) -> dict[str, float]:
        """Validation scores of the saved epoch; `evaluate` scores the run on held-out tiles."""
        return dict(self.card.scores)

    @property
    def resolution_m(self) -> float | None:
        """Pixel size of the training images in metres; None without CRS."""
        return self.card.resolution_m

    @keyword_settings(PredictConfig)
    def predict(
        self,
        rasters: StrPath | Sequence[StrPath],
        out: StrPath,
        *,
        aoi: StrPath | None = None,
        dry_run: bool = False,
        config: PredictConfig,
    ) -> Prediction:
        """Map rasters of any size; `out` is a .tif, or a folder with one map per raster. See `geograft.predict`."""
        return predict(self.paths, rasters, out, config, aoi, dry_run)

    @keyword_settings(InferenceConfig)
    def predict_array(
        self,
        pixels: ndarray,
        valid: ndarray | None = None,
        *,
        config: InferenceConfig,
    ) -> Float32[ndarray, "k h w"]:
        """Return the probability of each class for an array (bands, height, width), blended as in a map.

        `pixels` have the bands and the dtype of the training images, unscaled. Where `valid` is False or a band is NaN
        or infinite, the result is NaN. The network stays loaded for the next call.
        """
        return predict_array(self._model(config), np.asarray(pixels), valid)

    @keyword_settings(EvaluateConfig)
    def evaluate(
        self,
        split: Split = "test",
        *,
        tiles: StrPath | None = None,
        out: StrPath | None = None,
        against: StrPath | None = None,
        config: EvaluateConfig,
    ) -> Evaluation:
        """Score the run on one split of its tile set, with confidence intervals. See `geograft.evaluate`."""
        return evaluate(self.paths, split, tiles, out, against, config)

    @keyword_settings(InferenceConfig)
    def calibrate(
        self,
        *,
        tiles: StrPath | None = None,
        objects: str = "",
        out: StrPath | None = None,
        config: InferenceConfig,
    ) -> Calibration:
        """Fit threshold and temperature on the validation tiles and write them into the card. See `geograft.calibrate`.

        With `objects`, the name of a class, also how its objects are cleaned.
        """
        return calibrate(self._only_path("calibrate"), tiles, config, objects, out)

    @keyword_settings(AdaptConfig)
    def adapt(
        self, tiles: StrPath, out: StrPath, *, source: StrPath | None = None, config: AdaptConfig
    ) -> "geograft.commands.adapt.AdaptedRun":
        """Train the run further on a few labelled tiles of another place, if that is better. See `geograft.adapt`."""
        from geograft.commands.adapt import adapt  # noqa: PLC0415  (imports torch)

        return adapt(self._only_path("adapt"), tiles, out, config, source)

    @keyword_settings(SuggestConfig)
    def suggest(
        self,
        rasters: StrPath | Sequence[StrPath],
        out: StrPath,
        *,
        known: StrPath | None = None,
        aoi: StrPath | None = None,
        config: SuggestConfig,
    ) -> Suggestions:
        """Choose the tiles to label next (active learning), as a GeoPackage. See `geograft.suggest`."""
        return suggest(self.paths, rasters, out, config, known, aoi)

    @keyword_settings(ReviewConfig)
    def review(self, out: StrPath, *, tiles: StrPath | None = None, config: ReviewConfig) -> Review:
        """Write error maps, the worst tiles and suspected label errors into a folder. See `geograft.review`."""
        return review(self.paths, out, tiles, config)

    def report(
        self, out: StrPath | None = None, class_map: StrPath | None = None, tiles: StrPath | None = None
    ) -> "geograft.commands.report.Report":
        """Write a self-contained HTML page, by default into the run folder. See `geograft.report`."""
        from geograft.commands.report import report  # noqa: PLC0415  (imports torch)

        return report(self._only_path("report"), out, class_map, tiles)

    def __fspath__(self) -> str:
        return str(self._only_path("a function that takes one run"))

    def _repr_html_(self) -> str:
        return html_table(self.name, [(name, str(value)) for name, value in self._facts().items()])

    def _facts(self) -> Mapping[str, Any]:
        card = self.card
        size = "not georeferenced" if card.resolution_m is None else f"{card.resolution_m:.3g} m"
        network = card.model.encoder if card.model.architecture != "unet" else "without pretrained encoder"
        facts = {
            "folder": ", ".join(map(str, self.paths)),
            "classes": ", ".join(card.legend.names) + (" (overlapping)" if card.legend.overlapping else ""),
            "bands": f"{', '.join(card.band_names)} ({card.dtype})",
            "pixel size": size,
            "network": f"{card.model.architecture}, {network}; weights: {card.weights_from}",
            "thresholds": ", ".join(f"{name} {value:.3g}" for name, value in self.thresholds.items()),
            "calibrated on": card.calibrated,
            "validation": ", ".join(f"{name} {value:.3f}" for name, value in card.scores.items()),
            "epochs": f"{card.epochs}, the best is {card.epoch}" + ("" if card.finished else "; not finished"),
        }
        return {name: text for name, text in facts.items() if text}

    def _model(self, config: InferenceConfig) -> RunModel:
        cards = [card.content for card in read_cards(self.paths)]
        key = f"{json_digest({'cards': cards})} {config}"
        return self._models.setdefault(key, RunModel.open(self.paths, config))

    def _only_path(self, what: str) -> Path:
        if len(self.paths) > 1:
            raise SettingError(f"{what} needs one run, not {len(self.paths)}. Load one of them.")
        return self.paths[0]


def load(run: StrPath | Sequence[StrPath]) -> Run:
    """Open a run, or several as an ensemble: `geograft.load("runs/trees").predict("scene.tif", "map.tif")`.

    Reads the card; weights are loaded when they are needed.

    Raises:
        InputError: if it is not a run, or the runs differ in classes, bands, dtype or indices.
        SettingError: without any run.
    """
    paths = to_runs(run)
    if not paths:
        raise SettingError("no run. Give the folder of one, or of several.")
    read_cards(paths)
    return Run(paths)
