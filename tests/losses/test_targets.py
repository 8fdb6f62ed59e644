"""What a label says of each output, and how near its pixels are to a border."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

from geograft.legend import IGNORE
from geograft.losses.segmentation import BOUNDARY_PX, LossConfig, Targets, boundary_proximity, segmentation_loss

seeds = st.integers(0, 10**6)


def patches(k: int, seed: int, ignored: float = 0.0) -> Tensor:
    """Return a label of patches, 18 x 22, with ignored pixels."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, (1, 3, 4), dtype=np.uint8).repeat(6, 1).repeat(6, 2)[:, :, :22]
    label[rng.random(label.shape) < ignored] = IGNORE
    return torch.from_numpy(label)


def beside_another(label: np.ndarray) -> np.ndarray:
    """Return which pixels touch one of another class, at a corner too. Pixel by pixel."""
    found = np.zeros(label.shape, bool)
    for row, col in np.ndindex(*label.shape):
        around = label[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
        found[row, col] = label[row, col] != IGNORE and ((around != label[row, col]) & (around != IGNORE)).any()
    return found


@given(seed=seeds, k=st.integers(2, 4), ignored=st.sampled_from([0.0, 0.05, 0.5]))
def test_nearness_halves_with_each_pixel_from_the_border(seed: int, k: int, ignored: float) -> None:
    label = patches(k, seed, ignored)
    edge = beside_another(label[0].numpy())
    far = distance_transform_cdt(~edge, "chessboard") if edge.any() else np.full(edge.shape, 99)
    expected = np.where(far < BOUNDARY_PX, 0.5**far, 0)
    near = boundary_proximity(Targets.from_label(label, 1 if k == 2 else k))
    np.testing.assert_array_equal(near[0, 0], expected)


@given(seed=seeds, ignored=st.sampled_from([0.0, 0.3]))
def test_classes_that_overlap_have_borders_of_their_own(seed: int, ignored: float) -> None:
    shares = torch.cat([patches(2, seed + i)[:, None].float() for i in range(3)], dim=1)
    shares[torch.rand(shares.shape, generator=torch.Generator().manual_seed(seed)) < ignored] = torch.nan
    near = boundary_proximity(Targets.from_label(shares, 3, overlapping=True))
    for c in range(3):
        assert torch.equal(near[:, [c]], boundary_proximity(Targets.from_label(shares[:, [c]], 1)))


def test_borders_count_for_more_and_the_mean_stays_one() -> None:
    label = patches(2, 3)
    near = boundary_proximity(Targets.from_label(label, 1))
    logits = torch.randn(1, 1, 18, 22, generator=torch.Generator().manual_seed(0))
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, label[:, None].float(), reduction="none")
    ours = segmentation_loss(logits, label, LossConfig(region_loss_weight=0.0, boundary_weight=5.0))
    torch.testing.assert_close(ours, ((1 + 5 * near) * each).sum() / (1 + 5 * near).sum())


@given(seed=seeds, k=st.integers(2, 4), ignored=st.sampled_from([0.0, 0.3]), stride=st.integers(1, 8))
def test_coarser_truth_keeps_what_there_is_of_each_class(seed: int, k: int, ignored: float, stride: int) -> None:
    truth = Targets.from_label(patches(k, seed, ignored), 1 if k == 2 else k)
    coarse = truth.downsample(stride)
    rows, cols = (range(0, size, stride) for size in truth.fraction.shape[2:])
    assert coarse.fraction.shape[2:] == (len(rows), len(cols))
    for (i, row), (j, col) in product(enumerate(rows), enumerate(cols)):
        share, valid = (each[0, :, row : row + stride, col : col + stride] for each in (truth.fraction, truth.valid))
        known = valid[:1].sum()
        enough = bool(2 * known >= valid[:1].numel())
        assert coarse.valid[0, :, i, j].tolist() == [enough] * len(valid)
        mean = share.sum(dim=(1, 2)) / known if enough else torch.zeros(len(share))
        torch.testing.assert_close(coarse.fraction[0, :, i, j], mean)


@pytest.mark.parametrize("size", [100, 200, 300, 500])
def test_a_coarser_pixel_sees_what_lies_in_it_whatever_the_size_of_the_tile(size: int) -> None:
    label = torch.zeros(1, size, size, dtype=torch.uint8)
    label[:, :, 48:64] = 1
    assert Targets.from_label(label, 1).downsample(16).fraction[0, 0, 0, 2:5].tolist() == [0, 1, 0]


def test_shares_known_in_part_are_not_known_where_classes_exclude_each_other() -> None:
    shares = torch.full((1, 3, 2, 2), 1 / 3)
    shares[0, 1, 0, 0] = torch.nan
    assert Targets.from_label(shares, 3).valid.flatten().tolist() == [False, True, True, True]
    assert Targets.from_label(shares, 3, overlapping=True).valid.sum() == 11
