"""What training makes small: cross-entropy and Dice over the labelled pixels of a batch."""

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from tilth.legend import IGNORE

SMOOTH = 1.0


def segmentation_loss(
    logits: Float[Tensor, "n o h w"], label: UInt8[Tensor, "n h w"], region_weight: float
) -> Float32[Tensor, ""]:
    """Return (1 - region_weight) x cross-entropy + region_weight x Dice loss over all pixels not labelled 255.

    With one output, cross-entropy and Dice are those of the article's CombinedLoss, with the sigmoid inside. With more
    outputs, the Dice loss is the mean over the classes that the batch's labels hold. Computed in float32, under
    autocast too. Zero, with gradient zero, where no pixel is labelled.
    """
    valid = label != IGNORE
    target = label.masked_fill(~valid, 0).long()
    with torch.autocast(logits.device.type, enabled=False):
        # Filled before anything else, so that not even an infinite value reaches the loss from an ignored pixel.
        known = logits.float().masked_fill(~valid[:, None], 0.0)
        pair = _binary(known[:, 0], target, valid) if logits.shape[1] == 1 else _multiclass(known, target, valid)
        entropy, dice = pair
        return (1 - region_weight) * entropy + region_weight * dice


def _binary(
    logits: Float32[Tensor, "n h w"], target: Int64[Tensor, "n h w"], valid: Bool[Tensor, "n h w"]
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    truth = target.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    inside = torch.sigmoid(logits) * valid
    return _mean(entropy, valid), _dice_loss(inside.flatten()[None], truth.flatten()[None])[0]


def _multiclass(
    logits: Float32[Tensor, "n k h w"], target: Int64[Tensor, "n h w"], valid: Bool[Tensor, "n h w"]
) -> tuple[Float32[Tensor, ""], Float32[Tensor, ""]]:
    entropy = functional.cross_entropy(logits, target, reduction="none")
    truth = functional.one_hot(target, logits.shape[1]).movedim(-1, 0) * valid
    inside = torch.softmax(logits, dim=1).movedim(1, 0) * valid
    dice = _dice_loss(inside.flatten(1), truth.flatten(1).float())
    present = truth.flatten(1).any(dim=1)
    return _mean(entropy, valid), (dice * present).sum() / present.sum().clamp(min=1)


def _mean(values: Float32[Tensor, "n h w"], valid: Bool[Tensor, "n h w"]) -> Float32[Tensor, ""]:
    return (values * valid).sum() / valid.sum().clamp(min=1)


def _dice_loss(inside: Float32[Tensor, "c p"], truth: Float32[Tensor, "c p"]) -> Float32[Tensor, " c"]:
    both = (inside * truth).sum(dim=1)
    return 1 - (2 * both + SMOOTH) / (inside.sum(dim=1) + truth.sum(dim=1) + SMOOTH)
