"""Tiles predicted one by one, without blending, straight by torch: what a map without overlap must equal."""

from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from geograft.card import read_card
from geograft.config import EvaluateConfig, InferenceConfig
from geograft.dataset.tileset import Split, TileSet
from geograft.inference.torch_networks import read_network

TILEWISE = InferenceConfig(window_px=32, overlap=0.0, device="cpu", backend="torch")
"""The windows of a raster are tiles of 32 pixels side by side."""
SCORED = EvaluateConfig(window_px=32, overlap=0.0, device="cpu", backend="torch")


def tile_logits(run: Path, images: ndarray, valid: ndarray) -> ndarray:
    """Return the logits (n, outputs, h, w) of images (n, b, h, w) in their own units; (n, h, w) pixels are valid."""
    card = read_card(run)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (card.mean, card.std))
    scaled = np.where(valid[:, None], (images.astype(np.float32) - mean) / std, np.float32(0))
    with torch.inference_mode():
        logits: ndarray = read_network(run, card).eval()(torch.from_numpy(scaled)).numpy()
    return logits


def split_logits(run: Path, tiles: Path, split: Split) -> tuple[ndarray, ndarray]:
    """Return the labels (n, ...) of the tiles of a split, and their logits (n, outputs, h, w)."""
    samples = TileSet.open(tiles).samples(split, unique_pixels=True)
    shown = [samples[index] for index in range(len(samples))]
    images = np.stack([image for image, _ in shown])
    return np.stack([label for _, label in shown]), tile_logits(run, images, (images != 0).any(axis=1))
