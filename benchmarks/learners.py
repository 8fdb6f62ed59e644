"""Networks ready to learn: each with its loss, its optimizer and its order in memory, by the contestant's name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer

import newcomer
from geograft.commands.train import scaling_of, training_data
from geograft.config import Recipe, TrainConfig, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.legend import IGNORE
from geograft.losses.segmentation import build_loss_config, segmentation_loss
from geograft.networks.network import Network, build
from geograft.training.loader import TrainingData
from geograft.training.optim import ModelEMA, build_optimizer
from peernets import smp_in_geograft, smp_network
from trainees import ARTICLE, TRAINEES, Job, opened

LAYOUTS = {"channels last": torch.channels_last, "torch's own": torch.contiguous_format}


@dataclass(frozen=True)
class Learner:
    """A network and one way to take a step with it."""

    network: nn.Module
    optimizer: Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    """Of what the network puts out, and the label: class indices, 255 where there is none."""
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    """Orders in memory to choose from, by name; the first is that of its own training."""
    boundary: float = 0.0
    """What it puts out for a pixel of class 1 is at least that."""
    turned: bool = True
    """Whether its own loop flips and turns tiles."""
    after: Callable[[], None] = lambda: None
    """Done after each step of the optimizer."""

    def step(self, images: Tensor, label: Tensor) -> float:
        """Take one training step and return the loss."""
        loss = self.loss(self.network(images), label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after()
        return loss.item()


def learner(job: Job) -> Learner:
    """Return a contestant's network, freshly made from the job's seed, and what it learns by."""
    torch.manual_seed(job.seed)
    recipe = TRAINEES[job.name].recipe
    if recipe is not None:
        ours = recipe(job)
        network, data, _ = engine_parts(job, ours)
        return engine_learner(network, data, ours.train)
    return _newcomer(job) if job.name == "newcomer" else _smp(job)


def engine_parts(job: Job, recipe: Recipe) -> tuple[Network, TrainingData, TileSet]:
    """Return what Geograft's engine trains: a network, smp's where the name says so, and the data; and the tile set."""
    tiles = opened(job)
    if job.name.startswith("smp-"):
        network = smp_in_geograft(job.name.split("-")[1], job.weights, recipe.model.frozen_stages)
    else:
        network = build(recipe.model, len(tiles.meta.band_names), tiles.meta.legend.outputs)
    scaling = scaling_of(tiles.meta, network, recipe.train.normalise)
    return network, training_data(tiles, recipe, scaling), tiles


def engine_learner(network: Network, data: TrainingData, train: TrainConfig) -> Learner:
    """Return a network that takes steps as Geograft's engine does."""
    network.set_deep_supervision(enabled=train.auxiliary_weight > 0)
    mix = build_loss_config(train, data.legend, data.class_fractions, data.labelled_fractions)
    average = ModelEMA(network, train.ema) if train.ema else None
    after = partial(average.update, network) if average is not None else lambda: None
    return Learner(network, build_optimizer(network, train), partial(segmentation_loss, config=mix), after=after)


def plain_loss(logits: Tensor, label: Tensor, dice_share: float) -> Tensor:
    """Return the article's loss as one writes it with logits: cross-entropy and Dice of a batch's known pixels."""
    # Multiplied, not picked out: to pick pixels out by a mask costs more than all the rest here.
    known, target = (label != IGNORE).float(), (label == 1).float()
    entropy = functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    chance = torch.sigmoid(logits[:, 0]) * known
    dice = (2 * (chance * target).sum() + 1) / (chance.sum() + target.sum() + 1)
    return (1 - dice_share) * (entropy * known).sum() / known.sum() + dice_share * (1 - dice)


def _smp(job: Job) -> Learner:
    network, train = smp_network(job.name.removeprefix("smp-"), job.weights), load_recipe(ARTICLE).train
    encoder = set(network.get_submodule("encoder").parameters())
    groups = [
        {"params": list(encoder), "lr": train.encoder_lr},
        {"params": [p for p in network.parameters() if p not in encoder], "lr": train.decoder_lr},
    ]
    return Learner(network, Adam(groups), partial(plain_loss, dice_share=train.region_loss_weight))


def _newcomer(job: Job) -> Learner:
    network, combined = newcomer.UNet(job.weights), newcomer.CombinedLoss()

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        found: Tensor = combined(outputs[:, 0], (label == 1).float())
        return found

    own = ("torch's own",)
    return Learner(network, newcomer.optimizer_of(network), loss, layouts=own, boundary=0.5, turned=False)
