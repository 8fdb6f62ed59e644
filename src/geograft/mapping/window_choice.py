"""Choose the windows in which the maps of a run are predicted, on its validation tiles.

Larger windows compute fewer pixels twice, and are faster; but a network that was trained on small tiles may do better
on windows of their size, whose borders it knows, at half overlap, where the mean of several predictions is taken.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from geograft.card import OVERLAP_PX, WINDOW_PX, ModelCard
from geograft.config import InferenceConfig
from geograft.dataset.tileset import TileSet
from geograft.mapping.held_out import evenly_spaced, predict_tiles
from geograft.mapping.models import RunModel
from geograft.metrics.confusion import ConfusionScheme

TOLERANCE = 0.005
"""IoU that faster windows may lose."""
MAX_TILES = 200
"""Maximum number of validation tiles, spread evenly over the split."""


def window_candidates(tile_px: int) -> list[tuple[int, int]]:
    """Return sizes and overlaps of windows in pixels, the fastest first; the last are training tiles at half overlap.

    >>> window_candidates(160)
    [(640, 80), (320, 80), (160, 80)]
    >>> window_candidates(1000)
    [(1000, 80), (1000, 500)]
    """
    large = [(size, OVERLAP_PX) for size in (WINDOW_PX, WINDOW_PX // 2) if size > tile_px]
    return [*(large or [(tile_px, min(OVERLAP_PX, tile_px // 2))]), (tile_px, tile_px // 2)]


def with_window(card: ModelCard, window: tuple[int, int]) -> ModelCard:
    """Return the card with windows of this size and overlap, in pixels."""
    return replace(card, window_px=window[0], overlap_px=window[1])


def choose_window(run: Path, card: ModelCard, tile_set: TileSet, device: str) -> ModelCard:
    """Return the card with the fastest windows whose IoU on validation tiles is within TOLERANCE of the best.

    Without validation tiles these are training tiles at half overlap, the safest. Costs a prediction of at most
    MAX_TILES tiles for each candidate, with torch. Deterministic on one machine.

    Raises:
        InputError: if an image cannot be read.
    """
    candidates = [with_window(card, window) for window in window_candidates(card.tile_px)]
    tiles = tile_set.split("val")
    if not tiles:
        return candidates[-1]
    ious = [_iou(run, candidate, tile_set, device) for candidate in candidates]
    best = np.nanmax(ious) if not np.isnan(ious).all() else np.nan
    good = [candidate for candidate, iou in zip(candidates, ious, strict=True) if iou >= best - TOLERANCE]
    return (good or candidates)[0]


def _iou(run: Path, card: ModelCard, tile_set: TileSet, device: str) -> float:
    """Return the headline IoU of the map on validation tiles, every pixel once; NaN if it is undefined."""
    samples, scheme = tile_set.samples("val", unique_pixels=True), ConfusionScheme.from_legend(card.legend)
    chosen = evenly_spaced(len(samples), MAX_TILES)
    model = RunModel((run,), card, InferenceConfig(backend="torch", device=device), {"cards": (card,)})
    total = scheme.zeros()
    tiles = [samples.tiles[index] for index in chosen]
    for tile in predict_tiles(model, tile_set, tiles, f"windows of {card.window[0]} px"):
        total += scheme.confusion(scheme.to_classes(samples[chosen[tile.index]][1]), tile.classes)
    return float(scheme.headline(total)["iou"])
