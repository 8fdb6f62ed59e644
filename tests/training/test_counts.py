import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    binary_confusion_matrix,
    multiclass_confusion_matrix,
    multilabel_confusion_matrix,
)

from geograft.legend import IGNORE
from geograft.metrics.confusion import ConfusionScheme
from geograft.training.step import classes_from_logits, confusion, overlapping_confusion


def batch(k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels of `k` classes, a fifth of the labels ignored."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 1 if k == 2 else k, 8, 5, generator=rng)
    label = torch.randint(0, k, (3, 8, 5), generator=rng, dtype=torch.uint8)
    return logits, label.masked_fill(torch.rand(3, 8, 5, generator=rng) < 0.2, IGNORE)


@given(k=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_confusion_equals_torchmetrics(k: int, seed: int) -> None:
    logits, label = batch(k, seed)
    if k == 2:
        theirs = binary_confusion_matrix(logits[:, 0].sigmoid(), label.int(), ignore_index=IGNORE)
    else:
        theirs = multiclass_confusion_matrix(logits, label.long(), num_classes=k, ignore_index=IGNORE)
    assert torch.equal(confusion(logits, label, k), theirs)


@given(k=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_confusion_of_single_tiles_adds_up(k: int, seed: int) -> None:
    logits, label = batch(k, seed)
    total = sum(confusion(logits[i : i + 1], label[i : i + 1], k) for i in range(3))
    assert torch.equal(confusion(logits, label, k), total)
    assert total.sum() == (label != IGNORE).sum()


def test_rows_are_the_true_classes() -> None:
    logits = torch.tensor([3.0, -3.0, 0.0, 3.0]).reshape(1, 1, 2, 2)
    label = torch.tensor([0, 1, 1, IGNORE], dtype=torch.uint8).reshape(1, 2, 2)
    np.testing.assert_array_equal(confusion(logits, label, 2), [[0, 1], [1, 1]])


def test_a_probability_of_one_half_is_predicted_as_class_1() -> None:
    assert classes_from_logits(torch.zeros(1, 1, 1, 1)).item() == 1


def test_all_ignored_counts_nothing() -> None:
    logits, label = batch(4, 0)
    assert confusion(logits, torch.full_like(label, IGNORE), 4).sum() == 0


def test_labels_with_another_shape_are_refused() -> None:
    logits, label = batch(3, 0)
    with pytest.raises(Exception, match="label"):
        confusion(logits, label[:, :4], 3)


@given(k=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_fractional_labels_count_for_the_majority_class(k: int, seed: int) -> None:
    logits, label = batch(k, seed)
    most = torch.nn.functional.one_hot(label.long().clamp(max=k), k + 1).movedim(-1, 1)[:, :k]
    fractions = (0.55 * most + 0.45 / k).masked_fill((label == IGNORE)[:, None], torch.nan)
    assert torch.equal(confusion(logits, fractions[:, 1:] if k == 2 else fractions, k), confusion(logits, label, k))


@given(k=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_confusion_of_overlapping_classes_equals_torchmetrics(k: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, label = torch.randn(3, k, 8, 5, generator=rng), torch.randint(-1, 2, (3, k, 8, 5), generator=rng)
    fraction = label.float().masked_fill(label < 0, torch.nan)
    theirs = multilabel_confusion_matrix(logits.sigmoid(), label, num_labels=k, ignore_index=-1)
    assert torch.equal(overlapping_confusion(logits, fraction), theirs)
    # The classes of the map are the ones that are counted.
    scheme = ConfusionScheme(k, overlapping=True)
    seen = scheme.apply_thresholds(logits.sigmoid().numpy(), (0.5,) * k).swapaxes(0, 1).reshape(k, 3, -1)
    truth = np.stack([scheme.to_classes(each) for each in fraction.numpy()]).swapaxes(0, 1).reshape(k, 3, -1)
    np.testing.assert_array_equal(scheme.confusion(truth, seen), theirs)
