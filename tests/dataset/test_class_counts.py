"""Class counts of labels as class indices and as fractions."""

from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy import ndarray

from geograft.dataset.statistics import count_classes, count_labels, labelled_tiles
from geograft.geo.grid import Grid, Window
from geograft.geo.rasters.writer import create_labels
from geograft.labels import MAX_CODE, class_fractions, decode_fractions, encode_fractions
from geograft.legend import IGNORE, Legend

PAIR = Legend(("rest", "tree"))
COVERS = Legend(("background", "tree", "road"))
OVERLAPPING = Legend(("tree", "road", "roof"), overlapping=True)

indices = arrays(np.uint8, (1, 5, 6), elements=st.sampled_from([0, 1, IGNORE]))
codes = arrays(np.uint8, (3, 5, 6), elements=st.sampled_from([0, 1, 125, MAX_CODE, IGNORE]))


@pytest.mark.parametrize("legend", [PAIR, COVERS])
@given(bands=indices)
def test_whole_pixels_have_equal_counts_as_indices_and_fractions(legend: Legend, bands: ndarray) -> None:
    shares = encode_fractions(class_fractions(bands[0], legend))
    assert count_labels(shares[-legend.outputs :], legend, fractional=True) == count_labels(
        bands, legend, fractional=False
    )


@given(bands=codes)
def test_each_overlapping_class_counts_its_own_known_pixels(bands: ndarray) -> None:
    found, shares = count_labels(bands, OVERLAPPING, fractional=True), decode_fractions(bands)
    assert found.labelled == np.isfinite(shares).any(axis=0).sum()
    assert found.present == pytest.approx(np.nansum(shares, axis=(1, 2)), abs=1e-4)
    assert found.absent == pytest.approx(np.nansum(1 - shares, axis=(1, 2)), abs=1e-4)


@given(bands=codes)
def test_the_counts_of_two_halves_add_up(bands: ndarray) -> None:
    whole, left, right = (
        count_labels(part, OVERLAPPING, fractional=True) for part in (bands, bands[..., :2], bands[..., 2:])
    )
    both = left + right
    assert both.labelled == whole.labelled
    assert both.present + both.absent == pytest.approx(whole.present + whole.absent)


def test_stratification_counts_are_proportional_to_labelled_pixels() -> None:
    bands = np.array([[[MAX_CODE, 0, 0, IGNORE]], [[MAX_CODE, 0, MAX_CODE, IGNORE]], [[0, 0, 0, IGNORE]]], np.uint8)
    assert count_labels(bands, OVERLAPPING, fractional=True).stratification_counts == (1, 2, 0, 2, 1, 3)


def test_tiles_have_the_class_fractions_of_the_mask(tmp_path: Path) -> None:
    grid, shares = Grid(40, 30, Affine.identity(), None), np.zeros((3, 40, 30))
    shares[0, :10], shares[1, :, :15], shares[2] = 0.5, 1, np.nan
    shares[:, 20:] = np.nan
    with create_labels(tmp_path / "mask.tif", grid, OVERLAPPING, fractional=True) as writer:
        writer.write(encode_fractions(shares), grid.window)
    planned = [("scene", Window(0, 0, 20, 30), "train"), ("scene", Window(10, 0, 20, 30), "val")]
    planned += [("scene", Window(20, 0, 20, 30), "test")]
    tiles = labelled_tiles(
        planned, lambda _, window: count_classes(tmp_path / "mask.tif", window, OVERLAPPING, True), 0.5
    )
    assert [(tile.split, tile.valid, tile.class_fractions) for tile in tiles] == [
        ("train", 1.0, (0.25, 0.5, 0.0)),
        ("val", 0.5, (0.0, 0.5, 0.0)),
    ]
