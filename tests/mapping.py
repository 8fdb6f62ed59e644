"""Runs for tests of prediction, with networks that need no learning library."""

from pathlib import Path

import numpy as np
from numpy import ndarray

from tilth.card import WEIGHTS, ModelCard, read_card
from tilth.config import ModelConfig
from tilth.legend import Legend

TREES = Legend(("other", "trees"), (1, 2))
COVERS = Legend(("water", "grass", "crops", "trees"), (10, 20, 30, 7))


class Pointwise:
    """A network that looks at one pixel of the first band at a time: p = value / 255, or classes by quarters of 255."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "Pointwise":
        return cls(read_card(run))

    def __call__(self, batch: ndarray) -> ndarray:
        assert batch.dtype == np.float32
        first = batch[:, 0] / np.float32(255)
        if self.card.legend.binary:
            return np.stack([1 - first, first], axis=1)
        quarters = np.minimum((first * 4).astype(int), 3)
        likely = (np.arange(4)[None, :, None, None] == quarters[:, None]).astype(np.float32)
        return np.float32(0.1) + np.float32(0.6) * likely


class Contextual(Pointwise):
    """A network that looks at the whole tile and at the place in it, as networks do."""

    def __call__(self, batch: ndarray) -> ndarray:
        assert np.isfinite(batch).all()
        mean = batch.mean(axis=(1, 2, 3))[:, None, None]
        place = np.add(*np.indices(batch.shape[2:]))
        p = (0.5 + 0.4 * np.sin(batch[:, 0] / 40 + mean + 0.2 * place)).astype(np.float32)
        rest = (1 - p) / (len(self.card.legend.names) - 1)
        return np.stack([rest] * (len(self.card.legend.names) - 1) + [p], axis=1)


def make_run(folder: Path, legend: Legend = TREES, **changes: object) -> Path:
    """Write a run folder with a card, and weights that are none."""
    folder.mkdir(parents=True)
    known = {"band_names": ("red", "green", "blue"), "dtype": "uint8", "mean": (90.0, 100.0, 110.0), "std": (50.0,) * 3}
    use = {"tile_px": 32, "resolution_m": 0.1, "threshold": 0.5, "epoch": 3}
    model = ModelConfig(architecture="unet")
    card = ModelCard(name="run", model=model, weights_from="random", legend=legend, **{**known, **use, **changes})  # type: ignore[arg-type]
    card.write(folder)
    (folder / WEIGHTS).write_bytes(b"none")
    return folder
