"""Maps in plain PyTorch for comparison: a loop over tiles, the centres of tiles, and a whole image.

Nothing here is optimised, and Geograft uses none of it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import rasterio
import torch
from numpy import ndarray
from rasterio.windows import Window

from geograft.card import WEIGHTS, ModelCard, read_card
from geograft.networks.network import Network, build
from geograft.training.checkpoint import load_weights

Predict: TypeAlias = Callable[[ndarray], ndarray]
"""Raw tiles, (n, b, h, w) -> the probability of class 1, (n, h, w), float32."""


def load_network(run: Path) -> tuple[ModelCard, Network]:
    """Return a run's card and its network in evaluation mode."""
    card = read_card(run)
    network = build(card.model, len(card.band_names), card.legend.outputs, pretrained=False)
    load_weights(run / WEIGHTS, network)
    return card, network.eval()


def eager_predictor(card: ModelCard, network: Network) -> Predict:
    """Return a plain predictor: float32, eager, the default memory format."""
    mean = torch.tensor(card.mean).reshape(-1, 1, 1)
    std = torch.tensor(card.std).reshape(-1, 1, 1)

    def predict(tiles: ndarray) -> ndarray:
        with torch.no_grad():
            logits = network((torch.from_numpy(tiles).float() - mean) / std)
            result: ndarray = torch.sigmoid(logits / card.temperature)[:, 0].numpy()
            return result

    return predict


def plain_loop(predict: Predict, raster: Path, tile: int, overlap: float, batch: int) -> ndarray:
    """Return the mean of all tiles at each pixel, (h, w), from tiles read one by one and sums in memory."""
    with rasterio.open(raster) as source:
        sums = np.zeros((source.height, source.width), np.float32)
        counts = np.zeros((source.height, source.width), np.float32)
        corners = list(tile_corners(source.height, source.width, tile, round(tile * (1 - overlap))))
        for start in range(0, len(corners), batch):
            batch_corners = corners[start : start + batch]
            tiles = [source.read(window=Window(col, row, tile, tile)) for row, col in batch_corners]
            for (row, col), probability in zip(batch_corners, predict(np.stack(tiles)), strict=True):
                sums[row : row + tile, col : col + tile] += probability
                counts[row : row + tile, col : col + tile] += 1
    result: ndarray = sums / counts
    return result


def tile_corners(height: int, width: int, tile: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners of tiles that cover a raster. The last ones are aligned with its edges."""
    for row in [*range(0, height - tile, stride), height - tile]:
        for col in [*range(0, width - tile, stride), width - tile]:
            yield row, col


def cropped_map(predict: Predict, image: ndarray, tile: int, stride: int) -> ndarray:
    """Return the map made of the central `stride` x `stride` pixels of each tile, (h, w).

    The image, (b, h, w), is mirrored at its borders. If the stride is the tile size, whole tiles lie side by side.
    """
    height, width = image.shape[1:]
    before = (tile - stride) // 2
    after = (before + stride + tile, before + stride + tile)
    padded = np.pad(image, ((0, 0), (before, after[0]), (before, after[1])), mode="symmetric")
    result = np.empty((height, width), np.float32)
    for row in range(0, height, stride):
        for col in range(0, width, stride):
            found = predict(padded[None, :, row : row + tile, col : col + tile])[0]
            centre = found[before : before + stride, before : before + stride]
            result[row : row + stride, col : col + stride] = centre[: height - row, : width - col]
    return result


def write_map(classes: ndarray, like: Path, out: Path) -> None:
    """Write classes, (h, w) uint8, as a GeoTIFF on another raster's grid."""
    with rasterio.open(like) as source:
        profile = source.profile | {"count": 1, "dtype": "uint8", "nodata": 255, "compress": "deflate"}
    profile.pop("photometric", None)
    with rasterio.open(out, "w", **profile) as target:
        target.write(classes, 1)
