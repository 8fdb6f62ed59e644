"""What one training step and one prediction take, by turns in one process: `python step_times.py JOB.json TURNS`.

All networks are given the same batch, in the order in memory that is the faster for each. The contestants take turns,
so that other load on the machine meets all. Between the steps of Geograft's default the feed that it trains from
delivers batches, as it does in training, for the time that a tile takes to arrive. Prints all seconds as JSON.
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

from geograft.training.loader import TrainingBatch, TileLoader
from learners import LAYOUTS, Learner, engine_parts, learner
from train_one import CLOCKS
from trainees import BATCH, OURS, TRAINEES, Job

FEED_BATCHES = 2
"""Batches of the feed a turn."""


@dataclass(frozen=True)
class Times:
    """What a network's steps took, in seconds, one a turn."""

    layout: str
    parameters: int
    trained: int
    """Parameters that training changes."""
    train: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Stand:
    """A learner, what it is given, and the clock."""

    learning: Learner
    layout: str
    clock: Callable[[], float]

    def train(self, images: Tensor, label: Tensor) -> float:
        """Return the seconds of one training step."""
        self.learning.network.train()
        return self._timed(lambda: self.learning.step(images, label))

    def infer(self, images: Tensor) -> float:
        """Return the seconds of one prediction."""
        self.learning.network.eval()
        with torch.inference_mode():
            return self._timed(lambda: self.learning.network(images))

    def both(self, batch: TrainingBatch) -> tuple[float, float]:
        """Return the seconds of a training step and of a prediction, in this order in memory."""
        images = batch[0].contiguous(memory_format=LAYOUTS[self.layout])
        return self.train(images, batch[1]), self.infer(images)

    def _timed(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start


def stand(learning: Learner, batch: TrainingBatch, clock: Callable[[], float]) -> Stand:
    """Return a learner in the order in memory in which a step and a prediction together are faster, warmed up."""
    found = {}
    for name in learning.layouts:
        learning.network.to(memory_format=LAYOUTS[name])
        trial = Stand(learning, name, clock)
        trial.both(batch)
        found[name] = sum(trial.both(batch)) if len(learning.layouts) > 1 else 0.0
    best = min(found, key=lambda name: found[name])
    learning.network.to(memory_format=LAYOUTS[best])
    return Stand(learning, best, clock)


def step_times(job: Job, names: list[str], turns: int) -> dict[str, Any]:
    """Return the times of all contestants, and the seconds that the feed took for a tile, one a turn."""
    clock, stream = CLOCKS[job.clock], feed(job)
    batch = next(stream)
    stands = {name: stand(learner(replace(job, name=name)), batch, clock) for name in names}
    times = {name: Times(each.layout, *_parameters(each.learning.network)) for name, each in stands.items()}
    delivered = []
    for _ in range(turns):
        for name, each in stands.items():
            train, infer = each.both(batch)
            times[name].train.append(train)
            times[name].infer.append(infer)
        start = clock()
        tiles = sum(len(images) for images, _ in islice(stream, FEED_BATCHES))
        delivered.append((clock() - start) / tiles)
    return {
        "batch": len(batch[0]),
        "tile_px": batch[0].shape[-1],
        "feed": delivered,
        "networks": {name: asdict(each) for name, each in times.items()},
    }


def feed(job: Job) -> Iterator[TrainingBatch]:
    """Return the whole batches that Geograft's default trains from, epoch after epoch."""
    recipe = TRAINEES[OURS].recipe
    assert recipe is not None
    ours = recipe(job)
    _, data, _ = engine_parts(replace(job, name=OURS), ours)
    batches = TileLoader(data, ours.train, torch.device("cpu"))
    whole = min(BATCH, len(data.train))
    return (batch for epoch in count() for batch in batches.train(epoch) if len(batch[0]) == whole)


def main() -> None:
    """Print the times of one job as JSON."""
    job = Job.read(Path(sys.argv[1]))
    torch.set_num_threads(job.threads)
    print(json.dumps(step_times(job, sys.argv[3:], int(sys.argv[2]))))


def _parameters(network: nn.Module) -> tuple[int, int]:
    parameters = list(network.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


if __name__ == "__main__":
    main()
