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
from geograft.losses.segmentation import build_loss_config
from geograft.metrics.confusion import ConfusionScheme
from geograft.networks.device import deterministic_algorithms, memory_format_for
from geograft.networks.network import Network
from geograft.progress import ProgressBar, progress_bar
from geograft.training.checkpoint import (
    LAST,
    EpochTotals,
    Stateful,
    TrainingProgress,
    load_state,
    load_weights,
    run_identity,
    save_state,
    save_weights,
)
from geograft.training.distributed import ProcessGroup, launch, spawns_processes
from geograft.training.history import Epoch, History
from geograft.training.loader import TileLoader, TrainingBatch, TrainingData
from geograft.training.optim import ModelEMA, Schedule, build_optimizer, freeze_encoder, set_learning_rates
from geograft.training.sampling import check_batch_size, shard
from geograft.training.step import (
    NonFiniteLossError,
    Step,
    TensorPair,
    group_batches,
    nonfinite_message,
    nonfinite_tiles,
    tile_name,
)
from geograft.training.tracking import tracked_metrics, trackers


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
    history = launch(config, _fit_process, network, data, config, folder, resume)
    if spawns_processes(config):
        load_weights(folder / LAST, network)
    return history


def _fit_process(
    group: ProcessGroup, network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool
) -> History:
    run = _Run(group, network, data, config, folder, resume)
    with (
        progress_bar("training", run.tiles_left(), "tiles", shown=group.is_main) as bar,
        deterministic_algorithms(group.fabric.device),
    ):
        while not run.finished():
            run.train(bar)
            run.end_epoch(run.validate(bar))
    return run.end()


class _Run:
    """The parts of a run, and what happens in an epoch."""

    def __init__(
        self, group: ProcessGroup, network: Network, data: TrainingData, config: TrainConfig, folder: Path, resume: bool
    ) -> None:
        self._network, self._data, self._config, self._folder = network, data, config, folder
        self._counting, self._frozen = ConfusionScheme.from_legend(data.legend), network.frozen
        self._group, self._fabric = group, group.fabric
        self._loader = TileLoader(data, config, self._fabric.device, group.rank, group.world_size)
        network.to(memory_format=memory_format_for(self._fabric.device))
        network.set_deep_supervision(enabled=config.auxiliary_weight > 0)
        self._optimizer = build_optimizer(network, config)
        # Torch compiles at the first step; Fabric takes the wrapper off and puts it on again over its own.
        model: Any = torch.compile(network) if config.compile else network
        self._model, self._stepper = self._fabric.setup(model, self._optimizer)
        self._mix = build_loss_config(config, data.legend, data.class_fractions, data.labelled_fractions)
        group.sync_parameters(network)
        self._step = Step(group, self._model, self._mix, self._counting.classes)
        self._ema = ModelEMA(network, config.ema) if config.ema else None
        self._schedule = Schedule(config, -(-len(self._loader.batch_indices(0)) // config.accumulate))
        self._identity = run_identity(config, data)
        self.progress = self._initial_progress(resume)
        self._trackers = trackers(config, folder, self.progress.epoch) if group.is_main and not self.finished() else []
        self._ticked = self._saved = time.monotonic()

    def finished(self) -> bool:
        """Return whether no epoch is to come: all are done, or the last ones were in vain."""
        return self.progress.is_finished(self._config)

    def tiles_left(self) -> int:
        """Return how many tiles, of training and validation, are still to come."""
        epochs = self._config.epochs - self.progress.epoch
        done = self.progress.step * self._config.batch_size
        return max(0, epochs * (len(self._data.train) + len(self._data.val)) - done)

    def train(self, bar: ProgressBar) -> None:
        """Take the epoch's steps that are still to come."""
        self._begin_epoch()
        batches = self._loader.train(self.progress.epoch, self.progress.step)
        for group in group_batches(batches, self._config.accumulate):
            self._note_step(self._optimizer_step(group), bar)

    def validate(self, bar: ProgressBar) -> EpochTotals:
        """Return loss and confusion over the validation tiles."""
        tally = self._new_totals()
        model = self._model if self._ema is None else self._ema.network
        model.eval()
        with torch.no_grad(), self._fabric.autocast():
            for _, batch in zip_longest(range(self._loader.val_steps), self._loader.val()):
                seen = self._step.evaluate(batch, model)
                tally.add(seen.loss, seen.confusion)
                bar.advance(seen.tiles)
        return tally

    def end_epoch(self, val: EpochTotals) -> None:
        """Write down the epoch: the state last, for what is not in it will be done again, to the same end."""
        # One process's clock and floats count, for all must stop at the same epoch.
        row = self._group.broadcast(self._row(val))
        history = self.progress.history.append(row)
        self.progress = TrainingProgress(self._new_totals(), self.progress.epoch + 1, history=history)
        if self._group.is_main:
            self._write(row, history)

    def _write(self, row: Epoch, history: History) -> None:
        if history.best == row:
            save_weights(self._folder / WEIGHTS, self._evaluated_network)
        save_weights(self._folder / LAST, self._evaluated_network)
        history.write(self._folder)
        for tracker in self._trackers:
            tracker.write(row.epoch, tracked_metrics(row))
        self._save()

    def end(self) -> History:
        """Leave the network as it is kept, with the stages frozen that were, and return the history with notes."""
        freeze_encoder(self._network, self._frozen)
        if self._ema is not None:
            self._network.load_state_dict(self._ema.network.state_dict())
        tracked = tuple(line for tracker in self._trackers for line in tracker.close())
        return replace(self.progress.history, notes=(*self._step.notes(), *self._stopped_early(), *tracked))

    def _stopped_early(self) -> tuple[str, ...]:
        if self.progress.epoch == self._config.epochs:
            return ()
        epochs = f"{self.progress.history.epochs_since_best} epochs without a lower validation loss"
        return (f"stopped after epoch {self.progress.epoch} of {self._config.epochs}: {epochs} (patience)",)

    def _new_totals(self) -> EpochTotals:
        return EpochTotals(self._counting.zeros())

    def _initial_progress(self, resume: bool) -> TrainingProgress:
        if not resume:
            return TrainingProgress(self._new_totals())
        return load_state(self._folder, self._parts, self._identity, self._config.epochs)

    @property
    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "network": self._network,
            "optimizer": self._optimizer,
            "precision": self._fabric.strategy.precision,
            "step": self._step,
        }
        return parts if self._ema is None else {**parts, "average": self._ema}

    @property
    def _evaluated_network(self) -> Network:
        """The network that is validated and kept: the one that is trained, or the mean of its weights."""
        return self._network if self._ema is None else self._ema.network

    def _begin_epoch(self) -> None:
        """Set what an epoch starts from; in its middle, the random numbers are those that were saved."""
        whole = self._network.pretrained_encoder and self.progress.epoch < self._config.freeze_epochs
        freeze_encoder(self._network, len(self._network.stages) if whole else self._frozen)
        self._model.train()
        if self.progress.step == 0:
            torch.manual_seed(_seed(self._config.seed, self.progress.epoch))
        self._ticked = time.monotonic()

    def _optimizer_step(self, batches: list[TensorPair]) -> int:
        """Take one step of the optimizer, count what it saw, and return the number of tiles."""
        self._seed_step()
        step = self.progress.step // self._config.accumulate
        set_learning_rates(self._optimizer, self._schedule, self.progress.epoch * self._schedule.epoch_steps + step)
        try:
            counted = self._step.compute_gradients(batches)
        except NonFiniteLossError as error:
            raise DivergedError(self._divergence_message(error, batches[error.batch])) from error
        if self._config.clip_norm:
            # Fabric takes the loss scaling of 16-mixed off first; what overflowed there is skipped, not refused.
            self._fabric.clip_gradients(
                self._model, self._stepper, max_norm=self._config.clip_norm, error_if_nonfinite=False
            )
        self._stepper.step()
        if self._ema is not None:
            self._ema.update(self._network)
        for each in counted:
            self.progress.totals.add(each.loss, each.confusion)
        self.progress.step += len(batches)
        return sum(each.tiles for each in counted)

    def _seed_step(self) -> None:
        """With several processes, begin random numbers anew at each step: each has its own, and none must be saved."""
        if self._group.world_size > 1:
            torch.manual_seed(_seed(self._config.seed, self.progress.epoch, self.progress.step, self._group.rank))

    def _divergence_message(self, error: NonFiniteLossError, batch: TrainingBatch) -> str:
        number = self.progress.step + error.batch
        tiles = shard(self._loader.batch_indices(self.progress.epoch)[number], self._group.rank, self._group.world_size)
        where = f"step {number + 1} of epoch {self.progress.epoch + 1}"
        with self._fabric.autocast():
            guilty = [
                tile_name(self._data.train, tiles[index]) for index in nonfinite_tiles(self._network, batch, self._mix)
            ]
        guilty, count = self._group.all_gather_lines(guilty), len(self._group.all_gather_lines([""] * len(tiles)))
        return f"The loss became {error.loss} in {where}. {nonfinite_message(self._network, guilty, count)}"

    def _note_step(self, tiles: int, bar: ProgressBar) -> None:
        """Count the time, and save the state when it is time to; between steps of the optimizer alone."""
        now = time.monotonic()
        self.progress.seconds += now - self._ticked
        self._ticked = now
        if self._group.is_main and now - self._saved >= 60 * self._config.save_minutes:
            self._save()
        bar.advance(tiles)
        bar.set_note(
            f"epoch {self.progress.epoch + 1}/{self._config.epochs}, loss {self.progress.totals.mean_loss:.3f}"
        )

    def _save(self) -> None:
        save_state(self._folder, self._parts, self.progress, self._identity)
        self._saved = self._ticked = time.monotonic()

    def _row(self, val: EpochTotals) -> Epoch:
        train, seconds = self.progress.totals, self.progress.seconds
        return Epoch(
            epoch=self.progress.epoch + 1,
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
    check_batch_size(config.devices * config.nodes, config.batch_size, len(data.train), len(data.val))


def _seed(seed: int, *rest: int) -> int:
    return int(np.random.SeedSequence([seed % 2**64, *rest]).generate_state(1)[0])
