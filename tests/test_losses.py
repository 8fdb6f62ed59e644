import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tilth.learn.losses import segmentation_loss
from tilth.legend import IGNORE


def batch(k: int, seed: int, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 1 if k == 2 else k, 7, 6, generator=rng)
    label = torch.randint(0, k, (2, 7, 6), generator=rng, dtype=torch.uint8)
    return logits.requires_grad_(), label.masked_fill(torch.rand(2, 7, 6, generator=rng) < ignored, IGNORE)


def article_loss(outputs: Tensor, targets: Tensor, weight_dice: float) -> Tensor:
    """Return the article's CombinedLoss: BCELoss and DiceLoss of sigmoid outputs, each over the whole batch."""
    intersection = (outputs * targets).sum()
    dice = (2 * intersection + 1) / (outputs.sum() + targets.sum() + 1)
    loss: Tensor = nn.BCELoss()(outputs, targets) * (1 - weight_dice) + (1 - dice) * weight_dice
    return loss


@given(seed=st.integers(0, 10**6), weight=st.floats(0, 1))
def test_two_classes_have_the_articles_loss_and_gradient(seed: int, weight: float) -> None:
    logits, label = batch(2, seed)
    ours = segmentation_loss(logits, label, weight)
    # In double, for in float the sigmoid of a large logit has lost what its logarithm needs.
    theirs = article_loss(torch.sigmoid(logits[:, 0].double()), label.double(), weight)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    (our_gradient,), (their_gradient,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-7)


@given(seed=st.integers(0, 10**6), k=st.integers(3, 6))
def test_more_classes_have_cross_entropy_and_the_mean_dice_of_those_present(seed: int, k: int) -> None:
    logits, label = batch(k, seed, ignored=0.3)
    chosen = logits.movedim(1, -1)[label != IGNORE], label[label != IGNORE].long()
    entropy = nn.CrossEntropyLoss()(*chosen)
    torch.testing.assert_close(segmentation_loss(logits, label, 0.0), entropy, rtol=1e-5, atol=1e-6)
    shares = chosen[0].softmax(dim=1)
    of_class = [(shares[:, c], (chosen[1] == c).float()) for c in chosen[1].unique()]
    dice = torch.stack([1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1) for p, t in of_class]).mean()
    torch.testing.assert_close(segmentation_loss(logits, label, 1.0), dice, rtol=1e-5, atol=1e-6)


@given(seed=st.integers(0, 10**6), k=st.sampled_from([2, 4]), wild=st.floats(width=32))
def test_ignored_pixels_change_neither_loss_nor_gradient(seed: int, k: int, wild: float) -> None:
    logits, label = batch(k, seed, ignored=0.4)
    ignored = (label == IGNORE)[:, None].expand_as(logits)
    # Not even infinity or NaN reaches the loss from there.
    other = logits.detach().masked_fill(ignored, wild).requires_grad_()
    losses = segmentation_loss(logits, label, 0.25), segmentation_loss(other, label, 0.25)
    assert torch.equal(*losses)
    gradients = torch.autograd.grad(losses[0], logits)[0], torch.autograd.grad(losses[1], other)[0]
    assert torch.equal(*gradients)
    assert not gradients[0][ignored].any()


@pytest.mark.parametrize("k", [2, 3])
def test_without_a_labelled_pixel_loss_and_gradient_are_zero(k: int) -> None:
    logits, label = batch(k, 0, ignored=1.1)
    loss = segmentation_loss(logits, label, 0.25)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("k", [2, 3])
def test_a_perfect_answer_costs_nothing_and_its_opposite_a_lot(k: int) -> None:
    _, label = batch(k, 0)
    right = (
        (label[:, None].float() * 2 - 1) if k == 2 else nn.functional.one_hot(label.long(), k).movedim(-1, 1).float()
    )
    assert segmentation_loss(60 * right, label, 0.25) < 1e-4
    assert segmentation_loss(-60 * right, label, 0.25) > 10


@pytest.mark.parametrize("k", [2, 3])
def test_half_precision_is_left_outside(k: int) -> None:
    logits, label = batch(k, 0)
    rounded = logits.detach().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = segmentation_loss(rounded, label, 0.25)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, segmentation_loss(rounded.float(), label, 0.25))
