"""Train one contestant in a process of its own and print its result: `python train_one.py JOB.json`.

Reading the tiles, training and a validation after each epoch are timed, and for Geograft's engine its checkpoints too.
Imports and building the network are not.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import nn

from geograft.card import WEIGHTS
from geograft.config import Recipe, load_recipe
from geograft.training.checkpoint import LAST, load_weights
from geograft.training.loop import fit
from learners import build_engine_parts, build_learner
from measured import peak_mb
from plainloop import CLOCKS, TilesInMemory, TrainingResult, ValidationSet, scaling_of_weights, train, validate
from taskpeers import train_torchgeo
from trainees import ARTICLE, BATCH, TRAINEES, TrainingJob, open_tiles, validation_scenes


def train_with_engine(job: TrainingJob, recipe: Recipe) -> tuple[TrainingResult, nn.Module]:
    """Train by Geograft's engine; return the result and the network."""
    torch.manual_seed(job.seed)
    network, data, tiles = build_engine_parts(job, recipe)
    with TemporaryDirectory(prefix="geograft-bench-") as folder:
        start = CLOCKS[job.clock]()
        history = fit(network, data, recipe.train, Path(folder))
        seconds = CLOCKS[job.clock]() - start
        val = ValidationSet(TilesInMemory(data.val, data.scaling), validation_scenes(tiles)[1], BATCH)
        counts = [_counts_of(network, Path(folder) / name, val) for name in (LAST, WEIGHTS)]
    losses, ious = zip(*((epoch.val_loss, epoch.val_iou) for epoch in history.epochs), strict=True)
    return TrainingResult(seconds, losses, ious, *counts), network


def train_in_plain_loop(job: TrainingJob) -> tuple[TrainingResult, nn.Module]:
    """Train by the plain PyTorch loop; return the result and the network."""
    learner, tiles = build_learner(job), open_tiles(job)
    start = CLOCKS[job.clock]()
    scaling = scaling_of_weights(tiles.meta.scale or 1.0)
    val = ValidationSet(
        TilesInMemory(tiles.samples("val", unique_pixels=True), scaling), validation_scenes(tiles)[1], BATCH
    )
    train_tiles = TilesInMemory(tiles.samples("train"), scaling, learner.augment)
    epochs = train(learner, train_tiles, val, job.epochs, load_recipe(ARTICLE).train.lr_decay)
    return TrainingResult.of(CLOCKS[job.clock]() - start, epochs), learner.network


def result_record(job: TrainingJob, result: TrainingResult, network: nn.Module) -> dict[str, Any]:
    """Return the JSON record of a training."""
    tiles = open_tiles(job)
    return {
        "seconds": result.seconds,
        "peak_mb": peak_mb(),
        "tiles": [len(tiles.split("train")), len(tiles.split("val"))],
        "scenes": validation_scenes(tiles)[0],
        "parameters": sum(p.numel() for p in network.parameters()),
        "losses": list(result.losses),
        "ious": list(result.ious),
        "last": np.asarray(result.last).tolist(),
        "best": np.asarray(result.best).tolist(),
    }


def trainer_for(job: TrainingJob) -> Callable[[], tuple[TrainingResult, nn.Module]]:
    """Return the function that trains the contestant."""
    trainee = TRAINEES[job.name]
    if trainee.recipe is not None:
        recipe = trainee.recipe(job)
        return lambda: train_with_engine(job, recipe)
    if trainee.module:
        return lambda: train_torchgeo(job)
    return lambda: train_in_plain_loop(job)


def main() -> None:
    """Run one job and print its result as JSON."""
    job = TrainingJob.read(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    result, network = trainer_for(job)()
    print(json.dumps(result_record(job, result, network)))


def _counts_of(network: nn.Module, weights: Path, val: ValidationSet) -> ndarray:
    load_weights(weights, network)
    return validate(network.eval(), val).counts


if __name__ == "__main__":
    main()
