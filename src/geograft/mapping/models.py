"""One or several runs as a model of windows: the way in which maps, scores, calibrations and suggestions are predicted.

All of them choose windows, backend, precision and TTA here, so that a score is that of the map.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from geograft.card import ModelCard, ensemble_card
from geograft.config import InferenceConfig
from geograft.inference.predictor import EnsemblePredictor, PixelBatch
from geograft.mapping.places import read_cards_at


@dataclass
class RunModel:
    """Runs and how they predict. Their predictors are loaded when a window size is first used."""

    runs: tuple[Path, ...]
    card: ModelCard
    """Card of the ensemble."""
    settings: InferenceConfig
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of `EnsemblePredictor.load`."""
    loaded: dict[int, EnsemblePredictor] = field(default_factory=dict)
    """The predictors by the size of their windows."""

    @classmethod
    def open(cls, runs: Path | Sequence[Path], settings: InferenceConfig, **options: Any) -> "RunModel":
        """Read the cards of runs, with the thresholds of the settings' place; weights are loaded later.

        Raises:
            InputError: if one of `runs` is not a run, differs from the first in classes, bands or dtype, or does not
                have the place.
        """
        several = (runs,) if isinstance(runs, Path) else tuple(runs)
        cards = read_cards_at(several, settings.place)
        return cls(several, ensemble_card(cards), settings, options | {"cards": cards})

    @property
    def layers(self) -> int:
        """The number of layers that its predictors return."""
        return self.card.legend.outputs + bool(self.options.get("spread"))

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks of the predictors for the user, one line each."""
        return tuple(dict.fromkeys(note for model in self.loaded.values() for note in model.notes))

    def predictor(self, window_px: int, batch_size: int, sample: Callable[[], PixelBatch | None]) -> EnsemblePredictor:
        """Return the predictor for windows of `window_px` pixels. Backends are compared on the windows of `sample`.

        The backend of the first size is that of all: which is the fastest may differ between sizes and from day to day.

        Raises:
            InputError: if weights cannot be used.
            SettingError: if the device or the backend is not available.
        """
        if window_px not in self.loaded:
            found = sample()
            options = {"sample": found} if found else {}
            backend = next((one.backend for one in self.loaded.values()), self.settings.backend)
            self.loaded[window_px] = EnsemblePredictor.load(
                self.runs,
                device=self.settings.device,
                backend=backend,
                tta=self.settings.tta,
                batch_size=batch_size,
                window_px=window_px,
                **(self.options | options),
            )
        return self.loaded[window_px]

    def with_backend(self, backend: Literal["auto", "torch", "onnx", "openvino"]) -> "RunModel":
        """Return the model with another setting of the backend, and nothing loaded."""
        return replace(self, settings=replace(self.settings, backend=backend), loaded={})
