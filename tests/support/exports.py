"""Runs of tiny networks with random weights, to export, by kind of task."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from geograft.card import WEIGHTS, ModelCard
from geograft.config import ModelConfig
from geograft.indices import Index
from geograft.legend import Legend
from geograft.networks.network import Network, build
from geograft.training.checkpoint import save_weights
from tests.support.training import TinyNetwork

TF_MODEL = ModelConfig(weights="none", encoder="tf_mobilenetv3_small_minimal_100")
"""A small encoder with TensorFlow-like padding."""
BINARY = ModelCard(
    name="crowns",
    model=ModelConfig(architecture="unet"),
    weights_from="random",
    legend=Legend(("rest", "crown")),
    band_names=("red", "green", "blue"),
    dtype="uint8",
    mean=(130.0, 90.5, 60.0),
    std=(30.0, 20.0, 10.0),
    tile_px=32,
    resolution_m=0.1,
    threshold=0.4,
    epoch=1,
    temperature=1.7,
)
RED_EDGE = tuple(f"B{number}" for number in range(10))
NDVI = Index("ndvi", "(b4 - b1) / (b4 + b1)")
OVERLAPPING = Legend(("red", "green"), overlapping=True)

KINDS: Mapping[str, ModelCard] = {
    "binary": BINARY,
    "several classes": replace(BINARY, legend=Legend(("water", "grass", "trees"), (1, 2, 7))),
    "overlapping": replace(BINARY, legend=OVERLAPPING, thresholds=(0.4, 0.4)),
    "ten bands, not georeferenced": replace(
        BINARY, band_names=RED_EDGE, dtype="float32", mean=(0.12,) * 10, std=(0.04,) * 10, resolution_m=None
    ),
    "four bands and an index": replace(
        BINARY,
        band_names=("red", "green", "blue", "nir", "ndvi"),
        dtype="uint16",
        mean=(900.0, 1000.0, 1100.0, 2500.0, 0.45),
        std=(150.0, 150.0, 150.0, 400.0, 0.1),
        indices=(NDVI,),
    ),
}
"""Cards by what is special about them."""


def tiny(_model: ModelConfig, bands: int, outputs: int, pretrained: bool = True) -> Network:
    """Return a network that is exported in a moment."""
    assert not pretrained
    return TinyNetwork(bands, outputs)


def make_run(folder: Path, card: ModelCard = BINARY, network: Callable[..., Network] = build, **changes: Any) -> Path:
    """Write a run of a network with random weights whose probabilities are neither all alike nor all certain."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    card = replace(card, **changes)
    trained = network(card.model, len(card.band_names), card.legend.outputs, pretrained=False).train()
    for module in trained.modules():
        module.momentum = 1.0  # type: ignore[assignment]
    with torch.no_grad():
        side = 64
        noise = torch.randn(8, len(card.band_names), side, side)
        patches = noise[..., : side // 8, : side // 8].repeat_interleave(8, 2).repeat_interleave(8, 3)
        # Batch norm takes the statistics of these images.
        trained((noise + patches) / 2**0.5)
        trained.body.head.weight *= 3
    card.write(folder)
    save_weights(folder / WEIGHTS, trained)
    return folder
