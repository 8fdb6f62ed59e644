"""Time a training step and a prediction of each network: `python step_times.py JOB.json ROUNDS NAME ...`.

All networks get the same batch, each in the memory format that is faster for it. They alternate in one process, so that
other load on the machine affects all of them. In each round the data loader of Geograft's default is timed too. Prints
all seconds as JSON.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geograft.training.loader import TileLoader, TrainingBatch
from learners import MEMORY_FORMATS, Learner, build_engine_parts, build_learner
from plainloop import CLOCKS
from trainees import BATCH, OURS, TRAINEES, TrainingJob

LOADER_BATCHES = 2
"""Timed batches of the data loader per round."""


@dataclass(frozen=True)
class Times:
    """The seconds of a network's steps, one per round."""

    memory_format: str
    parameters: int
    trainable: int
    """Parameters that are not frozen."""
    train: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TimedLearner:
    """A learner with a memory format and a clock."""

    learner: Learner
    memory_format: str
    clock: Callable[[], float]

    def train(self, images: Tensor, label: Tensor) -> float:
        """Return the seconds of one training step."""
        self.learner.network.train()
        return self._timed(lambda: self.learner.step(images, label))

    def infer(self, images: Tensor) -> float:
        """Return the seconds of one prediction."""
        self.learner.network.eval()
        with torch.inference_mode():
            return self._timed(lambda: self.learner.network(images))

    def step_and_predict(self, batch: TrainingBatch) -> tuple[float, float]:
        """Return the seconds of a training step and of a prediction, in this memory format."""
        images = batch[0].contiguous(memory_format=MEMORY_FORMATS[self.memory_format])
        return self.train(images, batch[1]), self.infer(images)

    def _timed(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start


def fastest_format(learning: Learner, batch: TrainingBatch, clock: Callable[[], float]) -> TimedLearner:
    """Return a learner, warmed up, in the memory format in which a step plus a prediction is faster."""
    found = {}
    for name in learning.memory_formats:
        learning.network.to(memory_format=MEMORY_FORMATS[name])
        trial = TimedLearner(learning, name, clock)
        trial.step_and_predict(batch)
        found[name] = sum(trial.step_and_predict(batch)) if len(learning.memory_formats) > 1 else 0.0
    best = min(found, key=lambda name: found[name])
    learning.network.to(memory_format=MEMORY_FORMATS[best])
    return TimedLearner(learning, best, clock)


def step_times(job: TrainingJob, names: list[str], rounds: int) -> dict[str, Any]:
    """Return the step times of all contestants, and the data loader's seconds per tile, one per round."""
    clock, stream = CLOCKS[job.clock], load_batches(job)
    batch = next(stream)
    timed = {name: fastest_format(build_learner(replace(job, name=name)), batch, clock) for name in names}
    times = {name: Times(each.memory_format, *_parameters(each.learner.network)) for name, each in timed.items()}
    loader_seconds = []
    for _ in range(rounds):
        for name, each in timed.items():
            train, infer = each.step_and_predict(batch)
            times[name].train.append(train)
            times[name].infer.append(infer)
        start = clock()
        tiles = sum(len(images) for images, _ in islice(stream, LOADER_BATCHES))
        loader_seconds.append((clock() - start) / tiles)
    return {
        "batch": len(batch[0]),
        "tile_px": batch[0].shape[-1],
        "loader": loader_seconds,
        "networks": {name: asdict(each) for name, each in times.items()},
    }


def load_batches(job: TrainingJob) -> Iterator[TrainingBatch]:
    """Return an endless stream of the full batches that Geograft's default trains on."""
    recipe = TRAINEES[OURS].recipe
    assert recipe is not None
    ours = recipe(job)
    _, data, _ = build_engine_parts(replace(job, name=OURS), ours)
    batches = TileLoader(data, ours.train, torch.device("cpu"))
    full = min(BATCH, len(data.train))
    return (batch for epoch in count() for batch in batches.train(epoch) if len(batch[0]) == full)


def main() -> None:
    """Print the times of one job as JSON."""
    job = TrainingJob.read(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    print(json.dumps(step_times(job, sys.argv[3:], int(sys.argv[2]))))


def _parameters(network: nn.Module) -> tuple[int, int]:
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


if __name__ == "__main__":
    main()
