"""The data loader: reads tiles ahead, augments and normalises them, and yields batches.

On a CPU this is done tile by tile where tiles are read. On a GPU tiles are uploaded as they are stored, and augmented
and normalised there in whole batches. The content of a batch depends only on the seed, the epoch and the indices of its
tiles, not on the number of workers or on earlier batches, so that a run can be resumed in the middle of an epoch.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Shaped, UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from geograft.config import TrainConfig
from geograft.cores import usable_cores
from geograft.errors import GeograftError, SettingError
from geograft.interrupts import block_signals_in_children
from geograft.labels import Label, image_mask
from geograft.legend import Legend
from geograft.networks.device import memory_format_for
from geograft.training.augment import (
    Augment,
    BatchAugmenter,
    Draws,
    StoredBatch,
    TrainingTile,
    augment_tile,
    collate_stored,
    dihedral,
    draw_colours_and_symmetry,
    draw_scale,
    jitter_scale,
    paste_class,
)
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

CACHE_BYTES = 2**29
"""Maximum size of the decoded tiles that a loader keeps in memory, over all of its worker processes."""

TrainingSplit = Literal["train", "val"]
TrainingBatch: TypeAlias = tuple[Float32[Tensor, "n b h w"], UInt8[Tensor, "n h w"] | Float32[Tensor, "n o h w"]]


@runtime_checkable
class Tiles(Protocol):
    """Tiles by index: the image (B, H, W) in its own units, the label uint8 (H, W), or float32 (O, H, W).

    Images are float32, or have at most 16 bits. All have one shape. A pixel with label 255 (fractional labels: NaN) is
    ignored in training and scores; if it is also 0 in every band, it has no image data. Must be picklable for worker
    processes.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TrainingTile: ...


@runtime_checkable
class CroppableTiles(Protocol):
    """Tiles that can also be cropped at a random position near their own."""

    def random_crop(self, index: int, rng: np.random.Generator, /) -> TrainingTile:
        """Return the tile at a random position."""
        ...


@dataclass(frozen=True)
class Scaling:
    """Normalisation of the images: (pixel - mean) / std, by band, with mean and std in the images' own units."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Float32[ndarray, "*n b h w"]) -> Float32[ndarray, "*n b h w"]:
        """Return the normalised image."""
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


@dataclass(frozen=True)
class TrainingData:
    """Tiles to train and validate on, and what training needs to know of them."""

    train: Tiles
    val: Tiles
    """May be empty: then there is no validation loss, and the last epoch is the best one."""
    legend: Legend
    scaling: Scaling
    fingerprint: str = ""
    """Of the tile set. A run can be resumed only with the same data."""
    network_settings: Mapping[str, str | int] = field(default_factory=dict)
    """Settings that the network was built from. A run can be resumed only with the same ones."""
    class_fractions: ClassFractions | None = None
    """Fraction of each class among the pixels of each training tile, for class-balanced sampling and copy-paste."""
    labelled_fractions: Float[ndarray, " tiles"] | None = None
    """Fraction of labelled pixels in each training tile; None: all."""
    tile_weights: Float64[ndarray, " tiles"] | None = None
    """How often each training tile is drawn, relative to the others; None: each once an epoch."""
    indices: int = 0
    """Number of spectral indices, which are the last bands. They are not colour-jittered."""


class TileKey(NamedTuple):
    """One tile in one epoch; it determines the augmentation."""

    split: TrainingSplit
    epoch: int
    tile: int
    repetition: int = 0
    """How often the tile has come earlier in the epoch."""


def worker_count(workers: int, device: str) -> int:
    """Return the number of worker processes: `workers`, unless it is -1 (automatic).

    Automatic is 0 on a CPU, where reading takes a few per cent of a training step and workers would compete for its
    cores; on other devices one less than the number of cores, at most 8.
    """
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, max(0, usable_cores() - 1))


def _sampling_weights(data: TrainingData, config: TrainConfig) -> Float64[ndarray, " tiles"] | None:
    """Return the probability of each training tile in a draw; None if each comes once an epoch."""
    weights = np.ones(len(data.train)) if data.tile_weights is None else data.tile_weights
    if config.sampling == "classes" and data.class_fractions is not None:
        weights = weights * class_balanced_weights(data.class_fractions)
    elif data.tile_weights is None:
        return None
    normalised: Float64[ndarray, " tiles"] = weights / weights.sum()
    return normalised


class TileLoader:
    """Training and validation batches on `device`, from persistent worker processes.

    With `whole_batches`, by default on CUDA, they are augmented and scaled on the device.

    In distributed training each process has a loader and gets the shard `rank` of every batch; together the shards are
    the batches of a single process, `config.batch_size` tiles each.

    Raises:
        SettingError: if there are more processes than tiles in a batch or a split; if settings need class fractions or
            `CroppableTiles` that `data` does not have.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        whole_batches: bool | None = None,
    ) -> None:
        self._lengths: dict[TrainingSplit, int] = {"train": len(data.train), "val": len(data.val)}
        self._rank, self._world_size = rank, world_size
        check_batch_size(world_size, config.batch_size, len(data.train), len(data.val))
        _check_settings(data, config)
        self._weights = _sampling_weights(data, config)
        self._seed, self._size, self._device = config.seed, config.batch_size, device
        self._batches_to_read: list[list[TileKey]] = []
        whole_batches = device.type == "cuda" if whole_batches is None else whole_batches
        self._augmenter = _batch_augmenter(data, config, device) if whole_batches else None
        workers = worker_count(config.workers, device.type)
        self._loader = DataLoader(
            _TileDataset(data, config, CACHE_BYTES // max(1, workers), stored=whole_batches),
            # The list is changed in place for each pass, so that the workers persist.
            batch_sampler=self._batches_to_read,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            # Forking a process with threads (GDAL, OpenMP) can hang; Windows and macOS do not fork.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            # Its own generator, because the loader draws a number at each pass, which must not change dropout.
            generator=torch.Generator(),
        )

    def batch_indices(self, epoch: int) -> list[list[int]]:
        """Return the indices of the training tiles in each batch of an epoch, over all processes."""
        return [[key.tile for key in batch] for batch in self._batches(epoch)]

    def train(self, epoch: int, start: int = 0) -> Iterator[TrainingBatch]:
        """Return the epoch's augmented batches in random order, from batch `start` on; earlier ones are not read.

        Every process gets the same number of batches, none of them empty.
        """
        return self._pass(self._batches(epoch)[start:], "train")

    def val(self) -> Iterator[TrainingBatch]:
        """Return the validation batches in order, not augmented. A process may get one batch fewer than another."""
        return self._pass(self._val_batches(), "val")

    @property
    def val_steps(self) -> int:
        """Number of validation batches, over all processes."""
        return len(self._val_batches())

    def _val_batches(self) -> list[list[TileKey]]:
        return make_batches([TileKey("val", 0, index) for index in range(self._lengths["val"])], self._size)

    def _batches(self, epoch: int) -> list[list[TileKey]]:
        if self._weights is None:
            order = epoch_order(self._lengths["train"], self._seed, epoch)
        else:
            order = weighted_order(self._weights, generator(self._seed, epoch))
        repetitions: Counter[int] = Counter()
        keys = []
        for tile in order:
            keys.append(TileKey("train", epoch, tile, repetitions[tile]))
            repetitions[tile] += 1
        return make_batches(keys, self._size, self._world_size)

    def _pass(self, batches: Sequence[Sequence[TileKey]], split: TrainingSplit) -> Iterator[TrainingBatch]:
        shards = (shard(batch, self._rank, self._world_size) for batch in batches)
        self._batches_to_read[:] = [batch for batch in shards if batch]
        with block_signals_in_children():
            loaded = iter(self._loader)
        for batch in loaded:
            if isinstance(batch, GeograftError):
                raise batch
            yield self._uploaded(batch, split)

    def _uploaded(self, batch: list[Tensor] | StoredBatch, split: TrainingSplit) -> TrainingBatch:
        if self._augmenter is not None and isinstance(batch, StoredBatch):
            return self._augmenter.train(batch) if split == "train" else self._augmenter.val(batch)
        images, label = batch[0], batch[1]
        images = images.to(self._device, non_blocking=True, memory_format=memory_format_for(self._device))
        return images, label.to(self._device, non_blocking=True)


def _batch_augmenter(data: TrainingData, config: TrainConfig, device: torch.device) -> BatchAugmenter:
    colours = len(data.scaling.std) - data.indices
    scaling, rescales = data.scaling, config.scale_jitter > 0
    return BatchAugmenter(scaling.mean, scaling.std, colours, config.augment, rescales=rescales, device=device)


class _TileDataset(Dataset[tuple[Tensor, Tensor]]):
    """Tiles as the network takes them: augmented, normalised, 0 where there is no image data.

    With `stored`, tiles as they are stored, and what is drawn for them, for `BatchAugmenter`. The first tiles that it
    reads, up to `cache_bytes`, are kept as decoded, so that later epochs need not read them.
    """

    def __init__(self, data: TrainingData, config: TrainConfig, cache_bytes: int, stored: bool = False) -> None:
        self._stored = stored
        self._tiles: dict[TrainingSplit, Tiles] = {"train": data.train, "val": data.val}
        self._cache: dict[tuple[TrainingSplit, int], TrainingTile] = {}
        self._room = cache_bytes
        self._scaling, self._config = data.scaling, config
        any_class = data.class_fractions is not None and bool(data.class_fractions.any())
        self._fractions = data.class_fractions if config.copy_paste and any_class else None
        self._colours = np.array(data.scaling.std[: len(data.scaling.std) - data.indices])

    def __getitem__(
        self, key: TileKey
    ) -> tuple[Float32[Tensor, "b h w"], UInt8[Tensor, "h w"] | Float32[Tensor, "o h w"]]:
        if key.split == "train":
            image, label, valid = self._augment(key)
        else:
            image, label = self._decoded(key.split, key.tile)
            valid = image_mask(image, label)
        scaled = np.where(valid, self._scaling(image.astype(np.float32, copy=False)), np.float32(0))
        return torch.from_numpy(scaled), torch.from_numpy(np.array(label))

    def _augment(self, key: TileKey) -> tuple[Float32[ndarray, "b h w"], Label, Bool[ndarray, "h w"]]:
        config, streams = self._config, self._streams(key)
        tile = self._pasted(key, streams)
        image, label, valid = tile[0].astype(np.float32, copy=False), tile[1], image_mask(*tile)
        if config.scale_jitter:
            image, label, valid = jitter_scale(image, label, valid, config.scale_jitter, streams.scale)
        return augment_tile(image, label, valid, self._colours, config.augment, streams.common)

    def _draw(self, key: TileKey) -> tuple[Shaped[ndarray, "b h w"], Label, Draws]:
        """Return a tile as it is stored, and what `_augment` draws for it."""
        if key.split == "val":
            return *self._decoded(key.split, key.tile), Draws()
        config, streams = self._config, self._streams(key)
        image, label = self._pasted(key, streams)
        drawn = draw_colours_and_symmetry(image.shape[1:], len(self._colours), config.augment, streams.common)
        if config.scale_jitter:
            scale, offset = draw_scale(config.scale_jitter, streams.scale)
            drawn = drawn._replace(scale=scale, offset=offset)
        return image, label, drawn

    def _streams(self, key: TileKey) -> "_Streams":
        number = key.tile + key.repetition * len(self._tiles["train"])
        seed = (self._config.seed, key.epoch, number)
        return _Streams(generator(*seed), *(generator(*seed, stream) for stream in range(1, 5)))

    def _pasted(self, key: TileKey, streams: "_Streams") -> TrainingTile:
        """Return a tile, with pixels of a rare class pasted from another one if so drawn."""
        tile = self._read(key.tile, streams.crop)
        if self._fractions is not None and streams.paste.random() < self._config.copy_paste:
            donating, index = choose_donor(self._fractions, streams.paste)
            tile = paste_class(tile, self._read_flipped(donating, streams.other), index)
        return tile

    def _read(self, tile: int, rng: np.random.Generator) -> TrainingTile:
        tiles = self._tiles["train"]
        if self._config.crops and isinstance(tiles, CroppableTiles):
            return tiles.random_crop(tile, rng)
        return self._decoded("train", tile)

    def _decoded(self, split: TrainingSplit, index: int) -> TrainingTile:
        """Return a tile that is not to be changed, from memory if it is there."""
        if (split, index) in self._cache:
            return self._cache[split, index]
        image, label = self._tiles[split][index]
        size = image.nbytes + label.nbytes
        if size <= self._room:
            self._cache[split, index], self._room = (image, label), self._room - size
        return image, label

    def _read_flipped(self, tile: int, rng: np.random.Generator) -> TrainingTile:
        """Return a tile under a random symmetry, unless augmentation is off."""
        image, label = self._read(tile, rng)
        symmetry: Augment = "none" if self._config.augment == "none" else "dihedral"
        element = draw_colours_and_symmetry(image.shape[1:], 0, symmetry, rng).element
        return dihedral(image, element), dihedral(label, element)

    def __getitems__(self, keys: list[TileKey]) -> list[Any] | GeograftError:
        # Returned rather than raised: an error raised in a worker arrives with its traceback in the message.
        try:
            return [self._draw(key) if self._stored else self[key] for key in keys]
        except GeograftError as error:
            return error


class _Streams(NamedTuple):
    """The random streams of a tile: one for each augmentation, so that none of them changes what another draws."""

    common: np.random.Generator
    crop: np.random.Generator
    paste: np.random.Generator
    other: np.random.Generator
    scale: np.random.Generator


def _collate(tiles: list[Any] | GeograftError) -> list[Tensor] | StoredBatch | GeograftError:
    if isinstance(tiles, GeograftError):
        return tiles
    if isinstance(tiles[0][-1], Draws):
        return collate_stored(tiles)
    batch: list[Tensor] = default_collate(tiles)
    return batch


def _check_settings(data: TrainingData, config: TrainConfig) -> None:
    if data.class_fractions is None and (config.sampling == "classes" or config.copy_paste):
        raise SettingError("sampling = 'classes' and copy_paste need class_fractions for each training tile.")
    if config.crops and not isinstance(data.train, CroppableTiles):
        raise SettingError("crops = true needs tiles with random_crop, as those of a tile set. Set crops = false.")
