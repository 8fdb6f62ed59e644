"""One training of one contestant, in a process of its own: `python train_one.py JOB.json` prints what it gave.

What is imported does not count, nor does building the network. Reading the tiles, training, and a validation after each
epoch do; for Geograft's engine also what it saves so that a killed run can go on.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import nn

from geograft.card import WEIGHTS
from geograft.config import Recipe, load_recipe
from geograft.metrics.scores import scores
from geograft.training.checkpoint import LAST, load_weights
from geograft.training.loader import Scaling
from geograft.training.loop import fit
from learners import engine_parts, learner
from measured import peak_mb
from plainloop import Part, TilesInMemory, Validated, train, validated
from trainees import ARTICLE, BATCH, ENCODER, TRAINEES, Job, opened, scenes_of

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Trained:
    """What a training gave."""

    seconds: float
    losses: Sequence[float]
    """Validation loss after each epoch."""
    ious: Sequence[float]
    """IoU of class 1 over the validation part after each epoch."""
    last: ndarray
    """Counts by scene, (scenes, 2, 2), with the last epoch's weights."""
    best: ndarray
    """The same with the weights of least validation loss."""

    @classmethod
    def of(cls, seconds: float, epochs: Sequence[Validated]) -> "Trained":
        """Return it from what every epoch gave."""
        best = min(epochs, key=lambda epoch: epoch.loss)
        ious = [iou(epoch.counts) for epoch in epochs]
        return cls(seconds, [epoch.loss for epoch in epochs], ious, epochs[-1].counts, best.counts)


def iou(counts: ndarray) -> float:
    """Return the IoU of class 1 over all scenes."""
    return scores(counts.sum(axis=0)).headline()["iou"]


def in_engine(job: Job, recipe: Recipe) -> tuple[Trained, nn.Module]:
    """Return what Geograft's engine makes of a network, and the network."""
    torch.manual_seed(job.seed)
    network, data, tiles = engine_parts(job, recipe)
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        start = CLOCKS[job.clock]()
        history = fit(network, data, recipe.train, Path(folder))
        seconds = CLOCKS[job.clock]() - start
        val = Part(TilesInMemory(data.val, data.scaling), scenes_of(tiles)[1], BATCH)
        counts = [_counts_of(network, Path(folder) / name, val) for name in (LAST, WEIGHTS)]
    losses, ious = zip(*((epoch.val_loss, epoch.val_iou) for epoch in history.epochs), strict=True)
    return Trained(seconds, losses, ious, *counts), network


def in_plain_loop(job: Job) -> tuple[Trained, nn.Module]:
    """Return what a loop in plain PyTorch makes of a network, and the network."""
    learning, tiles = learner(job), opened(job)
    start = CLOCKS[job.clock]()
    scaling = scaling_of_weights(tiles.meta.scale or 1.0)
    val = Part(TilesInMemory(tiles.samples("val", unique_pixels=True), scaling), scenes_of(tiles)[1], BATCH)
    shown = TilesInMemory(tiles.samples("train"), scaling, learning.turned)
    epochs = train(learning, shown, val, job.epochs, load_recipe(ARTICLE).train.lr_decay)
    return Trained.of(CLOCKS[job.clock]() - start, epochs), learning.network


def scaling_of_weights(scale: float) -> Scaling:
    """Return how images are scaled whose full brightness is `scale`, for timm's weights."""
    import timm

    config: Any = timm.get_pretrained_cfg(ENCODER)
    return Scaling(tuple(scale * mean for mean in config.mean), tuple(scale * std for std in config.std))


def content(job: Job, trained: Trained, network: nn.Module) -> dict[str, Any]:
    """Return what is kept of a training."""
    tiles = opened(job)
    return {
        "seconds": trained.seconds,
        "peak_mb": peak_mb(),
        "tiles": [len(tiles.split("train")), len(tiles.split("val"))],
        "scenes": scenes_of(tiles)[0],
        "parameters": sum(p.numel() for p in network.parameters()),
        "losses": list(trained.losses),
        "ious": list(trained.ious),
        "last": np.asarray(trained.last).tolist(),
        "best": np.asarray(trained.best).tolist(),
    }


def work(job: Job) -> Callable[[], tuple[Trained, nn.Module]]:
    """Return what trains the contestant."""
    trainee = TRAINEES[job.name]
    if trainee.recipe is not None:
        recipe = trainee.recipe(job)
        return lambda: in_engine(job, recipe)
    if trainee.module:
        from taskpeers import in_torchgeo

        return lambda: in_torchgeo(job)
    return lambda: in_plain_loop(job)


def main() -> None:
    """Do one job and print what it gave as JSON."""
    job = Job.read(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    trained, network = work(job)()
    print(json.dumps(content(job, trained, network)))


def _counts_of(network: nn.Module, weights: Path, val: Part) -> ndarray:
    load_weights(weights, network)
    return validated(network.eval(), val).counts


if __name__ == "__main__":
    main()
