"""The sums of overlapping tiles: what any raster, tile size, overlap, panel and restart must keep."""

import threading
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from geograft.errors import InputError
from geograft.geo.grid import Window
from geograft.mapping.blend import BlendPlan, Strip, blend
from geograft.mapping.sums import PROBABILITY_STEPS, WEIGHT_SUM, blend_weights
from geograft.mapping.windows import Lanes, TileGrid
from tests.support.blending import (
    GRIDS,
    PANELS,
    Scene,
    assemble,
    batch_dependent,
    blend_strips,
    constant,
    contextual,
    noise,
    pointwise,
)


def one_panel(height: int) -> BlendPlan:
    return BlendPlan(Lanes(TileGrid(height, 200, 16, 0.5), 10**9), 1)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


SEVERAL = settings(deadline=None, max_examples=30)


def patches(tiles: TileGrid, seed: int, share: float) -> ndarray:
    """Return whether pixels are valid, in squares of 12 so that some tiles hold none."""
    coarse = np.random.default_rng(seed).random((tiles.height // 12 + 1, tiles.width // 12 + 1)) < share
    fine: ndarray = np.kron(coarse, np.ones((12, 12), bool))[: tiles.height, : tiles.width]
    return fine


@SEVERAL
@given(GRIDS)
def test_shares_add_up_to_the_whole_at_every_pixel(tiles: TileGrid) -> None:
    for begins in (tiles.tops, tiles.lefts):
        total = np.zeros(begins[-1] - begins[0] + tiles.tile_px, int)
        for begin, share in zip(begins, blend_weights(begins, tiles.tile_px), strict=True):
            total[begin - begins[0] :][: tiles.tile_px] += share
        assert (total == WEIGHT_SUM).all()


def test_shares_fall_from_the_centre_to_the_edge() -> None:
    inner = blend_weights((0, 112, 224), 224)[1]
    assert (np.diff(inner[:112].astype(int)) >= 0).all()
    assert (np.diff(inner[112:].astype(int)) <= 0).all()
    assert inner[0] <= 1
    assert inner[111] >= WEIGHT_SUM - 1


@SEVERAL
@given(GRIDS, st.floats(0, 1, width=32), PANELS)
@example(TileGrid(1, 1, 16, 0.0), 0.7786227464675903, 10**9)  # Halfway between two steps.
def test_a_constant_model_gives_a_constant_map(tiles: TileGrid, value: float, panel_px: int) -> None:
    strips = blend_strips(tiles, Scene(noise(1, tiles.height, tiles.width)), constant(value), panel_px=panel_px)
    sums, mapped = assemble(tiles, strips)
    assert mapped.all()
    assert (sums == round(value * np.float32(PROBABILITY_STEPS)) * WEIGHT_SUM**2).all()
    filled = [strip for strip in strips if strip.sums.array.size]
    assert all(abs(strip.sums.layers() - value).max() <= 0.5 / PROBABILITY_STEPS + 1e-7 for strip in filled)
    assert all(strip.sums.at_least(value).all() for strip in filled)


@SEVERAL
@given(GRIDS, st.integers(1, 9))
def test_a_pointwise_model_by_tiles_equals_the_whole_image(tiles: TileGrid, batch_size: int) -> None:
    image = noise(2, tiles.height, tiles.width)
    sums, _ = assemble(tiles, blend_strips(tiles, Scene(image), pointwise, layers=2, batch_size=batch_size))
    expected = pointwise(image[None], np.ones(1))[0]
    np.testing.assert_allclose(sums / (PROBABILITY_STEPS * WEIGHT_SUM**2), expected, atol=1 / PROBABILITY_STEPS)


@SEVERAL
@given(GRIDS, st.integers(1, 9), st.integers(1, 9), PANELS, st.integers(0, 2**31))
@example(TileGrid(27, 36, 16, 0.1), 1, 1, 1, 48)  # A lane without tiles gets a carry-over; the lane below it has tiles.
def test_bits_depend_neither_on_batches_nor_chunks_nor_panels(
    tiles: TileGrid, batch_size: int, chunk_tiles: int, panel_px: int, seed: int
) -> None:
    scene = Scene(noise(1, tiles.height, tiles.width), patches(tiles, seed, 0.5))
    expected = assemble(tiles, blend_strips(tiles, scene, contextual, batch_size=1, chunk_tiles=1))
    cut = {"batch_size": batch_size, "chunk_tiles": chunk_tiles}
    found = assemble(tiles, blend_strips(tiles, scene, contextual, panel_px=panel_px, **cut))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], scene.valid)


@SEVERAL
@given(GRIDS, st.integers(1, 9), PANELS, st.integers(0, 2**31), st.data())
def test_bits_do_not_depend_on_restarts_even_if_tiles_of_a_batch_did(
    tiles: TileGrid, batch_size: int, panel_px: int, seed: int, data: st.DataObject
) -> None:
    scene = Scene(noise(1, tiles.height, tiles.width), patches(tiles, seed, 0.7))
    cut = {"batch_size": batch_size, "panel_px": panel_px}
    strips = blend_strips(tiles, scene, batch_dependent, **cut)
    done = data.draw(st.integers(0, len(strips)))
    again = blend_strips(tiles, scene, batch_dependent, finished=strips[:done], **cut)
    for one, other in zip(again, strips, strict=True):
        assert (one.lane, one.window, one.tiles, one.data) == (other.lane, other.window, other.tiles, other.data)
        np.testing.assert_array_equal(one.sums.array, other.sums.array)
        np.testing.assert_array_equal(one.mapped, other.mapped)
        assert (one.carry_over is None) == (other.carry_over is None)
        np.testing.assert_array_equal(one.carry_over, other.carry_over)


@SEVERAL
@given(GRIDS, st.integers(1, 9), PANELS)
def test_batches_are_full_except_the_last(tiles: TileGrid, batch_size: int, panel_px: int) -> None:
    sizes: list[int] = []

    def counting(pixels: ndarray, valid: ndarray) -> ndarray:
        assert len(pixels) == len(valid)
        sizes.append(len(pixels))
        return constant(0.5)(pixels, valid)

    scene = Scene(noise(1, tiles.height, tiles.width))
    strips = blend_strips(tiles, scene, counting, panel_px=panel_px, batch_size=batch_size)
    total = len(tiles.tops) * len(tiles.lefts)
    assert sum(strip.tiles for strip in strips) == total
    assert sizes == [min(batch_size, total - done) for done in range(0, total, batch_size)]


def test_nothing_is_computed_when_all_strips_are_done() -> None:
    tiles = TileGrid(40, 40, 16, 0.5)
    strips = blend_strips(tiles, Scene(noise(1, 40, 40)), constant(0.5))
    scene = Scene(noise(1, 40, 40))
    assert blend_strips(tiles, scene, constant(0.5), finished=strips) == strips
    assert not scene.reads


@SEVERAL
@given(GRIDS, st.integers(0, 2**31), st.sampled_from([0.02, 0.5, 0.98]), PANELS)
def test_weights_are_whole_wherever_a_pixel_is_mapped(tiles: TileGrid, seed: int, share: float, panel_px: int) -> None:
    rng = np.random.default_rng(seed)
    valid, area = rng.random((2, tiles.height, tiles.width)) < share
    scene = Scene(noise(1, tiles.height, tiles.width), valid, area)
    sums, mapped = assemble(tiles, blend_strips(tiles, scene, constant(1.0), panel_px=panel_px))
    np.testing.assert_array_equal(mapped, valid & area)
    assert (sums[:, mapped] == PROBABILITY_STEPS * WEIGHT_SUM**2).all()


@SEVERAL
@given(GRIDS, st.integers(0, 2**31), PANELS)
def test_an_area_of_interest_changes_no_pixel_inside_it(tiles: TileGrid, seed: int, panel_px: int) -> None:
    image, valid, area = (
        noise(1, tiles.height, tiles.width),
        patches(tiles, seed, 0.7),
        patches(tiles, seed + 1, 0.3),
    )
    everything, _ = assemble(tiles, blend_strips(tiles, Scene(image, valid), contextual))
    scene = Scene(image, valid, area)
    part, mapped = assemble(tiles, blend_strips(tiles, scene, contextual, panel_px=panel_px))
    np.testing.assert_array_equal(part, np.where(scene.mapped, everything, 0))
    np.testing.assert_array_equal(mapped, scene.mapped)


def touched(tiles: TileGrid, mapped: ndarray) -> int:
    """Return how many tiles hold a mapped pixel."""
    size = tiles.tile_px
    return sum(
        bool(mapped[max(0, top) : top + size, max(0, left) : left + size].any())
        for top in tiles.tops
        for left in tiles.lefts
    )


@pytest.mark.parametrize("by_area", [False, True])
@pytest.mark.parametrize("panel_px", [40, 10**9])
def test_tiles_without_a_mapped_pixel_cost_no_call_and_no_read(by_area: bool, panel_px: int) -> None:
    tiles = TileGrid(400, 600, 16, 0.5)
    some = np.zeros((400, 600), bool)
    some[70:80, 220:230] = True
    scene = Scene(noise(1, 400, 600), *((None, some) if by_area else (some,)))
    seen: list[int] = []

    def counting(pixels: ndarray, valid: ndarray) -> ndarray:
        seen.append(len(pixels))
        return constant(0.5)(pixels, valid)

    strips = blend_strips(tiles, scene, counting, panel_px=panel_px, batch_size=1, chunk_tiles=2)
    assert sum(seen) == sum(strip.tiles for strip in strips) == touched(tiles, some) < 20
    reach = Window(70, 220, 10, 10).pad(2 * 16)
    assert all(window.intersection(reach) for window in scene.reads)
    assert 0 < len(scene.reads) < 20
    # One question for each empty lane, and some to find the chunks of the others.
    assert scene.empty_checks < len(Lanes(tiles, panel_px)) + 60


def test_tiles_at_the_border_see_the_mirrored_raster() -> None:
    image = 1 + np.arange(25 * 30, dtype=np.float32).reshape(1, 25, 30)
    tiles = TileGrid(25, 30, 16, 0.5)
    mirrored = np.pad(image, ((0, 0), (tiles.margin,) * 2, (tiles.margin,) * 2), mode="reflect")
    seen: list[ndarray] = []

    def watching(pixels: ndarray, valid: ndarray) -> ndarray:
        seen.extend(pixels)
        return constant(0.5)(pixels, valid)

    blend_strips(tiles, Scene(image), watching, batch_size=1)
    corners = [(top + tiles.margin, left + tiles.margin) for top in tiles.tops for left in tiles.lefts]
    for tile, (row, col) in zip(seen, corners, strict=True):
        np.testing.assert_array_equal(tile, mirrored[:, row : row + 16, col : col + 16])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_the_model_is_shown_what_the_file_holds(dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 100, (2, 20, 20)).astype(dtype)
    valid = image[0] > 30

    def watching(pixels: ndarray, known: ndarray) -> ndarray:
        assert pixels.dtype == dtype
        np.testing.assert_array_equal(known, pixels[:, 0] > 30)
        return constant(0.5)(pixels, known)

    blend_strips(TileGrid(20, 20, 16, 0.5), Scene(image, valid), watching)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_neighbouring_tiles_meet_without_a_step(overlap: float) -> None:
    """Tiles that disagree wholly (0 here, 1 there) are blended in small steps; without overlap they are not."""
    tiles = TileGrid(1, 200, 32, overlap)
    calls: list[int] = []

    def quarrelling(pixels: ndarray, valid: ndarray) -> ndarray:
        calls.append(len(calls) % 2)
        return constant(calls[-1])(pixels, valid)

    sums, _ = assemble(tiles, blend_strips(tiles, Scene(noise(1, 1, 200)), quarrelling, batch_size=1))
    step = np.abs(np.diff(sums[0, 0] / (PROBABILITY_STEPS * WEIGHT_SUM**2))).max()
    assert step == 1 if overlap == 0 else step < 0.25


def test_a_network_that_puts_out_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        blend_strips(TileGrid(20, 20, 16, 0.5), Scene(noise(1, 20, 20)), constant(float("nan")))


class Endless(Scene):
    """One row of pixels that stands for any number of rows and columns."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(noise(1, 1, 1))
        self.shape = height, width

    def is_empty(self, window: Window) -> bool:
        return False

    def read(self, window: Window) -> tuple[ndarray, ndarray]:
        return np.zeros((1, window.height, window.width), np.uint8), np.ones((window.height, window.width), bool)


def peak(height: int, width: int, panel_px: int) -> int:
    """Return the memory that blending such a raster takes, in bytes."""
    # Single tiles, because the number of batches that wait at the peak is up to chance.
    plan = BlendPlan(Lanes(TileGrid(height, width, 16, 0.5), panel_px), layers=1, batch_size=1, chunk_tiles=1)
    tracemalloc.start()
    for _ in blend(plan, Endless(height, width), constant(0.5), carry_over=lambda lane: None):
        pass
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size


def test_memory_hardly_grows_with_height_or_width() -> None:
    peak(50, 150, 10**9)
    # A row of sums that stayed would take 600 bytes. What stays is the weights, some bytes a row.
    assert peak(250, 150, 10**9) - peak(100, 150, 10**9) < 150 * 160
    # A column of sums that stayed would take 64 bytes.
    assert peak(40, 900, 200) - peak(40, 400, 200) < 500 * 40


def test_strips_before_a_reading_error_are_yielded() -> None:
    class Truncated(Scene):
        def read(self, window: Window) -> tuple[ndarray, ndarray]:
            if window.row > 90:
                raise InputError("the file ends here")
            return super().read(window)

    strips: list[Strip] = []
    with pytest.raises(InputError, match="ends here"):
        strips.extend(blend(one_panel(200), Truncated(noise(1, 200, 200)), constant(0.5)))
    assert 8 <= len(strips) <= 13
    assert all(strip.mapped.all() for strip in strips)
    assert not threads()


def test_closing_stops_reading_and_predicting() -> None:
    scene = Scene(noise(1, 400, 200))
    with closing(blend(one_panel(400), scene, constant(0.5))) as strips:
        next(strips)
    assert len(scene.reads) < 60
    assert not threads()


@SEVERAL
@given(GRIDS, PANELS, st.integers(0, 2**31))
def test_carry_overs_in_memory_give_the_same_bits(tiles: TileGrid, panel_px: int, seed: int) -> None:
    scene = Scene(noise(1, tiles.height, tiles.width), patches(tiles, seed, 0.5))
    in_memory = list(blend(BlendPlan(Lanes(tiles, panel_px), 1), scene, contextual))
    expected = assemble(tiles, blend_strips(tiles, scene, contextual, panel_px=panel_px))
    np.testing.assert_array_equal(assemble(tiles, in_memory)[0], expected[0])
