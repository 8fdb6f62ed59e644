"""Overviews: downsampling by two, by mode or mean."""

from collections import Counter
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy import ndarray

from geograft.geo.rasters.writer import downsample_2x, overview_blocks


def fours(band: ndarray, row: int, col: int) -> list[Any]:
    values: list[Any] = band[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel().tolist()
    return values


def expected(values: list[Any], rule: str, nodata: float | None) -> Any:
    """Return the most frequent of the valid values (the first of equals), or their mean."""
    known = [v for v in values if not (v == nodata or (nodata is not None and np.isnan(nodata) and np.isnan(v)))]
    if not known:
        return nodata
    return Counter(known).most_common(1)[0][0] if rule == "mode" else sum(known) / len(known)


@pytest.mark.parametrize("rule", ["mode", "average"])
@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint8", None), ("float32", float("nan"))])
@given(seed=st.integers(0, 2**31), height=st.integers(1, 7), width=st.integers(1, 7))
def test_a_pixel_is_the_mode_or_mean_of_its_2x2_valid_pixels(
    rule: Literal["mode", "average"], dtype: str, nodata: float | None, seed: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.choice([3, 7, 8, 200], (2, height, width)).astype(dtype)
    if nodata is not None:
        pixels[rng.random(pixels.shape) < 0.4] = nodata
    found = downsample_2x(pixels, rule, nodata)
    assert found.dtype == dtype
    assert found.shape == (2, -(-height // 2), -(-width // 2))
    for band, row, col in np.ndindex(*found.shape):
        value = expected(fours(pixels[band], row, col), rule, nodata)
        np.testing.assert_allclose(found[band, row, col], value, atol=0.5 if dtype == "uint8" else 1e-5)
        if rule == "mode":
            np.testing.assert_equal(found[band, row, col], value)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 9))
def test_overview_blocks_overlap_a_nonempty_block(seed: int, rows: int, cols: int) -> None:
    filled = np.random.default_rng(seed).random((rows, cols)) < 0.3
    above = overview_blocks(filled)
    assert above.shape == (-(-rows // 2), -(-cols // 2))
    for row, col in np.ndindex(*above.shape):
        assert above[row, col] == any(fours(filled, row, col))
