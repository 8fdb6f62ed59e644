"""The training loop: forward, loss, backward, step; validate; keep the best; lose nothing."""

import logging
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from lightning_fabric import Fabric
from torch import Tensor

from tilth.card import WEIGHTS
from tilth.config import TrainConfig
from tilth.errors import InputError, SettingError
from tilth.learn.averaging import Average
from tilth.learn.checkpoint import LAST, Position, Stateful, Tally, identity, load_state, save_state, save_weights
from tilth.learn.device import find_device, find_precision, layout, repeatable
from tilth.learn.events import EventLog
from tilth.learn.feed import Feed, TrainingData
from tilth.learn.history import Epoch, History
from tilth.learn.losses import Deep, Logits, finest, loss_mix, segmentation_loss
from tilth.learn.metrics import confusion
from tilth.learn.networks import Network
from tilth.learn.optim import hold_encoder, optimizer_of, set_rates
from tilth.learn.schedule import Schedule
from tilth.progress import Meter, meter
from tilth.scores import scores


def fit(network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool = False) -> History:
    """Train `network` in place and return what every epoch gave; the run's files lie in `folder` then.

    The network ends with the last epoch's weights, on the device that trained it. With `resume` the run in `folder`
    goes on from its last saved state, in the middle of an epoch too, and ends with the same weights to the bit on the
    same machine; a finished run does nothing. Torch's random numbers are seeded anew for each epoch.

    Raises:
        InputError: without a training tile, when a tile cannot be read, or when the loss is no longer a number.
        SettingError: for a device that is not there, or a state of another run.
        OutputError: when the disk refuses; the state saved before stays.
    """
    run = _Run(network, data, config, folder, resume)
    with meter("training", run.tiles_left(), "tiles") as bar, repeatable(run.fabric.device):
        while run.position.epoch < config.epochs:
            run.begin_epoch()
            for images, label in run.feed.train(run.position.epoch, run.position.step):
                logits = run.model(images)
                loss = segmentation_loss(logits, label, run.loss_mix)
                run.refuse_nan(loss)
                run.optimizer.zero_grad()
                run.fabric.backward(loss)
                run.move()
                run.position.tally.add(*_counted(loss, logits, label, run.k))
                run.end_step(bar, len(images))
            run.end_epoch(run.validated(bar))
    hold_encoder(network, run.frozen)
    network.load_state_dict(run.kept.state_dict())
    return run.position.history


class _Run:
    """The parts of a run, and what happens between its steps."""

    def __init__(self, network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool) -> None:
        if not len(data.train):
            raise InputError("There is no training tile. Prepare the tile set again with smaller --val and --test.")
        self.k = len(data.legend.names)
        self.loss_mix = loss_mix(config, data.legend, data.shares)
        self.fabric = _fabric(config)
        self.feed = Feed(data, config, self.fabric.device)
        self._network, self._data, self._config, self._folder = network, data, config, folder
        network.to(memory_format=layout(self.fabric.device))
        self.frozen = network.frozen
        self._optimizer = optimizer_of(network, config)
        self._schedule = Schedule(config, len(self.feed.batches(0)))
        self.model, self.optimizer = self.fabric.setup(network, self._optimizer)
        self._parts: dict[str, Stateful] = {
            "network": network,
            "optimizer": self._optimizer,
            "precision": self.fabric.strategy.precision,
        }
        self._average = Average(network, config.ema) if config.ema else None
        if self._average is not None:
            self._parts["average"] = self._average
        self._identity = identity(config, data)
        self.position = load_state(folder, self._parts, self._identity) if resume else Position(Tally.of(self.k))
        done = self.position.epoch
        if done > config.epochs:
            raise SettingError(f"{folder} has {done} epochs already: epochs = {config.epochs} is too few.")
        self._events = EventLog(folder, done) if config.tensorboard else None
        self._ticked = self._saved = time.monotonic()

    def tiles_left(self) -> int:
        """Return how many tiles, of training and validation, are still to come."""
        epochs = self._config.epochs - self.position.epoch
        done = self.position.step * self._config.batch_size
        return max(0, epochs * (len(self._data.train) + len(self._data.val)) - done)

    def begin_epoch(self) -> None:
        """Set what an epoch starts from; in its middle, the random numbers are those that were saved."""
        whole = self._network.trained_stages and self.position.epoch < self._config.freeze_epochs
        hold_encoder(self._network, len(self._network.stages) if whole else self.frozen)
        self.model.train()
        if self.position.step == 0:
            torch.manual_seed(_epoch_seed(self._config.seed, self.position.epoch))
        self._ticked = time.monotonic()

    def refuse_nan(self, loss: Float32[Tensor, ""]) -> None:
        """Raise InputError for a loss that is no number, before it reaches the weights."""
        if not math.isfinite(loss.item()):
            where = f"step {self.position.step + 1} of epoch {self.position.epoch + 1}"
            raise InputError(
                f"The loss became {loss.item()} in {where}. Lower the learning rates, or look for extreme pixel values."
            )

    def move(self) -> None:
        """Move the weights by one step of the optimizer."""
        step = self.position.epoch * self._schedule.epoch_steps + self.position.step
        set_rates(self._optimizer, self._schedule, step)
        self.optimizer.step()
        if self._average is not None:
            self._average.take(self._network)

    @property
    def kept(self) -> Network:
        """The network that is validated and kept: the one that is trained, or the mean of its weights."""
        return self._network if self._average is None else self._average.network

    def end_step(self, bar: Meter, tiles: int) -> None:
        """Note one step, and save the state when it is time to."""
        now = time.monotonic()
        self.position.step += 1
        self.position.seconds += now - self._ticked
        self._ticked = now
        if now - self._saved >= 60 * self._config.save_minutes:
            self._save()
        bar.advance(tiles)
        bar.note(f"epoch {self.position.epoch + 1}/{self._config.epochs}, loss {self.position.tally.mean_loss:.3f}")

    def validated(self, bar: Meter) -> Tally:
        """Return loss and confusion over the validation tiles."""
        tally = Tally.of(self.k)
        model = self.model if self._average is None else self._average.network
        model.eval()
        with torch.no_grad(), self.fabric.autocast():
            for images, label in self.feed.val():
                logits = model(images)
                loss = segmentation_loss(logits, label, self.loss_mix)
                tally.add(*_counted(loss, logits, label, self.k))
                bar.advance(len(images))
        return tally

    def end_epoch(self, val: Tally) -> None:
        """Write down the epoch: the state last, for what is not in it will be done again, to the same end."""
        row = self._row(val)
        history = self.position.history.and_then(row)
        self.position = Position(Tally.of(self.k), self.position.epoch + 1, history=history)
        if history.best == row:
            save_weights(self._folder / WEIGHTS, self.kept)
        save_weights(self._folder / LAST, self.kept)
        history.write(self._folder)
        if self._events is not None:
            self._events.write(row)
        self._save()

    def _save(self) -> None:
        save_state(self._folder, self._parts, self.position, self._identity)
        self._saved = self._ticked = time.monotonic()

    def _row(self, val: Tally) -> Epoch:
        train, seconds = self.position.tally, self.position.seconds
        return Epoch(
            epoch=self.position.epoch + 1,
            train_loss=train.mean_loss,
            **{f"train_{name}": value for name, value in scores(train.confusion).headline().items()},
            val_loss=val.mean_loss,
            **{f"val_{name}": value for name, value in scores(val.confusion).headline().items()},
            lr=self._optimizer.param_groups[-1]["lr"],
            seconds=seconds + time.monotonic() - self._ticked,
            tiles_per_second=len(self._data.train) / max(seconds, 1e-9),
        )


def _counted(
    loss: Float32[Tensor, ""], logits: Logits | Deep, label: UInt8[Tensor, "n h w"], k: int
) -> tuple[float, np.ndarray]:
    return loss.item(), confusion(finest(logits).detach(), label, k).numpy(force=True)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1)[0])


def _fabric(config: TrainConfig) -> Fabric:
    device = find_device(config.device)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Advice on clusters that has no use here.
        warnings.simplefilter("ignore")
        return Fabric(accelerator=device, devices=1, precision=find_precision(config.precision, device))
