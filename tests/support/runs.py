"""Run folders for tests of prediction, and predictors that do not need torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from geograft.card import WEIGHTS, ModelCard, read_card
from geograft.config import ModelConfig
from geograft.inference.embedding import CellEncoder
from geograft.inference.predictor import EnsemblePredictor
from geograft.legend import Legend
from geograft.mapping.plan import MAX_BATCH_WINDOWS

TREES = Legend(("other", "trees"), (1, 2))
COVERS = Legend(("water", "grass", "crops", "trees"), (10, 20, 30, 7))
USES = Legend(("crops", "trees", "roads"), overlapping=True)


class PixelwisePredictor(EnsemblePredictor):
    """Predicts from each pixel of the first band: p = value / 255, or classes by quarters of 255.

    With several runs, each gets the values divided by its number, counted from 1.
    """

    OPTIONAL = frozenset({"compile", "spread", "spread_views", "temperature", "cards", "compare", "sample"})

    def __init__(self, card: ModelCard, runs: int = 1, spread: bool = False, window_px: int = 0) -> None:
        self.card, self.runs, self.spread, self.window_px = card, runs, spread, window_px
        self.batch_size = MAX_BATCH_WINDOWS
        self.layers = card.legend.outputs + spread

    @classmethod
    def load(cls, runs: Sequence[Path], **options: Any) -> "PixelwisePredictor":
        assert options.keys() - cls.OPTIONAL == {"device", "backend", "tta", "batch_size", "window_px"}
        card = options["cards"][0] if "cards" in options else read_card(runs[0])
        predictor = cls(card, len(runs), options.get("spread", False), options["window_px"])
        predictor.batch_size = options["batch_size"]
        return predictor

    def __call__(self, pixels: ndarray, valid: ndarray) -> ndarray:
        assert pixels.dtype == self.card.dtype
        assert 1 <= len(pixels) == len(valid) <= self.batch_size
        assert pixels.shape[2:] == valid.shape[1:] == (self.window_px or valid.shape[1],) * 2
        mean = np.array(self.card.mean, np.float32)[:, None, None]
        seen = np.where(valid[:, None], pixels.astype(np.float32), mean)
        each = np.stack([self.predict_run(seen / np.float32(run + 1)) for run in range(self.runs)])
        layers = each.mean(axis=0)[:, 1:] if self.card.legend.binary else each.mean(axis=0)
        spread = [each.std(axis=0).max(axis=1, keepdims=True)] if self.spread else []
        found: ndarray = np.concatenate([layers, *spread], axis=1).astype(np.float32)
        return found

    def predict_run(self, seen: ndarray) -> ndarray:
        """Return the class probabilities of one run."""
        first = seen[:, 0] / np.float32(255)
        if self.card.legend.binary:
            return np.stack([1 - first, first], axis=1)
        quarters = np.minimum((first * 4).astype(int), 3)
        likely = (np.arange(4)[None, :, None, None] == quarters[:, None]).astype(np.float32)
        probabilities: ndarray = np.float32(0.1) + np.float32(0.6) * likely
        return probabilities


class ContextPredictor(PixelwisePredictor):
    """Predicts from the whole tile and the position in it, as networks do."""

    def predict_run(self, seen: ndarray) -> ndarray:
        assert np.isfinite(seen).all()
        mean = seen.mean(axis=(1, 2, 3))[:, None, None]
        place = np.add(*np.indices(seen.shape[2:]))
        p = (0.5 + 0.4 * np.sin(seen[:, 0] / 40 + mean + 0.2 * place)).astype(np.float32)
        rest = (1 - p) / (len(self.card.legend.names) - 1)
        return np.stack([rest] * (len(self.card.legend.names) - 1) + [p], axis=1)


class BandPredictor(PixelwisePredictor):
    """Predicts each overlapping class from its own band: value / 255."""

    def predict_run(self, seen: ndarray) -> ndarray:
        probabilities: ndarray = seen[:, : len(self.card.legend.names)] / np.float32(255)
        return probabilities


class MeanEmbedder:
    """An encoder whose features of a cell are the means of its bands."""

    cell_px, frame_px = 16, 32

    def __call__(self, pixels: ndarray, valid: ndarray) -> tuple[ndarray, ndarray]:
        n, bands, size, _ = pixels.shape
        features = pixels.reshape(n, bands, size // 16, 16, size // 16, 16).mean(axis=(3, 5), dtype=np.float32)
        known = valid.reshape(n, size // 16, 16, size // 16, 16).mean(axis=(2, 4)) >= 0.5
        return features.transpose(0, 2, 3, 1)[known], known


class BandMeans(MeanEmbedder, CellEncoder):
    """The same, times `scale`, in place of a loaded encoder."""

    scale = 1.0

    def __init__(self) -> None: ...

    def __call__(self, pixels: ndarray, valid: ndarray) -> tuple[ndarray, ndarray]:
        features, known = super().__call__(pixels, valid)
        return features * np.float32(self.scale), known


def make_run(folder: Path, legend: Legend = TREES, **changes: object) -> Path:
    """Write a run folder with a card and a placeholder for the weights."""
    folder.mkdir(parents=True)
    known = {"name": "run", "band_names": ("red", "green", "blue"), "dtype": "uint8"}
    known |= {"mean": (90.0, 100.0, 110.0), "std": (50.0,) * 3}
    use = {"tile_px": 32, "resolution_m": 0.1, "threshold": 0.5, "epoch": 3, "weights_from": "random"}
    model = ModelConfig(architecture="unet")
    card = ModelCard(model=model, legend=legend, **{**known, **use, **changes})  # type: ignore[arg-type]
    card.write(folder)
    (folder / WEIGHTS).write_bytes(b"none")
    return folder
