"""What an encoder sees in each cell of an image, as one row of numbers: features to tell known ground from unknown.

What a run knows of the ground: features of cells of its training tiles, as its own encoder sees them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Integer, Shaped
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from geograft.card import ModelCard
from geograft.inference.predictor import read_network
from geograft.metrics.applicability import Applicability, fit
from geograft.networks.device import find_device, layout, repeatable
from geograft.networks.network import Network, padded
from geograft.progress import track
from geograft.training.loader import Scaling, Tiles, imaged

LEAST_VALID = 0.5
"""A cell with a smaller share of valid pixels has no features."""


def cell_features(
    network: Network, images: Float[Tensor, "n bands h w"], cell_px: int
) -> Float[Tensor, "n d rows cols"]:
    """Return the mean of each channel of each encoder stage in square cells of an image, all stages side by side.

    Shallow stages tell light, haze and colour, deep ones what is there. `images` are scaled as for the network, which
    is in evaluation mode, and `cell_px` is a multiple of its stride. Cells are counted from the upper left; the last
    ones may reach beyond the image, where it is mirrored. Costs one pass of the encoder.

    Raises:
        ValueError: when `cell_px` is no multiple of the network's stride.
    """
    if cell_px % network.body.stride:
        raise ValueError(f"cells of {cell_px} pixels are no multiple of the network's stride, {network.body.stride}")
    rows, cols = (-(-length // cell_px) for length in images.shape[2:])
    with torch.inference_mode():
        maps = network.body.maps(padded(images, cell_px))
        pooled = [avg_pool2d(x.float(), cell_px // step) for x, step in zip(maps, network.body.strides, strict=True)]
        return torch.cat(pooled, dim=1)[..., :rows, :cols]


def known_cells(valid: Bool[ndarray, "n h w"], cell_px: int) -> Bool[ndarray, "n rows cols"]:
    """Return which cells of images have features: those of which at least half is valid."""
    n, height, width = valid.shape
    rows, cols = -(-height // cell_px), -(-width // cell_px)
    whole = np.zeros((n, rows * cell_px, cols * cell_px), np.float32)
    whole[:, :height, :width] = valid
    shares = whole.reshape(n, rows, cell_px, cols, cell_px).mean(axis=(2, 4))
    known: Bool[ndarray, "n rows cols"] = shares >= LEAST_VALID
    return known


def as_rows(features: Float[Tensor, "n d rows cols"], known: Bool[ndarray, "n rows cols"]) -> Float32[ndarray, "m d"]:
    """Return the features of the known cells, image by image, row by row."""
    table: Float32[ndarray, "m d"] = features.permute(0, 2, 3, 1).numpy(force=True)[known]
    return table


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
