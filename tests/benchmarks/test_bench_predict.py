"""The prediction benchmark: the measure of seams, the reference maps, rasters, tables."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy import ndarray

import page
from contestants import contestant_tiling, first_tile_offset
from geograft.mapping.windows import TileGrid
from quality import tile_shifts
from race import Entry, Outcome, Results, tiles_in
from rasters import dense_raster, mirror_window, sparse_raster
from seams import Tiling, mean_steps, seam
from tests.support.rasters import textured, write_raster
from tiling import cropped_map, plain_loop, tile_corners


def pointwise(tiles: ndarray) -> ndarray:
    """A network without context."""
    return (tiles[:, 0] / 255).astype(np.float32)


def neighbourly(tiles: ndarray) -> ndarray:
    """A network with a context of 4 pixels and zero padding."""
    first = np.pad(tiles[:, 0].astype(np.float32), ((0, 0), (4, 4), (4, 4)))
    windows = np.lib.stride_tricks.sliding_window_view(first, (9, 9), axis=(1, 2))
    return (windows.mean(axis=(3, 4)) / 255).astype(np.float32)


SHIFTS = (0, 4, 8, 12)


def shifted(area: ndarray, size: int) -> list[ndarray]:
    """Return a window of the area, (size, size), for each shift."""
    return [area[shift : shift + size, shift : shift + size] for shift in SHIFTS]


def ramp(size: int) -> ndarray:
    return 0.01 * np.add.outer(np.arange(size), np.arange(size))


def test_equal_maps_have_no_seam_even_with_edges_at_the_borders() -> None:
    area = np.random.default_rng(0).random((128, 128))
    area[:, ::16] = 2
    found = seam(shifted(area, 100), SHIFTS, Tiling.of(0, 16, 16), 16)
    assert found.ratio == pytest.approx(1, abs=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert found.max_ratio == pytest.approx(1, abs=1e-12)
    assert found.uncorrected > 1.2


def test_a_known_step_at_known_lines_is_measured_in_both_directions() -> None:
    tile = np.arange(100) // 16
    jumps = 0.03 * np.add.outer(tile, tile)
    maps = [part + jumps for part in shifted(ramp(128), 100)]
    found = seam(maps, SHIFTS, Tiling.of(0, 16, 16), 16)
    assert found.ratio == pytest.approx(4)  # a step of 1 + 3 relative to a step of 1
    assert found.uncorrected == pytest.approx(4)
    assert found.standard_error == pytest.approx(0, abs=1e-9)
    # With the wrong borders the seam is not found, but the maximum over all lines still shows it.
    elsewhere = seam(maps, SHIFTS, Tiling.of(5, 5 + 16, 16), 16)
    assert elsewhere.ratio == pytest.approx(1)
    assert elsewhere.max_ratio == pytest.approx(4)


def test_a_tiling_has_up_to_two_borders_per_period() -> None:
    assert Tiling.of(0, 32, 16).phases == {0}
    assert Tiling.of(-8, 24, 16).phases == {8}
    assert Tiling.of(0, 30, 16).phases == {0, 14}


def test_each_contestant_has_its_own_borders() -> None:
    assert contestant_tiling("geograft-torch", 224, 0.5) == Tiling(112, frozenset({56}))
    assert contestant_tiling("plain", 224, 0.5) == Tiling(112, frozenset({0}))
    assert contestant_tiling("centres", 224, 0.5) == Tiling(112, frozenset({0}))
    assert contestant_tiling("side by side", 224, 0.5) == Tiling(224, frozenset({0}))
    assert contestant_tiling("peer-terratorch", 224, 0.5) == Tiling(112, frozenset({0, 96}))
    assert contestant_tiling("geograft-onnx", 224, 0.25) == Tiling(168, frozenset({140, 28}))
    assert [first_tile_offset(name, 224, 0.5) for name in ("geograft-torch", "plain", "peer-terratorch")] == [56, 0, 8]


def test_the_standard_error_is_the_scatter_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    found = [
        seam([ramp(160) + rng.normal(0, 0.02, (160, 160)) for _ in SHIFTS], SHIFTS, Tiling.of(0, 16, 16), 16)
        for _ in range(60)
    ]
    scatter = float(np.std([one.ratio for one in found]))
    assert np.mean([one.standard_error for one in found]) == pytest.approx(scatter, rel=0.35)
    assert np.mean([one.ratio for one in found]) == pytest.approx(1, abs=3 * scatter / 60**0.5)


@pytest.mark.parametrize(
    ("stride", "shifts"), [(112, [0, 32, 64, 80]), (80, [0, 16, 32, 64]), (32, [0, 16]), (16, [0])]
)
def test_shifts_are_multiples_of_the_networks_stride(stride: int, shifts: list[int]) -> None:
    assert tile_shifts(stride, 16) == shifts


def test_too_small_maps_and_a_single_map_are_refused() -> None:
    with pytest.raises(ValueError, match="3"):
        seam(shifted(ramp(60), 44), SHIFTS, Tiling.of(0, 16, 16), 8)
    with pytest.raises(ValueError, match="3"):
        seam([ramp(100)], [0], Tiling.of(0, 16, 16), 16)


def test_steps_are_means_along_the_line() -> None:
    values = np.array([[0.0, 1.0, 1.0], [0.0, 0.5, 2.5]])
    assert mean_steps(values, axis=1).tolist() == [0.75, 1.0]
    assert mean_steps(values, axis=0).tolist() == [pytest.approx(2 / 3)]


@pytest.mark.parametrize(("batch", "overlap"), [(1, 0.5), (8, 0.5), (3, 0.25), (8, 0.0)])
def test_the_plain_loop_equals_the_whole_image_without_context(tmp_path: Path, batch: int, overlap: float) -> None:
    pixels = textured(3, 70, 90)
    found = plain_loop(pointwise, write_raster(tmp_path / "scene.tif", pixels), 32, overlap, batch)
    np.testing.assert_allclose(found, pointwise(pixels[None])[0], atol=1e-6)


def test_tile_centres_equal_the_whole_image_if_the_margin_covers_the_context() -> None:
    pixels = textured(3, 96, 80)
    inner = slice(4, -4)  # at the edge the whole image is padded with zeros, and the tiles by mirroring
    whole = neighbourly(pixels[None])[0][inner, inner]
    np.testing.assert_allclose(cropped_map(neighbourly, pixels, 32, 24)[inner, inner], whole, atol=1e-6)
    side_by_side = cropped_map(neighbourly, pixels, 32, 32)[inner, inner]
    assert np.abs(side_by_side - whole).max() > 0.1


def test_whole_tiles_show_seams_and_tile_centres_do_not() -> None:
    def backward(tiles: ndarray) -> ndarray:
        """A network with context to the upper left only, so that only one side of a border lacks it."""
        longer = np.pad(tiles, ((0, 0), (0, 0), (4, 0), (4, 0)))
        return neighbourly(longer)[:, : tiles.shape[2], : tiles.shape[3]]

    shifts = (0, 8, 16, 24)
    parts = [textured(3, 240, 240)[:, shift : shift + 192, shift : shift + 192] for shift in shifts]
    side = [cropped_map(backward, part, 32, 32) for part in parts]
    centres = [cropped_map(backward, part, 32, 16) for part in parts]
    assert seam(side, shifts, Tiling.of(0, 32, 32), 32).ratio > 2
    assert seam(centres, shifts, Tiling.of(0, 16, 16), 32).ratio == pytest.approx(1, abs=1e-6)


def test_tiles_cover_a_raster_and_lie_inside() -> None:
    covered = np.zeros((70, 90), int)
    for row, col in tile_corners(70, 90, 32, 16):
        assert 0 <= row <= 70 - 32
        assert 0 <= col <= 90 - 32
        covered[row : row + 32, col : col + 32] += 1
    assert covered.min() == 1


@pytest.mark.parametrize(("size", "tile", "overlap"), [(224, 32, 0.5), (230, 32, 0.5), (230, 32, 0.25), (64, 32, 0.0)])
def test_the_number_of_tiles_is_that_of_geografts_grid(size: int, tile: int, overlap: float) -> None:
    assert tiles_in(size, tile, overlap) == len(TileGrid(size, size, tile, overlap).tops) ** 2


def test_ratios_are_medians_within_a_round() -> None:
    ours, loop = Entry("Geograft", "geograft-torch"), Entry("loop", "plain")
    # The machine is twice as slow in the second round and three times in the third.
    rounds = tuple({ours: Outcome(2 * slow, 400, 1.8 * slow), loop: Outcome(7 * slow, 900)} for slow in (1.0, 2.0, 3.0))
    results = Results(8_000_000, rounds)
    assert results.speed(ours) == pytest.approx(2)
    assert results.ratio(ours, loop) == pytest.approx(3.5)
    assert results.backend_fraction(ours) == pytest.approx(0.9)
    assert results.peak_mb(loop) == 900


def test_mirroring_is_continuous_and_endless() -> None:
    pixels = textured(1, 5, 7)
    window = mirror_window(pixels, 0, 0, 20, 28)
    np.testing.assert_array_equal(window[:, :5, :7], pixels)
    np.testing.assert_array_equal(window[:, 5:10, :7], pixels[:, ::-1])
    np.testing.assert_array_equal(window[:, 10:15, 14:21], pixels)
    np.testing.assert_array_equal(mirror_window(pixels, 3, 4, 9, 9), window[:, 3:12, 4:13])


def test_the_sparse_raster_holds_five_scenes_in_few_bytes(tmp_path: Path) -> None:
    path = sparse_raster(tmp_path / "sparse.tif", 30_000)
    with rasterio.open(path) as raster:
        assert raster.nodata == 0
        for row, col in [(0, 0), (29_900, 29_900), (15_000, 15_000)]:
            assert raster.read(window=((row, row + 50), (col, col + 50))).min() >= 1
        assert not raster.read(window=((5_000, 5_050), (5_000, 5_050))).any()
    assert path.stat().st_size < 100e6


def test_the_dense_raster_is_all_valid_and_written_once(tmp_path: Path) -> None:
    path = dense_raster(tmp_path / "dense.tif", 600)
    before = path.stat().st_mtime_ns
    assert dense_raster(path, 600).stat().st_mtime_ns == before
    with rasterio.open(path) as raster:
        assert raster.read().min() >= 1


def test_a_table_replaces_its_section_of_the_page() -> None:
    text = "# Speed\n\n<!-- predict -->\nold\n<!-- end of predict -->\n\nThe rest.\n"
    table = page.table(["", "Mpx/s"], [["loop", "0.1"]])
    assert table == "|  | Mpx/s |\n| --- | ---: |\n| loop | 0.1 |"
    found = page.replace_section(text, "predict", table)
    assert "old" not in found
    assert page.replace_section(found, "predict", table) == found
    assert found.endswith("\n\nThe rest.\n")
    with pytest.raises(ValueError, match="memory"):
        page.replace_section(text, "memory", table)


def test_the_page_of_speed_has_a_place_for_both_tables() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    for name in ("predict", "memory"):
        assert page.replace_section(text, name, "table")
