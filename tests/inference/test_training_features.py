"""Training features: the choice of tiles, and the input of the encoder."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.config import ModelConfig
from geograft.dataset.tileset import TileSet
from geograft.dataset.units import non_overlapping_tiles, sample_non_overlapping_tiles
from geograft.geo.grid import Grid, Window
from geograft.inference.embedding import CellEncoder, cell_sizes, fit_training_features
from geograft.inference.runners import LoadedBackend, TileWorkers
from geograft.inference.torch_networks import CellFeatures, TorchRunner
from geograft.mapping.batches import MirroredSource, batch_tiles, coarsen_grid, frame_lanes, iterate_tiles
from geograft.networks.network import build
from tests.inference.test_backends import CARD
from tests.support.rasters import TENTH_METRE

MEAN, STD = (130.0, 120.0, 110.0), (30.0, 20.0, 10.0)


@pytest.fixture(scope="module")
def encoder() -> CellEncoder:
    torch.manual_seed(0)
    network = build(ModelConfig(architecture="unet"), 3, 1)
    cell_px, frame_px = cell_sizes(network.body.stride, 40)
    runner = TorchRunner(CellFeatures(network, cell_px), torch.device("cpu"))
    card = replace(CARD, mean=MEAN, std=STD)
    return CellEncoder(card, LoadedBackend("torch", (runner,), TileWorkers(2)), cell_px, frame_px)


def noise(count: int, size: int, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).integers(1, 255, (count, 3, size, size), dtype=np.uint8)


# -------------------------------------------------------------------------------------------------------- tiles apart

windows = st.builds(Window, st.integers(0, 60), st.integers(0, 60), st.integers(5, 20), st.integers(5, 20))


@given(st.lists(st.tuples(st.sampled_from("ab"), windows), max_size=40))
def test_the_chosen_tiles_are_a_maximal_disjoint_set(tiles: list[tuple[str, Window]]) -> None:
    found = non_overlapping_tiles(tiles)
    assert all(first < second for first, second in pairwise(found))
    for position, (scene, window) in enumerate(tiles):
        others = [other for i in found if i != position for name, other in [tiles[i]] if name == scene]
        assert any(window.intersection(other) for other in others) == (position not in found)


def test_the_sample_of_many_tiles_is_reproducible(tiles: Path) -> None:
    tile_set = TileSet.open(tiles)
    every, units = sample_non_overlapping_tiles(tile_set, "train", 10**6)
    # Blocks of 64 pixels hold four tiles of 32 that do not overlap.
    assert len(every) == len(tile_set.split("train"))
    assert (np.bincount(units) == 4).all()
    some, of = sample_non_overlapping_tiles(tile_set, "train", 9)
    assert len(some) == len(of) == 9
    assert some == sorted(some) == sample_non_overlapping_tiles(tile_set, "train", 9)[0]


# ------------------------------------------------------------------------------------------------------ frames, cells


class Array:
    """A source in memory with masks of valid pixels and of those of interest."""

    def __init__(self, pixels: ndarray, valid: ndarray, interest: ndarray | None) -> None:
        self.pixels, self.valid, self.interest = pixels, valid, interest
        self.largest = 0

    def is_empty(self, window: Window) -> bool:
        return False

    def read(self, window: Window) -> tuple[ndarray, ndarray]:
        assert window.intersection(Window(0, 0, *self.valid.shape)) == window
        self.largest = max(self.largest, window.height * window.width)
        return self.pixels[:, *window.slices], self.valid[window.slices]

    def mask_of_interest(self, window: Window) -> ndarray | None:
        return None if self.interest is None else self.interest[window.slices]


@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.booleans(), st.integers(0, 10**6))
def test_frames_beyond_the_raster_are_mirrored(height: int, width: int, part: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels, valid = noise(1, 90, seed)[0, :, :height, :width], rng.random((height, width)) < 0.8
    source = Array(pixels, valid, rng.random((height, width)) < 0.5 if part else None)
    grid = Grid(height, width, TENTH_METRE, None)
    lanes = frame_lanes(grid, 32, 3)
    size = lanes.tiles.height, lanes.tiles.width
    beyond = [(0, size[0] - height), (0, size[1] - width)]
    whole, seen = np.pad(pixels, [(0, 0), *beyond], "reflect"), np.pad(valid, beyond, "reflect")
    mapped = np.pad(valid if source.interest is None else valid & source.interest, beyond)
    left = mapped.copy()
    for tile in iterate_tiles(lanes, MirroredSource(source, height, width)):
        here = Window(lanes.position(tile.lane)[1] * 32, tile.column * 32, 32, 32).slices
        assert np.array_equal(tile.pixels, whole[:, *here])
        assert np.array_equal(tile.valid, seen[here])
        assert np.array_equal(tile.mapped, mapped[here])
        left[here] = False
    assert not left.any()


def test_only_a_few_frames_are_read_at_once() -> None:
    source = Array(np.ones((1, 300, 2000), np.uint8), np.ones((300, 2000), bool), None)
    lanes = frame_lanes(Grid(300, 2000, TENTH_METRE, None), 32, 1)
    shapes = [batch.pixels.shape for batch in batch_tiles(iterate_tiles(lanes, MirroredSource(source, 300, 2000)), 4)]
    assert set(shapes[:-1]) == {(4, 1, 32, 32)}
    assert len(shapes) == -(-10 * 63 // 4)
    assert source.largest <= 8 * 32 * 32


def test_the_coarse_grid_has_the_same_corner() -> None:
    made = coarsen_grid(Grid(100, 129, TENTH_METRE, None), 64)
    assert (made.height, made.width) == (2, 3)
    assert made.transform @ (1, 1) == pytest.approx(TENTH_METRE @ (64, 64))


def test_cells_are_64_pixels_or_fit_into_a_tile() -> None:
    expected = {16: (16, 16), 40: (32, 32), 64: (64, 64), 160: (64, 128), 224: (64, 192)}
    assert {px: cell_sizes(16, px) for px in expected} == expected
    assert CellEncoder(CARD, LoadedBackend("torch", (), TileWorkers(1)), 64, 192).cells == 9


def test_invalid_pixels_are_replaced_by_the_mean(encoder: CellEncoder) -> None:
    pixels, valid = noise(2, 32), np.ones((2, 32, 32), bool)
    valid[:, 5:9, 20:] = False
    other = np.where(valid[:, None], pixels, noise(2, 32, 1)).astype(np.float32)
    mean = np.where(valid[:, None], pixels, np.array(MEAN)[:, None, None]).astype(np.float32)
    found, known = encoder(pixels, valid)
    assert known.all()
    assert np.array_equal(found, encoder(other, valid)[0])
    assert np.allclose(found, encoder(mean, np.ones_like(valid))[0], atol=1e-6)


def test_mostly_invalid_cells_have_no_features(encoder: CellEncoder) -> None:
    valid = np.ones((3, 32, 32), bool)
    valid[1, :17] = False
    found, known = encoder(noise(3, 32), valid)
    assert known[:, 0, 0].tolist() == [True, False, True]
    assert len(found) == 2


# -------------------------------------------------------------------------------------------------------- known ground


def samples(count: int) -> list[tuple[ndarray, ndarray]]:
    return [(one.astype(np.float32), np.zeros((40, 40), np.uint8)) for one in noise(count, 40)]


def test_unlabelled_tiles_have_training_features_too(encoder: CellEncoder) -> None:
    tiles = samples(11)
    tiles[3][1][:] = 255
    found = fit_training_features(encoder, tiles, list(range(11)), np.arange(11) // 3)
    assert found is not None
    assert len(found.points) == 11
    features, _ = encoder(np.stack([image[:, :32, :32] for image, _ in tiles]), np.ones((11, 32, 32), bool))
    assert found.dissimilarity_index(features) == pytest.approx(np.zeros(11), abs=1e-3)


def test_one_unit_or_equal_cells_give_no_area(encoder: CellEncoder) -> None:
    tiles = samples(4)
    assert fit_training_features(encoder, tiles, [0, 1, 2, 3], np.zeros(4, int)) is None
    assert fit_training_features(encoder, [tiles[0]] * 4, [0, 1, 2, 3], np.arange(4)) is None
    tiles[1][0][:], tiles[1][1][:] = 0, 255
    assert fit_training_features(encoder, tiles, [0, 1], np.arange(2)) is None
