"""The training loop: train, validate, save the best weights, resume after an interruption."""

import math
import time
from copy import deepcopy
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import islice, zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from geograft.card import STATE
from geograft.config import TrainConfig
from geograft.errors import DivergedError, InputError
from geograft.files import json_digest
from geograft.interrupts import Interrupted, received_signal
from geograft.losses.segmentation import build_loss_config
from geograft.metrics.confusion import ConfusionScheme
from geograft.networks.device import deterministic_algorithms, memory_format_for
from geograft.networks.network import Network
from geograft.progress import ProgressBar, announce, progress_bar
from geograft.text import pluralise
from geograft.training.checkpoint import (
    LAST,
    EpochTotals,
    RunFolder,
    Stateful,
    TrainingProgress,
    load_state,
    load_weights,
    run_identity,
)
from geograft.training.distributed import ProcessGroup, launch, spawns_processes
from geograft.training.history import Epoch, History, tracked_metrics, trackers
from geograft.training.loader import TileLoader, TrainingBatch, TrainingData
from geograft.training.optim import (
    ModelEMA,
    Schedule,
    StartAverage,
    build_optimizer,
    freeze_encoder,
    has_matching_shapes,
    set_learning_rates,
)
from geograft.training.sampling import check_batch_size, shard
from geograft.training.step import (
    BatchResult,
    NonFiniteLossError,
    Step,
    TensorPair,
    UnreadResult,
    can_defer_checks,
    chunks_that_fit,
    group_batches,
    nonfinite_message,
    nonfinite_tiles,
    tile_name,
    translate_out_of_memory,
)

TIMED_STEPS = 4
"""Steps after the first one from which the time of a training is estimated."""
READ_STEPS = 16
"""Batches whose results stay on a GPU until they are read together, so that the GPU is not waited for in between."""
ANNOUNCED_S = 60.0
"""Minimum expected time in seconds that is announced."""


def fit(
    network: Network, data: TrainingData, config: TrainConfig, folder: Path | RunFolder, resume: bool = False
) -> History:
    """Train `network` in place, write the run's files to `folder` and return the training history.

    The network ends with the weights of the last epoch, or their EMA if `ema` is set, on the training device. With
    `resume`, the run in `folder` is resumed from its last saved state, also in the middle of an epoch, and ends with
    bit-identical weights on the same machine. A run with `config.epochs` epochs or more returns at once. Each epoch
    seeds torch's random numbers. A `RunFolder` with a card gets an unfinished card with every epoch.

    Raises:
        InputError: without training tiles, or if a tile cannot be read; DivergedError for a NaN or infinite loss.
        SettingError: if the device is not available, the state belongs to another run, or memory is too short for one
            tile.
        ProcessLostError: if another process ended or cannot be reached.
        OutputError: if a file cannot be written; the last saved state remains.
    """
    check_start(data, config)
    out = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    history = launch(config, _fit_process, network, data, config, out, resume)
    if spawns_processes(config):
        load_weights(out.path / LAST, network)
    return history


def expected_epoch_seconds(network: Network, data: TrainingData, config: TrainConfig) -> float:
    """Return the expected time of an epoch in seconds, from a few timed steps on a copy of `network`.

    Nothing is written, and a training after it gives the same weights as without. For one process.

    Raises:
        InputError, SettingError: as `fit`.
    """
    check_start(data, config)
    untracked = replace(config, tensorboard=False, mlflow="", compile=False)
    return launch(untracked, _time_epoch, deepcopy(network), data, untracked)


def _time_epoch(group: ProcessGroup, network: Network, data: TrainingData, config: TrainConfig) -> float:
    run = _Run(group, network, data, config, RunFolder(Path()), resume=False)
    with deterministic_algorithms(group.fabric.device), translate_out_of_memory():
        return run.time_epoch()


def _fit_process(
    group: ProcessGroup, network: Network, data: TrainingData, config: TrainConfig, folder: RunFolder, resume: bool
) -> History:
    run = _Run(group, network, data, config, folder, resume)
    if group.is_main and not run.finished():
        announce(run.summary())
    with (
        progress_bar("training", run.tiles_left(), "tiles", enabled=group.is_main, line_s=math.inf) as bar,
        deterministic_algorithms(group.fabric.device),
        translate_out_of_memory(),
    ):
        while not run.finished():
            run.train(bar)
            run.end_epoch(run.validate(bar))
            bar.end_epoch(run.epoch_line(), asdict(run.progress.history.epochs[-1]) | {"epochs": config.epochs})
    return run.end()


class _Run:
    """The state of a run and the stages of an epoch."""

    def __init__(
        self,
        group: ProcessGroup,
        network: Network,
        data: TrainingData,
        config: TrainConfig,
        folder: RunFolder,
        resume: bool,
    ) -> None:
        self._network, self._data, self._config, self._folder = network, data, config, folder
        self._scheme, self._frozen = ConfusionScheme.from_legend(data.legend), network.frozen
        self._group, self._fabric = group, group.fabric
        self._loader = TileLoader(data, config, self._fabric.device, group.rank, group.world_size)
        network.to(memory_format=memory_format_for(self._fabric.device))
        network.set_deep_supervision(enabled=config.auxiliary_weight > 0)
        self._loss_config = build_loss_config(config, data.legend, data.class_fractions, data.labelled_fractions)
        chunks = self._chunks_that_fit() if group.world_size > 1 else 1
        group.convert_batchnorm(network)
        defers = can_defer_checks(self._fabric)
        self._optimizer = build_optimizer(network, config, fused=defers or self._fabric.device.type == "cuda")
        # Torch compiles at the first step. Fabric unwraps a compiled module and compiles its own wrapper instead.
        model: Any = torch.compile(network) if config.compile else network
        self._model, self._stepper = self._fabric.setup(model, self._optimizer)
        group.sync_parameters(network)
        checkpointed = None if config.compile else network
        self._step = Step(group, self._model, self._loss_config, self._scheme.classes, defers, checkpointed)
        if defers:
            # As torch.amp.GradScaler does: the fused optimizers skip a step where it is 1, without waiting for it.
            self._optimizer.found_inf = self._step.found_inf  # type: ignore[attr-defined]
        self._unread: list[UnreadResult] = []
        self._ema = ModelEMA(network, config.ema) if config.ema else None
        self._start = StartAverage(deepcopy(network), network.start_fraction) if network.start_fraction else None
        self._schedule = Schedule(config, -(-len(self._loader.batch_indices(0)) // config.accumulate))
        self._identity = run_identity(config, data)
        self.progress = self._initial_progress(resume)
        self._check_equal_start()
        self._step.chunks = max(self._step.chunks, chunks)
        self._trackers = (
            trackers(config, folder.path, self.progress.epoch) if group.is_main and not self.finished() else []
        )
        self._ticked = self._saved = time.monotonic()
        self._durations: list[float] = []

    def _chunks_that_fit(self) -> int:
        """Return the number of chunks of a batch that every process has the memory for."""
        image, label = self._data.train[0]
        count = -(-min(self._config.batch_size, len(self._data.train)) // self._group.world_size)
        device = self._fabric.device
        tiles = torch.tensor(image).float(), torch.tensor(label)
        images, labels = (each.to(device).expand(count, *each.shape).contiguous() for each in tiles)
        images = images.contiguous(memory_format=memory_format_for(device))
        return chunks_that_fit(self._group, self._network.to(device).train(), (images, labels), self._loss_config)

    def finished(self) -> bool:
        """Return whether training is over: all epochs are done, or early stopping applies."""
        return self.progress.is_finished(self._config)

    def tiles_left(self) -> int:
        """Return the number of training and validation tiles left to process."""
        epochs = self._config.epochs - self.progress.epoch
        done = self.progress.step * self._config.batch_size
        return max(0, epochs * (len(self._data.train) + len(self._data.val)) - done)

    def summary(self) -> str:
        """Return tiles, parameters, weights and device in one line."""
        parameters = list(self._network.parameters())
        count, trained = (sum(p.numel() for p in parameters if p.requires_grad or both) for both in (True, False))
        processes = self._group.world_size
        device = self._fabric.device.type + (f" in {processes} processes" if processes > 1 else "")
        return (
            f"training on {pluralise(len(self._data.train), 'tile')}, validation on {len(self._data.val):,}; "
            f"{count:,} parameters, {trained:,} trained; encoder weights: {self._network.weights_from}; {device}; "
            f"{pluralise(self._config.epochs, 'epoch')} of {pluralise(self._schedule.epoch_steps, 'step')}"
        )

    def epoch_line(self) -> str:
        """Return the losses and IoU of the last finished epoch in one line, and the time left if all epochs run."""
        row, epochs = self.progress.history.epochs[-1], self._config.epochs
        val = "" if math.isnan(row.val_loss) else f", val loss {row.val_loss:.4f}, val IoU {row.val_iou:.3f}"
        left = 0 if self.finished() else row.seconds * (epochs - row.epoch)
        return (
            f"epoch {row.epoch} of {epochs}: train loss {row.train_loss:.4f}, train IoU {row.train_iou:.3f}{val}, "
            f"{row.seconds:.0f} s; {left:.0f} s left"
        )

    def time_epoch(self) -> float:
        """Return the expected time of an epoch in seconds, after a few steps and a validation batch."""
        self._begin_epoch()
        seconds, groups = [], group_batches(self._loader.train(0), self._config.accumulate)
        began = time.monotonic()
        for group in islice(groups, 1 + TIMED_STEPS):
            self._step.read(self._optimizer_step(group))
            # The next batches are read in the time of their own step.
            seconds.append(time.monotonic() - began)
            began = time.monotonic()
        model = (self._model if self._ema is None else self._ema.network).eval()
        with torch.no_grad(), self._fabric.autocast():
            self._step.read([self._step.evaluate(next(self._loader.val(), None), model)])
        val_seconds = (time.monotonic() - began) * self._loader.val_steps
        # The first step also allocates memory.
        return median(seconds[1:] or seconds) * self._schedule.epoch_steps + val_seconds

    def _announce_time(self) -> None:
        """Print the expected time of the rest of the training, unless it is short."""
        step_seconds, left = median(self._durations[1:]), self._config.epochs - self.progress.epoch
        steps = left * len(self._loader.batch_indices(0)) - self.progress.step
        # A batch takes about a third of the time without gradients.
        seconds = step_seconds * (steps + left * self._loader.val_steps / 3)
        if seconds >= ANNOUNCED_S:
            announce(f"expected time: about {timedelta(seconds=round(seconds))}, {step_seconds:.2f} s per batch")

    def train(self, bar: ProgressBar) -> None:
        """Run the remaining steps of the epoch."""
        self._begin_epoch()
        batches = self._loader.train(self.progress.epoch, self.progress.step)
        for group in group_batches(batches, self._config.accumulate):
            self._end_step(self._optimizer_step(group), bar)
        self._read_steps(bar)

    def validate(self, bar: ProgressBar) -> EpochTotals:
        """Return loss and confusion over the validation tiles."""
        totals, unread = self._new_totals(), list[UnreadResult]()
        model = self._model if self._ema is None and self._start is None else self._evaluated_network()
        model.eval()
        with torch.no_grad(), self._fabric.autocast():
            for _, batch in zip_longest(range(self._loader.val_steps), self._loader.val()):
                unread.append(self._step.evaluate(batch, model))
                if self._should_read(unread):
                    self._add_validation(unread, totals, bar)
            if unread:
                self._add_validation(unread, totals, bar)
        return totals

    def _add_validation(self, unread: list[UnreadResult], totals: EpochTotals, bar: ProgressBar) -> None:
        results = self._step.read(unread)
        unread.clear()
        for each in results:
            totals.add(each.loss, each.confusion)
        bar.advance(sum(each.tiles for each in results))
        self._stop_if_interrupted(results)

    def end_epoch(self, val: EpochTotals) -> None:
        """Save the epoch. An epoch that was not saved completely is repeated, with the same result."""
        # The main process's metrics are broadcast, so that all processes stop early at the same epoch.
        row = self._group.broadcast(self._row(val))
        history = self.progress.history.append(row)
        self.progress = TrainingProgress(self._new_totals(), self.progress.epoch + 1, history=history)
        if self._group.is_main:
            self._write(row)

    def _write(self, row: Epoch) -> None:
        for tracker in self._trackers:
            tracker.write(row.epoch, tracked_metrics(row))
        self._folder.write_epoch(self._evaluated_network(), self._parts, self.progress, self._identity)
        self._saved = self._ticked = time.monotonic()

    def end(self) -> History:
        """Load the averaged weights, if any, restore the frozen stages, and return the history with messages."""
        freeze_encoder(self._network, self._frozen)
        if self.progress.step:
            # The run ends at fewer epochs than it was started with, and the steps of an unfinished epoch are dropped.
            load_weights(self._folder.path / LAST, self._network)
        else:
            self._network.load_state_dict(self._evaluated_network().state_dict())
        tracked = tuple(line for tracker in self._trackers for line in tracker.close())
        return replace(self.progress.history, notes=(*self._step.notes(), *self._stopped_early(), *tracked))

    def _stopped_early(self) -> tuple[str, ...]:
        if self.progress.epoch >= self._config.epochs:
            return ()
        epochs = f"{self.progress.history.epochs_since_best} epochs without a lower validation loss"
        return (f"stopped after epoch {self.progress.epoch} of {self._config.epochs}: {epochs} (patience)",)

    def _new_totals(self) -> EpochTotals:
        return EpochTotals(self._scheme.zeros())

    def _initial_progress(self, resume: bool) -> TrainingProgress:
        if not resume:
            return TrainingProgress(self._new_totals())
        progress = load_state(self._folder.path, self._parts, self._identity, self._config.epochs)
        faults = [
            *(["step"] if progress.step > len(self._loader.batch_indices(progress.epoch)) else []),
            *(["confusion"] if progress.totals.confusion.shape != self._scheme.zeros().shape else []),
            *(["optimizer"] if not has_matching_shapes(self._optimizer) else []),
        ]
        if faults:
            raise InputError(
                f"{self._folder.path / STATE} is damaged: {faults[0]} does not match the data or the network. Copy the "
                "run again, or train it again."
            )
        return progress

    def _check_equal_start(self) -> None:
        """Raise InputError if the processes do not begin with the same state, settings and data."""
        digest = json_digest(self._identity)[:12]
        start = f"epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, settings and data {digest}"
        lines = self._group.all_gather_lines([start])
        for rank, line in enumerate(lines):
            if line != lines[0]:
                raise InputError(
                    f"Process 0 of {len(lines)} begins with {lines[0]}, and process {rank} with {line}. All of them "
                    "need the same run folder, tile set and settings."
                )

    @property
    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "network": self._network,
            "optimizer": self._optimizer,
            "precision": self._fabric.strategy.precision,
            "step": self._step,
        }
        return parts if self._ema is None else {**parts, "ema": self._ema}

    def _evaluated_network(self) -> Network:
        """The network that is validated and saved: the trained one or its EMA, averaged with the starting weights."""
        latest = self._network if self._ema is None else self._ema.network
        return latest if self._start is None else self._start.of(latest)

    def _begin_epoch(self) -> None:
        """Freeze stages, and seed torch at the start of an epoch; a resumed epoch has its saved random state."""
        freeze_all = self._network.pretrained_encoder and self.progress.epoch < self._config.freeze_epochs
        freeze_encoder(self._network, len(self._network.stages) if freeze_all else self._frozen)
        self._model.train()
        if self.progress.step == 0:
            torch.manual_seed(_seed(self._config.seed, self.progress.epoch))
        self._ticked = time.monotonic()

    def _optimizer_step(self, batches: list[TensorPair]) -> list[UnreadResult]:
        """Run one optimizer step, and return the result of each batch."""
        self._seed_step()
        step = self.progress.step // self._config.accumulate
        set_learning_rates(self._optimizer, self._schedule, self.progress.epoch * self._schedule.epoch_steps + step)
        try:
            results = self._step.compute_gradients(batches)
        except NonFiniteLossError as error:
            number = self.progress.step + error.batch
            raise DivergedError(self._divergence_message(error.loss, number, batches[error.batch])) from error
        if self._config.clip_norm:
            # Fabric unscales the gradients of 16-mixed first; steps that overflow there are skipped, not an error.
            self._fabric.clip_gradients(
                self._model, self._stepper, max_norm=self._config.clip_norm, error_if_nonfinite=False
            )
        self._stepper.step()
        if self._ema is not None:
            self._ema.update_parameters(self._network)
        self.progress.step += len(batches)
        return results

    def _seed_step(self) -> None:
        """With several processes, seed each step by rank, so that only the main process's random state is saved."""
        if self._group.world_size > 1:
            torch.manual_seed(_seed(self._config.seed, self.progress.epoch, self.progress.step, self._group.rank))

    def _divergence_message(self, loss: float, number: int, batch: TrainingBatch) -> str:
        """Return the cause of a NaN or infinite loss in batch `number` of the epoch."""
        tiles = shard(self._loader.batch_indices(self.progress.epoch)[number], self._group.rank, self._group.world_size)
        where = f"step {number + 1} of epoch {self.progress.epoch + 1}"
        with self._fabric.autocast():
            names = [
                tile_name(self._data.train, tiles[index])
                for index in nonfinite_tiles(self._network, batch, self._loss_config)
            ]
        names, count = self._group.all_gather_lines(names), len(self._group.all_gather_lines([""] * len(tiles)))
        return f"The loss became {loss} in {where}. {nonfinite_message(self._network, names, count)}"

    def _end_step(self, results: list[UnreadResult], bar: ProgressBar) -> None:
        """Take the results of a step, and read them when it is time."""
        self._unread += results
        if self._should_read(self._unread):
            self._read_steps(bar)

    def _should_read(self, unread: list[UnreadResult]) -> bool:
        """Return whether results are to be read now: the same in all processes."""
        every = 1 if self._step.found_inf is None else READ_STEPS
        return len(unread) >= every or (self._group.world_size == 1 and bool(received_signal()))

    def _read_steps(self, bar: ProgressBar) -> None:
        """Add results and time of the steps since the last call, update the progress bar, and save if it is time.

        Raises:
            DivergedError: for a NaN or infinite loss in one of them; the weights are those before it.
            Interrupted: after an interrupt, with the state saved.
        """
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        try:
            results = self._step.read(unread)
        except NonFiniteLossError as error:
            number = self.progress.step - len(unread) + error.batch
            # The weights have not changed since, and a batch is the same whenever it is read.
            batch = next(self._loader.train(self.progress.epoch, number))
            raise DivergedError(self._divergence_message(error.loss, number, batch)) from error
        for each in results:
            self.progress.totals.add(each.loss, each.confusion)
        now = time.monotonic()
        self.progress.seconds += now - self._ticked
        self._durations.append((now - self._ticked) / len(results))
        self._ticked = now
        bar.advance(sum(each.tiles for each in results))
        epoch, epochs, loss = self.progress.epoch + 1, self._config.epochs, self.progress.totals.mean_loss
        bar.set_note(f"epoch {epoch}/{epochs}, loss {loss:.3f}", epoch=epoch, epochs=epochs, loss=loss)
        if bar.lines is not None and len(self._durations) == 1 + TIMED_STEPS:
            self._announce_time()
        self._stop_if_interrupted(results)
        if self._group.is_main and now - self._saved >= 60 * self._config.save_minutes:
            self._save()

    def _stop_if_interrupted(self, results: list[BatchResult]) -> None:
        """Save the state and raise Interrupted, in all processes, if one was interrupted before these results.

        In validation as well: the state is the one after the epoch's last step, and validation is repeated.
        """
        if not any(each.interrupted for each in results):
            return
        if self._group.is_main:
            self._save()
        stopped = Interrupted()
        stopped.add_note(f"Stopped in epoch {self.progress.epoch + 1} of {self._config.epochs}")
        raise stopped

    def _save(self) -> None:
        self._folder.write_state(self._parts, self.progress, self._identity)
        self._saved = self._ticked = time.monotonic()

    def _row(self, val: EpochTotals) -> Epoch:
        train, seconds = self.progress.totals, self.progress.seconds
        return Epoch(
            epoch=self.progress.epoch + 1,
            train_loss=train.mean_loss,
            **{f"train_{name}": value for name, value in self._scheme.headline(train.confusion).items()},
            val_loss=val.mean_loss,
            **{f"val_{name}": value for name, value in self._scheme.headline(val.confusion).items()},
            lr=self._optimizer.param_groups[-1]["lr"],
            seconds=seconds + time.monotonic() - self._ticked,
            tiles_per_second=len(self._data.train) / max(seconds, 1e-9),
        )


def check_start(data: TrainingData, config: TrainConfig) -> None:
    """Check what would stop `fit` before its first step.

    Raises:
        InputError: without training tiles.
        SettingError: if a process would get no tile of a batch.
    """
    if not len(data.train):
        raise InputError("There are no training tiles. Prepare the tile set again with smaller --val and --test.")
    check_batch_size(config.devices * config.nodes, config.batch_size, len(data.train), len(data.val))


def _seed(seed: int, *rest: int) -> int:
    return int(np.random.SeedSequence([seed % 2**64, *rest]).generate_state(1)[0])
