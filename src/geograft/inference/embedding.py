"""Encoder features of image cells, and the training features of a run, from which its area of applicability follows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Integer, Shaped
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from geograft.card import ModelCard
from geograft.inference.torch_networks import read_network
from geograft.metrics.applicability import Applicability, fit_applicability
from geograft.networks.device import deterministic_algorithms, find_device, memory_format_for
from geograft.networks.network import Network, pad_to_multiple
from geograft.progress import track
from geograft.training.loader import Scaling, Tiles, image_mask

MIN_VALID_FRACTION = 0.5
"""Minimum fraction of valid pixels for a cell to have features."""


def cell_features(
    network: Network, images: Float[Tensor, "n bands h w"], cell_px: int
) -> Float[Tensor, "n d rows cols"]:
    """Return the mean of each channel of all encoder stages, concatenated, in square cells of an image.

    Shallow stages describe light, haze and colour, deep ones objects and land cover. `images` are scaled as for the
    network, which is in evaluation mode. Cells start at the upper left; the last ones may extend beyond the image,
    which is then padded by reflection. Costs one forward pass of the encoder.

    Raises:
        ValueError: if `cell_px` is not a multiple of the network's stride.
    """
    if cell_px % network.body.stride:
        raise ValueError(f"cells of {cell_px} pixels are not a multiple of the network's stride, {network.body.stride}")
    rows, cols = (-(-length // cell_px) for length in images.shape[2:])
    with torch.inference_mode():
        maps = network.body.maps(pad_to_multiple(images, cell_px))
        pooled = [avg_pool2d(x.float(), cell_px // step) for x, step in zip(maps, network.body.strides, strict=True)]
        return torch.cat(pooled, dim=1)[..., :rows, :cols]


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
    features: Float[Tensor, "n d rows cols"], cells: Bool[ndarray, "n rows cols"]
) -> Float32[ndarray, "m d"]:
    """Return the features of the given cells as rows, image by image in row-major order."""
    table: Float32[ndarray, "m d"] = features.permute(0, 2, 3, 1).numpy(force=True)[cells]
    return table


CELL_PX = 64
"""Cell size in pixels; smaller for smaller tiles."""
MAX_CELLS = 1000
"""Approximate maximum number of training cells to keep."""
BATCH = 8


class CellEncoder:
    """A trained network's encoder that computes the features of the cells of unscaled image frames.

    Attributes:
        cell_px: cell size, CELL_PX or the largest multiple of the network's stride that fits into a tile.
        frame_px: frame size, as many whole cells as fit into a tile.
    """

    def __init__(self, network: Network, scaling: Scaling, tile_px: int, device: str = "auto") -> None:
        stride = network.body.stride
        self.cell_px = max(stride, min(CELL_PX, tile_px) // stride * stride)
        self.frame_px = max(1, tile_px // self.cell_px) * self.cell_px
        self._device = torch.device(find_device(device))
        self._scaling = scaling
        self._network = network.to(self._device, memory_format=memory_format_for(self._device)).eval()  # type: ignore[call-overload]

    @property
    def cells(self) -> int:
        """The number of cells of a frame."""
        return (self.frame_px // self.cell_px) ** 2

    def __call__(
        self, pixels: Shaped[ndarray, "n b t t"], valid: Bool[ndarray, "n t t"]
    ) -> tuple[Float32[ndarray, "m d"], Bool[ndarray, "n rows cols"]]:
        """Return the features of the cells with at least half of their pixels valid, and a mask of these cells.

        `pixels` are not yet scaled, in the images' dtype. Invalid pixels and NaN values are replaced by the mean.
        """
        scaled = self._scaling(pixels.astype(np.float32))
        scaled = np.where(valid[:, None] & ~np.isnan(scaled), scaled, np.float32(0))
        with deterministic_algorithms(self._device):
            images = torch.from_numpy(scaled).to(self._device, memory_format=memory_format_for(self._device))
            features = cell_features(self._network, images, self.cell_px)
        cells = valid_cells(valid, self.cell_px)
        return feature_rows(features, cells), cells


def load_cell_encoder(run: Path, card: ModelCard, device: str = "auto") -> CellEncoder:
    """Return the encoder of the best network of a run folder with the given card.

    Raises:
        InputError: if the weights are missing, truncated or from another network.
        SettingError: for a device that this machine does not have.
    """
    return CellEncoder(read_network(run, card), Scaling(card.mean, card.std), card.tile_px, device)


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
