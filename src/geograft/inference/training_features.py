"""The training features of a run: encoder features of its training tiles, for its area of applicability."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Integer
from numpy import ndarray

from geograft.inference.embedding import CellEncoder
from geograft.metrics.applicability import Applicability, fit_applicability
from geograft.progress import track
from geograft.training.loader import Tiles, image_mask

MAX_CELLS = 1000
"""Approximate maximum number of training cells to keep."""
BATCH = 8


def fit_training_features(
    encoder: CellEncoder, tiles: Tiles, chosen: Sequence[int], units: Integer[ndarray, " n"]
) -> Applicability | None:
    """Return the area of applicability of a model trained on the `chosen` tiles, from the features of their cells.

    No two tiles share a pixel. `units` are the split units of the tiles, which are the folds of the cross-validation.
    Returns None if fewer than two units have features or all cells are equal. Costs one encoder pass over the tiles.
    """
    features: list[ndarray] = []
    folds: list[ndarray] = []
    starts = range(0, len(chosen), BATCH)
    for start in track(starts, len(starts), "training features", "batches"):
        batch = slice(start, start + BATCH)
        rows, cells = encoder(*_frames(encoder.frame_px, tiles, chosen[batch]))
        features.append(rows)
        folds.append(np.repeat(units[batch], cells.sum(axis=(1, 2))))
    try:
        area = fit_applicability(np.concatenate(features), np.concatenate(folds))
    except ValueError:
        return None
    return area if area.threshold > 0 else None


def _frames(
    edge: int, tiles: Tiles, chosen: Sequence[int]
) -> tuple[Float32[ndarray, "n b t t"], Bool[ndarray, "n t t"]]:
    """Return the upper left frame of tiles, and which of its pixels have an image."""
    frames = [(image[:, :edge, :edge], label[..., :edge, :edge]) for image, label in (tiles[index] for index in chosen)]
    return np.stack([image for image, _ in frames]), np.stack([image_mask(image, label) for image, label in frames])
