"""Tiles of two classes that overlap: one is bright in the first band, the other in the second, each where it likes."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from tilth.learn.feeding.feed import Scaling, TrainingData
from tilth.legend import Legend

LEGEND = Legend(("red", "green"), overlapping=True)


def overlapping_tile(rng: np.random.Generator, size: int = 16) -> tuple[ndarray, ndarray]:
    """Return an image of 3 bands and the shares (2, size, size) of both classes, NaN in a corner without an image."""
    share = rng.integers(0, 2, (2, size // 4, size // 4)).repeat(4, 1).repeat(4, 2).astype(np.float32)
    image = rng.normal(100, 10, (3, size, size)).astype(np.float32)
    image[:2] += 60 * share
    image[:, :3, :3], share[:, :3, :3] = 0, np.nan
    return image, share


def overlapping_blocks(count: int, seed: int) -> list[tuple[ndarray, ndarray]]:
    rng = np.random.default_rng(seed)
    return [overlapping_tile(rng) for _ in range(count)]


def overlapping_data(**changes: Any) -> TrainingData:
    """Return 18 and 5 such tiles, and whatever `changes` says."""
    data = TrainingData(overlapping_blocks(18, 0), overlapping_blocks(5, 1), LEGEND, Scaling((130.0,) * 3, (30.0,) * 3))
    return replace(data, **{"fingerprint": "overlapping", **changes})
