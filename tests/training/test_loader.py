from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geograft.config import TrainConfig
from geograft.errors import InputError, SettingError
from geograft.labels import class_fractions, image_mask
from geograft.legend import Legend
from geograft.losses.segmentation import class_index
from geograft.training import loader
from geograft.training.loader import Scaling, TileLoader, worker_count
from geograft.training.sampling import epoch_order, make_batches, shard
from tests.support.training import Tile, blocks, training_data

CPU = torch.device("cpu")


def make(**settings: Any) -> TileLoader:
    return TileLoader(training_data(), TrainConfig(batch_size=4, workers=0, **settings), CPU)


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


@given(length=st.integers(1, 60), seed=st.integers(-5, 2**70), epoch=st.integers(0, 50))
def test_an_epoch_contains_every_tile_once(length: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(length, seed, epoch)) == list(range(length))


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = {tuple(epoch_order(20, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert epoch_order(20, 3, 2) == epoch_order(20, 3, 2)


@given(length=st.integers(0, 60), size=st.integers(1, 12))
def test_batches_contain_everything_in_order(length: int, size: int) -> None:
    batches = make_batches(range(length), size)
    assert list(chain.from_iterable(batches)) == list(range(length))
    assert all(len(batch) == size for batch in batches[:-1])
    if size > 1 and length > 1:
        assert all(2 <= len(batch) <= size + 1 for batch in batches)


@given(length=st.integers(1, 60), size=st.integers(1, 12), world=st.integers(1, 8))
def test_shards_partition_each_batch(length: int, size: int, world: int) -> None:
    world = min(world, size, length)
    batches = make_batches(range(length), size, world)
    assert list(chain.from_iterable(batches)) == list(range(length))
    for batch in batches:
        shards = [shard(batch, rank, world) for rank in range(world)]
        assert sorted(chain.from_iterable(shards)) == sorted(batch)
        assert 1 <= min(map(len, shards)) <= max(map(len, shards)) <= min(map(len, shards)) + 1


@pytest.mark.parametrize("world", [2, 3])
def test_the_shards_of_all_processes_make_the_batches_of_one(world: int) -> None:
    # 19 tiles leave a last batch of three, enough for three processes.
    data, config = training_data(train=blocks(19, 0)), TrainConfig(batch_size=4, workers=0, augment="colour")
    feeds = [TileLoader(data, config, CPU, rank, world) for rank in range(world)]
    alone = TileLoader(data, config, CPU)
    whole = [list(alone.train(3)), list(alone.val())]
    shared = [[list(one.train(3)) for one in feeds], [list(one.val()) for one in feeds]]
    for batches, parts in zip(whole, shared, strict=True):
        assert len({len(mine) for mine in parts}) == 1
        for i, (images, label) in enumerate(batches):
            for rank, mine in enumerate(parts):
                assert same([mine[i]], [(images[rank::world], label[rank::world])])


def test_more_processes_than_tiles_are_refused() -> None:
    with pytest.raises(SettingError, match=r"5 processes .*batch_size is 4"):
        TileLoader(training_data(), TrainConfig(batch_size=4, workers=0), CPU, 0, 5)


def test_pixels_without_image_data_are_zero() -> None:
    for images, label in make(augment="colour").train(0):
        blank = label == 255
        assert blank.any()
        assert not images.movedim(1, -1)[blank].any()
        assert images.movedim(1, -1)[~blank].all()


def test_unlabelled_pixels_keep_their_image() -> None:
    image, label = blocks(1, 0)[0]
    label[8:] = 255
    assert np.array_equal(image_mask(image, label)[8:], np.ones((8, 16), bool))
    data = training_data(train=[(image, label)])
    ((images, _),) = TileLoader(data, TrainConfig(workers=0, augment="none"), CPU).train(0)
    torch.testing.assert_close(images[0, :, 8:], torch.from_numpy((image[:, 8:] - 130) / 30))


def test_validation_tiles_are_not_augmented() -> None:
    loaded = make(augment="colour")
    first, second = list(loaded.val()), list(loaded.val())
    assert same(first, second)
    # Five tiles in batches of four: the fifth joins the first batch.
    assert [len(images) for images, _ in first] == [5]
    for (image, label), images, labels in zip(blocks(5, 1), first[0][0], first[0][1], strict=True):
        assert np.array_equal(labels, label)
        np.testing.assert_allclose(images[:, 4:], (image[:, 4:] - 130) / 30, rtol=1e-5)


def test_an_epoch_is_reproducible_and_differs_from_the_next() -> None:
    loaded = make(augment="colour", seed=3)
    first, other, again = list(loaded.train(0)), list(loaded.train(1)), list(loaded.train(0))
    assert same(first, again)
    assert same(first, list(make(augment="colour", seed=3).train(0)))
    assert not same(first, other)
    assert not same(first, list(make(augment="colour", seed=4).train(0)))


def test_the_global_random_state_is_not_changed() -> None:
    state = torch.get_rng_state()
    list(make(augment="colour").train(0))
    assert torch.equal(state, torch.get_rng_state())


class RecordingTiles(list[Tile]):
    """Tiles that record which of them were read."""

    def __init__(self, tiles: list[Tile]) -> None:
        super().__init__(tiles)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        self.read.append(index)
        return super().__getitem__(index)


def test_starting_in_the_middle_reads_only_the_remaining_tiles() -> None:
    tiles = RecordingTiles(blocks(18, 0))
    config = TrainConfig(batch_size=4, workers=0)
    rest = list(TileLoader(training_data(train=tiles), config, CPU).train(2, start=3))
    assert tiles.read == epoch_order(18, 0, 2)[12:]
    assert same(rest, list(TileLoader(training_data(), config, CPU).train(2))[3:])


@pytest.mark.parametrize("kept", [18, 5, 0])
@pytest.mark.parametrize("options", [{}, {"copy_paste": 0.5}, {"scale_jitter": 0.5}], ids=str)
def test_decoded_tiles_stay_in_memory_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, kept: int, options: dict[str, Any]
) -> None:
    (image, label), *_ = plain = blocks(18, 0)
    monkeypatch.setattr(loader, "CACHE_BYTES", kept * (image.nbytes + label.nbytes))
    tiles = RecordingTiles(plain)
    for array in (array for tile in plain for array in tile):
        array.flags.writeable = False
    config = TrainConfig(batch_size=4, workers=0, augment="colour", **options)
    fractions = np.full((18, 2), 0.5)
    loaded = TileLoader(training_data(train=tiles, class_fractions=fractions), config, CPU)
    list(loaded.train(0))
    tiles.read.clear()
    again = list(loaded.train(1))
    assert len(set(tiles.read)) == 18 - kept
    assert same(again, list(TileLoader(training_data(class_fractions=fractions), config, CPU).train(1)))


class CroppedTiles(list[Tile]):
    """Tiles whose random crops are recognisable by their brightness."""

    def random_crop(self, index: int, rng: np.random.Generator) -> Tile:
        image, label = super().__getitem__(index)
        return image + np.float32(rng.integers(1, 1000)), label


RARE = np.array([[1.0, 0.0]] * 16 + [[0.5, 0.5]] * 2)


@pytest.mark.parametrize(
    "settings",
    [{"crops": True}, {"scale_jitter": 0.5}, {"copy_paste": 0.5}, {"sampling": "classes"}],
    ids=lambda settings: next(iter(settings)),
)
def test_each_augmentation_changes_the_batches_reproducibly(settings: dict[str, Any]) -> None:
    data = training_data(train=CroppedTiles(blocks(18, 0)), class_fractions=RARE)
    config = TrainConfig(batch_size=4, workers=0, seed=3)
    plain, (one, again) = (
        TileLoader(data, config, CPU),
        (TileLoader(data, replace(config, **settings), CPU) for _ in range(2)),
    )
    whole = list(one.train(2))
    assert not same(whole, list(plain.train(2)))
    assert not same(whole, list(one.train(1)))
    # Also from the middle of an epoch, and after other epochs.
    assert same(whole[3:], list(again.train(2, start=3)))
    assert same(whole, list(again.train(2)))
    assert same(list(one.val()), list(plain.val()))


def test_tiles_of_rare_classes_are_repeated_with_different_augmentations() -> None:
    data = training_data(class_fractions=RARE)
    loaded = TileLoader(data, TrainConfig(batch_size=4, workers=0, sampling="classes", augment="colour"), CPU)
    counts = np.bincount(list(chain.from_iterable(loaded.batch_indices(0))), minlength=18)
    assert counts.sum() == 18
    assert counts[16:].min() >= 4
    images = torch.cat([images for images, _ in loaded.train(0)])
    assert len({image.numpy().tobytes() for image in images}) == 18


def test_settings_that_the_tiles_do_not_support_are_refused() -> None:
    with pytest.raises(SettingError, match="sampling = 'classes' and copy_paste"):
        make(sampling="classes")
    with pytest.raises(SettingError, match="sampling = 'classes' and copy_paste"):
        make(copy_paste=0.1)
    with pytest.raises(SettingError, match="crops = true"):
        make(crops=True)


def test_copy_paste_does_nothing_without_labelled_pixels() -> None:
    nothing = np.zeros((18, 2))
    config = TrainConfig(batch_size=4, workers=0, copy_paste=0.5)
    pasted, plain = (
        TileLoader(training_data(class_fractions=nothing), each, CPU)
        for each in (config, replace(config, copy_paste=0))
    )
    assert same(list(pasted.train(0)), list(plain.train(0)))


def test_fractional_labels_are_augmented_like_classes() -> None:
    whole = [(image, np.stack([label == c for c in (0, 1)]).astype(np.float32)) for image, label in blocks(6, 0)]
    tiles = [(image, np.where(fraction.any(axis=0), fraction, np.nan)) for image, fraction in whole]
    config = TrainConfig(batch_size=4, workers=0, augment="colour", scale_jitter=0.3)
    one, other = (TileLoader(training_data(train=train), config, CPU).train(0) for train in (blocks(6, 0), tiles))
    for (images, label), (same_images, fractions) in zip(one, other, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(fractions.isnan().all(dim=1), label == 255)
        assert torch.equal(fractions[:, 1] == 1, label == 1)


class Broken(list[Tile]):
    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        if index == 2:
            raise InputError("scene.tif is truncated. Copy it again.")
        return super().__getitem__(index)


def test_workers_give_the_same_batches_and_errors_in_one_line() -> None:
    data = training_data(val=Broken(blocks(5, 1)))
    config = TrainConfig(batch_size=4, augment="colour")
    with_workers = TileLoader(data, TrainConfig(**{**config.__dict__, "workers": 2}), CPU)
    alone = TileLoader(data, TrainConfig(**{**config.__dict__, "workers": 0}), CPU)
    assert same(list(with_workers.train(0)), list(alone.train(0)))
    for loaded in (with_workers, alone):
        with pytest.raises(InputError, match=r"^scene.tif is truncated. Copy it again.$"):
            list(loaded.val())
    # The workers persist.
    assert same(list(with_workers.train(1, start=2)), list(alone.train(1, start=2)))


@pytest.mark.parametrize("scaling", [Scaling((1.0, 5.0), (2.0, 0.5))])
def test_scaling_is_by_band_for_one_image_and_for_a_batch(scaling: Scaling) -> None:
    image = np.array([[[3.0]], [[4.0]]], np.float32)
    np.testing.assert_array_equal(scaling(image), [[[1.0]], [[-2.0]]])
    np.testing.assert_array_equal(scaling(np.stack([image, image])), np.stack([scaling(image)] * 2))


def test_worker_processes_are_used_by_default_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "usable_cores", lambda: 16)
    assert worker_count(-1, "cpu") == 0
    assert worker_count(-1, "cuda") == 8
    assert worker_count(3, "cpu") == 3
    monkeypatch.setattr(loader, "usable_cores", lambda: 1)
    assert worker_count(-1, "cuda") == 0


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "settings", [{"augment": "colour"}, {"scale_jitter": 0.5}, {"copy_paste": 0.7}, {"sampling": "classes"}]
)
def test_fractional_labels_of_pure_pixels_give_the_batches_of_classes(classes: int, settings: dict[str, Any]) -> None:
    data = training_data(classes)
    fractions = np.array([[(label == index).mean() for index in range(classes)] for _, label in blocks(18, 0, classes)])
    parts = {split: [_as_fractions(tile, data.legend) for tile in getattr(data, split)] for split in ("train", "val")}
    config = TrainConfig(batch_size=4, workers=0, **settings)
    plain, soft = (
        TileLoader(each, config, CPU)
        for each in (replace(data, class_fractions=fractions), replace(data, class_fractions=fractions, **parts))
    )
    for one, other in zip(chain(plain.train(1), plain.val()), chain(soft.train(1), soft.val()), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], class_index(other[1]))
        assert other[1].shape == (len(one[1]), data.legend.outputs, 16, 16)


def _as_fractions(tile: Tile, legend: Legend) -> Tile:
    fractions = class_fractions(tile[1], legend)
    return tile[0], fractions[1:] if legend.binary else fractions
