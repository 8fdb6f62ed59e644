"""Encoder features of image cells, by any backend: for the area of applicability and for suggestions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Integer, Shaped
from numpy import ndarray

from geograft.card import ModelCard
from geograft.inference.backends import load_backend
from geograft.inference.predictor import scaled_pixels, typical_tile
from geograft.inference.runners import BackendOptions, LoadedBackend, TrainedNetwork
from geograft.labels import image_mask
from geograft.metrics.applicability import Applicability, fit_applicability
from geograft.progress import track

if TYPE_CHECKING:
    from geograft.training.loader import Tiles

MIN_VALID_FRACTION = 0.5
"""Minimum fraction of valid pixels for a cell to have features."""
CELL_PX = 64
"""Cell size in pixels; smaller for smaller tiles."""


def valid_cells(valid: Bool[ndarray, "n h w"], cell_px: int) -> Bool[ndarray, "n rows cols"]:
    """Return which cells of images have features: those with at least half of their pixels valid."""
    n, height, width = valid.shape
    rows, cols = -(-height // cell_px), -(-width // cell_px)
    whole = np.zeros((n, rows * cell_px, cols * cell_px), np.float32)
    whole[:, :height, :width] = valid
    fractions = whole.reshape(n, rows, cell_px, cols, cell_px).mean(axis=(2, 4))
    usable: Bool[ndarray, "n rows cols"] = fractions >= MIN_VALID_FRACTION
    return usable


def feature_rows(
    features: Float32[ndarray, "n d rows cols"], cells: Bool[ndarray, "n rows cols"]
) -> Float32[ndarray, "m d"]:
    """Return the features of the given cells as rows, image by image in row-major order."""
    table: Float32[ndarray, "m d"] = features.transpose(0, 2, 3, 1)[cells]
    return table


def cell_sizes(stride: int, tile_px: int) -> tuple[int, int]:
    """Return the sides of a cell and of a frame in pixels, for a network and its training tiles.

    A cell has CELL_PX or the largest multiple of the stride that fits into a tile; a frame as many whole cells as fit.
    """
    cell_px = max(stride, min(CELL_PX, tile_px) // stride * stride)
    return cell_px, max(1, tile_px // cell_px) * cell_px


class CellEncoder:
    """A trained network's encoder that computes the features of the cells of unscaled image frames.

    Attributes:
        cell_px: side of a cell in pixels.
        frame_px: side of a frame in pixels.
    """

    def __init__(self, card: ModelCard, backend: LoadedBackend, cell_px: int, frame_px: int) -> None:
        """Use a backend that was loaded for cells of `cell_px` pixels."""
        self.cell_px, self.frame_px = cell_px, frame_px
        self._card, self._backend = card, backend

    @property
    def cells(self) -> int:
        """The number of cells of a frame."""
        return (-(-self.frame_px // self.cell_px)) ** 2

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> tuple[Float32[ndarray, "m d"], Bool[ndarray, "n rows cols"]]:
        """Return the features of the cells with at least half of their pixels valid, and a mask of these cells.

        `pixels` are not yet scaled, in the images' dtype. Invalid pixels and NaN values are replaced by the mean.
        """
        scaled = scaled_pixels(pixels, valid, self._card.mean, self._card.std)
        features = self._backend.workers.map(self._backend.runners[0], scaled)
        cells = valid_cells(valid, self.cell_px)
        return feature_rows(features, cells), cells


def load_cell_encoder(
    run: Path, card: ModelCard, device: str = "auto", backend: str = "auto", frame_px: int = 0
) -> CellEncoder:
    """Return the encoder of the best network of a run folder with the given card.

    Frames have `frame_px` pixels, with incomplete cells at the edge if that is no multiple; 0: the whole cells that
    fit into a tile.

    Raises:
        InputError: if the weights are missing, truncated or from another network.
        SettingError: for a device that this machine does not have.
    """
    cell_px, whole_px = cell_sizes(card.stride or _stride(run, card), card.tile_px)
    frame_px = frame_px or whole_px
    pixels, valid = typical_tile(card, frame_px)
    network = TrainedNetwork(run, card, scaled_pixels(pixels, valid, card.mean, card.std), cell_px)
    return CellEncoder(card, load_backend([network], BackendOptions(backend, device)), cell_px, frame_px)


def _stride(run: Path, card: ModelCard) -> int:
    from geograft.inference.torch_networks import read_network  # noqa: PLC0415  (imports torch)

    return read_network(run, card).body.stride


MAX_CELLS = 1000
"""Approximate maximum number of training cells to keep."""
BATCH = 8


def fit_training_features(
    encoder: CellEncoder, tiles: "Tiles", chosen: Sequence[int], units: Integer[ndarray, " n"]
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
    edge: int, tiles: "Tiles", chosen: Sequence[int]
) -> tuple[Float32[ndarray, "n b t t"], Bool[ndarray, "n t t"]]:
    """Return the upper left frame of tiles, and which of its pixels have an image."""
    frames = [(image[:, :edge, :edge], label[..., :edge, :edge]) for image, label in (tiles[index] for index in chosen)]
    return np.stack([image for image, _ in frames]), np.stack([image_mask(image, label) for image, label in frames])
