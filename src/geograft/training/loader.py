"""Tiles on their way to the network: read ahead, augmented, scaled, in batches.

What a batch holds depends on the seed, the epoch and the tiles' indices alone: not on the number of workers, not on
what was read before. So a run can go on in the middle of an epoch.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from geograft.config import TrainConfig
from geograft.errors import GeograftError, SettingError
from geograft.labels import Label, labelled
from geograft.legend import Legend
from geograft.networks.device import layout
from geograft.training.augment import Augment, augmented, pasted, scale_jittered
from geograft.training.sampling import (
    Shares,
    batched,
    check_shared,
    class_rates,
    donor,
    drawn_order,
    epoch_order,
    generator,
    part_of,
)

Part = Literal["train", "val"]
Sample: TypeAlias = tuple[Float32[ndarray, "b h w"], Label]
Batch: TypeAlias = tuple[Float32[Tensor, "n b h w"], UInt8[Tensor, "n h w"] | Float32[Tensor, "n o h w"]]


@runtime_checkable
class Tiles(Protocol):
    """Tiles by index: the image float32 (B, H, W) in its own units, the label uint8 (H, W), or float32 (O, H, W).

    All of one shape. A pixel labelled 255 (of shares: NaN) is neither trained nor scored; one that is 0 in every band
    besides has no image at all. Must go through pickle when there are workers.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class Movable(Protocol):
    """Tiles that can also be taken from a random place near their own."""

    def drawn(self, index: int, rng: np.random.Generator, /) -> Sample:
        """Return the tile from a place that `rng` decides."""
        ...


@dataclass(frozen=True)
class Scaling:
    """What the network sees of a pixel: (pixel - mean) / std, by band, in the images' own units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Float32[ndarray, "*n b h w"]) -> Float32[ndarray, "*n b h w"]:
        """Return `image` as the network sees it. A pixel at the mean becomes 0."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


@dataclass(frozen=True)
class TrainingData:
    """Everything that training sees."""

    train: Tiles
    val: Tiles
    """May be empty: then there is no validation loss, and the last epoch counts as the best."""
    legend: Legend
    scaling: Scaling
    fingerprint: str = ""
    """Of the tile set: a run goes on with the same data only."""
    network: Mapping[str, str | int] = field(default_factory=dict)
    """What the network was built from: a run goes on with the same only."""
    shares: Shares | None = None
    """Share of each class among all pixels of each training tile, for what depends on rare classes."""
    labelled: Float[ndarray, " tiles"] | None = None
    """Share of the pixels of each training tile that are labelled; None: all."""
    indices: int = 0
    """How many of the last bands are computed from the others. They have no colour that could change."""


class Key(NamedTuple):
    """One tile in one epoch: all that decides what the feed makes of it."""

    part: Part
    epoch: int
    tile: int
    again: int = 0
    """How often the epoch has had it before."""


def imaged(image: Float32[ndarray, "b h w"], label: Label) -> Bool[ndarray, "h w"]:
    """Return which pixels of a sample have an image: all but those that are 0 in every band and have no label."""
    seen: Bool[ndarray, "h w"] = labelled(label) | image.any(axis=0)
    return seen


def worker_count(workers: int, device: str) -> int:
    """Return how many processes read tiles ahead; `workers` itself unless it is -1.

    By default none on a CPU, where reading is a few hundredths of a training step and workers would take its cores,
    seconds of start and memory each; else one less than there are cores, at most 8.
    """
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, max(0, _cores() - 1))


class Feed:
    """Batches of both parts on `device`, from one set of worker processes that live as long as the feed.

    Of `world` processes that train together each has a feed, and `rank` says which part of every batch it gives. All
    parts together are the batches of one process, `config.batch_size` tiles each.

    Raises:
        SettingError: for more processes than there are tiles in a batch or a part; for settings that need
            shares of classes, or tiles that can be moved, where there are none.
    """

    def __init__(
        self, data: TrainingData, config: TrainConfig, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        self._parts: dict[Part, int] = {"train": len(data.train), "val": len(data.val)}
        self._rank, self._world = rank, world
        check_shared(world, config.batch_size, len(data.train), len(data.val))
        _check_settings(data, config)
        self._rates = class_rates(data.shares) if config.sampling == "classes" and data.shares is not None else None
        self._seed, self._size, self._device = config.seed, config.batch_size, device
        self._plan: list[list[Key]] = []
        workers = worker_count(config.workers, device.type)
        self._loader = DataLoader(
            _Prepared(data, config),
            # The loader takes the plan anew for each pass, so that its workers outlive a pass.
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            # Forking a process that runs threads (GDAL's, OpenMP's) can hang; Windows and macOS do not fork at all.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            # Its own, for the loader draws a number at each pass: the network's random numbers must not depend on it.
            generator=torch.Generator(),
        )

    def batches(self, epoch: int) -> list[list[int]]:
        """Return the indices of the training tiles of each batch of an epoch, of all processes together."""
        return [[key.tile for key in batch] for batch in self._batches(epoch)]

    def train(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return the epoch's batches in random order, augmented, without the first `start`, which are not read.

        Every process has as many; none is empty.
        """
        return self._pass(self._batches(epoch)[start:])

    def val(self) -> Iterator[Batch]:
        """Return the validation tiles in their own order, as they are. A process may have a batch less than another."""
        return self._pass(self._val_batches())

    @property
    def val_steps(self) -> int:
        """Batches of a pass over the validation tiles, of all processes together."""
        return len(self._val_batches())

    def _val_batches(self) -> list[list[Key]]:
        return batched([Key("val", 0, index) for index in range(self._parts["val"])], self._size)

    def _batches(self, epoch: int) -> list[list[Key]]:
        if self._rates is None:
            order = epoch_order(self._parts["train"], self._seed, epoch)
        else:
            order = drawn_order(self._rates, generator(self._seed, epoch))
        had: Counter[int] = Counter()
        keys = []
        for tile in order:
            keys.append(Key("train", epoch, tile, had[tile]))
            had[tile] += 1
        return batched(keys, self._size, self._world)

    def _pass(self, batches: Sequence[Sequence[Key]]) -> Iterator[Batch]:
        mine = (part_of(batch, self._rank, self._world) for batch in batches)
        self._plan[:] = [batch for batch in mine if batch]
        for batch in self._loader:
            if isinstance(batch, GeograftError):
                raise batch
            images, label = batch
            images = images.to(self._device, non_blocking=True, memory_format=layout(self._device))
            yield images, label.to(self._device, non_blocking=True)


class _Prepared(Dataset[tuple[Tensor, Tensor]]):
    """Tiles as the network takes them: augmented, scaled, 0 where there is no image."""

    def __init__(self, data: TrainingData, config: TrainConfig) -> None:
        self._parts: dict[Part, Tiles] = {"train": data.train, "val": data.val}
        self._scaling, self._config = data.scaling, config
        some = data.shares is not None and bool(data.shares.any())
        self._shares = data.shares if config.copy_paste and some else None
        self._colours = np.array(data.scaling.std[: len(data.scaling.std) - data.indices])

    def __getitem__(self, key: Key) -> tuple[Float32[Tensor, "b h w"], UInt8[Tensor, "h w"] | Float32[Tensor, "o h w"]]:
        if key.part == "train":
            image, label, valid = self._augmented(key)
        else:
            image, label = self._parts[key.part][key.tile]
            valid = imaged(image, label)
        scaled = np.where(valid, self._scaling(image), np.float32(0))
        return torch.from_numpy(scaled), torch.from_numpy(np.array(label))

    def _augmented(self, key: Key) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
        config, number = self._config, key.tile + key.again * len(self._parts["train"])
        # Each change draws from a stream of its own, so that no setting changes what another one draws.
        common = generator(config.seed, key.epoch, number)
        crop, paste, other, scale = (generator(config.seed, key.epoch, number, stream) for stream in range(1, 5))
        sample = self._read(key.tile, crop)
        if self._shares is not None and paste.random() < config.copy_paste:
            donating, index = donor(self._shares, paste)
            sample = pasted(sample, self._turned(donating, other), index)
        image, label, valid = (*sample, imaged(*sample))
        if config.scale_jitter:
            image, label, valid = scale_jittered(image, label, valid, config.scale_jitter, scale)
        return augmented(image, label, valid, self._colours, config.augment, common)

    def _read(self, tile: int, rng: np.random.Generator) -> Sample:
        tiles = self._parts["train"]
        return tiles.drawn(tile, rng) if self._config.crops and isinstance(tiles, Movable) else tiles[tile]

    def _turned(self, tile: int, rng: np.random.Generator) -> Sample:
        """Return a tile under a random symmetry, where tiles are augmented at all."""
        image, label = self._read(tile, rng)
        turn: Augment = "none" if self._config.augment == "none" else "dihedral"
        image, label, _ = augmented(image, label, imaged(image, label), self._colours, turn, rng)
        return image, label

    def __getitems__(self, keys: list[Key]) -> list[tuple[Tensor, Tensor]] | GeograftError:
        # An error that leaves a worker by itself arrives with the worker's traceback in its message.
        try:
            return [self[key] for key in keys]
        except GeograftError as error:
            return error


def _collate(tiles: list[tuple[Tensor, Tensor]] | GeograftError) -> list[Tensor] | GeograftError:
    if isinstance(tiles, GeograftError):
        return tiles
    batch: list[Tensor] = default_collate(tiles)
    return batch


def _check_settings(data: TrainingData, config: TrainConfig) -> None:
    if data.shares is None and (config.sampling == "classes" or config.copy_paste):
        raise SettingError("sampling = 'classes' and copy_paste need the shares of the classes in each training tile.")
    if config.crops and not isinstance(data.train, Movable):
        raise SettingError("crops = true needs training tiles that can be moved: windows of a tile set.")


def _cores() -> int:
    # Containers and batch systems often allow a process fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
