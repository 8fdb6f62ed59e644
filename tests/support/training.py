"""A tiny network and tiles, to train within a moment."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy import ndarray
from torch import Tensor, nn

from geograft.legend import Legend
from geograft.networks.encoder import run_stage
from geograft.networks.network import Network
from geograft.training.distributed import ProcessGroup
from geograft.training.loader import Scaling, TrainingData

Tile = tuple[ndarray, ndarray]


class Body(nn.Module):
    stride = 2

    def __init__(self, bands: int, outputs: int) -> None:
        super().__init__()
        widths = [bands, 4, 4, 4, 4, 4]
        self.stages = nn.ModuleList(self.stage(widths[i], widths[i + 1]) for i in range(5))
        self.head = nn.Conv2d(4, outputs, 1)

    def stage(self, narrow: int, wide: int) -> nn.Module:
        # Dropout, so that a wrong random state changes the result.
        return nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ELU(), nn.Dropout2d(0.05))

    def forward(self, image: Tensor) -> Tensor:
        for stage in self.stages:
            image = run_stage(stage, image)
        logits: Tensor = self.head(image)
        return logits


class TinyNetwork(Network):
    """A network with five stages of four channels."""

    weights_from, start_fraction = "random", 0.0

    def __init__(self, bands: int = 3, outputs: int = 1, frozen: int = 0, trained: bool = True, seed: int = 0) -> None:
        nn.Module.__init__(self)
        torch.manual_seed(seed)
        self.body: Any = Body(bands, outputs)
        self.frozen, self.pretrained_encoder = frozen, trained
        for stage in self.stages[:frozen]:
            stage.requires_grad_(requires_grad=False)


def blocks(count: int, seed: int, classes: int = 2, size: int = 16) -> list[Tile]:
    """Return tiles of 4-pixel blocks whose class is their brightness, with a corner without image data."""
    rng = np.random.default_rng(seed)
    return [_tile(rng, classes, size) for _ in range(count)]


def _tile(rng: np.random.Generator, classes: int, size: int) -> Tile:
    label = rng.integers(0, classes, (size // 4, size // 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    image = (100 + 60 * label + rng.normal(0, 10, (3, size, size))).astype(np.float32)
    image[:, :3, :3], label[:3, :3] = 0, 255
    return image, label


def training_data(classes: int = 2, **changes: Any) -> TrainingData:
    """Return 18 training and 5 validation tiles of `blocks` with their scaling, and `changes` to these."""
    names = tuple(f"class {i}" for i in range(classes))
    data = TrainingData(
        blocks(18, 0, classes), blocks(5, 1, classes), Legend(names), Scaling((130.0,) * 3, (30.0,) * 3)
    )
    return replace(data, **{"fingerprint": "blocks", "network_settings": {"encoder": "resnet34"}, **changes})


def cpu_group() -> ProcessGroup:
    """Return the group of this process alone, on the CPU."""
    with warnings.catch_warnings():
        # Fabric's advice on machines that have Slurm.
        warnings.simplefilter("ignore")
        return ProcessGroup(Fabric(accelerator="cpu", devices=1))
