"""The training loss against the article's, torch's and segmentation_models.pytorch's."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from geograft.config import TrainConfig
from geograft.errors import SettingError
from geograft.legend import IGNORE, Legend
from geograft.losses.segmentation import (
    LossConfig,
    balanced_pos_weights,
    balanced_weights,
    build_loss_config,
    segmentation_loss,
    segmentation_losses,
)

PLAIN, ENTROPY, REGION = LossConfig(), LossConfig(region_loss_weight=0.0), LossConfig(region_loss_weight=1.0)
seeds = st.integers(0, 10**6)


def mixed(**changes: Any) -> LossConfig:
    """Return cross-entropy alone, with some changes."""
    return LossConfig(**{"region_loss_weight": 0.0, **changes})


def batch(k: int, seed: int, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 1 if k == 2 else k, 7, 6, generator=rng)
    label = torch.randint(0, k, (2, 7, 6), generator=rng, dtype=torch.uint8)
    return logits.requires_grad_(), label.masked_fill(torch.rand(2, 7, 6, generator=rng) < ignored, IGNORE)


def known(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (pixels, outputs) and classes (pixels) of labelled pixels."""
    return logits.movedim(1, -1)[label != IGNORE], label[label != IGNORE].long()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=2e-5, atol=2e-6)


def article_loss(outputs: Tensor, targets: Tensor, weight_dice: float) -> Tensor:
    """Return the article's CombinedLoss: BCELoss and DiceLoss of sigmoid outputs, each over the whole batch."""
    intersection = (outputs * targets).sum()
    dice = (2 * intersection + 1) / (outputs.sum() + targets.sum() + 1)
    loss: Tensor = nn.BCELoss()(outputs, targets) * (1 - weight_dice) + (1 - dice) * weight_dice
    return loss


@given(seed=seeds, weight=st.floats(0, 1))
def test_two_classes_have_the_articles_loss_and_gradient(seed: int, weight: float) -> None:
    logits, label = batch(2, seed)
    ours = segmentation_loss(logits, label, LossConfig(region_loss_weight=weight))
    # In double, for in float the sigmoid of a large logit has lost what its logarithm needs.
    theirs = article_loss(torch.sigmoid(logits[:, 0].double()), label.double(), weight)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    (our_gradient,), (their_gradient,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-7)


@given(seed=seeds, k=st.integers(3, 6))
def test_more_classes_have_cross_entropy_and_the_mean_dice_of_those_present(seed: int, k: int) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    chosen = known(logits, label)
    entropy = nn.CrossEntropyLoss()(*chosen)
    close(segmentation_loss(logits, label, ENTROPY), entropy)
    shares = chosen[0].softmax(dim=1)
    of_class = [(shares[:, c], (chosen[1] == c).float()) for c in chosen[1].unique()]
    dice = torch.stack([1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in of_class]).mean()
    close(segmentation_loss(logits, label, REGION), dice)


@given(seed=seeds, k=st.sampled_from([2, 4]), wild=st.floats(width=32))
def test_ignored_pixels_change_neither_loss_nor_gradient(seed: int, k: int, wild: float) -> None:
    logits, label = batch(k, seed, ignored=0.4)
    ignored = (label == IGNORE)[:, None].expand_as(logits)
    # Not even infinity or NaN reaches the loss from there.
    other = logits.detach().masked_fill(ignored, wild).requires_grad_()
    losses = segmentation_loss(logits, label, PLAIN), segmentation_loss(other, label, PLAIN)
    assert torch.equal(*losses)
    gradients = torch.autograd.grad(losses[0], logits)[0], torch.autograd.grad(losses[1], other)[0]
    assert torch.equal(*gradients)
    assert not gradients[0][ignored].any()


@pytest.mark.parametrize("k", [2, 3])
def test_without_a_labelled_pixel_loss_and_gradient_are_zero(k: int) -> None:
    logits, label = batch(k, 0, ignored=1.1)
    loss = segmentation_loss(logits, label, PLAIN)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("region", ["dice", "tversky", "lovasz"])
def test_an_empty_batch_has_zero_loss(k: int, region: Any) -> None:
    logits, label = batch(k, 0)
    mix = LossConfig(region, 0.5, 2.0, boundary_weight=1.0, auxiliary_weight=1.0)
    assert segmentation_loss((logits[:0], {2: logits[:0, :, ::2, ::2]}), label[:0], mix) == 0


@pytest.mark.parametrize("k", [2, 3])
def test_perfect_predictions_have_zero_loss(k: int) -> None:
    _, label = batch(k, 0)
    right = (
        (label[:, None].float() * 2 - 1) if k == 2 else nn.functional.one_hot(label.long(), k).movedim(-1, 1).float()
    )
    assert segmentation_loss(60 * right, label, PLAIN) < 1e-4
    assert segmentation_loss(-60 * right, label, PLAIN) > 10


@pytest.mark.parametrize("k", [2, 3])
def test_autocast_does_not_apply(k: int) -> None:
    logits, label = batch(k, 0)
    rounded = logits.detach().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = segmentation_loss(rounded, label, PLAIN)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, segmentation_loss(rounded.float(), label, PLAIN))


# Cross-entropy by other weights


@given(seed=seeds, gamma=st.floats(0.5, 4))
def test_focal_of_two_classes_is_smps(seed: int, gamma: float) -> None:
    logits, label = batch(2, seed, ignored=0.3)
    theirs = smp.losses.FocalLoss("binary", gamma=gamma, ignore_index=IGNORE)(logits[:, 0], label)
    close(segmentation_loss(logits, label, mixed(focal_gamma=gamma)), theirs)


@given(seed=seeds, k=st.integers(3, 6), gamma=st.floats(0.5, 4))
def test_multiclass_focal_loss(seed: int, k: int, gamma: float) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    scores, truth = known(logits, label)
    chance = scores.double().softmax(dim=1)[torch.arange(len(truth)), truth]
    close(segmentation_loss(logits, label, mixed(focal_gamma=gamma)), ((1 - chance) ** gamma * -chance.log()).mean())


@given(seed=seeds, k=st.integers(2, 5), smoothing=st.sampled_from([0.0, 0.1, 0.4]), weighted=st.booleans())
def test_class_weights_and_smoothing_are_torchs(seed: int, k: int, smoothing: float, weighted: bool) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    weights = tuple(np.random.default_rng(seed).uniform(0.1, 5, k).tolist()) if weighted else ()
    scores, truth = known(logits, label)
    # One logit is the difference of two.
    scores = torch.cat([torch.zeros_like(scores), scores], dim=1) if k == 2 else scores
    theirs = nn.CrossEntropyLoss(torch.tensor(weights) if weighted else None, label_smoothing=smoothing)(scores, truth)
    close(segmentation_loss(logits, label, mixed(class_weights=weights, label_smoothing=smoothing)), theirs)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    label = np.random.default_rng(0).choice(4, 5000, p=[0.6, 0.3, 0.09, 0.01])
    shares = np.stack([np.bincount(part, minlength=4) / len(part) for part in label.reshape(10, 500)])
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=label)
    np.testing.assert_allclose(balanced_weights(shares), theirs)
    with_an_absent_one = balanced_weights(np.insert(shares, 2, 0, axis=1))
    np.testing.assert_allclose(with_an_absent_one, np.insert(theirs, 2, 1))


@given(seed=seeds, k=st.integers(2, 4))
def test_balanced_classes_have_equal_total_weight(seed: int, k: int) -> None:
    # Of a network that knows nothing every pixel costs the same; weighted, every class does.
    _, label = batch(k, seed)
    counts = torch.bincount(label.flatten().long(), minlength=k)
    weights = balanced_weights((counts / counts.sum())[None].double().numpy())
    by_class = [weight * count for weight, count in zip(weights, counts.tolist(), strict=True) if count]
    np.testing.assert_allclose(by_class, by_class[0])


# Regions


@given(seed=seeds, k=st.integers(2, 5), miss=st.sampled_from([0.2, 0.5, 0.7]))
def test_tversky_is_smps(seed: int, k: int, miss: float) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    label.flatten()[:k] = torch.arange(k, dtype=torch.uint8)
    scores, truth = known(logits, label)
    mode = "binary" if k == 2 else "multiclass"
    theirs = smp.losses.TverskyLoss(mode, smooth=0.5, alpha=1 - miss, beta=miss, eps=0.0)
    stacked = scores.T[None, :, :, None], truth[None, :, None]
    close(segmentation_loss(logits, label, LossConfig("tversky", 1.0, tversky_beta=miss)), theirs(*stacked))


@given(seed=seeds, k=st.integers(2, 5))
def test_tversky_with_beta_one_half_is_dice(seed: int, k: int) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    close(
        segmentation_loss(logits, label, LossConfig("tversky", 1.0, tversky_beta=0.5)),
        segmentation_loss(logits, label, REGION),
    )


@given(seed=seeds, k=st.integers(3, 6))
def test_lovasz_and_its_gradient_are_smps(seed: int, k: int) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    label[label == 1] = 0
    ours = segmentation_loss(logits, label, LossConfig("lovasz", 1.0))
    theirs = smp.losses.LovaszLoss("multiclass", ignore_index=IGNORE)(logits, label)
    close(ours, theirs)
    close(torch.autograd.grad(ours, logits)[0], torch.autograd.grad(theirs, logits)[0])


@given(seed=seeds, k=st.integers(2, 4), share=st.sampled_from([0.0, 0.1, 0.6]))
def test_lovasz_of_hard_predictions_is_1_minus_iou(seed: int, k: int, share: float) -> None:
    _, label = batch(k, seed, ignored=0.2)
    answer, _ = batch(3, seed + 1)
    wrong = answer[:, 0].abs() < share
    said = torch.where(wrong, (label + 1) % k, label).long().clamp(max=k - 1)
    sure = nn.functional.one_hot(said, k).movedim(-1, 1) * 400.0 - 200
    there, said = label[label != IGNORE], said[label != IGNORE]
    classes = [1] if k == 2 else there.unique().tolist()
    either = [((there == c) | (said == c)).sum() for c in classes]
    both = [((there == c) & (said == c)).sum() for c in classes]
    lacking = torch.stack([1 - b / e.clamp(min=1) for b, e in zip(both, either, strict=True)]).mean()
    close(segmentation_loss(sure[:, 1:] if k == 2 else sure, label, LossConfig("lovasz", 1.0)), lacking)


# Fractional labels


@given(seed=seeds, k=st.integers(2, 5))
def test_one_hot_fractions_equal_class_indices(seed: int, k: int) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    whole = nn.functional.one_hot(label.long().clamp(max=k), k + 1).movedim(-1, 1)[:, :k].float()
    shares = whole.masked_fill((label == IGNORE)[:, None], torch.nan)[:, 1 if k == 2 else 0 :]
    weights = tuple(range(1, k + 1))
    for region in ("dice", "tversky", "lovasz"):
        for gamma in (0.0, 2.0):
            mix = LossConfig(region, 0.5, gamma, class_weights=weights, label_smoothing=0.1, boundary_weight=2.0)
            close(segmentation_loss(logits, shares, mix), segmentation_loss(logits, label, mix))


@given(seed=seeds, k=st.integers(1, 4))
def test_fractional_labels_have_torchs_cross_entropy_and_their_minimum_at_the_label(seed: int, k: int) -> None:
    logits, _ = batch(max(k, 2) + (k > 1), seed)
    aim = batch(max(k, 2) + (k > 1), seed + 1)[0].detach()
    shares = aim.sigmoid() if k == 1 else aim.softmax(dim=1)
    entropy = nn.BCEWithLogitsLoss() if k == 1 else nn.CrossEntropyLoss()
    close(segmentation_loss(logits, shares, ENTROPY), entropy(logits, shares))
    for mix in (ENTROPY, REGION, LossConfig("tversky", 1.0), mixed(focal_gamma=2.0)):
        leaf = aim.clone().requires_grad_()
        best = segmentation_loss(leaf, shares, mix)
        assert best <= segmentation_loss(logits, shares, mix)
    assert segmentation_loss(aim, shares, REGION) < 1e-5
    assert segmentation_loss(aim, shares, mixed(focal_gamma=2.0)) < 1e-5


@given(seed=seeds, k=st.integers(2, 5))
def test_overlapping_classes_are_independent_binary_problems(seed: int, k: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, k, 7, 6, generator=rng)
    there = (torch.rand(2, k, 7, 6, generator=rng) < 0.4).float()
    there[torch.rand(2, k, 7, 6, generator=rng) < 0.2] = torch.nan
    for region in ("dice", "tversky", "lovasz"):
        whole = segmentation_loss(logits, there, LossConfig(region, 1.0, overlapping=True))
        alone = [segmentation_loss(logits[:, [c]], there[:, [c]], LossConfig(region, 1.0)) for c in range(k)]
        close(whole, torch.stack(alone).mean())
    known_there = there.isfinite()
    entropy = nn.BCEWithLogitsLoss()(logits[known_there], there[known_there])
    close(segmentation_loss(logits, there, mixed(overlapping=True)), entropy)


@given(seed=seeds, k=st.integers(2, 4))
def test_class_weights_of_overlapping_classes(seed: int, k: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, k, 7, 6, generator=rng)
    there = (torch.rand(2, k, 7, 6, generator=rng) < 0.4).float()
    weights = torch.linspace(0.5, 4, k)
    side = torch.where(there > 0, weights[:, None, None], 1)
    entropy = nn.BCEWithLogitsLoss(weight=side, reduction="sum")(logits, there) / side.sum()
    close(segmentation_loss(logits, there, mixed(overlapping=True, class_weights=tuple(weights.tolist()))), entropy)


def test_balanced_pos_weights() -> None:
    shares = np.array([[0.5, 0.02, 0.0, 1.0], [0.3, 0.0, 0.0, 1.0]])
    weights = balanced_pos_weights(shares)
    inside = shares.mean(axis=0)
    np.testing.assert_allclose(weights[:2] * inside[:2], 1 - inside[:2])
    assert weights[2:] == (1, 1)
    legend = Legend(("crop", "house", "road", "ground"), overlapping=True)
    assert build_loss_config(TrainConfig(class_weights="balanced"), legend, shares).class_weights == weights


def test_unlabelled_pixels_do_not_count_for_balanced_weights() -> None:
    shares, labelled = np.array([[0.05, 0.02], [0.0, 0.08]]), np.array([0.1, 0.1])
    np.testing.assert_allclose(balanced_pos_weights(shares, labelled), (3, 1))
    legend = Legend(("crop", "house"), overlapping=True)
    mix = build_loss_config(TrainConfig(class_weights="balanced"), legend, shares, labelled)
    np.testing.assert_allclose(mix.class_weights, (3, 1))


# Auxiliary outputs


@pytest.mark.parametrize("k", [2, 3])
def test_auxiliary_logits_are_compared_with_averaged_labels(k: int) -> None:
    logits, label = batch(k, 0)
    label, logits = label[:, :4, :6], logits[:, :, :4, :6]
    coarse = logits.detach()[:, :, ::2, ::2].clone().requires_grad_()
    quarters = label.reshape(2, 2, 2, 3, 2).movedim(2, 3).reshape(2, 2, 3, 4).long()
    shares = nn.functional.one_hot(quarters, k).float().mean(dim=3).movedim(-1, 1)[:, 1 if k == 2 else 0 :]
    mix = LossConfig(auxiliary_weight=0.4)
    fine, half = (segmentation_loss(*each, mix) for each in ((logits, label), (coarse, shares)))
    close(segmentation_loss((logits, {2: coarse}), label, mix), fine + 0.4 * half)
    close(segmentation_loss((logits, {1: logits, 2: coarse}), label, mix), fine + 0.4 * (fine + half) / 2)
    assert torch.equal(segmentation_loss((logits, {2: coarse}), label, PLAIN), segmentation_loss(logits, label, PLAIN))
    _, alone = segmentation_losses((logits, {2: coarse}), label, mix)
    assert torch.equal(alone, segmentation_loss(logits, label, mix))


def test_mostly_unlabelled_cells_have_no_gradient() -> None:
    label = torch.full((1, 4, 4), IGNORE, dtype=torch.uint8)
    label[0, 0, 0], label[0, :2, 2:], label[0, 2, 2:] = 1, 0, 1
    coarse = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    segmentation_loss((torch.zeros(1, 1, 4, 4), {2: coarse}), label, LossConfig(auxiliary_weight=1.0)).backward()
    assert coarse.grad is not None
    assert (coarse.grad != 0).flatten().tolist() == [False, True, False, True]


# Settings


def test_settings_become_the_loss_config() -> None:
    legend = Legend(("ground", "tree", "water"))
    assert build_loss_config(TrainConfig(auxiliary_weight=0), legend) == LossConfig()
    config = TrainConfig(
        pixel_loss="focal", focal_gamma=1.5, region_loss="tversky", tversky_beta=0.6, region_loss_weight=0.4,
        class_weights="1, 2,0.5", boundary_weight=3.0, label_smoothing=0.1, auxiliary_weight=0.3,
    )  # fmt: skip
    assert build_loss_config(config, legend) == LossConfig("tversky", 0.4, 1.5, 0.6, (1.0, 2.0, 0.5), 3.0, 0.1, 0.3)
    shares = np.array([[0.2, 0.1, 0.0], [0.4, 0.1, 0.2]])
    assert build_loss_config(TrainConfig(class_weights="balanced"), legend, shares).class_weights == balanced_weights(
        shares
    )


@pytest.mark.parametrize("words", ["1,2", "1,2,3,4", "1,2,-3", "1,2,nan", "even", "", "1,2,inf"])
def test_invalid_class_weights_are_rejected(words: str) -> None:
    with pytest.raises(SettingError, match=r"3 numbers .* ground, tree, water"):
        build_loss_config(TrainConfig(class_weights=words), Legend(("ground", "tree", "water")))


def test_balanced_weights_need_class_frequencies() -> None:
    with pytest.raises(SettingError, match="class_weights = 'balanced'"):
        build_loss_config(TrainConfig(class_weights="balanced"), Legend(("ground", "tree")))


# Parts of a batch, on several processes


def pairs(logits: Tensor, label: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(logits.split(size), label.split(size), strict=True)


def add_others(record: list[Tensor], others: Iterator[Tensor] | None, sums: Tensor) -> Tensor:
    """Record `sums` and add those of the other processes."""
    record.append(sums.detach())
    return sums if others is None else sums + next(others)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("region", ["dice", "tversky"])
@pytest.mark.parametrize("cut", [1, 2])
def test_sums_over_the_parts_of_a_batch_give_its_loss_and_gradient(k: int, region: Any, cut: int) -> None:
    logits, label = batch(k, 3, ignored=0.2)
    config = LossConfig(region, 0.5, 2.0, class_weights=(1.0, 2.0, 0.5, 3.0)[:k], boundary_weight=1.0)
    segmentation_loss(logits, label, config).backward()
    parts = [(part.detach().clone().requires_grad_(), own) for part, own in pairs(logits, label, cut)]
    parts.append((logits.detach()[:0].clone().requires_grad_(), label[:0]))  # a process without a tile
    recorded = []
    for part, own in parts:
        sums: list[Tensor] = []
        segmentation_losses(part, own, config, partial(add_others, sums, None))
        recorded.append(sums)
    for i, (part, own) in enumerate(parts):
        others = [torch.stack(each).sum(0) for each in zip(*recorded[:i], *recorded[i + 1 :], strict=True)]
        loss, _ = segmentation_losses(part, own, config, partial(add_others, [], iter(others)))
        close(loss, segmentation_loss(logits, label, config))
        loss.backward()
    close(torch.cat([part.grad for part, _ in parts]), logits.grad)


def test_only_lovasz_needs_all_pixels() -> None:
    assert [LossConfig(region).needs_all_pixels for region in ("dice", "tversky", "lovasz")] == [False, False, True]
