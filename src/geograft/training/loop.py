"""The training loop: steps, validate, keep the best; lose nothing."""

import time
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geograft.card import WEIGHTS
from geograft.config import TrainConfig
from geograft.errors import DivergedError, InputError
from geograft.losses.segmentation import loss_mix
from geograft.metrics.confusion import Counting
from geograft.networks.device import layout, repeatable
from geograft.networks.network import Network
from geograft.progress import Meter, meter
from geograft.training.checkpoint import (
    LAST,
    Position,
    Stateful,
    Tally,
    identity,
    load_state,
    load_weights,
    save_state,
    save_weights,
)
from geograft.training.distributed import Crew, in_crew, starts_others
from geograft.training.history import Epoch, History
from geograft.training.loader import Batch, Feed, TrainingData
from geograft.training.optim import ModelEMA, Schedule, hold_encoder, optimizer_of, set_rates
from geograft.training.sampling import check_shared, part_of
from geograft.training.step import NoNumberError, Pair, Step, culprits, grouped, name_of, verdict
from geograft.training.tracking import figures, trackers


def fit(network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool = False) -> History:
    """Train `network` in place and return what every epoch gave; the run's files lie in `folder` then.

    The network ends with the last epoch's weights, or their mean with `ema`, on the device that trained it. With
    `resume` the run in `folder` goes on from its last saved state, in the middle of an epoch too, and ends with the
    same weights to the bit on the same machine; a finished run does nothing. Torch's random numbers are seeded anew for
    each epoch.

    Raises:
        InputError: without a training tile, when a tile cannot be read, or when the loss is no longer a number.
        SettingError: for a device that is not there, a state of another run, or memory too short for one tile.
        OutputError: when the disk refuses; the state saved before stays.
    """
    _check_enough(data, config)
    history = in_crew(config, _fitted, network, data, config, folder, resume)
    if starts_others(config):
        load_weights(folder / LAST, network)
    return history


def _fitted(
    crew: Crew, network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool
) -> History:
    run = _Run(crew, network, data, config, folder, resume)
    with meter("training", run.tiles_left(), "tiles", shown=crew.leads) as bar, repeatable(crew.fabric.device):
        while not run.finished():
            run.train(bar)
            run.end_epoch(run.validated(bar))
    return run.end()


class _Run:
    """The parts of a run, and what happens in an epoch."""

    def __init__(
        self, crew: Crew, network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool
    ) -> None:
        self._network, self._data, self._config, self._folder = network, data, config, folder
        self._counting, self._frozen = Counting.of(data.legend), network.frozen
        self._crew, self._fabric = crew, crew.fabric
        self._feed = Feed(data, config, self._fabric.device, crew.rank, crew.world)
        network.to(memory_format=layout(self._fabric.device))
        network.supervise(deep=config.auxiliary_weight > 0)
        self._optimizer = optimizer_of(network, config)
        # Torch compiles at the first step; Fabric takes the wrapper off and puts it on again over its own.
        model: Any = torch.compile(network) if config.compile else network
        self._model, self._stepper = self._fabric.setup(model, self._optimizer)
        self._mix = loss_mix(config, data.legend, data.shares, data.labelled)
        crew.begin_alike(network)
        self._step = Step(crew, self._model, self._mix, self._counting.classes)
        self._average = ModelEMA(network, config.ema) if config.ema else None
        self._schedule = Schedule(config, -(-len(self._feed.batches(0)) // config.accumulate))
        self._identity = identity(config, data)
        self.position = self._begun(resume)
        self._trackers = trackers(config, folder, self.position.epoch) if crew.leads and not self.finished() else []
        self._ticked = self._saved = time.monotonic()

    def finished(self) -> bool:
        """Return whether no epoch is to come: all are done, or the last ones were in vain."""
        return self.position.ended(self._config)

    def tiles_left(self) -> int:
        """Return how many tiles, of training and validation, are still to come."""
        epochs = self._config.epochs - self.position.epoch
        done = self.position.step * self._config.batch_size
        return max(0, epochs * (len(self._data.train) + len(self._data.val)) - done)

    def train(self, bar: Meter) -> None:
        """Take the epoch's steps that are still to come."""
        self._begin_epoch()
        batches = self._feed.train(self.position.epoch, self.position.step)
        for group in grouped(batches, self._config.accumulate):
            self._note_step(self._move(group), bar)

    def validated(self, bar: Meter) -> Tally:
        """Return loss and confusion over the validation tiles."""
        tally = self._no_tally()
        model = self._model if self._average is None else self._average.network
        model.eval()
        with torch.no_grad(), self._fabric.autocast():
            for _, batch in zip_longest(range(self._feed.val_steps), self._feed.val()):
                seen = self._step.seen(batch, model)
                tally.add(seen.loss, seen.confusion)
                bar.advance(seen.tiles)
        return tally

    def end_epoch(self, val: Tally) -> None:
        """Write down the epoch: the state last, for what is not in it will be done again, to the same end."""
        # One process's clock and floats count, for all must stop at the same epoch.
        row = self._crew.agreed(self._row(val))
        history = self.position.history.and_then(row)
        self.position = Position(self._no_tally(), self.position.epoch + 1, history=history)
        if self._crew.leads:
            self._write(row, history)

    def _write(self, row: Epoch, history: History) -> None:
        if history.best == row:
            save_weights(self._folder / WEIGHTS, self._kept)
        save_weights(self._folder / LAST, self._kept)
        history.write(self._folder)
        for tracker in self._trackers:
            tracker.write(row.epoch, figures(row))
        self._save()

    def end(self) -> History:
        """Leave the network as it is kept, with the stages frozen that were, and return the history with notes."""
        hold_encoder(self._network, self._frozen)
        if self._average is not None:
            self._network.load_state_dict(self._average.network.state_dict())
        tracked = tuple(line for tracker in self._trackers for line in tracker.close())
        return replace(self.position.history, notes=(*self._step.notes(), *self._stopped_early(), *tracked))

    def _stopped_early(self) -> tuple[str, ...]:
        if self.position.epoch == self._config.epochs:
            return ()
        epochs = f"{self.position.history.since_best} epochs without a lower validation loss"
        return (f"stopped after epoch {self.position.epoch} of {self._config.epochs}: {epochs} (patience)",)

    def _no_tally(self) -> Tally:
        return Tally(self._counting.none())

    def _begun(self, resume: bool) -> Position:
        if not resume:
            return Position(self._no_tally())
        return load_state(self._folder, self._parts, self._identity, self._config.epochs)

    @property
    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "network": self._network,
            "optimizer": self._optimizer,
            "precision": self._fabric.strategy.precision,
            "step": self._step,
        }
        return parts if self._average is None else {**parts, "average": self._average}

    @property
    def _kept(self) -> Network:
        """The network that is validated and kept: the one that is trained, or the mean of its weights."""
        return self._network if self._average is None else self._average.network

    def _begin_epoch(self) -> None:
        """Set what an epoch starts from; in its middle, the random numbers are those that were saved."""
        whole = self._network.trained_stages and self.position.epoch < self._config.freeze_epochs
        hold_encoder(self._network, len(self._network.stages) if whole else self._frozen)
        self._model.train()
        if self.position.step == 0:
            torch.manual_seed(_seed(self._config.seed, self.position.epoch))
        self._ticked = time.monotonic()

    def _move(self, batches: list[Pair]) -> int:
        """Take one step of the optimizer, count what it saw, and return the number of tiles."""
        self._draw_apart()
        step = self.position.step // self._config.accumulate
        set_rates(self._optimizer, self._schedule, self.position.epoch * self._schedule.epoch_steps + step)
        try:
            counted = self._step.gradients(batches)
        except NoNumberError as error:
            raise DivergedError(self._blame(error, batches[error.batch])) from error
        if self._config.clip_norm:
            # Fabric takes the loss scaling of 16-mixed off first; what overflowed there is skipped, not refused.
            self._fabric.clip_gradients(
                self._model, self._stepper, max_norm=self._config.clip_norm, error_if_nonfinite=False
            )
        self._stepper.step()
        if self._average is not None:
            self._average.take(self._network)
        for each in counted:
            self.position.tally.add(each.loss, each.confusion)
        self.position.step += len(batches)
        return sum(each.tiles for each in counted)

    def _draw_apart(self) -> None:
        """With several processes, begin random numbers anew at each step: each has its own, and none must be saved."""
        if self._crew.world > 1:
            torch.manual_seed(_seed(self._config.seed, self.position.epoch, self.position.step, self._crew.rank))

    def _blame(self, error: NoNumberError, batch: Batch) -> str:
        number = self.position.step + error.batch
        tiles = part_of(self._feed.batches(self.position.epoch)[number], self._crew.rank, self._crew.world)
        where = f"step {number + 1} of epoch {self.position.epoch + 1}"
        with self._fabric.autocast():
            guilty = [name_of(self._data.train, tiles[index]) for index in culprits(self._network, batch, self._mix)]
        guilty, count = self._crew.gathered(guilty), len(self._crew.gathered([""] * len(tiles)))
        return f"The loss became {error.loss} in {where}. {verdict(self._network, guilty, count)}"

    def _note_step(self, tiles: int, bar: Meter) -> None:
        """Count the time, and save the state when it is time to; between steps of the optimizer alone."""
        now = time.monotonic()
        self.position.seconds += now - self._ticked
        self._ticked = now
        if self._crew.leads and now - self._saved >= 60 * self._config.save_minutes:
            self._save()
        bar.advance(tiles)
        bar.note(f"epoch {self.position.epoch + 1}/{self._config.epochs}, loss {self.position.tally.mean_loss:.3f}")

    def _save(self) -> None:
        save_state(self._folder, self._parts, self.position, self._identity)
        self._saved = self._ticked = time.monotonic()

    def _row(self, val: Tally) -> Epoch:
        train, seconds = self.position.tally, self.position.seconds
        return Epoch(
            epoch=self.position.epoch + 1,
            train_loss=train.mean_loss,
            **{f"train_{name}": value for name, value in self._counting.headline(train.confusion).items()},
            val_loss=val.mean_loss,
            **{f"val_{name}": value for name, value in self._counting.headline(val.confusion).items()},
            lr=self._optimizer.param_groups[-1]["lr"],
            seconds=seconds + time.monotonic() - self._ticked,
            tiles_per_second=len(self._data.train) / max(seconds, 1e-9),
        )


def _check_enough(data: TrainingData, config: TrainConfig) -> None:
    if not len(data.train):
        raise InputError("There is no training tile. Prepare the tile set again with smaller --val and --test.")
    check_shared(config.devices * config.nodes, config.batch_size, len(data.train), len(data.val))


def _seed(seed: int, *rest: int) -> int:
    return int(np.random.SeedSequence([seed % 2**64, *rest]).generate_state(1)[0])
