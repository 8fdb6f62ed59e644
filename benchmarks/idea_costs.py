"""What a training step and a prediction of each idea take, by turns in one process."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import torch

from geograft.commands.train import scaling_of, training_data
from geograft.config import Recipe
from geograft.dataset.tileset import TileSet
from geograft.networks.network import Network, build
from geograft.training.loader import TrainingBatch, TileLoader, TrainingData
from geograft.training.optim import freeze_encoder
from learners import Learner, engine_learner

STEP, PREDICTION = "step", "prediction"


@dataclass(frozen=True)
class Idea:
    """What differs from the default: settings, or the network itself."""

    name: str
    recipe: Recipe
    change: Callable[[Network], None] = lambda network: None

    def parts(self, tiles: TileSet) -> tuple[Network, TrainingData]:
        """Return the network as training begins, and what it learns from."""
        torch.manual_seed(self.recipe.train.seed)
        network = build(self.recipe.model, len(tiles.meta.band_names), tiles.meta.legend.outputs)
        self.change(network)
        return network, training_data(tiles, self.recipe, scaling_of(tiles.meta, network, self.recipe.train.normalise))


@dataclass
class Runner:
    """An idea that trains: its network, and the batches that come to it."""

    learning: Learner
    stream: Iterator[TrainingBatch]
    phases: tuple[tuple[float, int], ...]
    """Share of the epochs, and how many stages of the encoder stand still in them."""

    @classmethod
    def of(cls, idea: Idea, tiles: TileSet) -> "Runner":
        """Return what trains as the engine does it."""
        config = idea.recipe.train
        network, data = idea.parts(tiles)
        feed = TileLoader(data, config, torch.device("cpu"))
        held = config.freeze_epochs / config.epochs
        phases = ((held, len(network.stages)), (1 - held, network.frozen))
        stream = (batch for epoch in count() for batch in feed.train(epoch) if len(batch[0]) == config.batch_size)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(engine_learner(network, data, config), stream, tuple(phase for phase in phases if phase[0]))

    def seconds(self) -> dict[str, float]:
        """Return what a step with its feed takes, the mean over a training's epochs, and a prediction."""
        return {STEP: sum(share * self._step(frozen) for share, frozen in self.phases), PREDICTION: self._prediction()}

    def _step(self, frozen: int) -> float:
        network = self.learning.network
        assert isinstance(network, Network)
        freeze_encoder(network, frozen)
        network.train()
        start = time.process_time()
        self.learning.step(*next(self.stream))
        return time.process_time() - start

    def _prediction(self) -> float:
        images, _ = next(self.stream)
        self.learning.network.eval()
        with torch.inference_mode():
            start = time.process_time()
            self.learning.network(images)
            return time.process_time() - start


def costs(ideas: Mapping[str, Runner], turns: int) -> dict[str, dict[str, float]]:
    """Return what each idea takes to the first: the least of the turns, after one that warms up."""
    torch.set_num_threads(1)
    first = next(iter(ideas))
    found = [{name: runner.seconds() for name, runner in ideas.items()} for _ in range(turns + 1)]
    least = {name: {what: min(turn[name][what] for turn in found[1:]) for what in (STEP, PREDICTION)} for name in ideas}
    return {name: {what: own / least[first][what] for what, own in each.items()} for name, each in least.items()}
