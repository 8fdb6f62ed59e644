"""Relative cost of a training step and of a prediction of each variant, measured alternately in one process."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import torch

from geograft.commands.train import scaling_of, training_data
from geograft.config import Recipe
from geograft.dataset.tileset import TileSet
from geograft.networks.network import Network, build
from geograft.training.loader import TileLoader, TrainingBatch, TrainingData
from geograft.training.optim import freeze_encoder
from learners import Learner, engine_learner

STEP, PREDICTION = "step", "prediction"


@dataclass(frozen=True)
class Idea:
    """A variant of the default: other settings, or a modified network."""

    name: str
    recipe: Recipe
    change: Callable[[Network], None] = lambda network: None

    def build(self, tiles: TileSet) -> tuple[Network, TrainingData]:
        """Return the network before training, and its training data."""
        torch.manual_seed(self.recipe.train.seed)
        network = build(self.recipe.model, len(tiles.meta.band_names), tiles.meta.legend.outputs)
        self.change(network)
        return network, training_data(tiles, self.recipe, scaling_of(tiles.meta, network, self.recipe.train.normalise))


@dataclass
class Runner:
    """A variant in training: its network and an endless stream of batches."""

    learner: Learner
    stream: Iterator[TrainingBatch]
    phases: tuple[tuple[float, int], ...]
    """Fraction of the epochs, and the number of frozen encoder stages in them."""

    @classmethod
    def of(cls, idea: Idea, tiles: TileSet) -> "Runner":
        """Return a runner that trains as Geograft's engine does."""
        config = idea.recipe.train
        network, data = idea.build(tiles)
        loader = TileLoader(data, config, torch.device("cpu"))
        frozen_fraction = config.freeze_epochs / config.epochs
        phases = ((frozen_fraction, len(network.stages)), (1 - frozen_fraction, network.frozen))
        stream = (batch for epoch in count() for batch in loader.train(epoch) if len(batch[0]) == config.batch_size)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(engine_learner(network, data, config), stream, tuple(phase for phase in phases if phase[0]))

    def seconds(self) -> dict[str, float]:
        """Return the CPU seconds of a step with data loading, averaged over the phases, and of a prediction."""
        return {
            STEP: sum(fraction * self._step(frozen) for fraction, frozen in self.phases),
            PREDICTION: self._prediction(),
        }

    def _step(self, frozen: int) -> float:
        network = self.learner.network
        assert isinstance(network, Network)
        freeze_encoder(network, frozen)
        network.train()
        start = time.process_time()
        self.learner.step(*next(self.stream))
        return time.process_time() - start

    def _prediction(self) -> float:
        images, _ = next(self.stream)
        self.learner.network.eval()
        with torch.inference_mode():
            start = time.process_time()
            self.learner.network(images)
            return time.process_time() - start


def relative_costs(ideas: Mapping[str, Runner], rounds: int) -> dict[str, dict[str, float]]:
    """Return each variant's minimum time over the rounds, relative to the first variant, after one warm-up round."""
    torch.set_num_threads(1)
    first = next(iter(ideas))
    found = [{name: runner.seconds() for name, runner in ideas.items()} for _ in range(rounds + 1)]
    fastest = {
        name: {what: min(turn[name][what] for turn in found[1:]) for what in (STEP, PREDICTION)} for name in ideas
    }
    return {name: {what: own / fastest[first][what] for what, own in each.items()} for name, each in fastest.items()}
