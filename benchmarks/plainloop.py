"""Training as one writes it in plain PyTorch: tiles in memory, a Dataset, a DataLoader, a loop over epochs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, Dataset

from geograft.legend import IGNORE
from geograft.training.loader import Scaling, Tiles
from geograft.training.step import confusion
from learners import LAYOUTS, Learner

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Validated:
    """What one pass over the validation tiles gives."""

    loss: float
    """Mean over the known pixels."""
    counts: ndarray
    """(scenes, 2, 2): pixels of each true class (row) predicted as each class (column), by scene."""


class TilesInMemory(Dataset[tuple[Tensor, Tensor]]):
    """All tiles, scaled, as float32: what fits into memory is read once."""

    def __init__(self, tiles: Tiles, scaling: Scaling, turned: bool = False) -> None:
        read = [tiles[index] for index in range(len(tiles))]
        self.images = torch.from_numpy(np.stack([scaling(image) for image, _ in read]))
        self.labels = torch.from_numpy(np.stack([label for _, label in read]))
        self.turned = turned

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.images[index], self.labels[index]
        if not self.turned:
            return image, label
        turns, flipped = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        image, label = torch.rot90(image, turns, (1, 2)), torch.rot90(label, turns, (0, 1))
        return (image.flip(2), label.flip(1)) if flipped else (image, label)


@dataclass(frozen=True)
class Part:
    """The validation tiles, and the number of each one's scene."""

    tiles: TilesInMemory
    scenes: ndarray
    batch: int

    def batches(self, layout: torch.memory_format) -> list[tuple[Tensor, Tensor, ndarray]]:
        """Return images, labels and scenes, a batch each."""
        cuts = [slice(start, start + self.batch) for start in range(0, len(self.tiles), self.batch)]
        found = [(self.tiles.images[cut], self.tiles.labels[cut], self.scenes[cut]) for cut in cuts]
        return [(images.contiguous(memory_format=layout), label, scenes) for images, label, scenes in found]


def train(learner: Learner, tiles: TilesInMemory, val: Part, epochs: int, decay: float) -> list[Validated]:
    """Train in place, in batches of the validation part's size, and return what every epoch gave.

    Learning rates fall by `decay` after each epoch. The order of tiles and their turns are torch's random choice.
    """
    layout = LAYOUTS[learner.layouts[0]]
    learner.network.to(memory_format=layout)
    loader = DataLoader(tiles, val.batch, shuffle=True)
    scheduler = ExponentialLR(learner.optimizer, decay)
    found = []
    for _ in range(epochs):
        learner.network.train()
        for images, label in loader:
            learner.step(images.contiguous(memory_format=layout), label)
        scheduler.step()
        learner.network.eval()
        found.append(validated(learner.network, val, learner.loss, learner.boundary, layout))
    return found


def validated(
    predict: Predict,
    val: Part,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    boundary: float = 0.0,
    layout: torch.memory_format = torch.channels_last,
) -> Validated:
    """Return loss (NaN without) and counts by scene of a network in evaluation mode."""
    counts = np.zeros((int(val.scenes.max()) + 1, 2, 2), np.int64)
    total, pixels = 0.0, 0
    with torch.inference_mode():
        for images, label, scenes in val.batches(layout):
            outputs = predict(images)
            for scene, output, own in zip(scenes, outputs, label, strict=True):
                counts[scene] += confusion(output[None] - boundary, own[None], 2).numpy()
            known = int((label != IGNORE).sum())
            total += loss(outputs, label).item() * known if loss else float("nan")
            pixels += known
    return Validated(total / max(pixels, 1), counts)
