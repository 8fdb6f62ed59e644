"""What a run knows of the ground: features of cells of its training tiles, as its own encoder sees them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Integer, Shaped
from numpy import ndarray

from geograft.applicability import Applicability, fit
from geograft.card import ModelCard
from geograft.learn.device import find_device, layout, repeatable
from geograft.learn.feeding.feed import Scaling, Tiles, imaged
from geograft.learn.networks.network import Network
from geograft.learn.networks.pooled import as_rows, cell_features, known_cells
from geograft.learn.using.inference import read_network
from geograft.progress import track

CELL_PX = 64
"""Edge of a cell in pixels; less where tiles are smaller."""
MOST_CELLS = 1000
"""About so many cells of training tiles are kept."""
BATCH = 8


class Encoder:
    """A trained network's encoder: it takes frames of images as they are and gives features of their cells.

    Attributes:
        cell_px: edge of a cell, CELL_PX, or the most that fits a tile and the network.
        frame_px: edge of a frame, the most whole cells that fit a tile: what the network sees at once.
    """

    def __init__(self, network: Network, scaling: Scaling, tile_px: int, device: str = "auto") -> None:
        stride = network.body.stride
        self.cell_px = max(stride, min(CELL_PX, tile_px) // stride * stride)
        self.frame_px = max(1, tile_px // self.cell_px) * self.cell_px
        self._device = torch.device(find_device(device))
        self._scaling = scaling
        self._network = network.to(self._device, memory_format=layout(self._device)).eval()  # type: ignore[call-overload]

    @property
    def cells(self) -> int:
        """How many cells a frame has."""
        return (self.frame_px // self.cell_px) ** 2

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> tuple[Float32[ndarray, "m d"], Bool[ndarray, "n rows cols"]]:
        """Return the features of the cells of which at least half is valid, and which these are.

        `pixels` are in the images' own units and number format; pixels that are not valid, and bands that are
        NaN, are shown as the mean.
        """
        scaled = self._scaling(pixels.astype(np.float32))
        scaled = np.where(valid[:, None] & ~np.isnan(scaled), scaled, np.float32(0))
        with repeatable(self._device):
            images = torch.from_numpy(scaled).to(self._device, memory_format=layout(self._device))
            features = cell_features(self._network, images, self.cell_px)
        known = known_cells(valid, self.cell_px)
        return as_rows(features, known), known


def load_encoder(run: Path, card: ModelCard, device: str = "auto") -> Encoder:
    """Return the encoder of the best network of a run folder, which `card` describes.

    Raises:
        InputError: when the weights are missing, truncated or of another network.
        SettingError: for a device that this machine does not have.
    """
    return Encoder(read_network(run, card), Scaling(card.mean, card.std), card.tile_px, device)


def known_ground(
    encoder: Encoder, tiles: Tiles, chosen: Sequence[int], units: Integer[ndarray, " n"]
) -> Applicability | None:
    """Return what a model knows that was trained on `chosen` tiles, each of a unit of the split: no two share a pixel.

    The units are the folds of the cross-validation. None where there is nothing to compare: fewer than two units with
    features, or nothing but equal cells. Costs one pass of the encoder over the tiles.
    """
    features: list[ndarray] = []
    folds: list[ndarray] = []
    starts = range(0, len(chosen), BATCH)
    for start in track(starts, len(starts), "known ground", "batches"):
        some = slice(start, start + BATCH)
        rows, known = encoder(*_frames(encoder.frame_px, tiles, chosen[some]))
        features.append(rows)
        folds.append(np.repeat(units[some], known.sum(axis=(1, 2))))
    try:
        found = fit(np.concatenate(features), np.concatenate(folds))
    except ValueError:
        return None
    return found if found.threshold > 0 else None


def _frames(
    edge: int, tiles: Tiles, chosen: Sequence[int]
) -> tuple[Float32[ndarray, "n b t t"], Bool[ndarray, "n t t"]]:
    """Return the upper left part of tiles, and which of its pixels have an image."""
    read = [(image[:, :edge, :edge], label[..., :edge, :edge]) for image, label in (tiles[index] for index in chosen)]
    return np.stack([image for image, _ in read]), np.stack([imaged(image, label) for image, label in read])
