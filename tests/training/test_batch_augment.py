"""Whole batches on a device, here torch's CPU device: the same tiles as one by one in NumPy."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.config import TrainConfig
from geograft.training.augment import (
    BatchAugmenter,
    Draws,
    collate_stored,
    dihedral,
    dihedral_batch,
    draw_scale,
    rescale,
    rescale_batch,
)
from geograft.training.loader import Scaling, TileLoader, TrainingBatch, TrainingData
from tests.support.training import Tile, blocks, training_data
from tests.support.waiting import RefuseToWait

CPU = torch.device("cpu")
FRACTIONS = np.full((18, 2), 0.5)
DTYPES = ("uint8", "int16", "uint16", "float32")


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=9),
    st.sampled_from([(6, 6), (4, 7)]),
    st.sampled_from(["uint8", "int16", "float32", "bool"]),
)
def test_symmetries_of_a_batch_are_those_of_its_tiles(elements: list[int], shape: tuple[int, int], dtype: str) -> None:
    elements = elements if shape[0] == shape[1] else [element % 4 for element in elements]
    pixels = np.random.default_rng(0).integers(0, 100, (len(elements), 3, *shape)).astype(dtype)
    for tiles in (pixels, pixels[:, 0]):
        found = dihedral_batch(torch.from_numpy(tiles), torch.tensor(elements, dtype=torch.uint8))
        expected = np.stack([dihedral(tile, element) for tile, element in zip(tiles, elements, strict=True)])
        np.testing.assert_array_equal(found.numpy(), expected)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(16, 16), (9, 14)]), st.sampled_from([0.0, 0.4, 0.9]))
def test_scales_of_a_batch_are_those_of_its_tiles_to_the_bit(seed: int, shape: tuple[int, int], jitter: float) -> None:
    rng = np.random.default_rng(seed)
    images, label = rng.normal(100, 30, (3, 2, *shape)).astype(np.float32), rng.integers(0, 5, (3, *shape), np.uint8)
    valid = rng.random((3, *shape)) < [[[1]], [[0.7]], [[0.0]]]
    drawn = [draw_scale(jitter, rng) for _ in range(3)]
    batch = collate_stored(
        [(*tile, Draws(0, *each)) for *tile, each in zip(images, label, drawn, strict=True)]  # type: ignore[misc]
    )
    found = rescale_batch(batch.images, torch.from_numpy(label), torch.from_numpy(valid), batch.draws)
    for index, (scale, offset) in enumerate(drawn):
        expected = rescale(images[index], label[index], valid[index], scale, offset)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[index].numpy(), other)


def data_of(dtype: str, size: int = 16, indices: int = 0) -> TrainingData:
    """Return tiles whose pixels are stored as `dtype`; those of uint16 are above int16's range too."""
    factor = 200 if dtype == "uint16" else 1

    def stored(tile: Tile) -> Tile:
        return (np.clip(tile[0] * factor, 0, 65_535 if dtype == "uint16" else 255).astype(dtype), tile[1])

    train, val = ([stored(tile) for tile in blocks(count, seed, size=size)] for count, seed in ((18, 0), (5, 1)))
    scaling = Scaling((130.0 * factor,) * 3, (30.0 * factor, 31.0 * factor, 0.3 * factor))
    return training_data(train=train, val=val, scaling=scaling, class_fractions=FRACTIONS, indices=indices)


def both(data: TrainingData, **options: Any) -> tuple[TileLoader, TileLoader]:
    """Return the loader of the CPU and that of whole batches."""
    config = TrainConfig(**{"batch_size": 4, "workers": 0, **options})
    return TileLoader(data, config, CPU), TileLoader(data, config, CPU, whole_batches=True)


def batches(loader: TileLoader) -> list[TrainingBatch]:
    return [*loader.train(1), *loader.train(2, start=3), *loader.val()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{"augment": "none"}, {}, {"copy_paste": 0.5}, {"sampling": "classes"}], ids=str)
def test_batches_without_colours_and_scales_have_the_bits_of_the_cpu(dtype: str, options: dict[str, Any]) -> None:
    plain, whole = both(data_of(dtype), **options)
    for one, other in zip(batches(plain), batches(whole), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[0].stride() == other[0].stride()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("indices", [0, 1])
@pytest.mark.parametrize(
    "options", [{"augment": "colour"}, {"scale_jitter": 0.5}, {"augment": "colour", "scale_jitter": 0.5}], ids=str
)
def test_colours_and_scales_differ_by_rounding(dtype: str, indices: int, options: dict[str, Any]) -> None:
    data = data_of(dtype, indices=indices)
    plain, whole = both(data, **options)
    for one, other in zip(batches(plain), batches(whole), strict=True):
        # Relative to the pixels, whose third band has a small standard deviation.
        scale = torch.tensor(data.scaling.mean) / torch.tensor(data.scaling.std)
        assert ((one[0] - other[0]).abs() <= 1e-5 * (1 + scale[:, None, None])).all()
        assert torch.equal(one[1], other[1])
        assert torch.equal(one[0] == 0, other[0] == 0)


def test_fractional_labels_and_rectangles_too() -> None:
    def fractions(tile: Tile) -> Tile:
        label = np.where(tile[1] == 255, np.nan, tile[1] == 1)[None].astype(np.float32)
        return tile[0][:, :12], label[:, :12]

    data = data_of("uint8")
    data = replace(
        data, train=[fractions(each) for each in blocks(18, 0)], val=[fractions(each) for each in blocks(5, 1)]
    )
    plain, whole = both(data)
    for one, other in zip(batches(plain), batches(whole), strict=True):
        assert torch.equal(one[0], other[0])
        torch.testing.assert_close(one[1], other[1], rtol=0, atol=0, equal_nan=True)


def test_batches_do_not_depend_on_workers_or_their_division() -> None:
    data, options = data_of("uint16"), {"augment": "colour", "scale_jitter": 0.5}
    _, alone = both(data, **options)
    config = TrainConfig(batch_size=4, workers=1, **options)  # type: ignore[arg-type]
    with_worker = TileLoader(data, config, CPU, whole_batches=True)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(alone.train(1), with_worker.train(1), strict=True))
    images = torch.cat([images for images, _ in alone.train(1)])
    _, single = both(data, batch_size=2, **options)
    np.testing.assert_array_equal(images.numpy(), torch.cat([images for images, _ in single.train(1)]).numpy())


def test_pixels_travel_as_they_are_stored() -> None:
    tiles: list[tuple[ndarray, ndarray, Draws]] = [(image, label, Draws()) for image, label in blocks(2, 0)]
    for dtype, expected in (("uint8", torch.uint8), ("uint16", torch.int16), ("float64", torch.float32)):
        batch = collate_stored([(image.astype(dtype), label, drawn) for image, label, drawn in tiles])
        assert (batch.images.dtype, batch.uint16) == (expected, dtype == "uint16")


def test_augmentation_waits_for_nothing() -> None:
    drawn = Draws(3, 1.2, (0.1, 0.9), 0.1, 0.1, (0.1, 0.2, 0.3))
    batch = collate_stored([(image.astype(np.uint16), label, drawn) for image, label in blocks(2, 0)])
    augmenter = BatchAugmenter((0.0,) * 3, (1.0,) * 3, 3, "colour", rescales=True, device=CPU)
    with RefuseToWait() as mode:
        augmenter.train(batch)
        augmenter.val(batch)
    assert mode.calls > 30
