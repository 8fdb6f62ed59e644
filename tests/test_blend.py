"""The sums of overlapping tiles: what any raster, tile size and overlap must keep."""

import threading
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from tilth.errors import InputError
from tilth.geo.ahead import ahead
from tilth.geo.blend import LEVELS, WHOLE, Strip, TileGrid, blend, reflected, shares
from tilth.geo.grid import Window

SEVERAL = settings(deadline=None, max_examples=50)
GRIDS = st.builds(
    TileGrid,
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    tile_px=st.sampled_from([16, 17, 24, 32]),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.6, 0.75]),
)


def reader(pixels: ndarray, valid: ndarray | None = None) -> Callable[[Window], tuple[ndarray, ndarray]]:
    """Return a reader of an array that refuses windows beyond it."""
    known = np.ones(pixels.shape[1:], bool) if valid is None else valid
    whole = Window(0, 0, *pixels.shape[1:])

    def read(window: Window) -> tuple[ndarray, ndarray]:
        assert window.overlap(whole) == window
        return pixels[:, *window.slices], known[window.slices]

    return read


def pointwise(batch: ndarray) -> ndarray:
    """A model that looks at one pixel at a time."""
    return np.concatenate([1 / (1 + np.exp(-batch[:, :1])), 0.5 + 0.5 * np.sin(batch[:, 1:2])], axis=1)


def contextual(batch: ndarray) -> ndarray:
    """A model that looks at the whole tile and at the place within it, as networks do."""
    rows, cols = np.indices(batch.shape[2:])
    mean = batch.mean(axis=(1, 2, 3), keepdims=True)
    return (0.5 + 0.4 * np.sin(batch[:, :1] + mean + 0.1 * rows * cols)).astype(np.float32)


def constant(value: float) -> Callable[[ndarray], ndarray]:
    return lambda batch: np.full((len(batch), 1, *batch.shape[2:]), value, np.float32)


def noise(*shape: int, seed: int = 0) -> ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(strips: list[Strip]) -> tuple[ndarray, ndarray]:
    """Return the sums and the validity of all strips."""
    return np.concatenate([s.sums for s in strips], axis=1), np.concatenate([s.valid for s in strips])


@SEVERAL
@given(st.integers(-300, 300), st.integers(1, 200), st.integers(1, 60))
def test_reflected_is_numpys_reflection(start: int, size: int, length: int) -> None:
    before, after = max(0, -start), max(0, start + size - length)
    expected = np.pad(np.arange(length), (before, after), mode="reflect")[start + before :][:size]
    assert reflected(start, size, length).tolist() == expected.tolist()


@SEVERAL
@given(GRIDS)
def test_shares_add_up_to_the_whole_at_every_pixel(tiles: TileGrid) -> None:
    for begins in (tiles.tops, tiles.lefts):
        total = np.zeros(begins[-1] - begins[0] + tiles.tile_px, int)
        for begin, share in zip(begins, shares(begins, tiles.tile_px), strict=True):
            total[begin - begins[0] :][: tiles.tile_px] += share
        assert (total == WHOLE).all()


def test_shares_fall_from_the_centre_to_the_edge() -> None:
    inner = shares((0, 112, 224), 224)[1]
    assert (np.diff(inner[:112].astype(int)) >= 0).all()
    assert (np.diff(inner[112:].astype(int)) <= 0).all()
    assert inner[0] <= 1
    assert inner[111] >= WHOLE - 1


@SEVERAL
@given(GRIDS)
def test_tiles_cover_the_raster_and_its_margin_at_the_stride(tiles: TileGrid) -> None:
    for begins, length in ((tiles.tops, tiles.height), (tiles.lefts, tiles.width)):
        assert begins[0] == -tiles.margin
        assert begins[-1] + tiles.tile_px == max(length + tiles.margin, tiles.tile_px - tiles.margin)
        assert all(after - before <= tiles.stride for before, after in pairwise(begins))
        assert all(after - before == tiles.stride for before, after in pairwise(begins[:-1]))


@SEVERAL
@given(GRIDS)
def test_strips_are_the_raster_once(tiles: TileGrid) -> None:
    strips = [tiles.strip(index) for index in range(len(tiles.tops))]
    assert [row for strip in strips for row in range(strip.row, strip.stop_row)] == list(range(tiles.height))
    for row in range(tiles.height):
        strip = strips[tiles.strip_from(row)]
        assert strip.row <= row < strip.stop_row
    assert tiles.strip_from(tiles.height) == len(strips)


@SEVERAL
@given(GRIDS)
def test_no_later_tile_touches_a_strip(tiles: TileGrid) -> None:
    for index in range(len(tiles.tops)):
        strip = tiles.strip(index)
        assert not strip.height or all(top >= strip.stop_row for top in tiles.tops[index + 1 :])
        touching = [i for i, top in enumerate(tiles.tops[: index + 1]) if top + tiles.tile_px > strip.row]
        assert tiles.first_tile_row(index) <= min(touching)


@SEVERAL
@given(GRIDS, st.floats(0, 1, width=32))
def test_a_constant_model_gives_a_constant_map(tiles: TileGrid, value: float) -> None:
    strips = list(blend(tiles, reader(noise(1, tiles.height, tiles.width)), constant(value), 1))
    sums, valid = whole(strips)
    assert sums.shape == (1, tiles.height, tiles.width)
    assert valid.all()
    assert (sums == round(value * np.float32(LEVELS)) * WHOLE**2).all()
    assert all(abs(strip.probabilities - value).max() <= 0.5 / LEVELS + 1e-7 for strip in strips)
    assert all(strip.at_least(value).all() for strip in strips)


@SEVERAL
@given(GRIDS, st.integers(1, 9))
def test_a_pointwise_model_by_tiles_equals_the_whole_image(tiles: TileGrid, batch_size: int) -> None:
    image = noise(2, tiles.height, tiles.width)
    expected = pointwise(image[None])[0]
    row = 0
    for strip in blend(tiles, reader(image), pointwise, 2, batch_size):
        assert strip.window == Window(row, 0, strip.window.height, tiles.width)
        row = strip.window.stop_row
        np.testing.assert_allclose(strip.probabilities, expected[:, *strip.window.slices], atol=1 / LEVELS)
    assert row == tiles.height


@SEVERAL
@given(GRIDS, st.integers(1, 9), st.data())
def test_bits_depend_neither_on_batches_nor_on_restarts(tiles: TileGrid, batch_size: int, data: st.DataObject) -> None:
    image = noise(1, tiles.height, tiles.width)
    strips = list(blend(tiles, reader(image), contextual, 1, batch_size=1))
    sums, _ = whole(strips)
    np.testing.assert_array_equal(whole(list(blend(tiles, reader(image), contextual, 1, batch_size)))[0], sums)
    done = data.draw(st.sampled_from([strip.window.row for strip in strips]))
    rest = list(blend(tiles, reader(image), contextual, 1, batch_size, first=tiles.strip_from(done)))
    assert rest[0].window.row == done
    np.testing.assert_array_equal(whole(rest)[0], sums[:, done:])


def test_nothing_is_left_when_all_strips_are_done() -> None:
    tiles = TileGrid(40, 40, 16, 0.5)
    assert list(blend(tiles, reader(noise(1, 40, 40)), constant(0.5), 1, first=tiles.strip_from(40))) == []


@SEVERAL
@given(GRIDS, st.integers(0, 2**31), st.sampled_from([0.02, 0.5, 0.98]))
def test_valid_pixels_stay_valid_and_only_they_decide(tiles: TileGrid, seed: int, share: float) -> None:
    valid = np.random.default_rng(seed).random((tiles.height, tiles.width)) < share
    image = np.where(valid, noise(1, tiles.height, tiles.width), np.float32(7))
    sums, known = whole(list(blend(tiles, reader(image, valid), constant(1.0), 1)))
    np.testing.assert_array_equal(known, valid)
    assert (sums[:, valid] == LEVELS * WHOLE**2).all()


def test_tiles_without_a_valid_pixel_are_not_predicted() -> None:
    tiles = TileGrid(160, 160, 16, 0.5)
    valid = np.zeros((160, 160), bool)
    valid[70:80, 20:30] = True
    seen: list[int] = []

    def counting(batch: ndarray) -> ndarray:
        seen.append(len(batch))
        return constant(0.5)(batch)

    list(blend(tiles, reader(noise(1, 160, 160), valid), counting, 1))
    touched = sum(
        valid[max(0, top) : top + 16, max(0, left) : left + 16].any() for top in tiles.tops for left in tiles.lefts
    )
    assert sum(seen) == touched < 20


def test_tiles_at_the_border_see_the_mirrored_raster() -> None:
    image = 1 + np.arange(25 * 30, dtype=np.float32).reshape(1, 25, 30)
    tiles = TileGrid(25, 30, 16, 0.5)
    mirrored = np.pad(image, ((0, 0), (tiles.margin,) * 2, (tiles.margin,) * 2), mode="reflect")
    seen: list[ndarray] = []

    def watching(batch: ndarray) -> ndarray:
        seen.extend(batch)
        return constant(0.5)(batch)

    list(blend(tiles, reader(image), watching, 1))
    corners = [(top + tiles.margin, left + tiles.margin) for top in tiles.tops for left in tiles.lefts]
    for tile, (row, col) in zip(seen, corners, strict=True):
        np.testing.assert_array_equal(tile, mirrored[:, row : row + 16, col : col + 16])


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_neighbouring_tiles_meet_without_a_step(overlap: float) -> None:
    """Tiles that disagree wholly (0 here, 1 there) are blended in small steps; without overlap they are not."""
    tiles = TileGrid(1, 200, 32, overlap)
    calls: list[int] = []

    def quarrelling(batch: ndarray) -> ndarray:
        calls.append(len(calls) % 2)
        return constant(calls[-1])(batch)

    (strip,) = blend(tiles, reader(noise(1, 1, 200)), quarrelling, 1, batch_size=1)
    step = np.abs(np.diff(strip.probabilities[0, 0])).max()
    assert step == 1 if overlap == 0 else step < 0.25


def test_a_network_that_puts_out_nan_is_refused() -> None:
    tiles = TileGrid(20, 20, 16, 0.5)
    with pytest.raises(InputError, match="NaN"):
        list(blend(tiles, reader(noise(1, 20, 20)), constant(float("nan")), 1))


def test_ahead_keeps_order_and_raises_where_the_item_would_be() -> None:
    def failing() -> Iterator[int]:
        yield from range(3)
        raise InputError("the fourth")

    assert list(ahead(iter(range(50)))) == list(range(50))
    found = []
    with pytest.raises(InputError, match="the fourth"):
        found.extend(ahead(failing()))
    items = ahead(failing())
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(InputError):
        next(items)


def test_memory_hardly_grows_with_height() -> None:
    def peak(height: int) -> int:
        row = noise(1, 1, 300)

        def read(window: Window) -> tuple[ndarray, ndarray]:
            shape = (window.height, window.width)
            return np.broadcast_to(row[:, :, window.slices[1]], (1, *shape)), np.ones(shape, bool)

        tracemalloc.start()
        for _ in blend(TileGrid(height, 300, 16, 0.5), read, constant(0.5), 1):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)
    # A row of sums that stayed would take 1,200 bytes. What stays is the weights, some bytes a row; how far ahead the
    # reader is when the peak comes moves it by a few thousand bytes in all.
    assert peak(2000) - peak(200) < 1800 * 120


def test_giving_up_stops_reading() -> None:
    reads: list[Window] = []
    image = noise(1, 200, 200)

    def read(window: Window) -> tuple[ndarray, ndarray]:
        reads.append(window)
        return reader(image)(window)

    strips = blend(TileGrid(200, 200, 16, 0.5), read, constant(0.5), 1)
    next(strips)
    strips.close()
    seen = len(reads)
    assert seen < 20
    assert not any(t.name.startswith("ahead") for t in threading.enumerate())
    assert len(reads) == seen
