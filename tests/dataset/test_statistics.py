"""Means and standard deviations from parts equal those of the whole, and every pixel counts once."""

from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from geograft.dataset import statistics
from geograft.dataset.statistics import Moments, band_moments
from geograft.geo.grid import Window
from tests.support.rasters import textured, write_raster

pixels = arrays(np.float64, st.tuples(st.just(2), st.integers(0, 30)), elements=st.floats(-1e6, 1e6))


@given(st.lists(pixels, min_size=1, max_size=5))
@settings(deadline=None)
def test_moments_of_parts_add_up(parts: list[np.ndarray]) -> None:
    whole = np.concatenate(parts, axis=1)
    found = reduce(add, (Moments.from_pixels(part) for part in parts))
    assert (found.count == whole.shape[1]).all()
    if whole.shape[1]:
        assert np.allclose(found.mean, whole.mean(axis=1), atol=1e-6)
        assert np.allclose(found.squared_deviations, whole.var(axis=1) * whole.shape[1], rtol=1e-9, atol=1e-3)


def test_small_deviations_on_large_values_are_not_lost() -> None:
    values = 1e9 + np.array([[0.0, 1.0] * 500])
    halves = Moments.from_pixels(values[:, :300]) + Moments.from_pixels(values[:, 300:])
    assert halves.std[0] == pytest.approx(0.5, rel=1e-9)


def test_a_constant_band_can_be_divided_by() -> None:
    assert Moments.from_pixels(np.full((1, 9), 7.0)).std.tolist() == [1.0]
    for value in (0.3, 287.13, 1e-9):
        rounded = Moments.from_pixels(np.full((1, 50_176), value)) + Moments.from_pixels(np.full((1, 33_333), value))
        assert rounded.std.tolist() == [1.0]


def test_overlapping_tiles_count_a_pixel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOMENTS_BLOCK", (16, 24))
    image, labels = textured(3, 80, 90), textured(1, 80, 90) % 2
    image[:, 20:30, 20:30] = 0
    labels[:, 40:45] = 255
    windows = [Window(0, 0, 50, 50), Window(25, 25, 50, 50), Window(0, 25, 50, 50)]
    counted = np.zeros((80, 90), bool)
    for window in windows:
        counted[window.slices] = True
    counted[20:30, 20:30] = counted[40:45] = False
    paths = (write_raster(tmp_path / "a.tif", image, nodata=0), write_raster(tmp_path / "m.tif", labels, nodata=255))
    found = reduce(add, band_moments(*paths, windows))
    assert found.count.tolist() == [counted.sum()] * 3
    assert np.allclose(found.mean, image[:, counted].mean(axis=1))
    assert np.allclose(found.std, image[:, counted].std(axis=1))


def test_no_windows_give_no_moments(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", textured(1, 20, 20))
    assert not list(band_moments(path, path, []))
