"""Networks ready for training: each with its loss, optimizer and memory formats, by the contestant's name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer

import article_unet
from geograft.commands.train import scaling_of, training_data
from geograft.config import Recipe, TrainConfig, load_recipe
from geograft.dataset.tileset import TileSet
from geograft.legend import IGNORE
from geograft.losses.segmentation import build_loss_config, segmentation_loss
from geograft.networks.network import FROZEN_STAGES, Network, build
from geograft.training.loader import TrainingData
from geograft.training.optim import ModelEMA, build_optimizer
from peernets import smp_in_geograft, smp_network
from trainees import ARTICLE, TRAINEES, TrainingJob, open_tiles

MEMORY_FORMATS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Learner:
    """A network with its optimizer and loss."""

    network: nn.Module
    optimizer: Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    """Takes the network's output and the label: class indices, 255 where there is none."""
    memory_formats: tuple[str, ...] = tuple(MEMORY_FORMATS)
    """Memory formats to choose from, by name; whole trainings use the first."""
    threshold: float = 0.0
    """A pixel is of class 1 if the network's output is at least this."""
    augment: bool = True
    """Whether the plain loop flips and rotates tiles."""
    after_step: Callable[[], None] = lambda: None
    """Called after each optimizer step."""

    def step(self, images: Tensor, label: Tensor) -> float:
        """Take one training step and return the loss."""
        loss = self.loss(self.network(images), label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.after_step()
        return loss.item()


def build_learner(job: TrainingJob) -> Learner:
    """Return a contestant's network, initialised from the job's seed, with its optimizer and loss."""
    torch.manual_seed(job.seed)
    recipe = TRAINEES[job.name].recipe
    if recipe is not None:
        ours = recipe(job)
        network, data, _ = build_engine_parts(job, ours)
        return engine_learner(network, data, ours.train)
    return _article_loop(job) if job.name == "article-loop" else _smp(job)


def build_engine_parts(job: TrainingJob, recipe: Recipe) -> tuple[Network, TrainingData, TileSet]:
    """Return the network (smp's for "smp-" names), training data and tile set for Geograft's engine."""
    tiles = open_tiles(job)
    if job.name.startswith("smp-"):
        network = smp_in_geograft(job.name.split("-")[1], job.weights, FROZEN_STAGES)
    else:
        network = build(recipe.model, len(tiles.meta.band_names), tiles.meta.legend.outputs)
    scaling = scaling_of(tiles.meta, network, recipe.train.normalise)
    return network, training_data(tiles, recipe, scaling), tiles


def engine_learner(network: Network, data: TrainingData, train: TrainConfig) -> Learner:
    """Return a learner that takes the steps of Geograft's engine."""
    network.set_deep_supervision(enabled=train.auxiliary_weight > 0)
    loss_config = build_loss_config(train, data.legend, data.class_fractions, data.labelled_fractions)
    ema = ModelEMA(network, train.ema) if train.ema else None
    after = partial(ema.update_parameters, network) if ema is not None else lambda: None
    return Learner(
        network, build_optimizer(network, train), partial(segmentation_loss, config=loss_config), after_step=after
    )


def plain_loss(logits: Tensor, label: Tensor, dice_weight: float) -> Tensor:
    """Return the article's loss of logits: cross-cross_entropy and Dice over the labelled pixels of a batch."""
    # Multiplying by the mask is faster than indexing with it.
    known, target = (label != IGNORE).float(), (label == 1).float()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    probability = torch.sigmoid(logits[:, 0]) * known
    dice = (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    return (1 - dice_weight) * (cross_entropy * known).sum() / known.sum() + dice_weight * (1 - dice)


def _smp(job: TrainingJob) -> Learner:
    network, train = smp_network(job.name.removeprefix("smp-"), job.weights), load_recipe(ARTICLE).train
    encoder = set(network.get_submodule("encoder").parameters())
    groups = [
        {"params": list(encoder), "lr": train.encoder_lr},
        {"params": [p for p in network.parameters() if p not in encoder], "lr": train.decoder_lr},
    ]
    return Learner(network, Adam(groups), partial(plain_loss, dice_weight=train.region_loss_weight))


def _article_loop(job: TrainingJob) -> Learner:
    network, combined = article_unet.UNet(job.weights), article_unet.CombinedLoss()

    def loss(outputs: Tensor, label: Tensor) -> Tensor:
        found: Tensor = combined(outputs[:, 0], (label == 1).float())
        return found

    own = ("contiguous",)
    return Learner(
        network, article_unet.build_optimizer(network), loss, memory_formats=own, threshold=0.5, augment=False
    )
