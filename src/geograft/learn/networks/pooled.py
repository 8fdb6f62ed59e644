"""What an encoder sees in each cell of an image, as one row of numbers: features to tell known ground from unknown."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import avg_pool2d

from geograft.learn.networks.network import Network, padded

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
