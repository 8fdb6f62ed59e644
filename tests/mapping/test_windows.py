"""Where tiles and lanes lie: what any raster, tile size and overlap must keep."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from geograft.geo.grid import Window
from geograft.mapping.windows import PANEL_BYTES, Lanes, Reflection, TileGrid, fit_window, panel_width, reflect_indices
from tests.support.blending import GRIDS, PANELS


@given(st.integers(-300, 300), st.integers(1, 200), st.integers(1, 60))
def test_reflected_is_numpys_reflection(start: int, size: int, length: int) -> None:
    before, after = max(0, -start), max(0, start + size - length)
    expected = np.pad(np.arange(length), (before, after), mode="reflect")[start + before :][:size]
    assert reflect_indices(start, size, length).tolist() == expected.tolist()


SPANS = st.tuples(st.integers(-40, 40), st.integers(1, 40), st.integers(1, 20))


@given(SPANS, SPANS)
def test_a_window_unfolds_from_the_part_of_the_raster_that_holds_it(
    down: tuple[int, int, int], across: tuple[int, int, int]
) -> None:
    (row, high, height), (col, wide, width) = down, across
    raster = np.arange(height * width).reshape(height, width)
    shown = Reflection.of(Window(row, col, high, wide), height, width)
    expected = raster[reflect_indices(row, high, height)[:, None], reflect_indices(col, wide, width)]
    assert (shown.unfold(raster[shown.inside.slices]) == expected).all()


@given(GRIDS)
def test_tiles_cover_the_raster_and_its_margin_at_the_stride(tiles: TileGrid) -> None:
    for begins, length in ((tiles.tops, tiles.height), (tiles.lefts, tiles.width)):
        assert begins[0] == -tiles.margin
        assert begins[-1] + tiles.tile_px == max(length + tiles.margin, tiles.tile_px - tiles.margin)
        assert all(after - before <= tiles.stride for before, after in pairwise(begins))
        assert all(after - before == tiles.stride for before, after in pairwise(begins[:-1]))


@given(GRIDS, PANELS)
def test_strips_are_the_raster_once(tiles: TileGrid, panel_px: int) -> None:
    lanes = Lanes(tiles, panel_px)
    times = np.zeros((tiles.height, tiles.width), int)
    for lane in range(len(lanes)):
        times[lanes.strip(lane).slices] += 1
    assert (times == 1).all()


@given(GRIDS, PANELS)
def test_panels_are_the_columns_of_tiles_once_and_even(tiles: TileGrid, panel_px: int) -> None:
    panels = Lanes(tiles, panel_px).panels
    assert [column for panel in panels for column in panel] == list(range(len(tiles.lefts)))
    sizes = {len(panel) for panel in panels}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * tiles.stride <= max(panel_px, tiles.stride)


@given(GRIDS, PANELS)
def test_a_strip_is_complete_when_its_lane_and_those_to_the_left_are(tiles: TileGrid, panel_px: int) -> None:
    lanes = Lanes(tiles, panel_px)
    for lane in range(len(lanes)):
        columns, row = lanes.position(lane)
        strip = lanes.strip(lane)
        if strip.height and strip.width:
            assert all(top >= strip.stop_row for top in tiles.tops[row + 1 :])
            assert all(left >= strip.stop_col for left in tiles.lefts[columns.stop :])
            # Every pixel lies in a tile of the lane itself, which is what tells whether it is mapped.
            assert tiles.tops[row] <= strip.row < strip.stop_row <= tiles.tops[row] + tiles.tile_px
            assert tiles.lefts[columns.start] <= strip.col
            assert strip.stop_col <= tiles.lefts[columns.stop - 1] + tiles.tile_px
        touching = [i for i, top in enumerate(tiles.tops[: row + 1]) if top + tiles.tile_px > strip.row]
        assert lanes.first_overlapping(lane) - (lane - row) <= min(touching)
        before = lanes.left_neighbour(lane)
        assert before is None or lanes.strip(before).row == strip.row


@given(st.integers(1, 40), st.integers(1, 64))
def test_panels_are_as_wide_as_memory_allows(layers: int, pixel_bytes: int) -> None:
    tiles = TileGrid(10**5, 10**5, 224, 0.5)
    width = panel_width(tiles, layers, pixel_bytes)
    taken = width * (4 * layers * 224 + 512 * pixel_bytes)
    assert width == 224 or PANEL_BYTES * 0.99 < taken <= PANEL_BYTES


@given(st.integers(1, 2000), st.integers(0, 500), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600))
def test_small_rasters_get_one_window_and_large_ones_the_requested(
    window_px: int, overlap_px: int, height: int, width: int, least_px: int
) -> None:
    size, overlap = fit_window(window_px, overlap_px, height, width, least_px)
    if max(height, width) > window_px:
        assert (size, overlap) == (window_px, overlap_px)
        return
    tiles = TileGrid(height, width, size, overlap / size)
    assert (tiles.tops, tiles.lefts, overlap) == ((0,), (0,), 0)
    assert max(height, width) <= size <= window_px
    # Halved as often as possible, and never below the training tiles.
    assert window_px % size == 0 and (window_px // size).bit_count() == 1
    assert size == window_px or size >= least_px
    assert size % 2 or size // 2 < max(height, width, least_px)
    assert fit_window(size, 0, height, width, least_px) == (size, 0)
