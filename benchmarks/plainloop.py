"""Training in plain PyTorch: tiles in memory, a Dataset, a DataLoader, a loop over epochs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy import ndarray
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, Dataset

from geograft.legend import IGNORE
from geograft.metrics.confusion import scores
from geograft.training.loader import Scaling, Tiles
from geograft.training.step import confusion
from learners import MEMORY_FORMATS, Learner
from trainees import ENCODER

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ValidationResult:
    """The result of one pass over the validation tiles."""

    loss: float
    """Mean over the labelled pixels."""
    counts: ndarray
    """(scenes, 2, 2): pixels of each true class (row) predicted as each class (column), by scene."""


@dataclass(frozen=True)
class TrainingResult:
    """The time and the validation results of a training."""

    seconds: float
    losses: Sequence[float]
    """Validation loss after each epoch."""
    ious: Sequence[float]
    """IoU of class 1 on the validation split after each epoch."""
    last: ndarray
    """Confusion matrices by scene, (scenes, 2, 2), with the last epoch's weights."""
    best: ndarray
    """The same with the weights of the lowest validation loss."""

    @classmethod
    def of(cls, seconds: float, epochs: Sequence[ValidationResult]) -> "TrainingResult":
        """Return the result of a training from the validation of each epoch."""
        best = min(epochs, key=lambda epoch: epoch.loss)
        ious = [iou(epoch.counts) for epoch in epochs]
        return cls(seconds, [epoch.loss for epoch in epochs], ious, epochs[-1].counts, best.counts)


def iou(counts: ndarray) -> float:
    """Return the IoU of class 1 over all scenes."""
    return scores(counts.sum(axis=0)).headline()["iou"]


class TilesInMemory(Dataset[tuple[Tensor, Tensor]]):
    """All tiles in memory, normalised, as float32."""

    def __init__(self, tiles: Tiles, scaling: Scaling, augment: bool = False) -> None:
        read = [tiles[index] for index in range(len(tiles))]
        self.images = torch.from_numpy(np.stack([scaling(image) for image, _ in read]))
        self.labels = torch.from_numpy(np.stack([label for _, label in read]))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.images[index], self.labels[index]
        if not self.augment:
            return image, label
        rotations, flip = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        image, label = torch.rot90(image, rotations, (1, 2)), torch.rot90(label, rotations, (0, 1))
        return (image.flip(2), label.flip(1)) if flip else (image, label)


@dataclass(frozen=True)
class ValidationSet:
    """The validation tiles, and the index of each tile's scene."""

    tiles: TilesInMemory
    scenes: ndarray
    batch: int

    def batches(self, memory_format: torch.memory_format) -> list[tuple[Tensor, Tensor, ndarray]]:
        """Return batches of images, labels and scene indices."""
        slices = [slice(start, start + self.batch) for start in range(0, len(self.tiles), self.batch)]
        found = [(self.tiles.images[part], self.tiles.labels[part], self.scenes[part]) for part in slices]
        return [(images.contiguous(memory_format=memory_format), label, scenes) for images, label, scenes in found]


def train(
    learner: Learner, tiles: TilesInMemory, val: ValidationSet, epochs: int, decay: float
) -> list[ValidationResult]:
    """Train in place, with the validation set's batch size, and return the validation of each epoch.

    Learning rates are multiplied by `decay` after each epoch. Shuffling and augmentation use torch's global seed.
    """
    memory_format = MEMORY_FORMATS[learner.memory_formats[0]]
    learner.network.to(memory_format=memory_format)
    loader = DataLoader(tiles, val.batch, shuffle=True)
    scheduler = ExponentialLR(learner.optimizer, decay)
    found = []
    for _ in range(epochs):
        learner.network.train()
        for images, label in loader:
            learner.step(images.contiguous(memory_format=memory_format), label)
        scheduler.step()
        learner.network.eval()
        found.append(validate(learner.network, val, learner.loss, learner.threshold, memory_format))
    return found


def validate(
    predict: Predict,
    val: ValidationSet,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    boundary: float = 0.0,
    memory_format: torch.memory_format = torch.channels_last,
) -> ValidationResult:
    """Return the loss (NaN without `loss`) and the confusion matrices by scene of a network in evaluation mode."""
    counts = np.zeros((int(val.scenes.max()) + 1, 2, 2), np.int64)
    total, pixels = 0.0, 0
    with torch.inference_mode():
        for images, label, scenes in val.batches(memory_format):
            outputs = predict(images)
            for scene, output, own in zip(scenes, outputs, label, strict=True):
                counts[scene] += confusion(output[None] - boundary, own[None], 2).numpy()
            known = int((label != IGNORE).sum())
            total += loss(outputs, label).item() * known if loss else float("nan")
            pixels += known
    return ValidationResult(total / max(pixels, 1), counts)


def scaling_of_weights(scale: float) -> Scaling:
    """Return the normalisation that timm's weights expect, for images whose full range is `scale`."""
    config: Any = timm.get_pretrained_cfg(ENCODER)
    return Scaling(tuple(scale * mean for mean in config.mean), tuple(scale * std for std in config.std))
