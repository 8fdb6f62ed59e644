import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from geograft.training.augment import (
    JITTER,
    augment_tile,
    dihedral,
    inverse,
    jitter_colours,
    jitter_scale,
    paste_class,
    rescale,
)

ELEMENTS = range(8)
SQUARE = np.arange(25).reshape(5, 5)
elements = st.integers(0, 7)


def element_of(pixels: np.ndarray) -> int:
    """Return which symmetry of SQUARE `pixels` is."""
    (found,) = [e for e in ELEMENTS if np.array_equal(dihedral(SQUARE, e), pixels)]
    return found


def test_the_eight_symmetries_differ_and_0_changes_nothing() -> None:
    assert len({dihedral(SQUARE, e).tobytes() for e in ELEMENTS}) == 8
    assert np.array_equal(dihedral(SQUARE, 0), SQUARE)


@given(elements, elements)
def test_the_symmetries_are_closed_under_composition(first: int, second: int) -> None:
    assert element_of(dihedral(dihedral(SQUARE, first), second)) in ELEMENTS


@given(elements)
def test_the_inverse_restores_the_pixels(element: int) -> None:
    assert np.array_equal(dihedral(dihedral(SQUARE, element), inverse(element)), SQUARE)


def test_rotations_are_among_the_symmetries() -> None:
    turns = {element_of(np.rot90(SQUARE, quarter)) for quarter in range(4)}
    assert len(turns) == 4


def tile(bands: int = 3, shape: tuple[int, int] = (12, 12), seed: int = 0) -> tuple[np.ndarray, ...]:
    """Return image, label and valid pixels; the first band equals the label, and a corner is not valid."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, shape, dtype=np.uint8)
    image = rng.normal(100, 20, (bands, *shape)).astype(np.float32)
    image[0] = label
    valid = np.ones(shape, bool)
    valid[:3, :4] = False
    return image, label, valid


@given(seed=st.integers(0, 1000), bands=st.sampled_from([1, 3, 8]))
def test_image_and_label_are_transformed_alike_and_no_pixel_changes(seed: int, bands: int) -> None:
    given_tile = tile(bands)
    image, label, valid = augment_tile(*given_tile, np.ones(bands), "dihedral", np.random.default_rng(seed))
    assert np.array_equal(image[0], label)
    assert valid.sum() == given_tile[2].sum()
    assert np.array_equal(np.sort(image, axis=None), np.sort(given_tile[0], axis=None))


def test_every_symmetry_is_equally_likely() -> None:
    label = np.arange(25, dtype=np.uint8).reshape(5, 5)
    rng = np.random.default_rng(0)
    sample = label[None].astype(np.float32), label, np.ones((5, 5), bool)
    drawn = [element_of(augment_tile(*sample, np.ones(1), "dihedral", rng)[1]) for _ in range(800)]
    assert np.bincount(drawn, minlength=8).min() > 70


def test_a_tile_that_is_not_square_keeps_its_shape() -> None:
    for seed in range(20):
        image, label, valid = augment_tile(*tile(shape=(8, 12)), np.ones(3), "colour", np.random.default_rng(seed))
        assert image.shape[1:] == label.shape == valid.shape == (8, 12)


def test_colour_jitter_leaves_indices_unchanged() -> None:
    image, label, valid = tile(bands=4)
    image[3], valid[:] = np.arange(144).reshape(12, 12), True
    turned, _, _ = augment_tile(image, label, valid, np.ones(3), "colour", np.random.default_rng(0))
    assert np.array_equal(np.sort(turned[3], axis=None), np.arange(144))
    # The index says where each pixel went: its three colours have changed.
    there = np.take_along_axis(image[:3].reshape(3, -1), turned[3].astype(int).reshape(1, -1), axis=1)
    assert (np.abs(there - turned[:3].reshape(3, -1)).max(axis=1) > 0.01).all()
    # The number of random draws, and so the colours, do not depend on the index.
    alone, _, _ = augment_tile(image[:3], label, valid, np.ones(3), "colour", np.random.default_rng(0))
    assert np.array_equal(turned[:3], alone)


def test_none_returns_the_tile_unchanged() -> None:
    for before, after in zip(tile(), augment_tile(*tile(), np.ones(3), "none", np.random.default_rng(0)), strict=True):
        assert np.array_equal(before, after)


@given(changes=st.tuples(*[st.floats(-JITTER, JITTER)] * 2), bands=st.sampled_from([1, 3, 5]), seed=st.integers(0, 99))
def test_colour_jitter_does_not_depend_on_the_unit(changes: tuple[float, float], bands: int, seed: int) -> None:
    image, _, valid = tile(bands)
    std = np.full(bands, 20.0)
    light = np.random.default_rng(seed).uniform(-JITTER, JITTER, bands)
    in_other_units = jitter_colours(image * 50 - 300, valid, std * 50, light, *changes)
    as_before = jitter_colours(image, valid, std, light, *changes) * 50 - 300
    np.testing.assert_allclose(in_other_units, as_before, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_zero_jitter_changes_nothing(bands: int) -> None:
    image, _, valid = tile(bands)
    np.testing.assert_allclose(
        jitter_colours(image, valid, np.ones(bands), np.zeros(bands), 0.0, 0.0), image, atol=1e-4
    )


def test_brightness_contrast_and_saturation_do_what_they_say() -> None:
    image, _, valid = tile(3)
    std = np.array([1.0, 20.0, 30.0])
    same, light = np.zeros(3), np.array([0.1, 0.2, -0.3])
    brighter = jitter_colours(image, valid, std, light, 0.0, 0.0)
    np.testing.assert_allclose(brighter - image, np.broadcast_to((light * std)[:, None, None], image.shape), atol=1e-3)
    crisper = jitter_colours(image, valid, std, same, 0.2, 0.0)
    np.testing.assert_allclose(crisper[:, valid].mean(axis=1), image[:, valid].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(crisper[:, valid].std(axis=1), 1.2 * image[:, valid].std(axis=1), rtol=1e-4)
    greyer = jitter_colours(image, valid, std, same, 0.0, -0.2)
    np.testing.assert_allclose(greyer.mean(axis=0), image.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.ptp(greyer, axis=0), 0.8 * np.ptp(image, axis=0), rtol=1e-3)
    assert np.array_equal(jitter_colours(image[:2], valid, std[:2], same[:2], 0.0, -0.2), image[:2])


def test_pixels_without_image_data_do_not_affect_the_contrast() -> None:
    image, _, valid = tile(3)
    other = np.where(valid, image, np.float32(5000))
    light = np.full(3, 0.1)
    changed = [jitter_colours(each, valid, np.ones(3), light, 0.2, 0.1)[:, valid] for each in (image, other)]
    assert np.array_equal(*changed)
    nowhere = np.zeros_like(valid)
    assert np.isfinite(jitter_colours(image, nowhere, np.ones(3), light, 0.2, 0.1)).all()


# Scale


def test_scale_one_changes_nothing() -> None:
    for before, after in zip(tile(), rescale(*tile(), 1.0, (0.3, 0.8)), strict=True):
        np.testing.assert_allclose(after, np.where(tile()[2], before, 0) if before.ndim == 3 else before, rtol=1e-6)


@pytest.mark.parametrize("bands", [1, 3, 13])
@given(scale=st.floats(0.5, 2), row=st.floats(0, 1), col=st.floats(0, 1))
def test_rescaling_matches_torchs_bilinear_grid_sample(bands: int, scale: float, row: float, col: float) -> None:
    image, label, _ = tile(bands, (12, 14))
    ours, labels, valid = rescale(image, label, np.ones((12, 14), bool), scale, (row, col))
    # Output pixels in the coordinates of grid_sample: -1 to 1 between the outer edges.
    at = [
        2 * (place * (length - length / scale) + (np.arange(length) + 0.5) / scale) / length - 1
        for place, length in ((row, 12), (col, 14))
    ]
    lattice = torch.from_numpy(np.stack(np.meshgrid(at[1], at[0]), axis=-1))[None]
    mirrored = {"padding_mode": "reflection", "align_corners": False}
    theirs = functional.grid_sample(torch.from_numpy(image)[None].double(), lattice, **mirrored)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)
    assert ours.dtype == np.float32
    assert valid.all()
    assert set(np.unique(labels)) <= set(np.unique(label))


def test_scale_two_repeats_each_pixel_four_times() -> None:
    image, label, valid = tile(shape=(8, 8))
    for row, col in ((0, 0), (0, 1), (1, 0)):
        _, labels, kept = rescale(image, label, valid, 2.0, (row, col))
        part = slice(4 * row, 4 * row + 4), slice(4 * col, 4 * col + 4)
        assert np.array_equal(labels, label[part].repeat(2, 0).repeat(2, 1))
        assert np.array_equal(kept, valid[part].repeat(2, 0).repeat(2, 1))


def test_scale_one_half_pads_the_tile_by_reflection() -> None:
    label = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(2, 0).repeat(2, 1)[:8, :8]
    image, valid = label[None].astype(np.float32), np.ones((8, 8), bool)
    _, labels, _ = rescale(image, label, valid, 0.5, (0.0, 0.0))
    small = label[::2, ::2]
    assert np.array_equal(labels[:4, :4], small)
    assert np.array_equal(labels[:4, 4:], small[:, ::-1])
    assert np.array_equal(labels[4:], labels[:4][::-1])


@given(scale=st.floats(0.5, 2), place=st.floats(0, 1))
def test_pixels_without_image_data_do_not_bleed_into_others(scale: float, place: float) -> None:
    valid = np.random.default_rng(0).random((12, 12)) < 0.7
    image = np.full((2, 12, 12), 700, np.float32)
    wild = np.where(valid, image, 9e9).astype(np.float32)
    scaled, _, kept = rescale(wild, valid.astype(np.uint8), valid, scale, (place, 1 - place))
    np.testing.assert_allclose(scaled[:, kept], 700, rtol=1e-5)
    assert not scaled[:, ~kept].any()


def test_tiles_are_enlarged_and_shrunk_equally_often() -> None:
    image = np.zeros((1, 64, 64), np.float32)
    image[0, 30:34, 30:34] = 1
    label, valid = image[0].astype(np.uint8), np.ones((64, 64), bool)
    rng = np.random.default_rng(0)
    sizes = [jitter_scale(image, label, valid, 0.5, rng)[0].sum() for _ in range(300)]
    seen = np.array([size for size in sizes if size > 5])
    assert 16 / 1.5**2 * 0.9 < seen.min() < 9
    assert 30 < seen.max() < 16 * 1.5**2 * 1.1
    # Some enlarged tiles do not contain the square; of the others about half are smaller.
    assert 0.4 < (np.array(sizes) < 16).mean() < 0.65


# Pixels of other tiles


@pytest.mark.parametrize("bands", [1, 4])
def test_copy_paste_takes_image_and_label_of_one_class(bands: int) -> None:
    (image, label, _), (other, other_label, _) = tile(bands, seed=1), tile(bands, seed=2)
    new, new_label = paste_class((image, label), (other, other_label), 3)
    there = other_label == 3
    assert np.array_equal(new[:, there], other[:, there])
    assert (new_label[there] == 3).all()
    assert np.array_equal(new[:, ~there], image[:, ~there])
    assert np.array_equal(new_label[~there], label[~there])
    assert new.dtype == np.float32
    assert new_label.dtype == np.uint8


def test_fractional_labels_are_pasted_where_the_class_has_the_majority() -> None:
    rng = np.random.default_rng(0)
    shares, other = (rng.dirichlet([1, 1, 1], (6, 6)).transpose(2, 0, 1).astype(np.float32) for _ in range(2))
    other[:, 0, 0] = np.nan
    _, label = paste_class((shares[:1], shares), (other[:1], other), 2)
    there = other[2] > 0.5
    assert np.array_equal(label[:, there], other[:, there])
    assert np.array_equal(label[:, ~there], shares[:, ~there])


@pytest.mark.parametrize("index", [0, 1])
def test_a_single_output_can_donate_either_class(index: int) -> None:
    rng = np.random.default_rng(0)
    shares, other = rng.random((2, 1, 6, 6)).astype(np.float32)
    other[0, 0, 0] = np.nan
    _, label = paste_class((shares, shares), (other, other), index)
    there = other > 0.5 if index else other < 0.5
    assert np.array_equal(label, np.where(there, other, shares))
