"""Adapters for the tiled inference of other packages, where they are installed.

They may need another interpreter, which PEER_PYTHON names (docs/speed.md describes the set-up).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rasterio
import torch
from numpy import ndarray

from geograft.card import ModelCard
from geograft.networks.network import Network

Infer: TypeAlias = Callable[[ModelCard, Network, Path, Path, float, int], ndarray]
"""Card, network, raster, where to write, overlap, batch -> the probability of class 1, (h, w)."""


@dataclass(frozen=True)
class Peer:
    """Another package's tiled inference."""

    title: str
    """Package and function, for the table."""
    package: str
    """Its name on PyPI."""
    module: str
    """The module to import."""
    trimmed_px: int
    """Pixels that it discards at each side of a tile."""
    load: Callable[[], Infer]
    """Imports the package and returns its inference."""


def terratorch() -> Infer:
    """Return TerraTorch's `tiled_inference` with its defaults, except tile size, stride and batch size.

    It takes a tensor, so the whole raster is read first. It blends by a cosine ramp over the overlap.
    """
    from terratorch.tasks.tiled_inference import tiled_inference

    def infer(card: ModelCard, network: Network, raster: Path, out: Path, overlap: float, batch: int) -> ndarray:
        with rasterio.open(raster) as source:
            image = torch.from_numpy(_scaled(card, source.read()))[None]
        stride = round(card.tile_px * (1 - overlap))
        found = tiled_inference(_probability(network), image, crop=card.tile_px, stride=stride, batch_size=batch)
        result: ndarray = found[0, 0].numpy()
        return result

    return infer


def geoai() -> Infer:
    """Return geoai's `predict_geotiff` with its defaults, except tile size, overlap, batch size and scaling.

    It reads tiles one by one and writes the probabilities as float32. It blends by a squared cosine ("spline").
    """
    import geoai.utils  # noqa: F401  # imported here so that the call is not timed with it
    from geoai.inference import predict_geotiff

    def infer(card: ModelCard, network: Network, raster: Path, out: Path, overlap: float, batch: int) -> ndarray:
        written = predict_geotiff(
            _probability(network),
            str(raster),
            str(out.with_suffix(".geoai.tif")),
            tile_size=card.tile_px,
            overlap=card.tile_px - round(card.tile_px * (1 - overlap)),
            batch_size=batch,
            preprocess_fn=lambda tile: _scaled(card, tile),
            verbose=False,
        )
        with rasterio.open(written) as source:
            probability: ndarray = source.read(1)
            return probability

    return infer


PEERS = {
    "terratorch": Peer("TerraTorch, tiled_inference", "terratorch", "terratorch.tasks.tiled_inference", 8, terratorch),
    "geoai": Peer("geoai, predict_geotiff", "geoai-py", "geoai.inference", 0, geoai),
}


def _scaled(card: ModelCard, pixels: ndarray) -> ndarray:
    mean = np.array(card.mean, np.float32).reshape(-1, 1, 1)
    std = np.array(card.std, np.float32).reshape(-1, 1, 1)
    scaled: ndarray = (pixels.astype(np.float32) - mean) / std
    return scaled


def _probability(network: Network) -> Any:
    return torch.nn.Sequential(network, torch.nn.Sigmoid()).eval()
