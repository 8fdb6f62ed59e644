"""Items are computed in advance: order, errors at their position, and no thread left running."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.mapping.batches import iterate_tiles, prefetch, spread_tiles
from geograft.mapping.windows import Lanes, TileGrid


def failing() -> Iterator[int]:
    yield from range(3)
    raise InputError("the fourth")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_order_is_kept_and_errors_are_raised_at_their_position(depth: int) -> None:
    assert list(prefetch(iter(range(50)), depth)) == list(range(50))
    items = prefetch(failing(), depth)
    assert [next(items), next(items), next(items)] == [0, 1, 2]
    with pytest.raises(InputError, match="the fourth"):
        next(items)
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_at_most_depth_items_are_computed_in_advance(depth: int) -> None:
    computed: list[int] = []
    with closing(prefetch((computed.append(n) or n for n in range(50)), depth)) as items:
        for expected in range(10):
            assert next(items) == expected
            assert len(computed) <= expected + 1 + depth
    assert len(computed) <= 10 + depth
    assert not threads()


def test_items_are_computed_in_one_thread_other_than_the_caller() -> None:
    found = set(prefetch((threading.get_ident() for _ in range(20)), 3))
    assert len(found) == 1
    assert found != {threading.get_ident()}


SLOW_START = """
import os, signal, threading, time
from geograft.interrupts import Interrupted, handle_signals
from geograft.mapping.batches import prefetch

begin, finished, start = threading.Event(), threading.Event(), threading.Thread.start

def slow_start(thread):
    start(thread)
    begin.set()
    time.sleep(0.2)

def items():
    begin.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.4)
    finished.set()
    yield 0

threading.Thread.start = slow_start
try:
    with handle_signals():
        next(prefetch(items()))
except Interrupted:
    print(finished.is_set(), [thread.name for thread in threading.enumerate()])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_while_the_thread_starts_waits_for_it() -> None:
    """Otherwise the thread would go on reading a raster that the caller closes: a crash within GDAL."""
    done = subprocess.run([sys.executable, "-c", SLOW_START], capture_output=True, text=True, check=True)
    assert done.stdout == "True ['MainThread']\n"


class Pixels:
    """A raster whose pixels tell where they are; a part of it is empty."""

    def __init__(self, height: int, width: int, empty: Window) -> None:
        self.pixels = np.arange(height * width).reshape(1, height, width)
        self.valid = np.ones((height, width), bool)
        self.valid[empty.slices] = False
        self.read_px = 0

    def is_empty(self, window: Window) -> bool:
        return False

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        self.read_px += window.height * window.width
        return self.pixels[:, *window.slices], self.valid[window.slices]

    def mask_of_interest(self, window: Window) -> None:
        return None


@given(st.integers(20, 200), st.integers(20, 200), st.floats(0, 1), st.integers(1, 8))
def test_spread_tiles_are_tiles_of_the_map_far_from_each_other(
    height: int, width: int, empty: float, count: int
) -> None:
    tiles = TileGrid(height, width, 16, 0.25)
    source = Pixels(height, width, Window(0, 0, round(height * empty), width))
    whole = {tile.pixels.tobytes(): tile for tile in iterate_tiles(Lanes(tiles, width), source)}
    source.read_px = 0
    found = spread_tiles(tiles, source, count)
    assert source.read_px <= 4 * count * 16**2
    if found is None:
        return
    assert len(found.tiles) <= count
    assert len({tile.pixels.tobytes() for tile in found.tiles}) == len(found.tiles)
    for tile in found.tiles:
        same = whole[tile.pixels.tobytes()]
        np.testing.assert_array_equal(tile.valid, same.valid)


def test_spread_tiles_are_in_all_parts_of_a_raster() -> None:
    found = spread_tiles(TileGrid(800, 400, 16, 0.25), Pixels(800, 400, Window(0, 0, 0, 0)), 8)
    assert found is not None
    places = [divmod(int(tile.pixels[0, 8, 8]), 400) for tile in found.tiles]
    quarters = {(row // 400, col // 200) for row, col in places}
    assert len(places) == 8
    assert quarters == {(0, 0), (0, 1), (1, 0), (1, 1)}
