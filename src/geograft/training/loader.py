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
from geograft.labels import Label, labelled_mask
from geograft.legend import Legend
from geograft.networks.device import memory_format_for
from geograft.training.augment import Augment, augment_tile, jitter_scale, paste_class
from geograft.training.sampling import (
    ClassFractions,
    check_batch_size,
    choose_donor,
    class_balanced_weights,
    epoch_order,
    generator,
    make_batches,
    shard,
    weighted_order,
)

TrainingSplit = Literal["train", "val"]
TrainingTile: TypeAlias = tuple[Float32[ndarray, "b h w"], Label]
TrainingBatch: TypeAlias = tuple[Float32[Tensor, "n b h w"], UInt8[Tensor, "n h w"] | Float32[Tensor, "n o h w"]]


@runtime_checkable
class Tiles(Protocol):
    """Tiles by index: the image float32 (B, H, W) in its own units, the label uint8 (H, W), or float32 (O, H, W).

    All of one shape. A pixel labelled 255 (of shares: NaN) is neither trained nor scored; one that is 0 in every band
    besides has no image at all. Must go through pickle when there are workers.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingTile: ...


@runtime_checkable
class CroppableTiles(Protocol):
    """Tiles that can also be taken from a random place near their own."""

    def random_crop(self, index: int, rng: np.random.Generator, /) -> TrainingTile:
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
    network_settings: Mapping[str, str | int] = field(default_factory=dict)
    """What the network was built from: a run goes on with the same only."""
    class_fractions: ClassFractions | None = None
    """Share of each class among all pixels of each training tile, for what depends on rare classes."""
    labelled_fractions: Float[ndarray, " tiles"] | None = None
    """Share of the pixels of each training tile that are labelled; None: all."""
    indices: int = 0
    """How many of the last bands are computed from the others. They have no colour that could change."""


class TileKey(NamedTuple):
    """One tile in one epoch: all that decides what the feed makes of it."""

    split: TrainingSplit
    epoch: int
    tile: int
    repetition: int = 0
    """How often the epoch has had it before."""


def image_mask(image: Float32[ndarray, "b h w"], label: Label) -> Bool[ndarray, "h w"]:
    """Return which pixels of a sample have an image: all but those that are 0 in every band and have no label."""
    seen: Bool[ndarray, "h w"] = labelled_mask(label) | image.any(axis=0)
    return seen


def worker_count(workers: int, device: str) -> int:
    """Return how many processes read tiles ahead; `workers` itself unless it is -1.

    By default none on a CPU, where reading is a few hundredths of a training step and workers would take its cores,
    seconds of start and memory each; else one less than there are cores, at most 8.
    """
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, max(0, _cores() - 1))


class TileLoader:
    """Batches of both parts on `device`, from one set of worker processes that live as long as the feed.

    Of `world` processes that train together each has a feed, and `rank` says which part of every batch it gives. All
    parts together are the batches of one process, `config.batch_size` tiles each.

    Raises:
        SettingError: for more processes than there are tiles in a batch or a part; for settings that need
            shares of classes, or tiles that can be moved, where there are none.
    """

    def __init__(
        self, data: TrainingData, config: TrainConfig, device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        self._parts: dict[TrainingSplit, int] = {"train": len(data.train), "val": len(data.val)}
        self._rank, self._world = rank, world_size
        check_batch_size(world_size, config.batch_size, len(data.train), len(data.val))
        _check_settings(data, config)
        self._rates = (
            class_balanced_weights(data.class_fractions)
            if config.sampling == "classes" and data.class_fractions is not None
            else None
        )
        self._seed, self._size, self._device = config.seed, config.batch_size, device
        self._plan: list[list[TileKey]] = []
        workers = worker_count(config.workers, device.type)
        self._loader = DataLoader(
            _TileDataset(data, config),
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

    def batch_indices(self, epoch: int) -> list[list[int]]:
        """Return the indices of the training tiles of each batch of an epoch, of all processes together."""
        return [[key.tile for key in batch] for batch in self._batches(epoch)]

    def train(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Return the epoch's batches in random order, augmented, without the first `start`, which are not read.

        Every process has as many; none is empty.
        """
        return self._pass(self._batches(epoch)[start:])

    def val(self) -> Iterator[TrainingBatch]:
        """Return the validation tiles in their own order, as they are. A process may have a batch less than another."""
        return self._pass(self._val_batches())

    @property
    def val_steps(self) -> int:
        """Batches of a pass over the validation tiles, of all processes together."""
        return len(self._val_batches())

    def _val_batches(self) -> list[list[TileKey]]:
        return make_batches([TileKey("val", 0, index) for index in range(self._parts["val"])], self._size)

    def _batches(self, epoch: int) -> list[list[TileKey]]:
        if self._rates is None:
            order = epoch_order(self._parts["train"], self._seed, epoch)
        else:
            order = weighted_order(self._rates, generator(self._seed, epoch))
        had: Counter[int] = Counter()
        keys = []
        for tile in order:
            keys.append(TileKey("train", epoch, tile, had[tile]))
            had[tile] += 1
        return make_batches(keys, self._size, self._world)

    def _pass(self, batches: Sequence[Sequence[TileKey]]) -> Iterator[TrainingBatch]:
        mine = (shard(batch, self._rank, self._world) for batch in batches)
        self._plan[:] = [batch for batch in mine if batch]
        for batch in self._loader:
            if isinstance(batch, GeograftError):
                raise batch
            images, label = batch
            images = images.to(self._device, non_blocking=True, memory_format=memory_format_for(self._device))
            yield images, label.to(self._device, non_blocking=True)


class _TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """Tiles as the network takes them: augmented, scaled, 0 where there is no image."""

    def __init__(self, data: TrainingData, config: TrainConfig) -> None:
        self._parts: dict[TrainingSplit, Tiles] = {"train": data.train, "val": data.val}
        self._scaling, self._config = data.scaling, config
        some = data.class_fractions is not None and bool(data.class_fractions.any())
        self._shares = data.class_fractions if config.copy_paste and some else None
        self._colours = np.array(data.scaling.std[: len(data.scaling.std) - data.indices])

    def __getitem__(
        self, key: TileKey
    ) -> tuple[Float32[Tensor, "b h w"], UInt8[Tensor, "h w"] | Float32[Tensor, "o h w"]]:
        if key.split == "train":
            image, label, valid = self._augment(key)
        else:
            image, label = self._parts[key.split][key.tile]
            valid = image_mask(image, label)
        scaled = np.where(valid, self._scaling(image), np.float32(0))
        return torch.from_numpy(scaled), torch.from_numpy(np.array(label))

    def _augment(self, key: TileKey) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
        config, number = self._config, key.tile + key.repetition * len(self._parts["train"])
        # Each change draws from a stream of its own, so that no setting changes what another one draws.
        common = generator(config.seed, key.epoch, number)
        crop, paste, other, scale = (generator(config.seed, key.epoch, number, stream) for stream in range(1, 5))
        sample = self._read(key.tile, crop)
        if self._shares is not None and paste.random() < config.copy_paste:
            donating, index = choose_donor(self._shares, paste)
            sample = paste_class(sample, self._read_flipped(donating, other), index)
        image, label, valid = (*sample, image_mask(*sample))
        if config.scale_jitter:
            image, label, valid = jitter_scale(image, label, valid, config.scale_jitter, scale)
        return augment_tile(image, label, valid, self._colours, config.augment, common)

    def _read(self, tile: int, rng: np.random.Generator) -> TrainingTile:
        tiles = self._parts["train"]
        return tiles.random_crop(tile, rng) if self._config.crops and isinstance(tiles, CroppableTiles) else tiles[tile]

    def _read_flipped(self, tile: int, rng: np.random.Generator) -> TrainingTile:
        """Return a tile under a random symmetry, where tiles are augmented at all."""
        image, label = self._read(tile, rng)
        turn: Augment = "none" if self._config.augment == "none" else "dihedral"
        image, label, _ = augment_tile(image, label, image_mask(image, label), self._colours, turn, rng)
        return image, label

    def __getitems__(self, keys: list[TileKey]) -> list[tuple[Tensor, Tensor]] | GeograftError:
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
    if data.class_fractions is None and (config.sampling == "classes" or config.copy_paste):
        raise SettingError("sampling = 'classes' and copy_paste need the shares of the classes in each training tile.")
    if config.crops and not isinstance(data.train, CroppableTiles):
        raise SettingError("crops = true needs training tiles that can be moved: windows of a tile set.")


def _cores() -> int:
    # Containers and batch systems often allow a process fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
